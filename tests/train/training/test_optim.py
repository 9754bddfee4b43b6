"""Which parameters learn how fast, and the schedule."""

from pathlib import Path

import pytest
import torch
from torch import nn

from emcl_train.config import ModelConfig, RunConfig, TrainConfig
from emcl_train.training.optim import build_optimizer, clip_lr_factor, freeze_towers, schedule, set_learning_rate


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.towers = nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4))
        self.temporal = nn.Linear(4, 4)
        self.scale = nn.Parameter(torch.tensor(1.0))


def run_config(clip="random", **train):
    return RunConfig(model=ModelConfig(clip=clip), train=TrainConfig(**train))


def test_each_parameter_has_its_rate_and_its_decay():
    net = Net()
    optimizer = build_optimizer(net, run_config(lr=1e-2, clip_lr_factor=0.1, weight_decay=0.2))
    found = {id(p): (g["lr"], g["weight_decay"]) for g in optimizer.param_groups for p in g["params"]}
    assert len(found) == len(list(net.parameters()))
    assert found[id(net.towers[0].weight)] == (pytest.approx(1e-3), 0.2)
    assert found[id(net.towers[0].bias)] == found[id(net.towers[1].weight)] == (pytest.approx(1e-3), 0.0)
    assert found[id(net.temporal.weight)] == (1e-2, 0.2)
    assert found[id(net.temporal.bias)] == found[id(net.scale)] == (1e-2, 0.0)


def test_frozen_towers_leave_their_logit_scale_to_the_rest():
    net = Net()
    net.towers.register_parameter("logit_scale", nn.Parameter(torch.tensor(1.0)))
    config = run_config(lr=1e-2, clip_lr_factor=0.0)
    freeze_towers(net)
    optimizer = build_optimizer(net, config)
    found = {id(p): g["lr"] for g in optimizer.param_groups for p in g["params"]}
    learning = [net.towers.logit_scale, net.temporal.weight, net.temporal.bias, net.scale]
    assert found == {id(parameter): 1e-2 for parameter in learning}


@pytest.mark.parametrize(
    ("clip", "factor", "expected"), [("random", None, 1.0), ("openai/clip", None, 1e-3), ("random", 0.5, 0.5)]
)
def test_trained_towers_learn_slower_unless_told(clip, factor, expected):
    assert clip_lr_factor(run_config(clip, clip_lr_factor=factor)) == expected


def test_a_random_clip_that_starts_from_a_checkpoint_is_trained():
    config = run_config("random")
    config.model.init_from = Path("pytorch_model.bin")
    assert clip_lr_factor(config) == 1e-3
    config.from_features = Path("features")
    assert clip_lr_factor(config) == 0


def test_schedule_rises_to_the_peak_and_falls_to_zero():
    shares = [schedule(step, total_steps=100, warmup=0.1) for step in range(101)]
    assert shares[:3] == [0.1, 0.2, pytest.approx(0.3)]
    assert shares[9] == shares[10] == 1
    assert shares[55] == pytest.approx(0.5)
    assert shares[100] == pytest.approx(0)
    assert shares[10:] == sorted(shares[10:], reverse=True)


@pytest.mark.parametrize("warmup", [0.0, 1.0])
@pytest.mark.parametrize("total_steps", [1, 2, 7])
def test_schedule_of_a_few_steps_is_never_off(warmup, total_steps):
    assert all(0 < schedule(step, total_steps=total_steps, warmup=warmup) <= 1 for step in range(total_steps))


def test_groups_keep_their_ratio():
    optimizer = build_optimizer(Net(), run_config(lr=1.0, clip_lr_factor=0.01))
    set_learning_rate(optimizer, 0.5)
    assert sorted({group["lr"] for group in optimizer.param_groups}) == [0.005, 0.5]
