"""A published run on the hub: known by its configuration, fetched by its files' names, and never run."""

import json
import os
from pathlib import Path

import huggingface_hub
import pytest
import torch
from hub_cache import COMMIT

import emcl_train
from emcl_train import cli
from emcl_train.errors import UserError
from emcl_train.weights import hub
from emcl_train.weights.published import FILES, published_on_hub

pytestmark = pytest.mark.usefixtures("one_thread")

NAME = "us/tiny"


@pytest.fixture(scope="module")
def folder(tiny_whole_run, tmp_path_factory):
    """A published folder, with more in it than is read."""
    folder = tmp_path_factory.mktemp("published") / "tiny"
    assert cli.main(["publish", str(tiny_whole_run[1]), str(folder), "--quiet"]) == 0
    (folder / "modeling_tiny.py").write_text("raise SystemExit('it was run')\n")
    (folder / "pytorch_model.bin").write_bytes(b"\x80")
    return folder


def put_into_cache(cache: Path, folder: Path, name: str = NAME) -> None:
    """What downloads leave: files by their content, and links to them."""
    model = cache / f"models--{name.replace('/', '--')}"
    snapshot = model / "snapshots" / COMMIT
    snapshot.mkdir(parents=True)
    (model / "blobs").mkdir()
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text(COMMIT)
    for number, path in enumerate(sorted(folder.iterdir())):
        (model / "blobs" / str(number)).write_bytes(path.read_bytes())
        os.symlink(f"../../blobs/{number}", snapshot / path.name)


def test_a_name_of_the_hub_gives_the_model_of_the_folder(folder, tmp_path):
    put_into_cache(tmp_path, folder)
    for name in (NAME, f"hf://{NAME}"):
        model = emcl_train.load(name, cache_dir=tmp_path, local_files_only=True)
        assert model.fingerprint == emcl_train.load(folder).fingerprint
    assert torch.equal(model.encode_text("a red circle"), emcl_train.load(folder).encode_text("a red circle"))


@pytest.fixture
def served(folder, monkeypatch):
    """What the hub was asked for; it has the folder under `NAME`."""
    asked = []

    def one(name, file, **options):
        asked.append((name, file, options))
        if not (folder / file).is_file() or name != NAME:
            raise FileNotFoundError(file)
        return str(folder / file)

    def all_of(name, *, allow_patterns, **options):
        asked.append((name, allow_patterns, options))
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", one)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", all_of)
    monkeypatch.setattr(hub, "why_silent", lambda name: None)
    return asked


def test_only_files_that_are_read_are_fetched(served, folder):
    assert published_on_hub(NAME, revision="v1", token="t") == folder
    options = {"revision": "v1", "token": "t"}
    assert served == [(NAME, "config.json", options), (NAME, list(FILES), options)]
    assert not any(name.endswith((".py", ".bin")) for name in FILES)


def test_an_entry_of_another_kind_is_none(served, folder, monkeypatch, tmp_path):
    assert published_on_hub("laion/CLIP-of-nobody") is None  # no config.json
    for content in (
        {"model_type": "clip"},
        {"recipe": "shapes"},
        [],
        {"model_type": "x", "recipe": 1, "data": {}, "model": {}},
    ):
        (tmp_path / "config.json").write_text(json.dumps(content))
        monkeypatch.setattr(huggingface_hub, "hf_hub_download", lambda *_, **__: str(tmp_path / "config.json"))
        assert published_on_hub(NAME) is None
    assert all(asked[1] == "config.json" for asked in served)


@pytest.mark.parametrize("name", ["runs/a/b", "./clip", "ViT-B-32.pt", "ViT-B/32", "RN50", "random", "/tmp"])
def test_the_hub_is_not_asked_for_what_is_no_name_of_it(name, served):
    assert published_on_hub(name) is None
    assert served == []


def test_a_download_that_breaks_off_is_one_line(served, monkeypatch):
    def broken(*_, **__):
        raise OSError("connection reset")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", broken)
    with pytest.raises(UserError, match=r"us/tiny is a published run, whose files cannot be had \(connection reset\)"):
        emcl_train.load(NAME)


def test_options_are_those_of_the_hub(served):
    with pytest.raises(TypeError, match="there is no option 'branch'; of the hub there are revision, token"):
        emcl_train.load(NAME, branch="main")
    with pytest.raises(UserError, match="ViT-B/32 is no published run on the hub, for which revision are"):
        emcl_train.load("ViT-B/32", revision="main")


def test_weights_that_are_not_as_the_checksum_says_are_refused(folder, tmp_path):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = bytearray((tmp_path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (tmp_path / "model.safetensors").write_bytes(weights)
    with pytest.raises(UserError, match=r"model.safetensors"):
        emcl_train.load(tmp_path)
