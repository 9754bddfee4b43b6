"""Weights of a run under other names, and back from there into the same model."""

import dataclasses
import json
import shutil

import pytest
import torch
from PIL import Image
from safetensors import SafetensorError
from transformers import AutoProcessor, CLIPModel, CLIPProcessor, PreTrainedTokenizerFast

from emcl_train import cli
from emcl_train.data.text import load_tokenizer
from emcl_train.errors import UserError
from emcl_train.models import build_model
from emcl_train.runs import contents
from emcl_train.runs.clip_config import read_clip_config
from emcl_train.runs.contents import load_config
from emcl_train.runs.state import read_weights
from emcl_train.weights.keys import put_weights

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def run_dir(tiny_whole_run):
    return tiny_whole_run[1]


@pytest.fixture(scope="module")
def trained(run_dir):
    """The run's model, built from its folder alone."""
    config = load_config(run_dir)
    config.model.clip = "no/such/checkpoint"
    model = build_model(config, load_tokenizer(config, run_dir), clip_config=read_clip_config(run_dir))
    put_weights(model, read_weights(run_dir), run_dir)
    return model.eval()


@torch.no_grad()
def similarity(model, config):
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(4, 9, (5, config.data.max_words), generator=generator)
    ids[:, 6], ids[:, 7:] = 3, 0
    frames = torch.randint(0, 256, (4, 3, 3, 16, 16), dtype=torch.uint8, generator=generator)
    text = model.encode_text({"input_ids": ids, "attention_mask": (ids != 0).long()})
    video = model.encode_video({"frames": frames, "frame_mask": torch.ones(4, 3).bool()})
    return model.similarity(text, video, emcl=config.emcl.mode != "off")


@pytest.mark.parametrize("layout", ["clip4clip", "emcl"])
@pytest.mark.parametrize("suffix", ["bin", "safetensors"])
def test_a_whole_model(run_dir, trained, tmp_path, capsys, layout, suffix):
    path, config = tmp_path / f"weights.{suffix}", load_config(run_dir)
    assert cli.main(["export", str(run_dir), str(path), "--layout", layout]) == 0
    assert ("left out (1 tensors): emcl.bases" in capsys.readouterr().out) == (layout == "clip4clip")
    config.model.init_from, config.emcl.mode = path, "train" if layout == "emcl" else "off"
    back = build_model(config, load_tokenizer(config, run_dir)).eval()
    assert torch.equal(similarity(back, config), similarity(trained, config))


def test_clip_alone(run_dir, trained, tmp_path, capsys):
    config, pooled = load_config(run_dir), {}
    ids = torch.tensor([[2, 5, 6, 3] + [0] * 20])
    for layout in ("openai", "transformers"):
        path = tmp_path / layout
        assert cli.main(["export", str(run_dir), str(path), "--layout", layout]) == 0
        assert "left out" in capsys.readouterr().out
        model = dataclasses.replace(config.model, clip=str(path))
        back = build_model(dataclasses.replace(config, model=model), load_tokenizer(config, run_dir)).eval()
        found, expected = back.towers.clip.state_dict(), trained.towers.clip.state_dict()
        assert found.keys() == expected.keys()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        pooled[layout] = back.towers.encode_text(ids, (ids != 0).long())[0]
    # The folder says how many heads there are; OpenAI's names do not, and width 16 means one.
    expected = trained.towers.encode_text(ids, (ids != 0).long())[0]
    torch.testing.assert_close(pooled["transformers"], expected)
    assert not torch.allclose(pooled["openai"], expected, atol=1e-3)


@pytest.fixture(scope="module")
def gelu_run(run_dir, tmp_path_factory):
    """The run's weights in towers of another activation, as a run on such a checkpoint has them, and its model."""
    out = tmp_path_factory.mktemp("gelu") / "run"
    shutil.copytree(run_dir, out)
    clip_config, config = read_clip_config(run_dir), json.loads((run_dir / contents.CONFIG).read_text())
    clip_config["text_config"]["hidden_act"] = clip_config["vision_config"]["hidden_act"] = "gelu"
    (out / contents.CLIP_CONFIG).write_text(json.dumps(clip_config))
    config["model"]["clip"] = str(out.parent / "clip")
    (out / contents.CONFIG).write_text(json.dumps(config))
    assert cli.main(["export", str(out), str(out.parent / "clip"), "--layout", "transformers"]) == 0
    config = load_config(out)
    model = build_model(config, load_tokenizer(config, out), clip_config=clip_config)
    put_weights(model, read_weights(out), out)
    return out, model.eval()


@pytest.mark.parametrize("layout", ["clip4clip", "emcl", "own"])
def test_heads_and_activation_come_back(gelu_run, trained, tmp_path, layout):
    """They are in no shape: a safetensors file carries them, and a run folder has them beside its weights."""
    (out, model), path = gelu_run, tmp_path / "weights.safetensors"
    config = load_config(out)
    config.model.clip, config.emcl.mode = "openai/clip-vit-base-patch32", "off"
    assert not torch.allclose(similarity(model, config), similarity(trained, config), atol=1e-4)
    if layout == "own":
        path = out / contents.WEIGHTS
    else:
        assert cli.main(["export", str(out), str(path), "--layout", layout]) == 0
    config.model.init_from = path
    back = build_model(config, load_tokenizer(config, out)).eval()
    assert torch.equal(similarity(back, config), similarity(model, config))
    assert model.temporal.layers[0].mlp.config.hidden_act == "gelu"


def test_heads_and_activation_of_clip_alone_come_back(gelu_run, tmp_path):
    out, model = gelu_run
    path, config = tmp_path / "clip.safetensors", load_config(out)
    assert cli.main(["export", str(out), str(path), "--layout", "openai"]) == 0
    config.model.clip = str(path)
    back = build_model(config, load_tokenizer(config, out)).eval()
    ids = torch.tensor([[2, 5, 6, 3] + [0] * 20])
    encoded = [m.towers.encode_text(ids, (ids != 0).long())[0] for m in (back, model)]
    assert torch.equal(encoded[0], encoded[1])


def test_weights_without_them_take_those_of_the_clip_that_is_named(gelu_run, tmp_path):
    (out, model), config = gelu_run, load_config(gelu_run[0])
    config.emcl.mode = "off"
    config.model.init_from = tmp_path / "weights.bin"
    torch.save(model.state_dict(), config.model.init_from)
    back = build_model(config, load_tokenizer(config, out)).eval()
    assert torch.equal(similarity(back, config), similarity(model, config))
    config.model.clip = str(tmp_path / "absent")
    with pytest.raises(
        UserError, match=r"absent; its configuration says how many heads .* pass --model.clip the folder or name"
    ):
        build_model(config, load_tokenizer(config, out))


@pytest.mark.parametrize("layout", ["clip4clip", "emcl", "openai"])
def test_a_file_that_would_lose_them_is_refused(gelu_run, run_dir, tmp_path, capsys, layout):
    assert cli.main(["export", str(gelu_run[0]), str(tmp_path / "weights.bin"), "--layout", layout]) == 1
    assert "num_attention_heads 2, hidden_act gelu" in (error := capsys.readouterr().err)
    assert "or with --layout transformers" in error
    assert list(tmp_path.iterdir()) == []
    assert cli.main(["export", str(run_dir), str(tmp_path / "weights.bin"), "--layout", layout]) == 0
    assert "does not say how many heads the towers have" in capsys.readouterr().out


def test_a_folder_has_the_tokenizer_too(run_dir, tmp_path):
    config = load_config(run_dir)
    own = load_tokenizer(config, run_dir)
    assert cli.main(["export", str(run_dir), str(tmp_path / "clip"), "--layout", "transformers"]) == 0
    modes = {path.stat().st_mode for path in (tmp_path / "clip").iterdir()}
    assert len(modes) == 1  # safetensors makes files that only their owner may read
    config.model.clip = str(tmp_path / "clip")
    captions = ["a red square moves left", "never seen words"]
    ids, mask = load_tokenizer(config).encode(captions)
    expected = own.encode(captions)
    assert torch.equal(ids, expected[0])
    assert torch.equal(mask, expected[1])


def test_nothing_is_overwritten(run_dir, tmp_path, capsys):
    (tmp_path / "there").write_text("mine")
    assert cli.main(["export", str(run_dir), str(tmp_path / "there"), "--layout", "emcl"]) == 1
    assert "exists already and is not overwritten" in capsys.readouterr().err
    assert (tmp_path / "there").read_text() == "mine"
    assert cli.main(["export", str(tmp_path), str(tmp_path / "new"), "--layout", "emcl"]) == 1
    assert "is not a run folder: it has no config.json" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kind", "error"),
    [
        (PreTrainedTokenizerFast, OSError(28, "No space left on device")),
        (CLIPModel, SafetensorError("I/O error: No space left on device (os error 28)")),
    ],
)
def test_a_folder_is_there_whole_or_not_at_all(run_dir, tmp_path, monkeypatch, capsys, kind, error):
    def full(self, folder):
        raise error

    monkeypatch.setattr(kind, "save_pretrained", full)
    assert cli.main(["export", str(run_dir), str(tmp_path / "clip"), "--layout", "transformers"]) == 1
    assert "the disk is full" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("kind", [CLIPProcessor, AutoProcessor])
@torch.no_grad()
def test_a_folder_of_transformers_has_the_processor(run_dir, trained, tmp_path, kind):
    """Its captions and pictures give the features that the run's own do."""
    assert cli.main(["export", str(run_dir), str(tmp_path / "clip"), "--layout", "transformers"]) == 0
    processor = kind.from_pretrained(tmp_path / "clip")
    assert isinstance(processor, CLIPProcessor)

    captions = ["a red circle moves to the left", "two words"]
    config, picture = load_config(run_dir), Image.new("RGB", (40, 30), (200, 30, 90))
    inputs = processor(text=captions, images=picture, return_tensors="pt", padding=True, truncation=True)
    size = config.data.image_size
    assert inputs["pixel_values"].shape == (1, 3, size, size)
    ids, mask = load_tokenizer(config, run_dir).encode(captions)
    length = inputs["input_ids"].shape[1]
    assert torch.equal(inputs["input_ids"], ids[:, :length])
    assert not mask[:, length:].any()

    found = CLIPModel.from_pretrained(tmp_path / "clip")(**inputs)
    frames = torch.tensor((200, 30, 90), dtype=torch.uint8).view(1, 1, 3, 1, 1).expand(1, 1, 3, size, size)
    expected = (trained.towers.encode_text(ids, mask)[0], trained.towers.encode_frames(frames)[0])
    for unit, features in zip((found.text_embeds, found.image_embeds), expected, strict=True):
        torch.testing.assert_close(unit, torch.nn.functional.normalize(features, dim=-1))
