"""Problems for the GPU tests, and the comparison of a backend with the float64 reference on the CPU."""

import os
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emcl_kernels import dispatch, use_backend
from emcl_kernels.testing import TOLERANCE, assert_close, clustered_rows, distinct_init, relative_error

DEVICE = os.environ.get("EMCL_TEST_DEVICE", "cuda")
DTYPES = [torch.float32, torch.bfloat16, torch.float16]
GRADIENTS = ["identity", "linear", "full"]

Function = Callable[..., dict[str, Tensor]]


@dataclass
class Problem:
    """Named inputs in float64 on the CPU, and the dtype in which a backend gets its rows.

    rows: which inputs have that dtype; other numbers are float32, as the ops want them. All are exact in theirs.
    differentiate: the inputs whose gradients are compared.
    """

    tensors: dict[str, Tensor]
    dtype: torch.dtype
    rows: tuple[str, ...]
    differentiate: tuple[str, ...]

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point():
                self.tensors[name] = tensor.to(self.dtype if name in self.rows else torch.float32).double()


def project_problem(
    leading: tuple[int, ...],
    rows: int,
    width: int,
    bases: int,
    dtype: torch.dtype,
    *,
    per_row: bool = False,
    differentiate: tuple[str, ...] = ("x",),
) -> Problem:
    init = distinct_init(*leading, rows, bases) if per_row else distinct_init(*leading, bases)
    return Problem({"x": clustered_rows(*leading, rows, width), "init": init}, dtype, ("x", "init"), differentiate)


def pooled_problem(
    texts: int,
    videos: int,
    frames: int,
    width: int,
    bases: int,
    dtype: torch.dtype,
    differentiate: tuple[str, ...] = ("text", "frames"),
) -> Problem:
    """A mask of booleans, or, for an even number of frames, of any numbers. No video is without a valid frame."""
    mask = torch.rand(videos, frames) < 0.7
    mask[:, 0] = True
    tensors = {
        "text": 3 * clustered_rows(texts, width),
        "frames": 3 * clustered_rows(videos, frames, width),
        "mask": mask if frames % 2 else mask * (0.5 + torch.rand(videos, frames, dtype=torch.float64)),
        "init": distinct_init(bases),
    }
    return Problem(tensors, dtype, ("text", "frames", "mask", "init"), differentiate)


def evaluate(
    function: Function, problem: Problem, rows: torch.dtype, others: torch.dtype, device: str
) -> dict[str, Tensor]:
    """Outputs, and gradients of their sum with fixed weights, in float64 on the CPU.

    Where the output is y, the features x and a small reconstruction, x is taken away from it, and d_y from d_x: after
    rounding, which so is part of the error.
    """
    inputs = {
        name: tensor.to(device, rows if name in problem.rows else others)
        if tensor.is_floating_point()
        else tensor.to(device)
        for name, tensor in problem.tensors.items()
    }
    differentiated = [inputs[name].requires_grad_() for name in problem.differentiate]
    outputs = function(**inputs)
    results = {name: output.detach().double().cpu() for name, output in outputs.items()}
    if differentiated:
        loss = sum((o * weights(o, problem.dtype)).sum() for o in outputs.values() if o.requires_grad)
        gradients = torch.autograd.grad(loss, differentiated)
        results |= {
            f"d_{name}": gradient.double().cpu()
            for name, gradient in zip(problem.differentiate, gradients, strict=True)
        }
    if "y" in outputs:
        results["y − x"] = results.pop("y") - problem.tensors["x"]
        results["d_x − d_y"] = results.pop("d_x") - weights(outputs["y"], problem.dtype).double().cpu()
    return results


def weights(output: Tensor, exact_in: torch.dtype) -> Tensor:
    steps = torch.linspace(-3, 3, output.numel(), dtype=torch.float64)
    return steps.cos().view(output.shape).to(exact_in).to(output.device, output.dtype)


def compare(
    backend: str,
    problem: Problem,
    ours: Function,
    formula: Function,
    *,
    through_em: bool = False,
    plain: Function | None = None,
) -> None:
    """`ours` on the backend against `formula` in float64.

    float32 is held to the table of emcl_kernels/testing.py, other dtypes to twice the error of plain torch in that
    dtype. Where float32 itself cannot hold the table, plain torch is the measure there too.

    through_em: the gradient goes through every iteration, each of which makes rounding larger.
    plain: the formula in plain torch, where another than `formula` is needed for memory.
    """
    with use_backend("reference"):
        expected = evaluate(formula, problem, torch.float64, torch.float64, "cpu")
        same = evaluate(plain or formula, problem, problem.dtype, problem.dtype, DEVICE)
    with use_backend(backend):
        actual = evaluate(ours, problem, problem.dtype, torch.float32, DEVICE)
    factor = 8 if through_em else 4 if problem.dtype == torch.float32 else 2
    failures = []
    for name, value in expected.items():
        if float(value.abs().max()) < 1e-9:  # nothing to compare with, such as the gradient where K = 1
            if not float(actual[name].abs().max()) < 1e-4:
                failures.append(f"{name}: {float(actual[name].abs().max()):.1e}, expected zero")
            continue
        floor = TOLERANCE[torch.float32] * (4 if through_em else 1)
        allowed = max(floor, factor * relative_error(same[name], value))
        try:
            assert_close(name, actual[name], value, allowed)
        except AssertionError as error:
            failures.append(str(error))
    assert not failures, "; ".join(failures)


def unavailable(backend: str) -> str:
    """Why a backend cannot run on the device of the tests, or an empty string."""
    for entry in dispatch.report():
        if (entry["backend"], entry["device"]) == (backend, DEVICE):
            return entry["reason"]
    return f"emcl_kernels has no backend {backend}"
