"""torch.func over every op and the layer: what it gives is what autograd gives, or it is refused in our own words."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from op_arguments import EVALUATION, arguments, cases, op
from torch import Tensor
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

from emcl_kernels import (
    EMCL,
    EMRefiner,
    em_project,
    pooled_cosine_similarity_stream,
    pooled_similarity_blocks,
    pooled_similarity_stream,
)
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init

DIFFERENTIABLE = [case for case in cases() if not case[0].endswith("_backward") and case[0] not in EVALUATION]
x, init = clustered_rows(3, 40, 16), distinct_init(5)
text, frames, mask = clustered_rows(2, 6, 16), clustered_rows(4, 3, 16), torch.ones(4, 3).bool()

Inputs = tuple[Tensor, ...]


def label(case: tuple[str, str]) -> str:
    return ", ".join(part for part in case if part)


def problem(case: tuple[str, str]) -> tuple[Callable[..., Tensor], Inputs]:
    """An op's first output as a function of the inputs that have a gradient, and these inputs."""
    given = arguments(*case, dtype=torch.float64)
    places = [i for i, value in enumerate(given) if isinstance(value, Tensor) and value.requires_grad]
    constants = [value.detach() if isinstance(value, Tensor) else value for value in given]

    def function(*inputs: Tensor) -> Tensor:
        full = list(constants)
        for place, value in zip(places, inputs, strict=True):
            full[place] = value
        output = op(case[0])(*full)
        return output[0] if isinstance(output, tuple) else output

    return function, tuple(constants[place] for place in places)


def total(function: Callable[..., Tensor]) -> Callable[..., Tensor]:
    return lambda *inputs: function(*inputs).cos().sum()


def by_autograd(function: Callable[..., Tensor], inputs: Inputs) -> Inputs:
    leaves = [value.clone().requires_grad_() for value in inputs]
    return torch.autograd.grad(function(*leaves), leaves, allow_unused=True, materialize_grads=True)


def every(inputs: Inputs) -> tuple[int, ...]:
    return tuple(range(len(inputs)))


def assert_all_close(actual: Inputs, expected: Inputs) -> None:
    for i, (a, b) in enumerate(zip(actual, expected, strict=True)):
        assert_close(f"input {i}", a, b, 1e-12)


# ---- reverse mode ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=label)
def test_grad_and_vjp_are_autograds(case: tuple[str, str]) -> None:
    function, inputs = problem(case)
    expected = by_autograd(total(function), inputs)
    assert_all_close(grad(total(function), argnums=every(inputs))(*inputs), expected)

    # The function that vjp returns is called when the transform has ended.
    value, pull = vjp(total(function), *inputs)
    assert_close("value", value, total(function)(*inputs), 1e-12)
    assert_all_close(pull(torch.ones((), dtype=torch.float64)), expected)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=label)
def test_jacrev_is_one_gradient_after_another(case: tuple[str, str]) -> None:
    function, inputs = problem(case)
    jacobians = jacrev(function, argnums=every(inputs))(*inputs)
    output = function(*inputs)
    for i in (0, output.numel() // 2, output.numel() - 1):
        row = by_autograd(lambda *given, i=i: function(*given).flatten()[i], inputs)
        for jacobian, expected in zip(jacobians, row, strict=True):
            assert_close(f"output {i}", jacobian.flatten(0, output.dim() - 1)[i], expected, 1e-12)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=label)
def test_vmap_of_grad_and_grad_of_vmap_are_loops(case: tuple[str, str]) -> None:
    function, inputs = problem(case)
    many = tuple(torch.stack([value, 0.9 * value]) for value in inputs)
    loop = [by_autograd(total(function), tuple(value[i] for value in many)) for i in range(2)]
    expected = tuple(torch.stack(parts) for parts in zip(*loop, strict=True))

    assert_all_close(vmap(grad(total(function), argnums=every(inputs)))(*many), expected)
    assert_all_close(grad(lambda *given: vmap(total(function))(*given).sum(), argnums=every(inputs))(*many), expected)


@pytest.mark.parametrize("case", DIFFERENTIABLE, ids=label)
def test_second_derivatives_are_autograds_or_refused_alike(case: tuple[str, str]) -> None:
    """A transform inside another: the outer one must not take what the inner one computed for a constant."""
    function, inputs = problem(case)

    def once(*given: Tensor) -> Tensor:
        first, *_ = grad(total(function), argnums=every(given))(*given)
        return first.square().sum()

    def twice(*given: Tensor) -> Tensor:
        (first,) = torch.autograd.grad(total(function)(*given), given[:1], create_graph=True)
        return first.square().sum()

    expected = unless_refused(lambda: by_autograd(twice, inputs))
    found = unless_refused(lambda: grad(once, argnums=every(inputs))(*inputs))
    if expected is None:
        assert found is None
    else:
        assert_all_close(found, expected)


def unless_refused(derivative: Callable[[], Inputs]) -> Inputs | None:
    """None for the refusal in our own words; any other error is one."""
    try:
        return derivative()
    except NotImplementedError as error:
        if "emcl ops have no second derivative" in str(error):
            return None
        raise


@pytest.mark.slow
def test_compiled_grad_is_autograds() -> None:
    """Without a graph break; in a process of its own, since torch.compile does not see through the checks of types."""
    script = Path(__file__).with_name("compiled.py")
    run = subprocess.run([sys.executable, str(script), "transforms", "native", "cpu"], capture_output=True, text=True)
    assert run.returncode == 0, run.stdout[-3000:] + run.stderr[-5000:]


# ---- forward mode ----------------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore:`torch.jit.script")  # torch's own, when it enters forward mode
@pytest.mark.parametrize("case", cases(), ids=label)
def test_forward_mode_is_refused_by_every_op(case: tuple[str, str]) -> None:
    given = arguments(*case, dtype=torch.float64, grad=False)
    places = [i for i, value in enumerate(given) if isinstance(value, Tensor) and value.is_floating_point()]
    for place in places:

        def function(value: Tensor, place: int = place) -> Any:
            return op(case[0])(*given[:place], value, *given[place + 1 :])

        value = given[place]
        for call in (
            lambda function=function, value=value: jvp(function, (value,), (torch.ones_like(value),)),
            lambda function=function, value=value: jacfwd(function)(value),
        ):
            if value.numel():
                with pytest.raises(NotImplementedError, match=r"carries a tangent.*reverse mode.*torch\.func\.grad"):
                    call()


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_a_hessian_is_refused() -> None:
    with pytest.raises(NotImplementedError, match="hessian"):
        hessian(lambda rows: em_project(rows, init, gradient="full")[0].cos().sum())(x[0])


# ---- what has no derivative ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda t: pooled_similarity_blocks(t, frames, mask, init, em_block=2), "is for evaluation"),
        (lambda t: torch.cat(list(pooled_similarity_stream(t, frames, mask, init))), "is for inference"),
        (lambda t: torch.cat(list(pooled_similarity_stream(t, frames, mask, init, em_block=2))), "is for inference"),
        (lambda t: torch.cat(list(pooled_cosine_similarity_stream(t, frames, mask))), "is for inference"),
    ],
    ids=["blocks", "stream", "stream of blocks", "stream of cosines"],
)
def test_what_has_no_derivative_is_refused_instead_of_zero(function: Callable[[Tensor], Tensor], reason: str) -> None:
    with pytest.raises(NotImplementedError, match=reason):
        grad(lambda t: function(t).sum())(text[0])
    with pytest.raises(NotImplementedError, match=reason):
        vmap(grad(lambda t: function(t).sum()))(text)

    # As a constant, or mapped over, it is what it is without torch.func.
    expected = torch.stack([function(t) for t in text])
    assert_close("mapped", vmap(function)(text), expected, 1e-12)
    constant = grad(lambda t: (t.sum() * function(t.detach())).sum())(text[0])
    assert_close("constant", constant, torch.full_like(text[0], float(expected[0].sum())), 1e-12)


@pytest.mark.filterwarnings("ignore:`torch.jit.script")
def test_a_refiner_gives_no_derivative_of_zero() -> None:
    refiner = EMRefiner(num_bases=4).fit(x[0], x[1])
    functions: list[Callable[[Tensor], Tensor]] = [
        refiner.transform_text,
        refiner.transform_video,
        lambda rows: EMRefiner(num_bases=4).fit(rows, x[1]).matrix,
    ]
    for function in functions:
        with pytest.raises(NotImplementedError, match="EMRefiner is for inference and has no derivative"):
            grad(lambda rows, function=function: function(rows).sum())(x[0])
        with pytest.raises(NotImplementedError, match="carries a tangent"):
            jvp(function, (x[0],), (x[0],))

    layer = refiner.to_linear("text").double()
    assert bool(grad(lambda rows: layer(rows).cos().sum())(x[0]).abs().sum() > 0)


# ---- the layer -------------------------------------------------------------------------------------------------------


def layer_in_float64() -> EMCL:
    layer = EMCL(num_bases=5, gradient="full").double()
    layer.bases.copy_(init)
    return layer


def test_a_layer_in_evaluation_under_every_transform() -> None:
    layer = layer_in_float64().eval()

    def loss(rows: Tensor) -> Tensor:
        return layer(rows).cos().sum()

    expected = torch.stack([by_autograd(loss, (rows,))[0] for rows in x])
    assert_all_close((vmap(grad(loss))(x),), (expected,))
    assert torch.equal(layer.bases, init)


@pytest.mark.parametrize("transformed", [grad, lambda f: lambda rows: vjp(f, rows), vmap, lambda f: vmap(grad(f))])
def test_a_layer_in_training_does_not_move_bases_that_are_no_argument(transformed: Callable[..., Any]) -> None:
    layer = layer_in_float64()
    with pytest.raises(RuntimeError, match=r"EMCL in training mode moves its bases.*functional_call"):
        transformed(lambda rows: layer(rows).cos().sum())(x if transformed is not grad else x[0])
    assert torch.equal(layer.bases, init)


def test_a_layer_in_training_moves_bases_that_are_arguments() -> None:
    layer = layer_in_float64()

    def loss(rows: Tensor, bases: Tensor) -> tuple[Tensor, Tensor]:
        buffers = {"bases": bases.clone()}
        value = functional_call(layer, buffers, (rows,)).cos().sum()
        return value, buffers["bases"]

    mapped, moved = vmap(grad(loss, has_aux=True), in_dims=(0, 0))(x, init.repeat(3, 1))
    for i, rows in enumerate(x):
        alone = layer_in_float64()
        assert_close("gradient", mapped[i], by_autograd(lambda r, alone=alone: alone(r).cos().sum(), (rows,))[0], 1e-12)
        assert_close("bases", moved[i], alone.bases, 1e-12)
    assert torch.equal(layer.bases, init)
