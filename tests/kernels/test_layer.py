"""EMCL as a module: parts as the whole, the maintained start, relative scale, state_dict, torch.compile, bad input."""

import copy
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from emcl_kernels import EMCL, em_moments, em_project, pooled_similarity, reference
from emcl_kernels.testing import assert_close, clustered_rows


def test_several_features_share_one_em() -> None:
    layer = EMCL(num_bases=7, init="normal").double().eval()
    text, video = clustered_rows(10, 32), clustered_rows(25, 32)
    together = layer(torch.cat([text, video]))
    a, b = layer(text, video)
    assert torch.equal(torch.cat([a, b]), together)
    assert torch.equal(together, em_project(torch.cat([text, video]), layer.bases)[0])


@pytest.mark.parametrize("batch", [(), (3,)])
def test_training_moves_the_start_as_released(batch: tuple[int, ...]) -> None:
    layer = EMCL(num_bases=7, init="normal", momentum=0.9).double()
    x, before = clustered_rows(*batch, 25, 32), layer.bases.clone()
    layer(x)
    mean = reference.em_project_loop(x, before)[1]
    mean = mean.mean(0) if batch else mean
    assert_close("bases", layer.bases, 0.9 * before + 0.1 * mean)
    after = layer.bases.clone()
    layer.eval()(x)
    assert torch.equal(layer.bases, after)


def test_sign_start_is_of_ones_and_state_dict_keeps_it() -> None:
    layer = EMCL(num_bases=32)
    assert set(layer.bases.tolist()) == {1.0, -1.0}
    layer(torch.randn(40, 64))
    other = EMCL(num_bases=32)
    other.load_state_dict(layer.state_dict())
    assert list(layer.state_dict()) == ["bases"]
    assert torch.equal(other.bases, layer.bases)


@pytest.mark.parametrize("name", ["mu", "bases"])
def test_the_start_of_the_release_is_taken_by_its_name_and_shape(name: str) -> None:
    """`mu` `[1, K]`, alone and inside a model; and what is no such start is refused as by any module."""
    mu = torch.where(torch.randn(1, 32) < 0, -1.0, 1.0)
    layer = EMCL(num_bases=32, init="normal")
    given = {name: mu}
    layer.load_state_dict(given)
    assert torch.equal(layer.bases, mu[0])
    assert list(given) == [name]

    model = nn.ModuleDict({"tower": nn.Linear(2, 2), "emcl": EMCL(num_bases=32, init="normal")})
    state = model.state_dict()
    del state["emcl.bases"]
    model.load_state_dict({**state, f"emcl.{name}": mu})
    assert torch.equal(model["emcl"].bases, mu[0])

    for wrong in (torch.ones(1, 16), torch.ones(2, 32), torch.ones(4, 1, 32)):
        with pytest.raises(RuntimeError, match="size mismatch for bases"):
            layer.load_state_dict({name: wrong})
    with pytest.raises(RuntimeError, match=r'Unexpected key.*"mu"'):
        layer.load_state_dict({"bases": mu, "mu": mu})


@pytest.mark.parametrize("gradient", ["identity", "linear", "full"])
def test_relative_scale_does_not_depend_on_the_number_of_rows(gradient: str) -> None:
    layer = EMCL(num_bases=7, init="normal", scale="relative", residual_weight=-0.15, gradient=gradient).double().eval()
    x = clustered_rows(50, 32).requires_grad_()
    y = layer(x)
    assert isinstance(y, torch.Tensor)
    change = torch.linalg.vector_norm(y - x) / torch.linalg.vector_norm(x)
    assert_close("relative change", change, torch.tensor(0.15, dtype=torch.float64))
    y.square().sum().backward()
    assert x.grad is not None
    if gradient == "identity":
        assert_close("d_x", x.grad, 2 * y)


def test_pooled_similarity_uses_and_moves_the_start() -> None:
    layer = EMCL(num_bases=7, init="normal").double()
    text, frames, mask = clustered_rows(5, 32), clustered_rows(4, 3, 32), torch.ones(4, 3).bool()
    expected, mean = pooled_similarity(text, frames, mask, layer.bases.clone())
    before = layer.bases.clone()
    assert torch.equal(layer.pooled_similarity(text, frames, mask), expected)
    assert_close("bases", layer.bases, 0.9 * before + 0.1 * mean)
    relative = EMCL(num_bases=7, scale="relative", residual_weight=0.1).double().eval()
    assert relative.pooled_similarity(text, frames, mask).shape == (5, 4)


@pytest.mark.parametrize("scale", ["release", "relative"])
def test_texts_apart_are_as_together_where_their_moments_are_added_up(scale: str) -> None:
    text, frames, mask = clustered_rows(7, 32), clustered_rows(4, 3, 32), torch.ones(4, 3).bool()
    together = EMCL(num_bases=7, init="normal", scale=scale, residual_weight=0.5).double()
    apart = copy.deepcopy(together)
    expected = together.pooled_similarity(text, frames, mask)
    moments: list[torch.Tensor] = []
    for part in (text[:3], text[3:]):
        copy.deepcopy(apart).pooled_similarity(part, frames, mask, add_up=lambda own: moments.append(own) or own)
    assert [len(vector) for vector in moments] == [32 * 32 + 32 + 1] * 2
    similarity = apart.pooled_similarity(text[:3], frames, mask, add_up=lambda own: own + moments[1])
    assert_close("similarity", similarity, expected[:3])
    assert_close("bases", apart.bases, together.bases)
    assert not torch.allclose(apart.eval().pooled_similarity(text[:3], frames, mask), expected[:3])


@pytest.mark.parametrize("gradient", ["identity", "linear", "full"])
@pytest.mark.parametrize("scale", ["release", "relative"])
def test_rows_apart_are_as_together_where_their_moments_are_added_up(scale: str, gradient: str) -> None:
    settings = {"num_bases": 7, "init": "normal", "scale": scale, "residual_weight": 0.5, "gradient": gradient}
    together = EMCL(**settings).double()
    apart = copy.deepcopy(together)
    text, video = clustered_rows(20, 32), clustered_rows(24, 32)
    expected = together(text, video)

    others = copy.deepcopy(apart)
    moments: list[torch.Tensor] = []
    others(text[8:], video[9:], add_up=lambda own: moments.append(own) or own)
    found = apart(text[:8], video[:9], add_up=lambda own: own + moments[0])
    assert_close("text", found[0], expected[0][:8])
    assert_close("video", found[1], expected[1][:9])
    assert_close("bases", apart.bases, together.bases)
    assert not torch.allclose(apart.eval()(text[:8]), expected[0][:8])


def test_copies_and_moves_of_dtype() -> None:
    layer = EMCL(num_bases=4).to(torch.bfloat16).eval()
    y = layer(clustered_rows(20, 16).to(torch.bfloat16))
    assert isinstance(y, torch.Tensor)
    assert y.dtype == torch.bfloat16


@pytest.mark.parametrize("gradient", ["identity", "linear", "full"])
@pytest.mark.parametrize("scale", ["release", "relative"])
def test_fit_and_transform_are_forward_in_parts(scale: str, gradient: str) -> None:
    settings = {"num_bases": 7, "init": "normal", "scale": scale, "gradient": gradient, "residual_weight": 0.4}
    layer = EMCL(**settings).double()
    other = copy.deepcopy(layer)
    text, video = clustered_rows(10, 32).requires_grad_(), clustered_rows(25, 32)
    expected = layer(text, video)[0]
    moments = [em_moments(rows) for rows in (text, video)]
    fitted = other.fit(*(sum(values) for values in zip(*moments, strict=True)), 35)
    found = other.transform(text, *fitted)
    assert_close("rows", found, expected)
    assert_close("bases", other.bases, layer.bases)
    weight = torch.randn_like(expected)
    gradients = [torch.autograd.grad((rows * weight).sum(), text)[0] for rows in (found, expected)]
    assert_close("gradient", *gradients)
    before = other.bases.clone()
    other.fit(*moments[1], 25, update=False)
    assert torch.equal(other.bases, before)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_fit_divides_by_the_rows_of_each_problem(shape: tuple[int, ...]) -> None:
    many = clustered_rows(*shape, 40, 16)
    layer, twin = (EMCL(4, init="normal").double() for _ in range(2))
    twin.load_state_dict(layer.state_dict())
    layer(many)
    twin.fit(*em_moments(many), torch.full(shape, 40))
    assert_close("bases", twin.bases, layer.bases)


def test_a_count_of_one_element_is_a_number() -> None:
    EMCL(4).double().fit(*em_moments(clustered_rows(40, 16)), torch.tensor([40]))


def test_a_layer_that_moves_its_bases_refuses_to_be_checkpointed() -> None:
    x = clustered_rows(40, 16)
    net = nn.Sequential(nn.Linear(16, 16), EMCL(4, init="normal"), nn.Linear(16, 16)).double()
    before = copy.deepcopy(net.state_dict())
    with pytest.raises(RuntimeError, match="EMCL in training mode is called inside backward"):
        checkpoint(net, x, use_reentrant=False).sum().backward()
    net.load_state_dict(before)
    net.eval()
    net(x).cos().sum().backward()
    plain = [p.grad.clone() for p in net.parameters() if p.grad is not None]
    net.zero_grad()
    checkpoint(net, x, use_reentrant=False).cos().sum().backward()
    assert all(torch.equal(p.grad, q) for p, q in zip(net.parameters(), plain, strict=True) if p.grad is not None)


@pytest.mark.slow
def test_compiled_equals_eager(backend: str, device: str) -> None:
    """Without a graph break: a layer in evaluation, and training steps by rows and by the pooled similarity."""
    script = Path(__file__).with_name("compiled.py")
    command = [sys.executable, str(script), "layer,step,pooled", backend, device]
    run = subprocess.run(command, capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]
    assert "equal" in run.stdout


def sum_of_none(vector: Tensor) -> Any:
    return None


x = torch.randn(40, 16, generator=torch.Generator().manual_seed(0)).double()
narrow = x[:8, :4].float()
text, frames, mask = x[:6], x[:12].view(4, 3, 16), torch.ones(4, 3).double()
BAD: list[tuple[str, Callable[[], object], str]] = [
    ("more bases than channels", lambda: EMCL(num_bases=32)(narrow),
     "num_bases is 32 but the features are 4 wide; .* at most 4"),
    ("no features", lambda: EMCL()(), "EMCL got no features"),
    ("features that disagree", lambda: EMCL(num_bases=2)(narrow, narrow[:, :3]),
     r"features\[1\] has shape \[8, 3\] but features\[0\] has shape \[8, 4\]"),
    ("no bases", lambda: EMCL(num_bases=0), "num_bases is 0"),
    ("momentum above one", lambda: EMCL(momentum=1.5), "momentum is 1.5; expected a number from 0 to 1"),
    ("unknown start", lambda: EMCL(init="zeros"), "init"),  # type: ignore[arg-type]
    ("weight that is none", lambda: EMCL(4, residual_weight=float("nan")), "residual_weight is nan; expected a finite"),
    ("eps below zero", lambda: EMCL(4, eps=-1.0), "eps is -1.0; expected 0"),
    ("rows", lambda: EMCL(4).double().fit(*em_moments(x), 0), "num_rows is 0; expected a whole number"),
    ("rows of problems", lambda: EMCL(4).double().fit(*em_moments(x.expand(2, 40, 16)), torch.ones(3)),
     r"num_rows has shape \[3\] but gram has shape \[2, 16, 16\]; expected one number, or one for each problem, \[2\]"),
    ("sum that is none", lambda: EMCL(4).double().pooled_similarity(text, frames, mask, add_up=sum_of_none),
     r"add_up gave a NoneType for a tensor \[273\]; it must return the sum"),
    ("sum for problems", lambda: EMCL(4).double()(x.expand(2, 40, 16), add_up=lambda v: v),
     r"features have 3 dimensions; with add_up expected \[N, D\]"),
    ("the release's start", lambda: em_project(x, torch.ones(1, 4)),
     r"init has shape \[1, 4\] but x has shape \[40, 16\]; pass .* mu \[1, K\], is init.squeeze\(-2\) here"),
    ("the release's start for problems", lambda: em_project(x.expand(2, 40, 16), torch.ones(2, 1, 4)),
     r"init has shape \[2, 1, 4\] .* is init.squeeze\(-2\) here"),
    ("the release's start, pooled", lambda: torch.ops.emcl.pooled_similarity(text, frames, mask, torch.ones(1, 4)),
     r"init has shape \[1, 4\]; expected \[K\].* is init.squeeze\(-2\) here"),
    ("one value a channel", lambda: em_project(x, torch.ones(1, 16, 4)),
     r"init has shape \[1, 16, 4\] .* clusters the 16 channels, .* none a channel"),
    ("sum that is cut", lambda: EMCL(4).double().pooled_similarity(text, frames, mask, add_up=lambda v: v[:-1]),
     r"add_up gave a tensor \[272\] for a tensor \[273\]"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), [row[1:] for row in BAD], ids=[row[0] for row in BAD])
def test_bad_input_is_refused_with_the_way_out(call: Callable[[], object], message: str) -> None:
    with pytest.raises(Exception, match=message):  # the check of types may speak first
        call()
