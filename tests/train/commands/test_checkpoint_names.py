"""Names of checkpoints as users have them: OpenAI's, those of the hub with `hf://`, and the folder of a run."""

from dataclasses import replace
from pathlib import Path

import pytest

from emcl_train import cli
from emcl_train.config import ModelConfig
from emcl_train.errors import UserError
from emcl_train.recipes import load_recipe
from emcl_train.runs.contents import save_config
from emcl_train.weights.hub import OF_OPENAI, RESNETS, plain_names


@pytest.fixture
def trained(monkeypatch, tmp_path):
    """Configurations that `train` was called with."""
    import emcl_train.training.trainer

    calls = []
    monkeypatch.setattr(emcl_train.training.trainer, "train", lambda config, **_: calls.append(config))
    monkeypatch.chdir(tmp_path)
    return calls


@pytest.mark.parametrize(
    ("given", "name"), [*OF_OPENAI.items(), ("hf://openai/x-1", "openai/x-1"), ("hf://gpt2/", "gpt2"), ("a/b", "a/b")]
)
def test_a_name_is_understood(given, name, trained):
    assert cli.main(["train", "msrvtt-9k", "--model.clip", given, "--model.tokenizer", "hf://a/b"]) == 0
    assert (trained[0].model.clip, trained[0].model.tokenizer) == (name, "a/b")
    save_config(Path("run"), trained[0])
    assert cli.main(["train", "msrvtt-9k", "--model.clip", given, "--out", "run", "--resume"]) == 0


def test_a_folder_of_such_a_name_is_meant_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ViT-B/32").mkdir(parents=True)
    Path("RN50").mkdir()
    for name in ("ViT-B/32", "RN50"):
        assert plain_names(ModelConfig(clip=name)).clip == name


@pytest.mark.parametrize("name", RESNETS)
def test_a_resnet_is_refused_with_the_way_out(name, trained, capsys):
    assert cli.main(["train", "msrvtt-9k", "--model.clip", name]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"error: model.clip is {name}, OpenAI's CLIP with a ResNet; only those with a vision")
    assert "pass --model.clip ViT-B/32, ViT-B/16" in said
    assert trained == []


@pytest.mark.parametrize("name", ["hf://a/b/c", "hf://a/b@main", "hf://", "hf://a b"])
def test_what_is_no_name_of_the_hub_is_refused(name, trained, capsys):
    assert cli.main(["train", "msrvtt-9k", "--model.clip", name]) == 1
    assert f"model.clip is {name}, expected hf://ORGANISATION/NAME" in capsys.readouterr().err
    assert trained == []


@pytest.mark.parametrize("arguments", [
    ["train", "shapes", "--out", "hf://a/b"], ["train", "shapes", "--out=hf://a/b"],
    ["train", "shapes", "--data.root", "s3://bucket/x"], ["train", "shapes", "--model.init-from", "https://x/y.bin"],
    ["eval", "hf://a/b"], ["embed", "shapes", "--out", "hf://a/b"], ["export", "run", "hf://a/b", "--layout", "openai"],
    ["report", "hf://a/b"], ["verify", "hf://a/b"], ["data", "shapes", "hf://a/b"],
    ["refine", "hf://a", "b", "--out", "c"],
    ["resume", "hf://a/b"], ["data", "compress", "videos", "file:///x"],
], ids=" ".join)  # fmt: skip
def test_an_address_is_no_folder(arguments, trained, capsys):
    assert cli.main(arguments) == 1
    said = capsys.readouterr().err
    address = next(argument.rpartition("=")[2] for argument in arguments if "://" in argument)
    assert said.count("\n") == 1
    assert f"{address}, an address, expected a file or folder of this machine" in said
    assert ("hf download" in said) == ("hf://" in said)
    assert trained == []
    assert list(Path().iterdir()) == []


def test_a_run_to_start_from_is_its_folder(trained, tmp_path, capsys):
    save_config(tmp_path / "run", load_recipe("shapes"))
    assert cli.main(["train", "shapes", "--model.init-from", "run"]) == 1
    assert "model.init_from is run, a folder without model.safetensors" in capsys.readouterr().err
    (tmp_path / "run" / "model.safetensors").touch()
    assert cli.main(["train", "shapes", "--model.init-from", "run"]) == 0
    assert trained[0].model.init_from == Path("run/model.safetensors")
    for seed in (0, 1):
        save_config(tmp_path / f"runs/seed-{seed}", replace(load_recipe("shapes")))
    with pytest.raises(UserError, match="2 runs with different seeds; pass one of them: runs/seed-0, runs/seed-1"):
        plain_names(ModelConfig(init_from=Path("runs")))
