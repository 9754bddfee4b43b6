"""Models of OpenCLIP: tokens, pixels and features as its own library has them, whole runs, and what is refused."""

import io
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image
from rich.console import Console
from safetensors.torch import load_file, save_file
from small_open_clips import KINDS, SIZE
from stopped_training import stopped_after
from tiny_run import tiny_run

import emcl_kernels
from emcl_train import cli
from emcl_train.data.picture import Picture, square
from emcl_train.encoder import load
from emcl_train.errors import UserError
from emcl_train.evaluation.run import evaluate_run
from emcl_train.models import look_at_clip
from emcl_train.reading.open_clip_fields import words_of
from emcl_train.reading.tower_fields import FIELDS
from emcl_train.runs.clip_config import read_clip_config, sized_towers
from emcl_train.runs.contents import load_config
from emcl_train.runs.open_clip_library import built, numbers_of_trunk
from emcl_train.tools.embed import embed
from emcl_train.tools.publish import publish_run
from emcl_train.training import trainer
from emcl_train.weights.prepared import family_of
from emcl_train.weights.settling import settled

CAPTIONS = [
    "A red circle moves left.",
    "the blue_square, slowly!  &amp; l'été",
    "",
    "a green triangle moves up and then down to the right, fast, and then stays, and then moves up to the left, too",
]
QUIET = {"console": Console(file=io.StringIO())}
FIELDS_HERE = FIELDS["open_clip"]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The report's plots take longer than all the rest."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    """Where the data set is rendered at first use."""
    return tmp_path_factory.mktemp("set") / "shapes"


def test_the_compiled_library_loads_beside_this_torch():
    x = torch.randn(12, 6)
    with emcl_kernels.use_backend("native"):
        responsibilities, _ = emcl_kernels.em_fit(x.T @ x, torch.randn(6, 3))
    torch.testing.assert_close(responsibilities.sum(0), torch.ones(3))


@pytest.mark.parametrize("kind", KINDS)
@torch.no_grad()
def test_tokens_pixels_and_features_are_the_librarys(kind, folders):
    folder = folders[kind]
    name = f"local-dir:{folder}"
    model, _, prepare = open_clip.create_model_and_transforms(name)
    model.eval()
    encoder = load(folder)
    data = encoder.config.data
    assert data.max_words == 16

    # Tokens.
    ids, mask = encoder._tokenizer.encode(CAPTIONS)
    expected = open_clip.get_tokenizer(name)(CAPTIONS)
    assert torch.equal(ids, expected)
    assert mask.sum(1).tolist()[2:] == [1 if kind == "siglip" else 2, 16]  # of the empty caption, and a long one
    caption, tokens = encoder._model.towers.encode_text(ids, mask, tokens=True)
    torch.testing.assert_close(caption, model.encode_text(expected), rtol=0, atol=1e-6)
    torch.testing.assert_close(encoder.text_features(CAPTIONS).caption, caption, rtol=0, atol=1e-6)
    read_at = ids.argmax(1) if kind in ("clip", "pe") else torch.full((4,), 15)
    torch.testing.assert_close(tokens[torch.arange(4), read_at], caption, rtol=0, atol=1e-6)

    # Pixels, of a picture of which an odd number of columns is cut off.
    pixels = np.random.default_rng(0).integers(0, 256, (37, 62, 3), dtype=np.uint8)
    ours = square(Picture(pixels, 37, 62), data.image_size, data.resize)
    theirs = prepare(Image.fromarray(pixels))
    described = encoder._model.towers.description()["pictures"]
    mean, std = (torch.tensor(described[name]).view(3, 1, 1) for name in ("mean", "std"))
    assert ((theirs * std + mean) * 255 - ours).abs().mean() < 0.2

    # Features of the same pixels, and the factor and the bias of the logits.
    frames = torch.stack([ours.roll(shift, 2) for shift in range(3)])[None]
    found = encoder.encode_frames(frames, torch.ones(1, 3, dtype=torch.bool)).features.frames[0]
    of_video = model.encode_image((frames[0].float() / 255 - mean) / std)
    torch.testing.assert_close(found, of_video, rtol=0, atol=1e-6)
    towers = encoder._model.towers
    assert towers.logit_scale == model.logit_scale.exp()
    assert (towers.logit_bias is None) == (kind != "siglip")
    assert towers.largest_scale == (None if kind == "siglip" else 100.0)


def config_of(folder, root, out, *, head="wti", from_features=None, mode="train", **train):
    config = tiny_run(root, out, **({"max_steps": 3, "epochs": 1, "save_every": 1, "tracker": "none"} | train))
    model = replace(config.model, clip=str(folder), head=head)
    config = replace(config, model=model, from_features=from_features, emcl=replace(config.emcl, mode=mode))
    return settled(replace(config, data=replace(config.data, cache_frames=False)), said=())


@pytest.mark.parametrize("kind", ["siglip", "pe"])
def test_a_run_trains_evaluates_embeds_and_is_loaded_without_the_folder(kind, folders, root, tmp_path):
    source = shutil.copytree(folders[kind], tmp_path / "source")
    run = trainer.train(config_of(source, root, tmp_path / "run", frozen="clip4clip"), **QUIET)
    assert load_config(run).train.loss == ("sigmoid" if kind == "siglip" else "info-nce")
    packages = json.loads((run / "environment.json").read_text())["packages"]
    assert packages["timm"] != "not installed"
    assert packages["open_clip_torch"] == open_clip.__version__
    before, after = load_file(source / "open_clip_model.safetensors"), load_file(run / "model.safetensors")
    changed = {name for name, value in before.items() if not torch.equal(value, after[f"towers.model.{name}"])}
    assert not any("patch_embed" in name or "token_embedding" in name for name in changed)
    assert any(".blocks." in name for name in changed)
    shutil.rmtree(source)

    # The same figures and rows, from the run folder alone.
    figures = json.loads((run / "results.json").read_text())["rows"]
    evaluate_run(run, out=tmp_path / "again")
    assert json.loads((tmp_path / "again" / "results.json").read_text())["rows"] == figures
    clips = sorted(root.rglob("*.mp4"))[:2]
    first = load(run)
    publish_run(run, tmp_path / "published")
    published = load(tmp_path / "published")
    assert published.fingerprint == first.fingerprint
    torch.testing.assert_close(published.encode_text(CAPTIONS), first.encode_text(CAPTIONS), rtol=0, atol=1e-6)
    torch.testing.assert_close(published.encode_video(clips), first.encode_video(clips), rtol=0, atol=1e-6)
    if kind == "pe":
        return

    # Its features in a folder, on which another run is trained.
    embed(load_config(run), tmp_path / "features", run_dir=run, **QUIET)
    features = tmp_path / "features"
    on_features = config_of(
        source, root, tmp_path / "on-features", mode="off", from_features=features, clip_lr_factor=0.0
    )
    other = trainer.train(on_features, **QUIET)
    assert read_clip_config(other) == read_clip_config(run)
    torch.testing.assert_close(load(other).encode_text(CAPTIONS), first.encode_text(CAPTIONS), rtol=0, atol=1e-6)


def test_a_run_that_was_ended_goes_on(folders, root, tmp_path):
    config = config_of(folders["siglip"], root, tmp_path / "run", gradient_checkpointing=True)
    whole = trainer.train(replace(config, out=tmp_path / "whole"), **QUIET)

    with stopped_after(2):
        trainer.train(config, **QUIET)
    run = trainer.train(replace(config, resume=True), **QUIET)
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    weights = load_file(run / "model.safetensors")
    assert weights["towers.model.logit_bias"] != -10.0


def test_a_dry_run_says_what_it_brings_along(folders, tmp_path, capsys):
    parts = ["--model.head", "mean", "--model.temporal", "mean", "--emcl.num-bases", "8"]
    places = [
        "--out",
        str(tmp_path / "run"),
        "--data.root",
        str(tmp_path / "set"),
        "--model.clip",
        str(folders["clip"]),
    ]
    assert cli.main(["train", "shapes", *places, *parts, "--dry-run"]) == 0
    said = " ".join(capsys.readouterr().out.split())
    assert "pictures 24 x 24 by clip-bilinear, captions of 16 tokens, loss info-nce" in said


def test_statistics_of_batches_stay_those_of_the_checkpoint(tmp_path):
    described = FIELDS_HERE.known({
        "embed_dim": 16, "custom_text": True,
        "vision_cfg": {"image_size": 32, "layers": [1, 1, 1, 1], "width": 8, "head_width": 8},
        "text_cfg": {"width": 16, "heads": 2, "layers": 1, "vocab_size": 50},
    })  # fmt: skip
    from emcl_train.models.towers.open_clip import OpenCLIPTowers

    pictures = {"image_size": 32, "resize": "clip", "mean": [0.5] * 3, "std": [0.5] * 3}
    towers = sized_towers(described | {"model_type": "open_clip"}, "it") | {"pictures": pictures}
    model = OpenCLIPTowers.of_description(towers).train()
    before = {name: value.clone() for name, value in model.named_buffers()}
    model.encode_frames(torch.randint(0, 256, (2, 2, 3, 32, 32), dtype=torch.uint8)).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in model.named_buffers())


@torch.no_grad()
def test_the_zoo_is_built_at_its_size_or_refused_by_name():
    """Of one config a kind: without memory for weights, with as many numbers as were counted beforehand."""
    refused = {}
    for name in ("PE-Core-S-16-384", "ViT-B-16-SigLIP2", "MobileCLIP-S1", "ViTamin-S", "convnext_base", "EVA02-B-16",
                 "RN50", "ViT-H-14-CLIPA", "ViT-B-16-quickgelu", "coca_ViT-B-32", "roberta-ViT-B-32"):  # fmt: skip
        content = open_clip.get_model_config(name)
        try:
            towers = {"model_type": "open_clip"} | FIELDS_HERE.known(content)
        except ValueError as error:
            refused[name] = str(error)
            continue
        FIELDS_HERE.width(towers)
        FIELDS_HERE.require_fitting(towers)
        words_of(content)
        trunk = FIELDS_HERE.trunk(towers)
        counted = FIELDS_HERE.numbers(towers) + (numbers_of_trunk(trunk) if trunk else 0)
        with torch.device("meta"):
            model = built(towers["model_cfg"], name)
        real = sum(parameter.numel() for parameter in model.parameters())
        assert counted == pytest.approx(real, rel=0.03), name
    assert refused == {
        "coca_ViT-B-32": "it has multimodal_cfg, a CoCa, which has a decoder beside its towers; this is not built here",
        "roberta-ViT-B-32": "it has text_cfg.hf_model_name, a text tower of transformers, whose configuration is "
        "another entry of the hub; this is not built here",
    }


# ---- what is refused, and the way out -------------------------------------------------------------------------------


def changed(folder, tmp_path, *, model=None, vision=None, text=None, pictures=None):
    """A copy of a folder with other settings."""
    copy = shutil.copytree(folder, tmp_path / "copy")
    path = copy / "open_clip_config.json"
    content = json.loads(path.read_text())
    content["model_cfg"] |= model or {}
    content["model_cfg"]["vision_cfg"] |= vision or {}
    content["model_cfg"]["text_cfg"] |= text or {}
    content["preprocess_cfg"] |= pictures or {}
    path.write_text(json.dumps(content))
    return copy


@pytest.mark.parametrize(
    ("kind", "changes", "message"),
    [
        ("clip", {"model": {"multimodal_cfg": {"width": 8}}}, "multimodal_cfg, a CoCa"),
        ("clip", {"text": {"hf_model_name": "roberta-base"}}, "hf_model_name, a text tower of transformers"),
        ("clip", {"vision": {"attentional_pool": True}}, "vision_cfg.attentional_pool is 'True', which is not built"),
        ("clip", {"vision": {"layers": 1e12}}, "vision_cfg.layers is 1000000000000.0, expected a whole number"),
        ("clip", {"text": {"width": 60000, "heads": 2}}, "describes towers of .* weights, and its file of weights"),
        ("clip", {"vision": {"head_width": 5}}, "vision_cfg.head_width is 5, which does not divide"),
        ("clip", {"text": {"tokenizer_kwargs": {"reduction_mask": "syntax"}}}, "reduction_mask is not built here"),
        ("clip", {"pictures": {"resize_mode": "longest"}}, "not built here: it has resize_mode longest"),
        ("siglip", {"vision": {"timm_model_name": "hf_hub:some/where"}}, "timm's own list, without a schema"),
        ("siglip", {"vision": {"timm_model_name": "vit_none_such"}}, "timm .* has not on its list"),
        ("siglip", {"vision": {"timm_model_name": "vit_giant_patch14_224"}}, "describes towers of .* weights, and its"),
        ("siglip", {"vision": {"image_size": 32}}, "does not take pictures of 32 pixels, as is described"),
        ("clip", {"vision": {"ls_init_value": None}}, "ls_1.gamma is unknown"),
        ("pe", {"vision": {"timm_pool": "avg"}}, "do not fit the model: .*attn_pool"),
    ],
)
def test_settings_that_are_not_built_here_are_named(kind, changes, message, folders, tmp_path):
    with pytest.raises(UserError, match=message):
        load(changed(folders[kind], tmp_path, **changes))


def test_weights_are_all_accounted_for(folders, tmp_path):
    copy = changed(folders["clip"], tmp_path)
    file = copy / "open_clip_model.safetensors"
    state = load_file(file)
    state["text.more"] = state.pop("text.ln_final.bias")
    save_file(state, file)
    with pytest.raises(UserError, match=r"text.ln_final.bias is missing; text.more is unknown"):
        load(copy)
    file.unlink()
    with pytest.raises(UserError, match=r"which has no weights of OpenCLIP: none of open_clip_model.safetensors"):
        load(copy)


def test_a_tokenizer_that_is_not_there_is_named(folders, tmp_path):
    copy = changed(folders["siglip"], tmp_path)
    (copy / "tokenizer.json").unlink()
    with pytest.raises(UserError, match=r"names the tokenizer some/where; pass --model.tokenizer some/where"):
        load(copy)


def test_a_plain_clip_goes_its_own_way(folders, tmp_path):
    plain = {"no_ln_pre": False, "ls_init_value": None, "pool_type": "tok", "final_ln_after_pool": False}
    copy = changed(folders["clip"], tmp_path, vision=plain, pictures={"interpolation": "bicubic"})
    assert (family_of(str(copy)), family_of(str(folders["clip"]))) == ("clip", "open_clip")
    with pytest.raises(UserError, match=r"a folder of OpenCLIP; pass --model.clip the file of weights in it"):
        look_at_clip(replace(tiny_run(tmp_path, tmp_path).model, clip=str(copy)))


def test_the_library_is_imported_for_its_models_alone_and_leaves_the_environment(folders):
    program = (
        "import os, sys; from emcl_train import cli; import emcl_train.encoder\n"
        "others = {'open_clip', 'timm'}\n"  # transformers itself imports torchvision where it is
        "assert not others & set(sys.modules)\n"
        "from emcl_train.runs.open_clip_library import library; library()\n"
        "assert others <= set(sys.modules) and 'TOKENIZERS_PARALLELISM' not in os.environ"
    )
    environment = {name: value for name, value in os.environ.items() if name != "TOKENIZERS_PARALLELISM"}
    where = Path(__file__).resolve().parents[2]
    done = subprocess.run([sys.executable, "-c", program], cwd=where, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert SIZE == 24
