"""Ranger and the staircases of the systems that came before, against numpy written from their equations."""

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from emcl_train.config import RunConfig, TrainConfig
from emcl_train.training.optim import build_optimizer, rate_share, set_learning_rate
from emcl_train.training.ranger import Ranger

BETAS = (0.95, 0.999)


class RangerByHand:
    """One weight, in the order of the published code: moments, N_sma, decay, step; every sixth step the slow one."""

    def __init__(self, weight):
        self.w = weight.astype(np.float64).copy()
        self.slow = self.w.copy()
        self.m = np.zeros_like(self.w)
        self.v = np.zeros_like(self.w)
        self.t = 0

    def step(self, g, lr, decay):
        beta1, beta2 = BETAS
        self.t += 1
        self.m = beta1 * self.m + (1 - beta1) * g
        self.v = beta2 * self.v + (1 - beta2) * g * g

        most = 2 / (1 - beta2) - 1
        power = beta2**self.t
        n_sma = most - 2 * self.t * power / (1 - power)
        self.w = self.w * (1 - lr * decay)
        if n_sma > 5:
            factors = (n_sma - 4) / (most - 4) * (n_sma - 2) / n_sma * most / (most - 2)
            length = math.sqrt((1 - power) * factors) / (1 - beta1**self.t)
            self.w = self.w - lr * length * self.m / (np.sqrt(self.v) + 1e-5)
        else:
            self.w = self.w - lr / (1 - beta1**self.t) * self.m

        if self.t % 6 == 0:
            self.slow = self.slow + 0.5 * (self.w - self.slow)
            self.w = self.slow.copy()


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(3, 4, dtype=torch.float64))
        self.bias = nn.Parameter(torch.randn(4, dtype=torch.float64))
        self.late = nn.Parameter(torch.randn(2, dtype=torch.float64))


def config_of(**train):
    return RunConfig(train=TrainConfig(**({"optimizer": "ranger", "betas": BETAS, "warmup": 0.0} | train)))


def gradients_at(net, step):
    """Large ones and tiny ones; `late` has its first one in the fourth step."""
    random = np.random.default_rng(step)
    sizes = {"matrix": 10.0, "bias": 1e-6, "late": 1.0}
    names = [name for name in sizes if name != "late" or step >= 3]
    return {name: sizes[name] * random.standard_normal(tuple(getattr(net, name).shape)) for name in names}


def one_step(net, optimizer, step, share):
    for name, gradient in gradients_at(net, step).items():
        getattr(net, name).grad = torch.from_numpy(gradient)
    set_learning_rate(optimizer, share)
    optimizer.step()
    optimizer.zero_grad()


def test_the_same_weights_as_by_hand_over_50_steps():
    torch.manual_seed(0)
    net = Net()
    config = config_of(lr=0.1, weight_decay=1e-3, lr_decay=0.5, lr_decay_steps=20)
    expected = {name: RangerByHand(value.detach().numpy()) for name, value in net.named_parameters()}
    optimizer = build_optimizer(net, config)

    for step in range(50):
        share = rate_share(config.train, step, total_steps=50, steps_per_epoch=7)
        assert share == 0.5 ** (step // 20)
        one_step(net, optimizer, step, share)
        for name, gradient in gradients_at(net, step).items():
            expected[name].step(gradient, 0.1 * share, 1e-3)
        for name, value in net.named_parameters():
            np.testing.assert_allclose(value.detach().numpy(), expected[name].w, rtol=1e-11, atol=1e-12)
    assert expected["late"].t == 47


def test_the_first_five_steps_have_no_second_moment():
    """By hand: gradient 0.5, so m / (1 − β₁) is 0.5, and the step is lr · 0.5 whatever the size of the gradient."""
    weight = nn.Parameter(torch.tensor([2.0], dtype=torch.float64))
    optimizer = Ranger([{"params": [weight], "lr": 0.1, "weight_decay": 0.0}], betas=BETAS)
    for done in range(1, 6):
        weight.grad = torch.tensor([0.5], dtype=torch.float64)
        optimizer.step()
        assert weight.item() == pytest.approx(2 - 0.05 * done, rel=1e-12)

    # The sixth has it, at 0.0195 of its length: and the weight goes half the way back to where the slow one was.
    before = weight.item()
    weight.grad = torch.tensor([0.5], dtype=torch.float64)
    optimizer.step()
    fast = 2 * weight.item() - 2
    assert 0 < before - fast < 0.05


def test_a_state_that_is_saved_in_between_goes_on_to_the_bit(tmp_path: Path):
    def trained(stop=None):
        torch.manual_seed(0)
        net = Net().float()
        optimizer = build_optimizer(net, config_of(lr=0.1, weight_decay=1e-3))
        for step in range(20):
            if step == stop:
                torch.save((net.state_dict(), optimizer.state_dict()), tmp_path / "state.pt")
                weights, state = torch.load(tmp_path / "state.pt", weights_only=True)
                torch.manual_seed(1)
                net = Net().float()
                net.load_state_dict(weights)
                optimizer = build_optimizer(net, config_of(lr=0.1, weight_decay=1e-3))
                optimizer.load_state_dict(state)
            for name, gradient in gradients_at(net, step).items():
                getattr(net, name).grad = torch.from_numpy(gradient).float()
            optimizer.step()
            optimizer.zero_grad()
        return net.state_dict()

    whole = trained()
    for stop in (1, 5, 6, 8, 13):
        again = trained(stop)
        assert all(torch.equal(again[name], value) for name, value in whole.items()), stop


def test_adam_is_torch_s_with_a_rate_that_falls_every_epoch():
    torch.manual_seed(0)
    net = Net()
    other = Net()
    other.load_state_dict(net.state_dict())
    config = config_of(optimizer="adam", lr=0.1, weight_decay=0.0, lr_decay=0.95, betas=(0.9, 0.999))
    optimizer = build_optimizer(net, config)
    expected = torch.optim.Adam(other.parameters(), lr=0.1)
    fall = torch.optim.lr_scheduler.StepLR(expected, step_size=7, gamma=0.95)

    for step in range(30):
        one_step(net, optimizer, step, rate_share(config.train, step, total_steps=30, steps_per_epoch=7))
        for name, gradient in gradients_at(other, step).items():
            getattr(other, name).grad = torch.from_numpy(gradient)
        expected.step()
        expected.zero_grad()
        fall.step()
    for name, value in net.named_parameters():
        torch.testing.assert_close(value, dict(other.named_parameters())[name], rtol=1e-12, atol=1e-14)


def test_a_rise_comes_before_the_stairs():
    train = config_of(warmup=0.5, lr_decay=0.5, lr_decay_steps=4).train
    shares = [rate_share(train, step, total_steps=8, steps_per_epoch=1) for step in range(8)]
    assert shares == [0.25, 0.5, 0.75, 1.0, 0.5, 0.5, 0.5, 0.5]


def test_everything_is_decayed_by_ranger():
    net = Net()
    groups = build_optimizer(net, config_of(weight_decay=1e-3)).param_groups
    assert [group["weight_decay"] for group in groups] == [1e-3]
