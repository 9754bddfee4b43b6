"""The one comparison of the kernel tests: a backend against the formulas of reference.py in float64.

What is allowed comes from arithmetic (`emcl_kernels.testing.bound`): the length of the sums, and how far the float64
result moves if its inputs move by a rounding. So it is the same on every processor, whatever torch rounds there.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from emcl_kernels import use_backend
from emcl_kernels.testing import SUMMED_IN, bound, relative_error

Function = Callable[..., dict[str, Tensor]]
"""Named tensors to named outputs."""

HALF = [torch.bfloat16, torch.float16]
GRADIENTS = ["identity", "linear", "full"]

SHIFT = 1e-6
"""Of the inputs, relative, to see how much larger it is in the outputs."""
MANY = 10_000
"""So many random shifts cannot cancel by chance; of fewer numbers, several shifts are tried."""
ZERO = 1e-9
"""An output below this in float64 is zero by its nature, such as a gradient to a single basis."""
ALMOST_ZERO = 1e-4
"""What such an output may be in another dtype."""
USELESS = 0.3
"""A problem whose result may be off by as much tests nothing."""


@dataclass
class Problem:
    """Inputs of an op, by name, in float64 on the CPU. All are exact in the dtype in which a backend gets them.

    Args:
        tensors: the inputs.
        dtype: of the rows as a backend gets them.
        rows: the inputs that have that dtype. Other numbers are in the dtype of sums, as the ops want them.
        differentiate: the inputs whose gradients are compared.
        length: of the longest chain of additions; the longest of the last two dimensions by default.
        steps: iterations, each of which adds its own roundings.
    """

    tensors: dict[str, Tensor]
    dtype: torch.dtype
    rows: tuple[str, ...] = ()
    differentiate: tuple[str, ...] = ()
    length: int = 0
    steps: int = 1

    def __post_init__(self) -> None:
        for name, tensor in self.tensors.items():
            if tensor.is_floating_point():
                self.tensors[name] = tensor.to(self.given(name)).double()
        if not self.length:
            self.length = max(size for tensor in self.tensors.values() for size in tensor.shape[-2:])

    def given(self, name: str) -> torch.dtype:
        """The dtype in which a backend gets an input."""
        return self.dtype if name in self.rows else SUMMED_IN[self.dtype]


def evaluate(
    function: Function, problem: Problem, *, device: str = "cpu", exact: bool = True, shift: float = 0.0
) -> dict[str, Tensor]:
    """Outputs, and gradients of their sum with fixed weights, in float64 on the CPU.

    If an output is y, the features x and a small reconstruction, x is taken away from it, and d_y from d_x: after
    rounding, which is so part of the error.

    Args:
        function: what is evaluated.
        problem: its inputs.
        device: where it is evaluated.
        exact: in float64, in place of the dtypes in which a backend gets its inputs.
        shift: relative change of every input and of the weights, of random sign.
    """
    inputs = {}
    for name, tensor in problem.tensors.items():
        dtype = tensor.dtype
        if tensor.is_floating_point():
            dtype = torch.float64 if exact else problem.given(name)
            tensor = shifted(tensor, shift)
        inputs[name] = tensor.to(device, dtype, copy=True)

    leaves = [inputs[name].requires_grad_() for name in problem.differentiate]
    outputs = function(**inputs)
    results = dict(outputs)
    differentiable = [output for output in outputs.values() if output.requires_grad]
    if differentiable:
        d_outputs = [shifted(weights(output, problem), shift).to(output) for output in differentiable]
        gradients = torch.autograd.grad(differentiable, leaves, d_outputs)
        results |= {f"d_{name}": gradient for name, gradient in zip(problem.differentiate, gradients, strict=True)}

    results = {name: result.detach().double().cpu() for name, result in results.items()}
    if "y" in results:
        results["y - x"] = results.pop("y") - problem.tensors["x"]
        if "d_x" in results:
            results["d_x - d_y"] = results.pop("d_x") - weights(outputs["y"], problem)
    return results


def weights(output: Tensor, problem: Problem) -> Tensor:
    """Of an output in the loss: numbers of both signs, exact in every dtype in which they are used."""
    angles = torch.linspace(-3, 3, output.numel(), dtype=torch.float64)
    return angles.cos().view(output.shape).to(problem.dtype).double()


def below_the_dtype(dtype: torch.dtype, value: Tensor) -> float:
    """Relative error of a result whose numbers are so small that the dtype has few of their bits: float16's, mostly."""
    spacing = torch.finfo(dtype).smallest_normal * torch.finfo(dtype).eps
    return spacing / 2 * value.numel() ** 0.5 / float(torch.linalg.vector_norm(value))


def shifted(tensor: Tensor, shift: float) -> Tensor:
    """Every number a little larger or smaller, by the same share and a random sign."""
    if not shift:
        return tensor
    signs = 2.0 * torch.randint(2, tensor.shape) - 1
    return tensor * (1 + shift * signs)


def compare(
    backend: str,
    device: str,
    problem: Problem,
    ours: Function,
    formula: Function,
    *,
    conditioning: float | None = None,
    may_be_useless: bool = False,
) -> None:
    """Compare `ours` on the backend with `formula` in float64.

    Args:
        backend: name of the backend of `ours`.
        device: of `ours`.
        problem: inputs of both.
        ours: the op.
        formula: the same in plain torch.
        conditioning: how much larger an error of the inputs is in the results. By default it is measured, which costs
            more evaluations in float64.
        may_be_useless: leave out outputs on which too much would be allowed, in place of failing.

    Raises:
        AssertionError: outputs that are further off than arithmetic explains, with their errors.
    """
    with use_backend("reference"):
        expected = evaluate(formula, problem)
        numbers = sum(tensor.numel() for tensor in problem.tensors.values())
        repeats = 0 if conditioning else 1 if numbers > MANY else 6
        moved = [evaluate(formula, problem, shift=SHIFT) for _ in range(repeats)]
    with use_backend(backend):  # type: ignore[arg-type]
        actual = evaluate(ours, problem, device=device, exact=False)

    failures = []
    for name, value in expected.items():
        result = actual[name]
        if result.shape != value.shape:
            failures.append(f"{name}: shape {list(result.shape)}, expected {list(value.shape)}")
        elif not bool(result.isfinite().all()):
            failures.append(f"{name}: not finite")
        elif float(value.abs().max()) < ZERO:
            largest = float(result.abs().max())
            if largest > ALMOST_ZERO:
                failures.append(f"{name}: {largest:.1e}, expected zero")
        else:
            growth = conditioning or max(relative_error(other[name], value) for other in moved) / SHIFT
            allowed = bound(problem.dtype, problem.length * problem.steps, conditioning=growth, backend=backend)
            allowed += below_the_dtype(problem.dtype, value)
            error = relative_error(result, value)
            if allowed > USELESS and may_be_useless:
                continue
            if allowed > USELESS:
                failures.append(f"{name}: may be off by {allowed:.1e}, so nothing is tested; take another problem")
            if not error <= allowed:
                failures.append(f"{name}: relative error {error:.1e}, more than {allowed:.1e}")
    assert not failures, "; ".join(failures)
