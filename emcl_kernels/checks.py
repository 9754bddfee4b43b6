"""What the ops accept, and the errors for anything else.

Each check compares first, and looks for the reason only if that fails: a correct call pays for one function an op.
"""

import math
import numbers
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

GRADIENTS = ("identity", "linear", "full")
ACCUMULATION = {
    torch.float32: torch.float32,
    torch.bfloat16: torch.float32,
    torch.float16: torch.float32,
    torch.float64: torch.float64,
}
"""Dtypes that the ops take, and the dtype in which each is added up."""

LARGEST = torch.finfo(torch.float32).max
"""Of every setting that is a number: float32 has it, which all but float64 rows are computed in."""
SMALLEST = torch.finfo(torch.float32).tiny
"""Of a temperature, which is divided by."""
LEAST_EPS = 1e-18
"""Of eps, but for 0: EM makes factors of up to 1 / eps², which float32 must have."""
MOST_ITERATIONS = 1_000_000
"""EM has converged long before. The C++ kernels have the same bounds (csrc/problem.h)."""


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums over rows are kept in float32, and in float64 for float64."""
    return ACCUMULATION.get(dtype, torch.float32)


# ---- any argument ----------------------------------------------------------------------------------------------------


def tensors(**named: Any) -> None:
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a torch tensor")


def inputs(**named: Any) -> None:
    """Refuse what is no tensor, and tensors that carry a tangent."""
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a torch tensor")
    if forward_ad._current_level >= 0:
        no_tangents(**named)


def no_tangents(**named: Any) -> None:
    """Refuse tensors that carry a tangent: the ops have no forward-mode rule, and would give a derivative of zero."""
    if torch.compiler.is_compiling():
        return
    for name, value in named.items():
        if isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(
                f"{name} carries a tangent, but emcl ops have no forward-mode derivative (jvp, jacfwd, hessian); use "
                "reverse mode (backward, torch.autograd.grad, torch.func.grad, vjp or jacrev), or plain torch: "
                "em_project_loop and pooled_similarity_materialized of emcl_kernels.reference"
            )


def no_transform_to(function: str, way_out: str, **named: Any) -> None:
    """Refuse what torch.func differentiates to, in a function whose result is a constant: it would be given zeros.

    Args:
        function: its name.
        way_out: what to call instead.
        **named: its inputs; what is no tensor is left alone.
    """
    if forward_ad._current_level >= 0:
        no_tangents(**named)
    if torch.compiler.is_compiling() or not torch._C._are_functorch_transforms_active():
        return
    for name, value in named.items():
        if isinstance(value, Tensor) and value.requires_grad:
            raise NotImplementedError(
                f"{function} is for inference and has no derivative, but torch.func asks for one to {name}; {way_out}, "
                f"or pass {name}.detach() if {name} is to be a constant"
            )


def has_numbers(*given: Tensor) -> bool:
    """Whether the numbers of tensors can be looked at: not while they are traced, nor where one is many (vmap)."""
    if torch.compiler.is_compiling():
        return False
    for x in given:
        while torch._C._functorch.is_functorch_wrapped_tensor(x):
            if torch._C._functorch.is_batchedtensor(x):
                return False
            x = torch._C._functorch.get_unwrapped(x)  # of torch.func.grad
        if type(x) is not Tensor and type(x) is not Parameter:
            return False
    return True


def number(value: Any, name: str) -> None:
    if isinstance(value, Tensor) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; expected a finite number, which is a constant to autograd")
    finite(float(value), name)


def finite(value: float, name: str) -> None:
    """A setting that is multiplied with or added: any number that float32 has."""
    if not -LARGEST <= value <= LARGEST:
        raise ValueError(f"{name} is {value}; expected a finite number, at most {LARGEST:.2g}")


def above_zero(value: float, name: str) -> None:
    """A setting that is divided by."""
    if not SMALLEST <= value <= LARGEST:
        raise ValueError(f"{name} is {value}; expected a number above 0, from {SMALLEST:.2g} to {LARGEST:.2g}")


def is_count(value: Any) -> bool:
    """Whether it is a whole number of at least 1."""
    whole = isinstance(value, (numbers.Integral, torch.SymInt)) and not isinstance(value, bool)
    return whole and bool(value >= 1)


def count(value: Any, name: str) -> None:
    if not is_count(value):
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")


def floating(tensor: Any, name: str) -> None:
    tensors(**{name: tensor})
    if tensor.dtype not in ACCUMULATION:
        raise TypeError(
            f"{name} is {tensor.dtype}; expected float32, bfloat16, float16 or float64; pass {name}.float()"
        )


def same_device(tensor: Tensor, name: str, other: Tensor, other_name: str) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{other_name} is on {other.device} but {name} is on {tensor.device}; move one to the other")


# ---- EM --------------------------------------------------------------------------------------------------------------


def gradient(value: str) -> None:
    if value not in GRADIENTS:
        raise ValueError(f'gradient is "{value}"; expected one of {", ".join(GRADIENTS)}')


def iteration(num_iters: int, temperature: float, eps: float) -> None:
    """The settings of every run of EM."""
    if not (eps == 0 or LEAST_EPS <= eps <= LARGEST):
        raise ValueError(f"eps is {eps}; expected 0 or a small number above it, from {LEAST_EPS} on")
    if not 1 <= num_iters <= MOST_ITERATIONS:
        raise ValueError(f"num_iters is {num_iters}; EM needs at least one iteration, and at most {MOST_ITERATIONS}")
    above_zero(temperature, "temperature")


def rows(x: Any, name: str) -> None:
    if not isinstance(x, Tensor) or x.dtype not in ACCUMULATION:
        floating(x, name)
    if x.dim() < 2:
        raise ValueError(f"{name} has shape {list(x.shape)}; expected [*, N, D] with at least two dimensions")
    if x.shape[-1] == 0 or x.shape[-2] == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}; EM needs at least one row and one channel")


def rows_and_start(x: Any, init: Any) -> None:
    """Rows `[*, N, D]`, and the bases that they begin with."""
    if not isinstance(x, Tensor) or x.dtype not in ACCUMULATION or x.dim() < 2 or x.shape[-1] == 0 or x.shape[-2] == 0:
        rows(x, "x")
    if not isinstance(init, Tensor) or init.dtype not in ACCUMULATION:
        floating(init, "init")
    if x.device != init.device:
        same_device(x, "x", init, "init")
    if init.dim() == 0 or init.shape[-1] == 0:
        raise ValueError(f"init has shape {list(init.shape)}; expected [K] with at least one basis")

    shape = x.shape
    if init.dim() == 1:
        allowed = torch.Size()
    elif init.dim() == x.dim():
        allowed = shape[:-1]
    else:
        allowed = shape[:-2]
    if init.shape[:-1] != allowed:
        leading = ", ".join(str(size) for size in shape[:-2])
        raise ValueError(
            f"init has shape {list(init.shape)} but x has shape {list(shape)}; pass init of shape [K]"
            + (f", [{leading}, K]" if leading else "")
            + f" or [{', '.join(str(size) for size in shape[:-1])}, K]"
            + _start_of_another_shape(init, shape[-1])
        )


def _start_of_another_shape(init: Tensor, width: int) -> str:
    """What to do with the starts of other codes: the release's mu [1, K], and one value a channel [1, D, K]."""
    if init.dim() > 1 and init.shape[-2] == 1:
        return "; a start with one row for all, as the release's mu [1, K], is init.squeeze(-2) here"
    if init.dim() > 1 and init.shape[-2] == width:
        return (
            f"; EMCL clusters the {width} channels, so a start has one value a basis, or one a row, and none a channel"
        )
    return ""


def fitted(x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float, num_channels: tuple[Any, ...]) -> None:
    """A fitted map that can be applied to rows `x`.

    Args:
        x: the rows.
        responsibilities: of the map.
        scale: of the map.
        weight: of the reconstruction.
        num_channels: `[*, D]`, the shape of responsibilities without K.
    """
    if not -LARGEST <= weight <= LARGEST:
        finite(weight, "weight")
    if x.device != responsibilities.device or x.device != scale.device:
        same_device(x, "x", responsibilities, "responsibilities")
        same_device(x, "x", scale, "scale")

    dtype = ACCUMULATION[x.dtype]
    for tensor, name in ((responsibilities, "responsibilities"), (scale, "scale")):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} is {tensor.dtype}; expected {dtype} for x in {x.dtype}; pass {name}.to({dtype})")
    if responsibilities.dim() != len(num_channels) + 1 or responsibilities.shape[:-1] != num_channels:
        raise ValueError(
            f"responsibilities has shape {list(responsibilities.shape)} but x has shape {list(x.shape)}; "
            f"expected [{', '.join(str(size) for size in num_channels)}, K]"
        )
    if scale.shape != (*responsibilities.shape[:-2], responsibilities.shape[-1]):
        raise ValueError(
            f"scale has shape {list(scale.shape)} but responsibilities has shape {list(responsibilities.shape)}; "
            "expected one value per basis"
        )


def finite_scale(op: str, scale: Tensor) -> None:
    """Refuse a fit that is not finite, on the CPU; on a GPU the look would stall the device.

    One NaN or infinity in the features reaches every scale, so looking at K numbers is enough. Backends give NaN where
    the length of a basis overflows.
    """
    # A sum is one step of torch, and finite if all numbers are, unless they are huge; then look at each.
    if scale.device.type != "cpu" or math.isfinite(scale.sum().item()) or bool(torch.isfinite(scale).all()):
        return
    raise ValueError(
        f"{op}: the fitted bases are not finite, because the features or the start hold NaN or infinite values, or the "
        "squares of the features overflow; find the rows with torch.isfinite(features).all(-1)"
    )


# ---- the pooled similarity -------------------------------------------------------------------------------------------


def pooling(text: Any, frames: Any, frame_mask: Any, pooling_temperature: float) -> None:
    """Texts and the frames that are pooled for each of them."""
    if not isinstance(text, Tensor) or text.dtype not in ACCUMULATION:
        floating(text, "text")
    if not isinstance(frames, Tensor) or frames.dtype not in ACCUMULATION:
        floating(frames, "frames")
    if not isinstance(frame_mask, Tensor):
        tensors(frame_mask=frame_mask)
    if frame_mask.requires_grad or frame_mask.is_complex():
        raise ValueError(
            f"frame_mask is {frame_mask.dtype}{' and requires grad' if frame_mask.requires_grad else ''}; expected "
            "bool or real numbers, to which there is no gradient; pass frame_mask.detach()"
        )
    if text.device != frames.device or text.device != frame_mask.device:
        same_device(text, "text", frames, "frames")
        same_device(text, "text", frame_mask, "frame_mask")
    if text.dtype != frames.dtype:
        raise TypeError(
            f"frames is {frames.dtype} but text is {text.dtype}; pass both in one dtype, or call "
            "it under torch.autocast, where the wider one serves"
        )

    if text.dim() != 2 or 0 in text.shape:
        raise ValueError(f"text has shape {list(text.shape)}; expected [A, D], not empty")
    if frames.dim() != 3 or 0 in frames.shape or frames.shape[-1] != text.shape[-1]:
        raise ValueError(
            f"frames has shape {list(frames.shape)} but text has shape {list(text.shape)}; "
            f"expected [B, F, {text.shape[-1]}], not empty"
        )
    if frame_mask.shape != frames.shape[:2]:
        raise ValueError(
            f"frame_mask has shape {list(frame_mask.shape)}; expected {list(frames.shape[:2])}, one value per frame"
        )
    if not SMALLEST <= pooling_temperature <= LARGEST:
        above_zero(pooling_temperature, "pooling_temperature")


def shared_start(text: Tensor, init: Tensor) -> None:
    """A start `[K]` of the bases, for all pooled rows."""
    if not isinstance(init, Tensor) or init.dtype not in ACCUMULATION:
        floating(init, "init")
    if text.device != init.device:
        same_device(text, "text", init, "init")
    if init.dim() != 1 or init.shape[0] == 0:
        raise ValueError(
            f"init has shape {list(init.shape)}; expected [K], one value per basis"
            f"{_start_of_another_shape(init, text.shape[-1])}"
        )


def block(em_block: int) -> None:
    if em_block < 1:
        raise ValueError(f"em_block is {em_block}; expected at least 1 text and video a block, such as 32")


def finite_similarity(op: str, similarity: Tensor) -> None:
    """Like `finite_scale`, for blocks: each has a scale of its own, so the result is looked at."""
    if similarity.device.type != "cpu" or math.isfinite(similarity.sum().item()):
        return
    raise ValueError(
        f"{op}_blocks: the similarity is not finite, because the input holds NaN or infinite values or its squares "
        "overflow; find the rows with torch.isfinite(text).all(-1) and torch.isfinite(frames).all(-1)"
    )


def sum_of(packed: Tensor, summed: Any) -> None:
    if not isinstance(summed, Tensor) or summed.shape != packed.shape:
        got = f"a tensor {list(summed.shape)}" if isinstance(summed, Tensor) else f"a {type(summed).__name__}"
        raise TypeError(
            f"add_up gave {got} for a tensor {list(packed.shape)}; it must return the sum over processes, a tensor of "
            "the same shape. torch.distributed.all_reduce returns None and changes its argument: return that argument"
        )
