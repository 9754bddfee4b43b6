"""What is given for a checkpoint is looked at before anything else, and a hub that is silent is asked once."""

from dataclasses import replace

import pytest
import torch
from hostile_weights import clip_folder, edited

from emcl_train import cli
from emcl_train.config import ModelConfig, RunConfig
from emcl_train.data.text import load_tokenizer
from emcl_train.errors import UserError
from emcl_train.models import look_at_clip
from emcl_train.models.clip_folder import pretrained_clip
from emcl_train.weights import hub
from emcl_train.weights.prepared import family_of

NAME = "nobody/clip"


@pytest.fixture
def asked(monkeypatch):
    """What the hub was asked for; it does not answer."""
    calls = []

    def silent(url, **_):
        calls.append(url)
        raise ConnectionError("no network")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", silent)
    hub.why_silent.cache_clear()
    yield calls
    hub.why_silent.cache_clear()


@pytest.mark.parametrize("name", ["openai/clip-vit-base-patch32", "laion/CLIP-ViT-B-32-laion2B-s34B-b79K", "clip-v1.5"])
def test_a_name_of_the_hub_is_no_place(name):
    assert not hub.is_place(name)


@pytest.mark.parametrize(
    "name", ["ViT-B-32.pt", "runs/a/b", "./clip", "~/clip", "/clip", "runs/model.safetensors", "a b"]
)
def test_a_place_that_is_not_there_is_an_error_at_once(name, tmp_path, monkeypatch, asked, capsys):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(
        "emcl_train.training.trainer.prepare", lambda *_, **__: pytest.fail("the data were looked at first")
    )
    arguments = ["train", "shapes", "--data.root", "set", "--out", "run"]
    for setting in ("clip", "tokenizer"):
        assert cli.main([*arguments, f"--model.{setting}", name]) == 1
        assert f"error: model.{setting} is {name}, which is neither a file nor a folder: " in capsys.readouterr().err
    assert asked == []
    assert not (tmp_path / "run").exists()


def test_a_look_that_fails_makes_no_clip_of_another_family(monkeypatch):
    def fails(*_, **__):
        raise ConnectionError("the line broke")

    monkeypatch.setattr(hub, "why_silent", lambda name: None)
    monkeypatch.setattr("huggingface_hub.hf_hub_download", fails)
    with pytest.raises(UserError, match=r"nobody/other, which cannot be had: the line broke"):
        family_of("nobody/other")


def test_a_silent_hub_is_asked_once_and_said_so(asked):
    with pytest.raises(UserError, match=r"nobody/clip, which cannot be had: there is no such folder here, no earlier"):
        look_at_clip(ModelConfig(clip=NAME))
    with pytest.raises(UserError, match=r"no tokenizer .* the hub does not answer \(no network\)\); pass --model.clip"):
        load_tokenizer(RunConfig(model=ModelConfig(clip=NAME)))
    assert len(asked) == 1


def test_files_are_looked_at_before_the_hub(tmp_path, asked):
    (tmp_path / "broken.pt").write_text("<html>")
    torch.save({"weight": torch.ones(1)}, tmp_path / "other.pt")
    for name, message in (("broken.pt", "begins with b'<html>'"), ("other.pt", "is no CLIP with OpenAI's names")):
        with pytest.raises(UserError, match=message):
            look_at_clip(ModelConfig(clip=str(tmp_path / name)))
    with pytest.raises(UserError, match=r"model.init_from is .*none.bin, where there is no file"):
        look_at_clip(ModelConfig(clip="random", init_from=tmp_path / "none.bin"))
    assert asked == []


def test_a_checkpoint_of_tensorflow_is_named_by_what_its_files_begin_with(tmp_path):
    (tmp_path / "model.ckpt-9.index").touch()
    asked = RunConfig(model=ModelConfig(system="jsfusion", init_from=tmp_path / "model.ckpt-9"))
    hub.require_places_of(asked)
    for other in (
        replace(asked, model=replace(asked.model, system="ce")),
        replace(asked, model=replace(asked.model, init_from=tmp_path / "model.ckpt-8")),
    ):
        with pytest.raises(UserError, match=r"model.init_from is .*ckpt-\d, where there is no file"):
            hub.require_places_of(other)


def test_adapters_of_the_hub_are_not_followed(tmp_path, monkeypatch):
    folder = clip_folder(edited("adapter_config.json", base_model_name_or_path="attacker/evil"))(tmp_path)

    def served(name, file, **_):
        if not (folder / file).is_file():
            raise FileNotFoundError(file)
        return str(folder / file)

    monkeypatch.setattr("huggingface_hub.hf_hub_download", served)
    monkeypatch.setattr(hub, "why_silent", lambda name: None)
    monkeypatch.setattr("transformers.CLIPModel.from_pretrained", lambda *_, **__: pytest.fail("it was followed"))
    with pytest.raises(UserError, match=r"nobody/clip, which holds adapter_config.json: adapters"):
        pretrained_clip(NAME)
