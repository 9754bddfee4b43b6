"""The reference: a case done by hand, the Gram form against the loop, backward formulas against autograd."""

import pytest
import torch

from emcl_kernels import reference
from emcl_kernels.testing import assert_close, clustered_rows, distinct_init


def test_loop_equals_a_case_done_by_hand() -> None:
    # two rows, two channels, two bases; one iteration from a start of zeros: every responsibility is 1/2 / (2 · 1/2)
    x = torch.tensor([[3.0, 1.0], [4.0, 0.0]], dtype=torch.float64)
    y, mean_bases = reference.em_project_loop(
        x, torch.zeros(2, dtype=torch.float64), num_iters=1, residual_weight=1.0, eps=0.0
    )
    # bases = x·r = [[2, 2], [2, 2]] → [[√½, √½], [√½, √½]]; reconstruction = bases·rᵀ = √½ everywhere
    half = 0.5**0.5
    assert_close("y", y, x + half)
    assert_close("mean_bases", mean_bases, torch.tensor([half, half], dtype=torch.float64))


def test_gram_form_of_the_hand_case() -> None:
    x = torch.tensor([[3.0, 1.0], [4.0, 0.0]], dtype=torch.float64)
    y, _mean_bases, responsibilities, scale = reference.em_project(
        x, torch.zeros(2, dtype=torch.float64), num_iters=1, residual_weight=1.0, eps=0.0
    )
    assert_close("responsibilities", responsibilities, torch.full((2, 2), 0.5, dtype=torch.float64))
    assert_close("scale", scale, torch.full((2,), 8**-0.5, dtype=torch.float64))
    assert_close("y", y, x + 0.5**0.5)


@pytest.mark.parametrize("per_row", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
@pytest.mark.parametrize(("rows", "width", "bases", "iters"), [(1, 16, 7, 9), (41, 63, 1, 1), (130, 63, 7, 9)])
def test_gram_form_equals_the_loop(
    rows: int, width: int, bases: int, iters: int, batch: tuple[int, ...], per_row: bool
) -> None:
    x = clustered_rows(*batch, rows, width)
    init = distinct_init(*batch, rows, bases) if per_row else distinct_init(*batch, bases)
    y, mean_bases = reference.em_project_loop(x, init, num_iters=iters)
    out = reference.em_project(x, init, num_iters=iters)
    assert_close("reconstruction", out[0] - x, y - x)
    assert_close("mean_bases", out[1], mean_bases, 1e-9)


def test_backward_formulas_equal_autograd() -> None:
    x, init = clustered_rows(2, 30, 16), distinct_init(7)
    gram, colsum = reference.em_moments(x)
    logits = reference.start_logits(x, colsum, init)
    gram, logits = gram.requires_grad_(), logits.requires_grad_()
    out = reference.em_fit(gram, logits, num_iters=5, temperature=0.3)
    d_out = [torch.randn_like(tensor) for tensor in out]
    expected = torch.autograd.grad(out, (gram, logits), d_out)
    actual = reference.em_fit_backward(gram.detach(), logits.detach(), *d_out, num_iters=5, temperature=0.3)
    for name, a, b in zip(("d_gram", "d_logits"), actual, expected, strict=True):
        assert_close(name, a, b)

    inputs = [tensor.detach().requires_grad_() for tensor in (x, *out)]
    y = reference.em_reconstruct(*inputs, weight=-0.7)
    d_y = torch.randn_like(y)
    expected = torch.autograd.grad(y, inputs, d_y)
    actual = reference.em_reconstruct_backward(d_y, *(t.detach() for t in inputs), weight=-0.7)
    for name, a, b in zip(("d_x", "d_responsibilities", "d_scale"), actual, expected, strict=True):
        assert_close(name, a, b)


def test_equal_starts_stay_equal() -> None:
    """The release's ±1 start makes two bases with multiplicities."""
    x = clustered_rows(200, 32)
    init = torch.tensor([1.0, -1.0] * 8, dtype=torch.float64)
    _, mean_bases = reference.em_project_loop(x, init)
    assert_close("even", mean_bases[::2], mean_bases[:1].expand(8), 1e-9)
    assert_close("odd", mean_bases[1::2], mean_bases[1:2].expand(8), 1e-9)
