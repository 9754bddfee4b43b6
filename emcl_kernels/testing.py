"""For tests and benchmarks: inputs on which EM does something, one table of tolerances, and a comparison."""

import math

import torch
from torch import Tensor

# Largest allowed ‖out − ref‖ / ‖ref‖ against the float64 reference, by dtype of the input, if sizes are not known.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}

# The table of what arithmetic explains. `bound` puts it together.
ROUNDING = {
    dtype: torch.finfo(dtype).eps / 2 for dtype in (torch.float64, torch.float32, torch.float16, torch.bfloat16)
}
"""Largest relative error of one rounding to a dtype."""
SUMMED_IN = {
    torch.float64: torch.float64,
    torch.float32: torch.float32,
    torch.float16: torch.float32,
    torch.bfloat16: torch.float32,
}
"""The dtype in which each is added up."""
MARGIN = 4.0
"""Roundings of a sum behave like a random walk; a sum is off by at most this many of its standard deviations."""
OUTPUT_ROUNDINGS = 2.0
"""Narrow operands and results are rounded to their dtype: once on the way in or out, or on both."""
PAIR = {"cuda": 2.0**-17}
"""Relative error of a product in float32, by backend, if it is not float32's own: CUDA multiplies pairs of 16 bits."""


def bound(
    dtype: torch.dtype, length: int = 1, *, conditioning: float = 1.0, backend: str = "reference", exact: bool = False
) -> float:
    """Largest relative error that arithmetic explains, on any processor: c·u·√length, and the rounding of the result.

    Args:
        dtype: of the input and of the result.
        length: of the longest chain of additions that a number of the result goes through.
        conditioning: how many times larger an error of the input is in the result; see `conditioning`.
        backend: name of the backend, for the table of products.
        exact: the result is in the dtype that is summed in, whatever `dtype` is.

    Returns:
        the bound on ‖out − ref‖ / ‖ref‖.

    Examples:
        >>> f"{bound(torch.float32, 1000):.1e}"
        '7.5e-06'
    """
    summed_in = SUMMED_IN[dtype]
    total = MARGIN * ROUNDING[summed_in] * math.sqrt(length)
    if summed_in == torch.float32:
        total += PAIR.get(backend, 0.0)
    if dtype != summed_in and not exact:
        total += OUTPUT_ROUNDINGS * ROUNDING[dtype]
    return total * max(1.0, conditioning)


def clustered_rows(*shape: int, dtype: torch.dtype = torch.float64, clusters: int = 8) -> Tensor:
    """Rows of length one around a few directions. On independent random rows EM would find nothing.

    Args:
        *shape: `[*, N, D]`.
        dtype: of the result.
        clusters: number of directions.

    Returns:
        Rows in that shape, different in every call.
    """
    *leading, rows, width = shape
    centres = torch.randn(*leading, clusters, width, dtype=torch.float64)
    member = torch.arange(rows) % clusters
    x = centres[..., member, :] + 0.3 * torch.randn(*leading, rows, width, dtype=torch.float64)

    return (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)).to(dtype)


def distinct_init(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """Starts of the bases that differ from each other. Bases with equal starts would differ by rounding only.

    Args:
        *shape: `[*, K]`.
        dtype: of the result.

    Returns:
        Starts in that shape.
    """
    start = torch.linspace(-1.5, 1.5, shape[-1], dtype=torch.float64) if shape[-1] > 1 else torch.ones(1)
    return (start + 0.05 * torch.randn(shape, dtype=torch.float64)).to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖, in float64."""
    actual = actual.detach().double()
    expected = expected.detach().double()
    return float(torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected).clamp_min(1e-300))


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Compare a tensor with what is expected, by its relative error.

    Args:
        name: what the message calls the tensor.
        actual: what was computed.
        expected: in the same shape, in any dtype.
        tolerance: largest `relative_error`; None: that of `TOLERANCE` for the dtype of `actual`.

    Raises:
        AssertionError: shapes differ, a number is not finite, or the error is larger.
    """
    if tolerance is None:
        tolerance = TOLERANCE[actual.dtype]
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    assert bool(torch.isfinite(actual).all()), f"{name}: not finite"
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{name}: relative error {error:.2e}, tolerance {tolerance:.0e}"
