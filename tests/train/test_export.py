"""Weights of a run under other names, and back from there into the same model."""

import dataclasses

import pytest
import torch

from emcl_train import cli
from emcl_train.checkpoint import load_config
from emcl_train.data.text import load_tokenizer
from emcl_train.evaluate import put_weights, read_clip_config, read_weights
from emcl_train.models import build_model

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
    text = model.encode_text(ids, (ids != 0).long())
    return model.similarity(text, model.encode_video(frames, torch.ones(4, 3).bool()), emcl=config.emcl.mode != "off")


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


def test_a_folder_has_the_tokenizer_too(run_dir, tmp_path):
    config = load_config(run_dir)
    own = load_tokenizer(config, run_dir)
    assert cli.main(["export", str(run_dir), str(tmp_path / "clip"), "--layout", "transformers"]) == 0
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
    assert "has no model.safetensors yet" in capsys.readouterr().err
