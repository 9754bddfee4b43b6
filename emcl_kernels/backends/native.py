"""The C++ kernels: loads their library, keeps the reason when it cannot, allocates what they fill."""

import ctypes
import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emcl_kernels.checks import DTYPES, accumulation_dtype

_CPU_LIBRARY = Path(__file__).parent.parent / "_C" / "libemcl_cpu.so"

_library = torch.library.Library("emcl_native", "DEF")
for _schema in (
    "moments(Tensor x, Tensor(a!) gram, Tensor(b!) colsum) -> ()",
    "moments_backward(Tensor x, Tensor d_gram, Tensor d_colsum, Tensor(a!) d_x) -> ()",
    "fit(Tensor gram, Tensor logits, int iters, float temperature, float eps, Tensor(a!) responsibilities, "
    "Tensor(b!) scale) -> ()",
    "fit_backward(Tensor gram, Tensor logits, Tensor d_responsibilities, Tensor d_scale, int iters, "
    "float temperature, float eps, Tensor(a!) d_gram, Tensor(b!) d_logits) -> ()",
    "reconstruct(Tensor x, Tensor responsibilities, Tensor scale, float weight, Tensor(a!) y) -> ()",
    "reconstruct_backward(Tensor d_y, Tensor x, Tensor responsibilities, Tensor scale, float weight, "
    "Tensor(a!) d_x, Tensor(b!) d_responsibilities, Tensor(c!) d_scale) -> ()",
    "project(Tensor x, Tensor init, int iters, float temperature, float weight, float eps, str form, Tensor(a!) y, "
    "Tensor(b!) mean_bases, Tensor(c!) responsibilities, Tensor(d!) scale) -> ()",
    "pooled_moments(Tensor text, Tensor frames, Tensor mask, float pooling_temperature, Tensor(a!) gram, "
    "Tensor(b!) colsum, Tensor(c!) kept) -> ()",
    "pooled_moments_backward(Tensor d_gram, Tensor d_colsum, Tensor text, Tensor frames, Tensor mask, "
    "float pooling_temperature, Tensor(a!) d_text, Tensor(b!) d_frames) -> ()",
    "pooled_cosine(Tensor text, Tensor frames, Tensor mask, Tensor kept, Tensor responsibilities, Tensor scale, "
    "float weight, float pooling_temperature, Tensor(a!) cosine, Tensor(b!) length) -> ()",
    "pooled_cosine_backward(Tensor d_cosine, Tensor cosine, Tensor length, Tensor text, Tensor frames, Tensor mask, "
    "Tensor responsibilities, Tensor scale, float weight, float pooling_temperature, bool linear, "
    "Tensor(a!) d_text, Tensor(b!) d_frames, Tensor(c!) pull_text, Tensor(d!) pull_frames) -> ()",
    "pooled_blocks(Tensor text, Tensor frames, Tensor mask, Tensor init, int em_block, float pooling_temperature, "
    "int iters, float temperature, float weight, float eps, bool relative, Tensor(a!) cosine) -> ()",
):
    _library.define(_schema)


def _load() -> tuple[str, str]:
    """Instruction set in use, or why there is none."""
    if not _CPU_LIBRARY.exists():
        return "", "the C++ library was not built when the package was installed (python -m emcl_kernels.info says why)"
    try:
        torch.ops.load_library(str(_CPU_LIBRARY))
        library = ctypes.CDLL(str(_CPU_LIBRARY))
        library.emcl_isa.restype = ctypes.c_char_p
        return library.emcl_isa().decode(), ""
    except (OSError, AttributeError) as error:
        return "", f"the C++ library {_CPU_LIBRARY} does not load: {error}"


_isa, _reason = _load()


def status() -> dict[str, Any]:
    """What `python -m emcl_kernels.info` prints of this backend."""
    return {"loaded": not _reason, "path": str(_CPU_LIBRARY), "isa": _isa, "reason": _reason}


def supports(op: str, *tensors: Tensor) -> str | None:
    if _reason:
        return _reason
    for tensor in tensors:
        if tensor.device.type != "cpu":
            return f"it runs on the CPU, the tensors are on {tensor.device}"
        if tensor.dtype not in DTYPES:
            return f"it has no kernel for {tensor.dtype}"
    return None


def _form() -> str:
    """EMCL_FORM=gram|loop overrides the cost model, for tests and measurements."""
    return os.environ.get("EMCL_FORM", "auto")


def _flat(tensor: Tensor, keep: int) -> Tensor:
    """Leading dimensions as one, contiguous."""
    return tensor.reshape(-1, *tensor.shape[tensor.dim() - keep :]).contiguous()


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    dtype, width = accumulation_dtype(x.dtype), x.shape[-1]
    gram = torch.empty((*x.shape[:-2], width, width), dtype=dtype)
    colsum = torch.empty((*x.shape[:-2], width), dtype=dtype)
    torch.ops.emcl_native.moments(_flat(x, 2), gram, colsum)
    return gram, colsum


def moments_backward(x: Tensor, d_gram: Tensor, d_colsum: Tensor) -> Tensor:
    d_x = torch.empty(x.shape, dtype=x.dtype)
    torch.ops.emcl_native.moments_backward(_flat(x, 2), _flat(d_gram, 2), _flat(d_colsum, 1), d_x)
    return d_x


def fit(gram: Tensor, logits: Tensor, num_iters: int, temperature: float, eps: float) -> tuple[Tensor, Tensor]:
    responsibilities = torch.empty(logits.shape, dtype=logits.dtype)
    scale = torch.empty((*logits.shape[:-2], logits.shape[-1]), dtype=logits.dtype)
    torch.ops.emcl_native.fit(_flat(gram, 2), _flat(logits, 2), num_iters, temperature, eps, responsibilities, scale)
    return responsibilities, scale


def fit_backward(
    gram: Tensor,
    logits: Tensor,
    d_responsibilities: Tensor,
    d_scale: Tensor,
    num_iters: int,
    temperature: float,
    eps: float,
) -> tuple[Tensor, Tensor]:
    d_gram, d_logits = torch.empty(gram.shape, dtype=gram.dtype), torch.empty(logits.shape, dtype=logits.dtype)
    torch.ops.emcl_native.fit_backward(
        _flat(gram, 2),
        _flat(logits, 2),
        _flat(d_responsibilities, 2),
        _flat(d_scale, 1),
        num_iters,
        temperature,
        eps,
        d_gram,
        d_logits,
    )
    return d_gram, d_logits


def reconstruct(x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> Tensor:
    y = torch.empty(x.shape, dtype=x.dtype)
    torch.ops.emcl_native.reconstruct(_flat(x, 2), _flat(responsibilities, 2), _flat(scale, 1), weight, y)
    return y


def reconstruct_backward(
    d_y: Tensor, x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float
) -> tuple[Tensor, Tensor, Tensor]:
    d_x = torch.empty(x.shape, dtype=x.dtype)
    d_responsibilities = torch.empty(responsibilities.shape, dtype=responsibilities.dtype)
    d_scale = torch.empty(scale.shape, dtype=scale.dtype)
    torch.ops.emcl_native.reconstruct_backward(
        _flat(d_y, 2),
        _flat(x, 2),
        _flat(responsibilities, 2),
        _flat(scale, 1),
        weight,
        d_x,
        d_responsibilities,
        d_scale,
    )
    return d_x, d_responsibilities, d_scale


def project(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    leading, bases = x.shape[:-2], init.shape[-1]
    per_row = init.dim() == x.dim()
    start = _flat(init, 2) if per_row else _flat(init.expand(*leading, bases), 1)
    y = torch.empty(x.shape, dtype=x.dtype)
    mean_bases = torch.empty((*leading, bases), dtype=init.dtype)
    responsibilities = torch.empty((*leading, x.shape[-1], bases), dtype=init.dtype)
    scale = torch.empty((*leading, bases), dtype=init.dtype)
    torch.ops.emcl_native.project(
        _flat(x, 2),
        start,
        num_iters,
        temperature,
        residual_weight,
        eps,
        _form(),
        y,
        mean_bases,
        responsibilities,
        scale,
    )
    return y, mean_bases, responsibilities, scale


def pooled_moments(
    text: Tensor, frames: Tensor, frame_mask: Tensor, pooling_temperature: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    dtype, width = accumulation_dtype(text.dtype), text.shape[-1]
    gram, colsum = torch.empty((width, width), dtype=dtype), torch.empty(width, dtype=dtype)
    kept = torch.empty((frames.shape[0], frames.shape[1] + 1, text.shape[0]) if keep else 0, dtype=dtype)
    mask = frame_mask.to(dtype).contiguous()
    torch.ops.emcl_native.pooled_moments(
        text.contiguous(), frames.contiguous(), mask, pooling_temperature, gram, colsum, kept
    )
    return gram, colsum, kept


def pooled_moments_backward(
    d_gram: Tensor, d_colsum: Tensor, text: Tensor, frames: Tensor, frame_mask: Tensor, pooling_temperature: float
) -> tuple[Tensor, Tensor]:
    d_text, d_frames = torch.empty(text.shape, dtype=text.dtype), torch.empty(frames.shape, dtype=frames.dtype)
    torch.ops.emcl_native.pooled_moments_backward(
        d_gram.contiguous(),
        d_colsum.contiguous(),
        text.contiguous(),
        frames.contiguous(),
        frame_mask.to(d_gram.dtype).contiguous(),
        pooling_temperature,
        d_text,
        d_frames,
    )
    return d_text, d_frames


def pooled_cosine(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    weight: float,
    pooling_temperature: float,
) -> tuple[Tensor, Tensor]:
    cosine = torch.empty((text.shape[0], frames.shape[0]), dtype=scale.dtype)
    length = torch.empty_like(cosine)
    torch.ops.emcl_native.pooled_cosine(
        text.contiguous(),
        frames.contiguous(),
        frame_mask.to(scale.dtype).contiguous(),
        kept,
        responsibilities.contiguous(),
        scale.contiguous(),
        weight,
        pooling_temperature,
        cosine,
        length,
    )
    return cosine, length


def pooled_cosine_backward(
    d_cosine: Tensor,
    cosine: Tensor,
    length: Tensor,
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    weight: float,
    pooling_temperature: float,
    linear: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    d_text, d_frames = torch.empty(text.shape, dtype=text.dtype), torch.empty(frames.shape, dtype=frames.dtype)
    pull_text = torch.empty((text.shape[0], *scale.shape), dtype=scale.dtype)
    pull_frames = torch.empty((*frames.shape[:2], *scale.shape), dtype=scale.dtype)
    torch.ops.emcl_native.pooled_cosine_backward(
        d_cosine.contiguous(),
        cosine.contiguous(),
        length.contiguous(),
        text.contiguous(),
        frames.contiguous(),
        frame_mask.to(scale.dtype).contiguous(),
        responsibilities.contiguous(),
        scale.contiguous(),
        weight,
        pooling_temperature,
        linear,
        d_text,
        d_frames,
        pull_text,
        pull_frames,
    )
    return d_text, d_frames, pull_text, pull_frames


def pooled_blocks(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    init: Tensor,
    em_block: int,
    pooling_temperature: float,
    num_iters: int,
    temperature: float,
    residual_weight: float,
    eps: float,
    relative: bool,
) -> Tensor:
    cosine = torch.empty((text.shape[0], frames.shape[0]), dtype=init.dtype)
    torch.ops.emcl_native.pooled_blocks(
        text.contiguous(),
        frames.contiguous(),
        frame_mask.to(init.dtype).contiguous(),
        init.contiguous(),
        em_block,
        pooling_temperature,
        num_iters,
        temperature,
        residual_weight,
        eps,
        relative,
        cosine,
    )
    return cosine.to(text.dtype)
