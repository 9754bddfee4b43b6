"""CLIP's logit scale learns from whatever value it starts at, and no step leaves it above 100."""

import io
import math

import numpy as np
import pytest
import torch
from rich.console import Console
from several_processes import at_scale, one_step, step_config
from tiny_run import tiny_run

from emcl_train.config import DataConfig, EMCLConfig, ModelConfig, RandomClipConfig, RunConfig
from emcl_train.models import build_model
from emcl_train.training import losses, trainer
from emcl_train.training.losses import symmetric_info_nce

pytestmark = pytest.mark.usefixtures("one_thread")

LN_100 = math.log(100)
STORED = {
    "OpenAI's weights": np.float32(LN_100),
    "half precision": np.float16(LN_100),
    "one below in float32": np.nextafter(np.float32(LN_100), np.float32(0)),
    "one above in float32": np.nextafter(np.float32(LN_100), np.float32(9)),
    "one below in half precision": np.nextafter(np.float16(LN_100), np.float16(0)),
    "one above in half precision": np.nextafter(np.float16(LN_100), np.float16(9)),
    "bfloat16": torch.tensor(LN_100).bfloat16().item(),
    "far above": 4.8,
    "float64": LN_100,
}
WAYS = {
    "plain": {},
    "frozen towers": {"clip_lr_factor": 0.0},
    "chunks": {"chunks": 3},
    "frozen towers in chunks": {"clip_lr_factor": 0.0, "chunks": 3},
    "adamw": {"weight_decay": 0.0, "lr": 1.0},
}


class Tokenizer:
    eos_token_id, pad_token_id = 1, 0

    def __len__(self):
        return 20


def small_model():
    torch.manual_seed(0)
    config = RunConfig(
        data=DataConfig(num_frames=2, image_size=8, max_words=4),
        model=ModelConfig("random", RandomClipConfig(16, 1, 2, 8), temporal="mean"),
        emcl=EMCLConfig(num_bases=4),
    )
    return build_model(config, Tokenizer())


@pytest.fixture(scope="module")
def root(tiny_whole_run):
    """The folder of a rendered data set."""
    return tiny_whole_run[0]


@pytest.mark.parametrize("way", ["plain", "frozen towers", "chunks", "frozen towers in chunks"])
def test_it_has_a_gradient_at_the_value_that_weights_store(root, tmp_path, way):
    config = step_config(root, tmp_path, "identity", **WAYS[way])
    frozen = config.train.clip_lr_factor == 0

    found = {}
    for name in ("OpenAI's weights", "one above in float32", "one below in float32"):
        config.out = tmp_path / name.replace(" ", "-")
        found[name] = one_step(config, at_scale(STORED[name]), frozen=frozen)["gradients"][
            "towers.clip.logit_scale"
        ].item()

    assert abs(found["OpenAI's weights"]) > 1e-6
    for gradient in found.values():
        assert gradient == pytest.approx(found["OpenAI's weights"], rel=1e-4)


@pytest.mark.parametrize("stored", STORED)
def test_no_clamp_or_rounding_takes_the_gradient_away(stored):
    """On towers and on stored features; the gradient is that of exp."""
    model = small_model()
    similarity = torch.randn(4, 4) / 10

    for towers in ("computed", "stored"):
        if towers == "stored":
            model.store_towers()
        parameter = model.towers.clip.logit_scale
        torch.nn.init.constant_(parameter, float(STORED[stored]))
        parameter.grad = None
        symmetric_info_nce(similarity, model.logit_scale).backward()

        exact = torch.tensor(parameter.item(), dtype=torch.float64, requires_grad=True)
        symmetric_info_nce(similarity.double(), exact.exp()).backward()
        assert exact.grad.abs() > 1e-3
        torch.testing.assert_close(parameter.grad.double(), exact.grad, rtol=1e-4, atol=0)


@pytest.mark.parametrize("stored", STORED)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_step_ends_at_one_hundred_at_most(stored, dtype):
    model = small_model().to(dtype)
    parameter = model.towers.clip.logit_scale
    before = torch.tensor(float(STORED[stored]), dtype=dtype)
    torch.nn.init.constant_(parameter, before.item())

    model.hold_logit_scale()

    limit = torch.tensor(LN_100, dtype=dtype)
    assert parameter.item() == min(before, limit).item()
    assert parameter.requires_grad
    assert model.logit_scale.item() <= 100 * (1 + 1e-7)


@pytest.mark.parametrize("way", WAYS)
def test_the_trainer_holds_it_after_each_step_and_it_comes_down_again(root, tmp_path, way, monkeypatch):
    """A loss that pulls the scale up first and down later: it must not stick at the limit."""
    seen = []

    def pull(similarity, scale):
        sign = -1.0 if len(seen) < 3 else 1.0
        seen.append(scale.item())
        return sign * scale + 0.0 * similarity.sum()

    monkeypatch.setattr(losses, "symmetric_info_nce", pull)
    config = tiny_run(root, tmp_path / "run", **({"lr": 0.5, "warmup": 0.0, "epochs": 3} | WAYS[way]))
    accelerator = trainer.start_processes(config)
    trainer.open_run_folder(config)
    run = trainer.Run(config, accelerator, Console(file=io.StringIO()))
    at_scale(STORED["OpenAI's weights"])(run)
    run.wrapped.train()
    for epoch in range(3):
        for batch in run.loader(epoch):
            run.training_step(batch)

    assert seen[0] == pytest.approx(100)
    assert max(seen) <= 100 * (1 + 1e-7)
    assert seen[-1] < 90


def test_a_state_of_an_earlier_version_goes_on_from_one_hundred(root, tmp_path):
    """It let the parameter rise without effect."""
    config = tiny_run(root, tmp_path / "run", max_steps=1)
    accelerator = trainer.start_processes(config)
    trainer.open_run_folder(config)
    first = trainer.Run(config, accelerator, Console(file=io.StringIO()))
    at_scale(4.9)(first)
    first.save()

    config.resume = True
    again = trainer.Run(config, accelerator, Console(file=io.StringIO()))
    assert again.model.logit_scale.item() == pytest.approx(100)
