"""Settings of CLIP's towers in configurations of strangers: those that make a model are taken, others are named."""

import json
import os

import numpy as np
import pytest
import torch
from hostile_weights import archive
from safetensors.torch import save_file

from emcl_train.errors import UserError
from emcl_train.reading.arrays import open_npy, read_npz
from emcl_train.runs.clip_config import build_clip, clip_config_of_fields, read_clip_config
from emcl_train.runs.state import read_tensors
from emcl_train.runs.torch_file import load_torch_file
from emcl_train.weights.files import read_state

TOWER = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
GOOD = {
    "projection_dim": 8,
    "text_config": TOWER | {"vocab_size": 20, "max_position_embeddings": 8, "eos_token_id": 3},
    "vision_config": TOWER | {"image_size": 32, "patch_size": 16},
}


def changed(tower: str | None, **values: object) -> dict[str, object]:
    return GOOD | values if tower is None else GOOD | {tower: GOOD[tower] | values}


@pytest.mark.parametrize(
    ("tower", "name", "value"),
    [
        ("text_config", "initializer_range", -1),
        ("vision_config", "initializer_range", 1e9),
        ("text_config", "initializer_factor", -1.0),
        (None, "initializer_factor", -1.0),
        ("vision_config", "attention_dropout", 5),
        ("vision_config", "patch_size", 64),
        ("text_config", "eos_token_id", [2, 3]),
        ("text_config", "eos_token_id", []),
    ],
)
def test_what_makes_no_model_is_named(tower, name, value):
    with pytest.raises(UserError, match=f"the file does not describe a CLIP: .*{name} "):
        clip_config_of_fields(changed(tower, **{name: value}), "the file")


@pytest.mark.parametrize(
    ("tower", "name", "value"),
    [
        (None, "logit_scale_init_value", 2),
        (None, "initializer_factor", 1),
        ("text_config", "initializer_range", 0),
        ("text_config", "attention_dropout", 1),
        ("vision_config", "patch_size", 32),
        ("text_config", "eos_token_id", [3]),
        ("text_config", "eos_token_id", None),
        ("text_config", "bos_token_id", None),
    ],
)
def test_unusual_settings_make_one(tower, name, value):
    config = clip_config_of_fields(changed(tower, **{name: value}), "the file")
    assert build_clip(config).logit_scale.is_floating_point()
    if value == [3]:
        assert config.text_config.eos_token_id == 3


def test_weights_of_a_run_from_features_are_not_compared_with_its_towers(tmp_path):
    """They have none: the towers made the features."""
    wide = changed("text_config", vocab_size=8 * 10**5) | {"logit_scale_init_value": 2.6}
    (tmp_path / "clip_config.json").write_text(json.dumps(wide))
    (tmp_path / "config.json").write_text(json.dumps({"from_features": str(tmp_path / "gone")}))
    save_file({"head.weight": torch.ones(2)}, tmp_path / "model.safetensors")
    assert read_clip_config(tmp_path, tmp_path / "model.safetensors")["text_config"]["vocab_size"] == 8 * 10**5


READERS = {
    "npy": open_npy,
    "npz": lambda path: read_npz(path, "a"),
    "safetensors": lambda path: read_tensors(path, "copy it"),
    "pt": load_torch_file,
    "pth": read_state,
}


@pytest.mark.parametrize("suffix", READERS)
@pytest.mark.parametrize("kind", ["a pipe", "a folder"])
def test_what_is_no_file_is_not_waited_for(kind, suffix, tmp_path):
    path = tmp_path / f"a.{suffix}"
    os.mkfifo(path) if kind == "a pipe" else path.mkdir()
    with pytest.raises((ValueError, OSError, UserError), match=r"no regular file|a folder|is no file"):
        READERS[suffix](path)


def test_a_link_to_an_array_is_read(tmp_path):
    np.save(tmp_path / "a.npy", np.ones(3))
    (tmp_path / "b.npy").symlink_to(tmp_path / "a.npy")
    assert open_npy(tmp_path / "b.npy").sum() == 3


def test_no_memory_is_not_called_damage(tmp_path, monkeypatch):
    def none(*arguments, **settings):
        raise MemoryError

    torch.save({"a": torch.ones(1)}, tmp_path / "a.pt")
    monkeypatch.setattr("emcl_train.weights.files.load_torch_file", none)
    with pytest.raises(MemoryError):
        read_state(tmp_path / "a.pt")


@pytest.mark.parametrize(
    ("arguments", "said"), [(b")", "no tensors|no weights|holds"), (b"]\x85", "makes a dict of values")]
)
def test_a_dict_in_an_archive_begins_empty(arguments, said, tmp_path):
    """Keys that it is made of would be hashed before they are looked at: the hash of a deep one ends the process."""
    path = archive(b"ccollections\nOrderedDict\n" + arguments + b"R")(tmp_path)
    with pytest.raises(UserError, match=said):
        read_state(path)
