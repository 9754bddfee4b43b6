"""Settings that do not fit are named before a clip is decoded."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from transformers import CLIPConfig, CLIPModel

from emcl_train import cli
from emcl_train.data import loader
from emcl_train.errors import UserError
from emcl_train.experts.mmt import SMALL_BERT
from emcl_train.models import look_ahead
from emcl_train.models.experts.bert import build_bert
from emcl_train.recipes import in_mode, load_recipe
from emcl_train.runs.state import save_tensors_atomic
from emcl_train.weights.openai import clip_to_openai

pytestmark = pytest.mark.usefixtures("one_thread")


@pytest.fixture(scope="module")
def towers(tmp_path_factory):
    """A small CLIP as a folder and as a file with OpenAI's names: frames of 16, 9 tokens, width 64."""
    folder = tmp_path_factory.mktemp("clip")
    size = {"hidden_size": 64, "intermediate_size": 256, "num_hidden_layers": 1, "num_attention_heads": 1}
    text = size | {"vocab_size": 30, "max_position_embeddings": 9, "eos_token_id": 1, "pad_token_id": 0}
    vision = size | {"image_size": 16, "patch_size": 8}
    clip = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64))
    clip.save_pretrained(folder / "folder")
    save_tensors_atomic(folder / "file.safetensors", clip_to_openai(clip.state_dict()))
    return folder


FIT = {"data.image-size": "16", "data.max-words": "9", "emcl.num-bases": "4"}
WRONG = {
    "image size": (
        {"data.image-size": "32"},
        "data.image_size is 32 but the vision tower of {} takes 16; pass",
    ),
    "words": ({"data.max-words": "10"}, "data.max_words is 10 but the text tower of {} takes at most 9 tokens; pass"),
    "bases": ({"emcl.num-bases": "65"}, "emcl.num_bases is 65, expected 1 to 64, the width of the features; pass --em"),
    "chunks": ({"train.chunks": "129"}, "train.chunks is 129, expected 1 to 128, the pairs of a batch; pass --train.c"),
}


@pytest.mark.parametrize("command", ["train", "embed"])
@pytest.mark.parametrize("kind", ["folder", "file.safetensors"])
@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_a_checkpoint_is_said_first(towers, tmp_path, monkeypatch, capsys, command, kind, case):
    monkeypatch.setattr(loader, "check_clips", None)
    monkeypatch.setattr(loader, "load_annotations", None)
    settings, message = WRONG[case]
    flags = [word for name, value in (FIT | settings).items() for word in (f"--{name}", value)]
    arguments = [command, "msrvtt-9k", "--model.clip", str(towers / kind), "--out", str(tmp_path / "out"), *flags]
    assert cli.main(arguments) == 1
    assert message.format(towers / kind) in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


RANDOM = {
    "patches": (
        {"model.random-clip.patch-size": "9"},
        "data.image_size is 224, which model.random_clip.patch_siz",
    ),
    "heads": ({"model.random-clip.heads": "3"}, "model.random_clip.width is 128, which model.random_clip.heads = 3 do"),
    "bases": ({"emcl.num-bases": "129"}, "emcl.num_bases is 129, expected 1 to 128, the width of the features"),
}


@pytest.mark.parametrize("case", RANDOM)
def test_what_does_not_fit_a_random_clip_is_said_first(tmp_path, monkeypatch, capsys, case):
    monkeypatch.setattr(loader, "check_clips", None)
    settings, message = RANDOM[case]
    flags = [word for name, value in settings.items() for word in (f"--{name}", value)]
    assert cli.main(["train", "msrvtt-9k", "--model.clip", "random", "--out", str(tmp_path / "out"), *flags]) == 1
    assert message in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_chunks_are_those_of_each_process(tmp_path, monkeypatch):
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "4")
    config = load_recipe("msrvtt-9k")
    config = replace(config, out=tmp_path / "out", model=replace(config.model, clip="random"))
    with pytest.raises(UserError, match=r"train.chunks is 33, expected 1 to 32, the pairs that each process has of a"):
        look_ahead(replace(config, train=replace(config.train, chunks=33)))


def test_features_that_the_disk_has_no_room_for_are_refused_before_a_clip_is_decoded(
    tiny_whole_run, tmp_path, monkeypatch, capsys
):
    from types import SimpleNamespace

    from emcl_train.tools import embed

    monkeypatch.setattr(loader, "check_clips", None)
    monkeypatch.setattr(embed.shutil, "disk_usage", lambda _: SimpleNamespace(free=1000))
    assert cli.main(["embed", str(tiny_whole_run[1]), "--out", str(tmp_path / "out")]) == 1
    said = capsys.readouterr().err
    # 52 clips of 3 frames, 84 captions, 16 wide.
    assert "the disk is too small: features of 52 clips and " in said
    assert "GB, and" in said
    assert "has 1e-06 GB left; free some space, or choose another --out" in said


@pytest.fixture(scope="module")
def bert(tmp_path_factory):
    """A small BERT that reads 40 tokens, with a vocabulary."""
    folder = tmp_path_factory.mktemp("bert")
    build_bert(SMALL_BERT).save_pretrained(folder)
    (folder / "vocab.txt").write_text("[PAD]\n")
    return folder


@pytest.mark.parametrize(
    ("recipe", "settings", "said"),
    [
        ("mmt-msrvtt", {"experts.text": "./absent"}, "experts.text is ./absent, which is neither a file nor a folder"),
        ("mmt-msrvtt", {"experts.heads": 3}, "512 wide, which 3 heads do not divide; pass --experts.width"),
        ("mmt-own", {"experts.heads": 3, "experts.text": "random"}, "512 wide, which 3 heads do not divide"),
        ("mmt-msrvtt", {"experts.names": ("rgb", "smell")}, "experts.names has smell, which the system does not know"),
        ("mmt-msrvtt", {"emcl.num_bases": 513}, "emcl.num_bases is 513, expected 1 to 512, the width of the features"),
        ("ce-msrvtt", {"emcl.num_bases": 769}, "emcl.num_bases is 769, expected 1 to 768"),
        ("ce-msrvtt", {"experts.width": 8}, "emcl.num_bases is 64, expected 1 to 8"),
        ("ce-msrvtt", {"experts.sizes": "own"}, "experts.sizes is own, and ce has sizes for"),
        ("jsfusion-lsmdc", {"data.max_words": 6}, "data.max_words is 6, and JSFusion's convolutions need 7 or more"),
    ],
)
def test_what_does_not_fit_a_system_on_experts_is_said_before_its_files_are_opened(recipe, settings, said):
    config = load_recipe(recipe)
    if not recipe.startswith("jsfusion"):
        config = in_mode(config, "train")
    for name, value in settings.items():
        section, _, last = name.partition(".")
        setattr(getattr(config, section), last, value)
    with pytest.raises(UserError) as error:
        look_ahead(config)
    assert said in str(error.value)
    assert look_ahead(replace(config, resume=True)) is None  # it was looked at when it began


def test_the_bert_of_a_run_is_looked_at_first(bert, tmp_path):
    config = load_recipe("mmt-msrvtt")
    config.experts.text = str(bert)
    assert look_ahead(config) is None
    config.data.max_words = 41
    with pytest.raises(UserError, match=r"data.max_words is 41, and .* reads at most 40 tokens; pass --data.max-words"):
        look_ahead(config)

    (tmp_path / "config.json").write_text((bert / "config.json").read_text())
    config.experts.text = str(tmp_path)
    with pytest.raises(UserError, match=r"has no vocabulary \(vocab.txt or tokenizer.json\)"):
        look_ahead(config)


@pytest.mark.parametrize(
    ("recipe", "name"),
    [("ce-msrvtt", "ce.moe_fc.weight"), ("ce-msrvtt", "system.reduction.0.weight"), ("mmt-lsmdc", "vid_bert.pooler.x")],
)
def test_a_checkpoint_of_another_system_is_named_first(recipe, name, tmp_path):
    config = load_recipe(recipe)
    if recipe.startswith("mmt"):
        config.experts.text = "random"
    for names, fits in (([name], True), (["visual.proj", "ln_final.weight"], False)):
        path = tmp_path / ("ours.safetensors" if name.startswith("system.") else "theirs.pth")
        path.unlink(missing_ok=True)
        state = {one: torch.zeros(2) for one in names}
        save_tensors_atomic(path, state) if path.suffix == ".safetensors" else torch.save({"state_dict": state}, path)
        config.model.init_from = Path(path)
        if fits:
            assert look_ahead(config) is None
            continue
        with pytest.raises(UserError, match=r"init_from is .*, which is no checkpoint of (CE|MMT): it begins with "):
            look_ahead(config)
