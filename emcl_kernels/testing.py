"""For tests and benchmarks: inputs on which EM does something, one tolerance table, and a comparison that says more."""

import torch
from torch import Tensor

# Largest allowed ‖out − ref‖ / ‖ref‖ against the float64 reference, by dtype of the input.
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}


def clustered_rows(*shape: int, dtype: torch.dtype = torch.float64, clusters: int = 8) -> Tensor:
    """`[*, N, D]` rows of length one around a few directions. Independent random rows would make EM uniform."""
    *leading, rows, width = shape
    centres = torch.randn(*leading, clusters, width, dtype=torch.float64)
    member = torch.arange(rows) % clusters
    x = centres[..., member, :] + 0.3 * torch.randn(*leading, rows, width, dtype=torch.float64)
    return (x / torch.linalg.vector_norm(x, dim=-1, keepdim=True)).to(dtype)


def distinct_init(*shape: int, dtype: torch.dtype = torch.float64) -> Tensor:
    """`[*, K]` starts that differ from each other. Equal starts are told apart by rounding only."""
    start = torch.linspace(-1.5, 1.5, shape[-1], dtype=torch.float64) if shape[-1] > 1 else torch.ones(1)
    return (start + 0.05 * torch.randn(shape, dtype=torch.float64)).to(dtype)


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """‖actual − expected‖ / ‖expected‖, in float64."""
    actual, expected = actual.detach().double(), expected.detach().double()
    return float(torch.linalg.vector_norm(actual - expected) / torch.linalg.vector_norm(expected).clamp_min(1e-300))


def assert_close(name: str, actual: Tensor, expected: Tensor, tolerance: float | None = None) -> None:
    """Raises: AssertionError with the name, the error and the tolerance, by default the table's for `actual`."""
    if tolerance is None:
        tolerance = TOLERANCE[actual.dtype]
    assert actual.shape == expected.shape, f"{name}: shape {list(actual.shape)}, expected {list(expected.shape)}"
    assert bool(torch.isfinite(actual).all()), f"{name}: not finite"
    error = relative_error(actual, expected)
    assert error <= tolerance, f"{name}: relative error {error:.2e}, tolerance {tolerance:.0e}"
