"""For tests and benchmarks: inputs on which EM does something, one table of tolerances, and a comparison."""

import torch
from torch import Tensor

# Largest allowed ‖out − ref‖ / ‖ref‖ against the float64 reference, by dtype of the input.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


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
