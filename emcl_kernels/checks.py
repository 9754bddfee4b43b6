"""What the ops accept, and what they say of anything else."""

import math
import numbers
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

GRADIENTS = ("identity", "linear", "full")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

LOOP_ROWS = 16  # fewer rows go by the loop: their Gram matrix cancels in float32 where their sum is small


def accumulation_dtype(dtype: torch.dtype) -> torch.dtype:
    """Sums over rows are kept in float32, and in float64 for float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def tensors(**named: Any) -> None:
    for name, value in named.items():
        if not isinstance(value, Tensor):
            raise TypeError(f"{name} is a {type(value).__name__}; expected a torch tensor")


def no_tangent(**named: Tensor) -> None:
    """Torch has no forward-mode rule for ops of libraries, and would give a derivative of zero without a word."""
    if torch.compiler.is_compiling() or forward_ad._current_level < 0:
        return
    for name, value in named.items():
        if forward_ad.unpack_dual(value).tangent is not None:
            raise NotImplementedError(
                f"{name} carries a tangent, but emcl ops have no forward-mode derivative (jvp); use reverse mode "
                "(torch.autograd.grad, backward), or plain torch: em_project_loop and pooled_similarity_materialized "
                "of emcl_kernels.reference"
            )


def inputs(**named: Any) -> None:
    tensors(**named)
    no_tangent(**named)


def number(value: Any, name: str) -> None:
    if isinstance(value, Tensor) or not isinstance(value, numbers.Real) or not math.isfinite(value):
        raise ValueError(f"{name} is {value!r}; expected a finite number, which is a constant to autograd")


def count(value: Any, name: str) -> None:
    whole = isinstance(value, (numbers.Integral, torch.SymInt)) and not isinstance(value, bool)
    if not whole or value < 1:
        raise ValueError(f"{name} is {value!r}; expected a whole number of at least 1")


def epsilon(eps: float) -> None:
    if not eps >= 0:
        raise ValueError(f"eps is {eps}; expected 0 or a small number above it")


def floating(tensor: Tensor, name: str) -> None:
    tensors(**{name: tensor})
    if tensor.dtype not in DTYPES:
        raise TypeError(
            f"{name} is {tensor.dtype}; expected float32, bfloat16, float16 or float64; pass {name}.float()"
        )


def same_device(tensor: Tensor, name: str, other: Tensor, other_name: str) -> None:
    if tensor.device != other.device:
        raise ValueError(f"{other_name} is on {other.device} but {name} is on {tensor.device}; move one to the other")


def rows(x: Tensor, name: str) -> None:
    floating(x, name)
    if x.dim() < 2:
        raise ValueError(f"{name} has shape {list(x.shape)}; expected [*, N, D] with at least two dimensions")
    if x.shape[-1] == 0 or x.shape[-2] == 0:
        raise ValueError(f"{name} has shape {list(x.shape)}; EM needs at least one row and one channel")


def start(x: Tensor, init: Tensor) -> None:
    floating(init, "init")
    same_device(x, "x", init, "init")
    if init.dim() == 0 or init.shape[-1] == 0:
        raise ValueError(f"init has shape {list(init.shape)}; expected [K] with at least one basis")
    if init.dim() == x.dim():
        allowed = tuple(x.shape[:-1])
        given: tuple[int, ...] = tuple(init.shape[:-1])
    else:
        allowed = tuple(x.shape[:-2]) if init.dim() > 1 else ()
        given = tuple(init.shape[:-1])
    if given != allowed:
        leading = ", ".join(str(size) for size in x.shape[:-2])
        raise ValueError(
            f"init has shape {list(init.shape)} but x has shape {list(x.shape)}; pass init of shape [K]"
            + (f", [{leading}, K]" if leading else "")
            + f" or [{', '.join(str(size) for size in x.shape[:-1])}, K]"
        )


def iterations(num_iters: int, temperature: float, eps: float) -> None:
    epsilon(eps)
    if num_iters < 1:
        raise ValueError(f"num_iters is {num_iters}; EM needs at least one iteration")
    if not temperature > 0:
        raise ValueError(f"temperature is {temperature}; expected a number above 0")


def gradient(value: str) -> None:
    if value not in GRADIENTS:
        raise ValueError(f'gradient is "{value}"; expected one of {", ".join(GRADIENTS)}')


def fit(gram: Tensor, logits: Tensor, num_iters: int, temperature: float, eps: float) -> None:
    iterations(num_iters, temperature, eps)
    same_device(gram, "gram", logits, "logits")
    if gram.dtype not in (torch.float32, torch.float64):
        raise TypeError(f"gram is {gram.dtype}; expected float32 or float64, as em_moments gives it")
    if logits.dtype != gram.dtype:
        raise TypeError(f"logits is {logits.dtype} but gram is {gram.dtype}; pass logits.to(gram.dtype)")
    if gram.dim() < 2 or gram.shape[-1] != gram.shape[-2] or gram.shape[-1] == 0:
        raise ValueError(f"gram has shape {list(gram.shape)}; expected [*, D, D]")
    if logits.dim() != gram.dim() or logits.shape[:-1] != gram.shape[:-1] or logits.shape[-1] == 0:
        raise ValueError(
            f"logits has shape {list(logits.shape)} but gram has shape {list(gram.shape)}; "
            f"pass logits of shape [{', '.join(str(size) for size in gram.shape[:-1])}, K]"
        )


def reconstruct(x: Tensor, responsibilities: Tensor, scale: Tensor) -> None:
    rows(x, "x")
    same_device(x, "x", responsibilities, "responsibilities")
    same_device(x, "x", scale, "scale")
    dtype = accumulation_dtype(x.dtype)
    for tensor, name in ((responsibilities, "responsibilities"), (scale, "scale")):
        if tensor.dtype != dtype:
            raise TypeError(f"{name} is {tensor.dtype}; expected {dtype} for x in {x.dtype}; pass {name}.to({dtype})")
    if responsibilities.dim() != x.dim() or responsibilities.shape[:-1] != (*x.shape[:-2], x.shape[-1]):
        raise ValueError(
            f"responsibilities has shape {list(responsibilities.shape)} but x has shape {list(x.shape)}; "
            f"expected [{', '.join(str(size) for size in (*x.shape[:-2], x.shape[-1]))}, K]"
        )
    if scale.shape != (*responsibilities.shape[:-2], responsibilities.shape[-1]):
        raise ValueError(
            f"scale has shape {list(scale.shape)} but responsibilities has shape {list(responsibilities.shape)}; "
            "expected one value per basis"
        )


def pooled(text: Tensor, frames: Tensor, frame_mask: Tensor, pooling_temperature: float) -> None:
    floating(text, "text")
    floating(frames, "frames")
    tensors(frame_mask=frame_mask)
    if frame_mask.requires_grad or frame_mask.is_complex():
        raise ValueError(
            f"frame_mask is {frame_mask.dtype}{' and requires grad' if frame_mask.requires_grad else ''}; expected "
            "bool or real numbers, to which there is no gradient; pass frame_mask.detach()"
        )
    same_device(text, "text", frames, "frames")
    same_device(text, "text", frame_mask, "frame_mask")
    if text.dtype != frames.dtype:
        raise TypeError(f"frames is {frames.dtype} but text is {text.dtype}; pass both in one dtype")
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
    if not pooling_temperature > 0:
        raise ValueError(f"pooling_temperature is {pooling_temperature}; expected a number above 0")


def sum_of(packed: Tensor, summed: Any) -> None:
    if not isinstance(summed, Tensor) or summed.shape != packed.shape:
        got = f"a tensor {list(summed.shape)}" if isinstance(summed, Tensor) else f"a {type(summed).__name__}"
        raise TypeError(
            f"add_up gave {got} for a tensor {list(packed.shape)}; it must return the sum over processes, a tensor of "
            "the same shape, such as torch.distributed.nn.functional.all_reduce"
        )


def shared_start(text: Tensor, init: Tensor) -> None:
    floating(init, "init")
    same_device(text, "text", init, "init")
    if init.dim() != 1 or init.shape[0] == 0:
        raise ValueError(f"init has shape {list(init.shape)}; expected [K], one value per basis")


def finite_scale(op: str, scale: Tensor) -> None:
    """One NaN or infinity in the features reaches every scale, so K numbers tell. Only where looking costs nothing."""
    if scale.device.type == "cpu" and not bool(torch.isfinite(scale).all()):
        raise ValueError(
            f"{op}: the fitted bases are not finite, because the features or the start hold NaN or infinite values, or "
            "the squares of the features overflow; find the rows with torch.isfinite(features).all(-1)"
        )


def block(em_block: int) -> None:
    if em_block < 1:
        raise ValueError(f"em_block is {em_block}; expected at least 1 text and video a block, such as 32")


def finite_similarity(similarity: Tensor) -> None:
    """As `finite_scale`, where each block has a scale of its own."""
    if similarity.device.type == "cpu" and not bool(torch.isfinite(similarity).all()):
        raise ValueError(
            "pooled_similarity_blocks: the similarity is not finite, because the input holds NaN or infinite values or "
            "its squares overflow; find the rows with torch.isfinite(text).all(-1) and torch.isfinite(frames).all(-1)"
        )
