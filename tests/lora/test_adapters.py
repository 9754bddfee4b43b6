"""--train.lora: adapters learn while the towers stay, and what a run keeps is a model without them."""

import io
import json
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from several_processes import one_step
from small_towers import FAMILIES, config_of, write_towers
from stopped_training import Stopped, stopped_after

from emcl_train.config import TrainConfig
from emcl_train.data.text import load_tokenizer
from emcl_train.encoder import load
from emcl_train.errors import UserError
from emcl_train.models import build_model, look_ahead
from emcl_train.models.towers.adapters import adapt, merged
from emcl_train.runs import state as checkpoint
from emcl_train.runs.records import MEASURED
from emcl_train.tools.publish import publish_run
from emcl_train.training import trainer

CAPTIONS = ["a red circle moves left", "the blue square moves slowly", "stays"]
RANK = 3


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """The report's plots take longer than all the rest."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)


@pytest.fixture(scope="session")
def folders(tmp_path_factory):
    root = tmp_path_factory.mktemp("towers")
    return {family: write_towers(family, root / family) for family in FAMILIES}


@pytest.fixture(scope="session")
def root(tmp_path_factory):
    return tmp_path_factory.mktemp("set") / "shapes"


def config_for(family, folders, root, out, **train):
    parts = {"head": "mean", "temporal": "mean"} if family == "xclip" else {}
    return config_of(folders[family], root, out, **parts, **({"lora": RANK, "lr": 1e-2} | train))


def trained(config):
    """Returns: the run's folder, and what was printed."""
    console = Console(file=io.StringIO(), width=200)
    return trainer.train(config, console), console.file.getvalue()


@torch.no_grad()
def features_of(towers, config):
    """Of drawn captions and frames."""
    draw = torch.Generator().manual_seed(0)
    ids = torch.randint(5, 20, (4, config.data.max_words), generator=draw)
    size = (4, config.data.num_frames, 3, config.data.image_size, config.data.image_size)
    frames = torch.randint(0, 256, size, dtype=torch.uint8, generator=draw)
    mask = {"frame_mask": torch.ones(size[:2], dtype=torch.bool)} if "frame_mask" in towers.frame_inputs else {}
    text, _ = towers.eval().encode_text(ids, torch.ones_like(ids))
    return text, towers.encode_frames(frames=frames, **mask)


def moved(towers):
    """Let adapters do something: they begin without effect."""
    with torch.no_grad():
        for name, value in towers.named_parameters():
            if ".lora_B." in name:
                value.normal_(std=0.1)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_sum_of_weights_and_adapters_gives_their_features(family, folders, root, tmp_path):
    config = config_for(family, folders, root, tmp_path / "run", lora_alpha=7.0)
    tokenizer = load_tokenizer(config)
    plain, model = build_model(config, tokenizer), build_model(config, tokenizer)
    model.load_state_dict(plain.state_dict())
    names = list(plain.state_dict())
    before = features_of(plain.towers, config)

    # As they begin, adapters change nothing.
    numbers = adapt(model.towers, config.train)
    for found, expected in zip(features_of(model.towers, config), before, strict=True):
        assert found.equal(expected)
    adapters = [name for name, value in model.towers.named_parameters() if value.requires_grad]
    assert [name for name in adapters if "lora_" not in name and not name.endswith(("logit_scale", "logit_bias"))] == []
    towers = ("text_model", "vision_model", "mit") if family == "xclip" else ("text_model", "vision_model")
    layers = {"xclip": 2 * 4 + 2 * 8 + 4 * 2}.get(family, 4 * 4)
    assert numbers.layers == layers
    assert {name.split(".")[1] for name in adapters if "lora_" in name} == set(towers)
    assert numbers.trained == sum(value.numel() for name, value in model.named_parameters() if "lora_" in name)

    moved(model.towers)
    after = features_of(model.towers, config)
    assert all((new - old).abs().max() > 1e-3 for new, old in zip(after, before, strict=True))
    whole = merged(model.state_dict(), config.train)
    assert sorted(whole) == sorted(names)
    plain.load_state_dict(whole)
    for found, expected in zip(features_of(plain.towers, config), after, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * max(1.0, float(expected.abs().max())))


def test_the_sum_is_that_of_peft(folders, root, tmp_path):
    config = config_for("siglip", folders, root, tmp_path / "run")
    model = build_model(config, load_tokenizer(config))
    adapt(model.towers, config.train)
    moved(model.towers)
    whole = merged(model.state_dict(), config.train)
    layer = model.towers.model.text_model.encoder.layers[1].self_attn.q_proj
    layer.merge()
    torch.testing.assert_close(
        whole["towers.model.text_model.encoder.layers.1.self_attn.q_proj.weight"], layer.base_layer.weight
    )


@pytest.mark.parametrize("family", ["siglip", "chinese_clip"])
def test_a_run_keeps_a_model_without_adapters(family, folders, root, tmp_path):
    run, said = trained(config_for(family, folders, root, tmp_path / "run"))
    assert f"adapters of rank {RANK} on 16 layers: {16 * RANK * 32:,} weights are trained" in said
    assert "peft" in json.loads((run / "environment.json").read_text())["packages"]

    # Attention has changed, whatever else the towers have is as it was; all names are the library's.
    weights, start = load_file(run / "model.safetensors"), load(folders[family])._model.towers.model.state_dict()
    towers = {name.removeprefix("towers.model."): value for name, value in weights.items() if "towers." in name}
    assert set(towers) == set(start)
    changed = {name for name, value in start.items() if not value.equal(towers[name])}
    expected = {"q_proj", "k_proj", "v_proj", "out_proj"}
    expected |= {"query", "key", "value", "dense"} if family == "chinese_clip" else set()
    assert {name.rpartition(".")[0].split(".")[-1] for name in changed if "logit" not in name} == expected

    # What else learns has learnt, and adapters are in the state alone.
    saved = checkpoint.load_state(run).model
    assert any("lora_A" in name for name in saved)
    assert ("towers.model.logit_bias" in saved) == (family == "siglip")
    assert "logit_scale" in changed

    # The kept model is an ordinary one, and its features are those of the adapters.
    publish_run(run, tmp_path / "published")
    ours, published = load(run), load(tmp_path / "published")
    torch.testing.assert_close(published.encode_text(CAPTIONS), ours.encode_text(CAPTIONS), rtol=0, atol=1e-6)
    config = config_for(family, folders, root, tmp_path / "again")
    model = build_model(config, load_tokenizer(config))
    adapt(model.towers, config.train)
    model.load_state_dict(saved)
    for found, expected in zip(features_of(ours._model.towers, config), features_of(model.towers, config), strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-6 * max(1.0, float(expected.abs().max())))


def record(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        for name in MEASURED:
            line.pop(name, None)
    return lines, (run / "model.safetensors").read_bytes(), json.loads((run / "results.json").read_text())


@pytest.mark.parametrize("moment", ["between two steps", "before the weights are written"])
def test_a_run_that_was_ended_goes_on_with_its_adapters(moment, folders, root, tmp_path, monkeypatch):
    config = config_for("siglip", folders, root, tmp_path / "run", lora_dropout=0.2)
    whole, _ = trained(replace(config, out=tmp_path / "whole"))
    if moment == "between two steps":
        with stopped_after(2):
            trained(config)
    else:

        def not_written(run):
            raise Stopped

        with monkeypatch.context() as patch:
            patch.setattr(trainer.Run, "save_selected", not_written)
            with pytest.raises(Stopped):
                trained(config)
    run, _ = trained(replace(config, resume=True))
    assert record(run) == record(whole)


@pytest.mark.parametrize("also", [{"gradient_checkpointing": True}, {"chunks": 3}])
def test_gradients_of_adapters_are_the_same_in_less_memory(also, folders, root, tmp_path):
    def begun(run):
        torch.manual_seed(1)
        moved(run.model.towers)

    plain = one_step(config_for("siglip", folders, root, tmp_path / "plain"), begun, frozen=True)
    less = one_step(config_for("siglip", folders, root, tmp_path / "less", **also), begun, frozen=True)
    assert less["loss"] == pytest.approx(plain["loss"], rel=1e-6)
    assert {name for name in plain["gradients"] if "lora_" in name}
    total = torch.cat([gradient.flatten() for gradient in plain["gradients"].values()]).norm()
    for name, gradient in plain["gradients"].items():
        assert (less["gradients"][name] - gradient).norm() <= 1e-5 * gradient.norm() + 1e-7 * total, name


def test_adapters_learn_at_the_rate_of_what_is_not_clip(folders, root, tmp_path):
    seen = []
    config = config_for("siglip", folders, root, tmp_path / "run", lr=1e-3)
    one_step(config, lambda run: seen.extend(group["peak_lr"] for group in run.optimizer.param_groups), frozen=True)
    assert set(seen) == {1e-3}


def test_a_rank_that_saves_nothing_is_refused(folders, root, tmp_path):
    config = config_for("siglip", folders, root, tmp_path / "run", lora=8)
    with pytest.raises(UserError, match=r"train.lora is 8, expected at most 7: in a tower of width 16 .* --train.lora"):
        look_ahead(config)
    look_ahead(replace(config, train=replace(config.train, lora=7)))


def test_adapters_stand_in_both_towers_or_in_none(folders, root, tmp_path):
    # As in a version of the library that calls the layers of one tower otherwise.
    config = config_for("siglip", folders, root, tmp_path / "run")
    model = build_model(config, load_tokenizer(config))
    model.towers.attention = model.towers.attention.replace("(text_model|vision_model)", "vision_model")
    with pytest.raises(UserError, match=r"train.lora is 3, and adapters are not built for SiglipModel; pass --tr"):
        adapt(model.towers, config.train)


def test_weights_without_adapters_keep_their_names():
    weights = {"towers.model.visual.trunk.base_layer.0.weight": torch.ones(2)}
    assert merged(weights, TrainConfig()) == weights


def test_towers_without_named_attention_are_refused(folders, root, tmp_path):
    config = config_for("siglip", folders, root, tmp_path / "run")
    model = build_model(config, load_tokenizer(config))
    model.towers.attention = "nothing"
    with pytest.raises(UserError, match=r"train.lora is 3, and adapters are not built for SiglipModel; pass --tr"):
        adapt(model.towers, config.train)
