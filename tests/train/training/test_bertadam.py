"""The recipes' optimizer is the peers': same gradients, same updates; and what they freeze stays as it is."""

import io
import json
import math
from dataclasses import replace

import pytest
import torch
from released_optimizer import LR, ReleasedOptimizer, share
from rich.console import Console
from safetensors.torch import load_file
from tiny_run import tiny_run

from emcl_train.config import DataConfig, EMCLConfig, ModelConfig, RandomClipConfig, RunConfig, TrainConfig
from emcl_train.models import CLIPTowers, build_model
from emcl_train.recipes import OF_CLIP, load_recipe
from emcl_train.runs import contents
from emcl_train.runs import state as checkpoint
from emcl_train.runs.records import MEASURED
from emcl_train.training import trainer
from emcl_train.training.bertadam import BertAdam
from emcl_train.training.optim import (
    build_optimizer,
    freeze_inputs,
    freeze_towers,
    rate_share,
    released_schedule,
    set_learning_rate,
)

FROZEN = {"none": ()} | {
    frozen: tuple(f"towers.clip.{name}" for name in names) for frozen, names in CLIPTowers.inputs.items()
}

pytestmark = pytest.mark.usefixtures("one_thread")


class Tokenizer:
    eos_token_id, pad_token_id = 1, 0

    def __len__(self):
        return 20


def config_of(temporal="transformer", head="wti", **train):
    return RunConfig(
        data=DataConfig(num_frames=3, image_size=16, max_words=7),
        model=ModelConfig("random", RandomClipConfig(16, 1, 2, 8), temporal, 1, head),
        emcl=EMCLConfig(num_bases=4),
        train=TrainConfig(**({"optimizer": "bertadam", "frozen": "conv1", "clip_lr_factor": 1e-3} | train)),
    )


def model_of(config, dtype=torch.float64):
    torch.manual_seed(0)
    model = build_model(config, Tokenizer()).to(dtype)
    freeze_inputs(model, config.train.frozen)
    return model


def learning(model):
    return {name: value for name, value in model.named_parameters() if value.requires_grad}


def gradients_of(weights, step):
    """Large ones, usual ones, such as eps is large for, and none; some change their sign each step."""
    generator = torch.Generator().manual_seed(step)
    sizes = (30.0, 1.0, 1e-3, 1e-6, 1e-9, 0.0)
    return {
        name: (sizes[i % len(sizes)] * torch.randn(value.shape, generator=generator, dtype=torch.float64)).to(
            value.dtype
        )
        for i, (name, value) in enumerate(weights.items())
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    ("temporal", "head", "clip_together", "dtype", "tolerance"),
    [
        ("transformer", "wti", True, torch.float64, 1e-11),
        ("transformer", "wti", True, torch.float32, 1e-6),
        ("lstm", "mean", False, torch.float64, 1e-11),
    ],
    ids=["float64", "float32", "each gradient clipped for itself alone"],
)
def test_same_gradients_give_the_same_updates_over_200_steps(temporal, head, clip_together, dtype, tolerance):
    total = 200
    config = config_of(temporal, head, lr=LR)
    model = model_of(config, dtype)
    weights = learning(model)
    start = {name: value.detach().clone() for name, value in weights.items()}
    expected = ReleasedOptimizer(
        {name: value.clone() for name, value in start.items()}, total, of_clip=lambda name: "clip." in name
    )
    optimizer = build_optimizer(model, config)

    for step in range(total):
        gradients = gradients_of(weights, step)
        expected.step(gradients, clip_together=clip_together)
        for name, value in weights.items():
            value.grad = gradients[name].clone()
        if clip_together:
            torch.nn.utils.clip_grad_norm_(weights.values(), config.train.max_grad_norm)
        set_learning_rate(optimizer, rate_share(config.train, step, total_steps=total, steps_per_epoch=1))
        optimizer.step()

    for name, value in weights.items():
        right = expected.weights[name]
        assert (value - right).norm() <= tolerance * right.norm(), name
    if dtype == torch.float32:
        return  # CLIP's steps of 1e-8 are lost in the rounding of weights near 1, in both

    # Each kind of weight has moved: CLIP's a thousandth as far as the others.
    far = {name: (value - start[name]).abs().max().item() for name, value in weights.items()}
    for name, value in weights.items():
        moved = (expected.weights[name] - start[name]).norm()
        assert (value - expected.weights[name]).norm() <= 1e-6 * moved, name
        assert moved > 0 or "bias" in name
    towers = max(distance for name, distance in far.items() if name.startswith("towers."))
    others = max(distance for name, distance in far.items() if not name.startswith("towers."))
    assert 100 * towers < others


def test_the_first_steps_by_hand():
    """One weight, gradient 0.5, no decay: m = 0.05 and v = 0.005, so the step is lr · 0.05 / (√0.005 + eps)."""
    weight = torch.nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    group = {"params": [weight], "lr": 0.1, "weight_decay": 0.0}
    optimizer = BertAdam([group], betas=(0.9, 0.98), eps=1e-6, max_grad_norm=1.0)
    weight.grad = torch.tensor([0.5], dtype=torch.float64)
    optimizer.step()
    assert weight.item() == pytest.approx(2 - 0.1 * 0.05 / (math.sqrt(0.005) + 1e-6), rel=1e-14)

    # Then decay, and a gradient that is cut to a norm of 1.
    optimizer.param_groups[0]["weight_decay"] = 0.2
    before = weight.item()
    weight.grad = torch.tensor([-7.0], dtype=torch.float64)
    optimizer.step()
    m, v = 0.9 * 0.05 + 0.1 * -1, 0.98 * 0.005 + 0.02
    assert weight.item() == pytest.approx(before - 0.1 * (m / (math.sqrt(v) + 1e-6) + 0.2 * before), rel=1e-5)


@pytest.mark.parametrize("warmup", [0.0, 0.1, 0.25, 1.0])
@pytest.mark.parametrize("total_steps", [1, 2, 7, 100, 7030])
def test_the_rate_follows_all_steps_from_the_first(warmup, total_steps):
    shares = [released_schedule(step, total_steps=total_steps, warmup=warmup) for step in range(total_steps)]
    assert shares == pytest.approx([share(step, total_steps, warmup) for step in range(total_steps)], abs=1e-15)
    assert shares[0] == (0 if warmup else 1)


def test_only_names_with_bias_are_spared_the_decay():
    for temporal, head in (("transformer", "wti"), ("lstm", "text-conditioned")):
        model = model_of(config_of(temporal, head, frozen="none"))
        optimizer = build_optimizer(model, config_of(temporal, head, frozen="none"))
        decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
        names = dict(model.named_parameters())
        assert len(decay) == len(names)
        for name, parameter in names.items():
            assert decay[id(parameter)] == (0.0 if "bias" in name else 0.2), name
        assert {"towers.clip.logit_scale", "towers.clip.vision_model.pre_layrnorm.weight"} <= names.keys()


@pytest.mark.parametrize("frozen", FROZEN)
def test_frozen_weights_have_no_gradient_and_stay(frozen):
    config = config_of(frozen=frozen, lr=0.1, clip_lr_factor=1.0)
    model = model_of(config)
    still = {name for name, value in model.named_parameters() if not value.requires_grad}
    inside = {name.removeprefix("towers.clip.") for name in still}
    conv1 = {"vision_model.embeddings.patch_embedding.weight"}
    assert (
        inside
        == {
            "none": set(),
            "conv1": conv1,
            "clip4clip": conv1
            | {
                "vision_model.embeddings.class_embedding",
                "vision_model.embeddings.position_embedding.weight",
                "vision_model.pre_layrnorm.weight",
                "vision_model.pre_layrnorm.bias",
                "text_model.embeddings.token_embedding.weight",
                "text_model.embeddings.position_embedding.weight",
            },
        }[frozen]
    )

    optimizer = build_optimizer(model, config)
    assert sum(len(group["params"]) for group in optimizer.param_groups) == len(learning(model))
    freeze_towers(model)
    assert [name for name in learning(model) if name.startswith("towers.")] == ["towers.clip.logit_scale"]


def test_recipes_of_emcl_net_take_it_and_the_one_of_random_weights_does_not():
    for name in OF_CLIP:
        train = load_recipe(name).train
        frozen = "clip4clip" if name.startswith("clip2video-") else "conv1"
        others = {"shapes": ("adamw", "none", "distinct"), "msrvtt-qa": ("bertadam", "none", "any")}
        expected = others.get(name, ("bertadam", frozen, "distinct"))
        assert (train.optimizer, train.frozen, train.batches) == expected
        if name != "shapes":
            assert (train.lr, train.weight_decay, train.betas, train.warmup) == (1e-4, 0.2, (0.9, 0.98), 0.1)


@pytest.fixture(scope="module")
def root(tiny_whole_run):
    """The folder of a rendered data set."""
    return tiny_whole_run[0]


@pytest.fixture
def no_pictures(monkeypatch):
    """The report's plots take longer than all the rest."""
    monkeypatch.setattr(trainer, "write_report", lambda out: out)


def run(config):
    trainer.train(config, Console(file=io.StringIO()))
    lines = [json.loads(line) for line in (config.out / contents.METRICS).read_text().splitlines()]
    for line in lines:
        for name in MEASURED:
            line.pop(name, None)
    return lines, load_file(config.out / contents.WEIGHTS)


class Stopped(Exception):
    """In place of a kill."""


@pytest.mark.usefixtures("no_pictures")
def test_a_run_has_the_rates_keeps_what_is_frozen_and_is_resumed_to_the_bit(root, tmp_path, monkeypatch):
    released = {"optimizer": "bertadam", "frozen": "clip4clip"}
    first = tiny_run(root, tmp_path / "start", max_steps=1, **released)
    _, start = run(first)

    config = tiny_run(root, tmp_path / "whole", **released)
    lines, weights = run(config)
    rates = [line["lr"] for line in lines if line["kind"] == "train"]
    assert rates == pytest.approx([config.train.lr * share(step, 8) for step in range(8)], rel=1e-12)
    still = {name for name in weights if name.startswith(FROZEN["clip4clip"])}
    assert len(still) == 7
    # The first rate is 0, so that the first run has the weights of the start.
    for name, value in weights.items():
        assert torch.equal(value, start[name]) == (name in still or name.endswith("position_ids")), name

    step = trainer.Run.training_step

    def until_the_fifth(self, batch):
        if self.step == 4:
            raise Stopped
        return step(self, batch)

    again = replace(config, out=tmp_path / "again")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Run, "training_step", until_the_fifth)
        with pytest.raises(Stopped):
            run(again)
    assert checkpoint.load_state(again.out).step == 4
    found, found_weights = run(replace(again, resume=True))
    assert found == lines
    assert all(torch.equal(found_weights[name], value) for name, value in weights.items())
