"""The ops among other features of torch: plain calls, checkpointing, vmap, forward mode, threads."""

import copy
import inspect
import threading
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import emcl_kernels
from emcl_kernels import (
    EMCL,
    checks,
    dispatch,
    em_fit,
    em_moments,
    em_project,
    em_reconstruct,
    pooled_similarity,
    use_backend,
)
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init

op = torch.ops.emcl
x, init = clustered_rows(40, 16), distinct_init(5)
text, frames, mask = clustered_rows(6, 16), clustered_rows(4, 3, 16), torch.ones(4, 3).double()


@pytest.mark.parametrize(
    "name", ["em_fit", "em_reconstruct", "em_project", "pooled_similarity", "pooled_similarity_blocks"]
)
def test_an_op_has_the_defaults_of_its_function(name: str) -> None:
    of_function = {
        parameter.name: parameter.default
        for parameter in inspect.signature(getattr(emcl_kernels, name)).parameters.values()
        if parameter.default is not parameter.empty
    }
    of_op = {a.name: a.default_value for a in getattr(op, name).default._schema.arguments if a.has_default_value()}
    assert of_op == of_function


def test_an_op_may_be_called_without_what_has_a_default() -> None:
    gram, colsum = op.em_moments(x)
    logits = colsum[:, None] * init
    fitted = op.em_fit(gram, logits)
    for ours, function in (
        (fitted, em_fit(gram, logits)),
        ((op.em_reconstruct(x, *fitted),), (em_reconstruct(x, *fitted),)),
        (op.em_project(x, init), em_project(x, init)),
        (op.em_project(x, init, eps=1e-3, gradient="full"), em_project(x, init, eps=1e-3, gradient="full")),
        (op.pooled_similarity(text, frames, mask, init), pooled_similarity(text, frames, mask, init)),
        (
            (op.pooled_similarity_blocks(text, frames, mask, init),),
            (emcl_kernels.pooled_similarity_blocks(text, frames, mask, init),),
        ),
    ):
        assert all(torch.equal(a, b) for a, b in zip(ours, function, strict=True))


@pytest.mark.parametrize("gradient", ["identity", "linear", "full"])
@pytest.mark.parametrize("reentrant", [False, True])
def test_ops_under_activation_checkpointing(reentrant: bool, gradient: str) -> None:
    functions: list[tuple[Callable[..., Tensor], Tensor]] = [
        (lambda t: pooled_similarity(t, frames, mask, init, gradient=gradient)[0], text),
        (lambda t: em_project(t, init, gradient=gradient)[0], x),
        (lambda t: em_fit(*moments_and_logits(t))[0], x),
    ]
    for function, rows in functions:
        leaf = rows.clone().requires_grad_()
        (plain,) = torch.autograd.grad(function(leaf).cos().sum(), leaf)
        checkpoint(function, leaf, use_reentrant=reentrant).cos().sum().backward()
        assert leaf.grad is not None
        assert torch.equal(leaf.grad, plain)


def moments_and_logits(rows: Tensor) -> tuple[Tensor, Tensor]:
    gram, colsum = em_moments(rows)
    return gram, colsum[:, None] * init


def test_a_layer_that_moves_its_bases_refuses_to_be_checkpointed() -> None:
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


def test_vmap_batches_without_a_warning() -> None:
    many, texts = clustered_rows(3, 40, 16), clustered_rows(3, 6, 16)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        mapped = torch.vmap(lambda rows: em_project(rows, init)[0])(many)
        pooled = torch.vmap(lambda t: pooled_similarity(t, frames, mask, init)[0])(texts)
    assert_close("rows", mapped, em_project(many, init)[0])
    assert_close("similarity", pooled, torch.stack([pooled_similarity(t, frames, mask, init)[0] for t in texts]))


@pytest.mark.parametrize("shape", [(3, 20, 8), (3, 2, 20, 8)])
@pytest.mark.parametrize("start", [(5,), (3, 5)])
def test_vmap_over_rows_and_start(shape: tuple[int, ...], start: tuple[int, ...]) -> None:
    many, starts = clustered_rows(*shape), torch.randn(*start, dtype=torch.float64)
    over_start = 0 if len(start) > 1 else None
    each = list(starts) if len(start) > 1 else [starts] * 3
    both = torch.vmap(lambda rows, s: em_project(rows, s)[0], in_dims=(0, over_start))(many, starts)
    assert_close("both", both, torch.stack([em_project(rows, s)[0] for rows, s in zip(many, each, strict=True)]))
    if over_start == 0:
        one = torch.vmap(lambda s: em_project(many[0], s)[0])(starts)
        assert_close("start", one, torch.stack([em_project(many[0], s)[0] for s in each]))


def test_numbers_of_numpy_and_of_one_element_are_numbers() -> None:
    checks.count(np.int64(4), "num_bases")
    checks.number(np.float32(2.0), "temperature")
    EMCL(4).double().fit(*em_moments(x), torch.tensor([40]))


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch's own, when it enters forward mode
@pytest.mark.parametrize(
    "function",
    [
        lambda rows: em_project(rows, init)[0],
        lambda rows: op.em_project(rows, init)[0],
        lambda rows: em_moments(rows)[0],
        lambda rows: pooled_similarity(rows, frames, mask, init)[0],
        lambda rows: emcl_kernels.pooled_cosine_similarity(rows, frames, mask),
    ],
)
def test_forward_mode_is_refused_instead_of_zero(function: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(NotImplementedError, match=r"carries a tangent, but emcl ops have no forward-mode derivative"):
        torch.func.jvp(function, (text,), (torch.ones_like(text),))


def test_threads_that_leave_their_backends_in_another_order_leave_none_behind() -> None:
    entered, left = threading.Event(), threading.Event()

    def first() -> None:
        with use_backend("reference"):
            entered.set()
            left.wait(10)

    thread = threading.Thread(target=first)
    thread.start()
    entered.wait(10)
    before_second = dispatch.candidates("em_moments", x)[0]
    with use_backend("native"):
        within = dispatch.candidates("em_moments", x)[0]
        left.set()
        thread.join()
        still = dispatch.candidates("em_moments", x)[0]
    assert (before_second, within, still) == (("reference",), ("native",), ("native",))
    assert dispatch.candidates("em_moments", x)[1] == "first choice"


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("bases", [1, 3, 8, 16, 17])
def test_eps_may_be_zero(bases: int, dtype: torch.dtype) -> None:
    """The C++ kernels pad the bases, and there 1 / (eps + 0) is no number."""
    rows, start = clustered_rows(30, 20).to(dtype), distinct_init(bases).to(dtype)
    results: list[list[Tensor]] = []
    for backend in ("native", "reference"):
        leaf = rows.clone().requires_grad_()
        with use_backend(backend):  # type: ignore[arg-type]
            y, mean_bases = em_project(leaf, start, eps=0.0, num_iters=2, gradient="full")
            loop = em_project(leaf[:5], start, eps=0.0, num_iters=2)[0]
        results.append([y, mean_bases, loop, *torch.autograd.grad(y.cos().sum(), leaf)])
    for a, b in zip(*results, strict=True):
        assert_close("eps 0", a, b, 1e-4 if dtype == torch.float32 else 1e-9)


@pytest.mark.parametrize("shape", [(), (2,)])
def test_fit_divides_by_the_rows_of_each_problem(shape: tuple[int, ...]) -> None:
    many = clustered_rows(*shape, 40, 16)
    layer, twin = (EMCL(4, init="normal").double() for _ in range(2))
    twin.load_state_dict(layer.state_dict())
    layer(many)
    twin.fit(*em_moments(many), torch.full(shape, 40))
    assert_close("bases", twin.bases, layer.bases)


def sum_of_none(vector: Tensor) -> Any:
    return None


BAD: list[tuple[str, Callable[[], object], str]] = [
    ("rows", lambda: EMCL(4).double().fit(*em_moments(x), 0), "num_rows is 0; expected a whole number"),
    ("rows of problems", lambda: EMCL(4).double().fit(*em_moments(x.expand(2, 40, 16)), torch.ones(3)),
     r"num_rows has shape \[3\] but gram has shape \[2, 16, 16\]; expected one number, or one for each problem, \[2\]"),
    ("part of a basis", lambda: checks.count(2.5, "num_bases"), "num_bases is 2.5; expected a whole number"),
    ("truth as a number", lambda: checks.count(True, "num_bases"), "num_bases is True; expected a whole number"),
    ("parameter as weight", lambda: checks.number(nn.Parameter(torch.ones(())), "residual_weight"),
     r"residual_weight is Parameter[^;]*; expected a finite number, which is a constant to autograd"),
    ("list of features", lambda: checks.tensors(text=[x, x]), "text is a list; expected a torch tensor"),
    ("weight that is none", lambda: EMCL(4, residual_weight=float("nan")), "residual_weight is nan; expected a finite"),
    ("eps below zero", lambda: em_project(x, init, eps=-1.0), "eps is -1.0; expected 0 or a small number"),
    ("eps of a layer", lambda: EMCL(4, eps=-1.0), "eps is -1.0; expected 0"),
    ("mask with gradient", lambda: pooled_similarity(text, frames, mask.clone().requires_grad_(), init),
     r"frame_mask is torch.float64 and requires grad; expected bool or real numbers"),
    ("complex mask", lambda: pooled_similarity(text, frames, mask.to(torch.complex128), init),
     "frame_mask is torch.complex128; expected bool or real"),
    ("sum that is none", lambda: EMCL(4).double().pooled_similarity(text, frames, mask, add_up=sum_of_none),
     r"add_up gave a NoneType for a tensor \[273\]; it must return the sum"),
    ("sum that is cut", lambda: EMCL(4).double().pooled_similarity(text, frames, mask, add_up=lambda v: v[:-1]),
     r"add_up gave a tensor \[272\] for a tensor \[273\]"),
    ("NaN in the start", lambda: em_project(x, init * float("nan")), "the features or the start hold NaN"),
]  # fmt: skip


@pytest.mark.parametrize(("call", "message"), [case[1:] for case in BAD], ids=[case[0] for case in BAD])
def test_bad_input_is_named(call: Callable[[], object], message: str) -> None:
    with pytest.raises((ValueError, TypeError), match=message):
        call()
