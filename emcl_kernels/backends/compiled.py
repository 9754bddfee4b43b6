"""What the compiled libraries share: the schemas of their ops, and the functions that allocate what these fill.

The C++ library registers the schemas' CPU key and the CUDA library their CUDA key, both in the namespace emcl_native.
The emulated CUDA library runs on CPU tensors, so it has a namespace of its own.
"""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from emcl_kernels.checks import accumulation_dtype

FOLDER = Path(__file__).parent.parent / "_C"
BUILD_INFO = FOLDER / "build_info.json"
SCHEMAS = (
    "em_moments(Tensor x, Tensor(a!) gram, Tensor(b!) colsum) -> ()",
    "_em_moments_backward(Tensor d_gram, Tensor d_colsum, Tensor x, Tensor(a!) d_x) -> ()",
    "em_fit(Tensor gram, Tensor logits, int num_iters, float temperature, float eps, Tensor(a!) responsibilities, "
    "Tensor(b!) scale) -> ()",
    "_em_fit_backward(Tensor d_responsibilities, Tensor d_scale, Tensor gram, Tensor logits, int num_iters, "
    "float temperature, float eps, Tensor(a!) d_gram, Tensor(b!) d_logits) -> ()",
    "em_reconstruct(Tensor x, Tensor responsibilities, Tensor scale, float weight, Tensor(a!) y) -> ()",
    "_em_reconstruct_backward(Tensor d_y, Tensor x, Tensor responsibilities, Tensor scale, float weight, "
    "Tensor(a!) d_x, Tensor(b!) d_responsibilities, Tensor(c!) d_scale) -> ()",
    "_em_project_fixed(Tensor x, Tensor init, int num_iters, float temperature, float residual_weight, float eps, "
    "bool linear, Tensor(a!) y, Tensor(b!) mean_bases, Tensor(c!) responsibilities, Tensor(d!) scale) -> ()",
    "_pooled_moments(Tensor text, Tensor frames, Tensor frame_mask, float pooling_temperature, bool keep, "
    "Tensor(a!) gram, Tensor(b!) colsum, Tensor(c!) kept) -> ()",
    "_pooled_moments_backward(Tensor d_gram, Tensor d_colsum, Tensor text, Tensor frames, Tensor frame_mask, "
    "Tensor kept, float pooling_temperature, bool keep, Tensor(a!) d_text, Tensor(b!) d_frames) -> ()",
    "_pooled_cosine(Tensor text, Tensor frames, Tensor frame_mask, Tensor kept, Tensor responsibilities, "
    "Tensor scale, float weight, float pooling_temperature, bool linear, Tensor(a!) cosine, Tensor(b!) length) -> ()",
    "_pooled_cosine_backward(Tensor d_cosine, Tensor text, Tensor frames, Tensor frame_mask, Tensor kept, "
    "Tensor responsibilities, Tensor scale, Tensor cosine, Tensor length, float weight, float pooling_temperature, "
    "bool linear, Tensor(a!) d_text, Tensor(b!) d_frames, Tensor(c!) pull_text, Tensor(d!) pull_frames) -> ()",
    "_pooled_blocks(Tensor text, Tensor frames, Tensor frame_mask, Tensor init, int em_block, "
    "float pooling_temperature, int num_iters, float temperature, float residual_weight, float eps, bool relative, "
    "Tensor(a!) cosine) -> ()",
)
NATIVE, EMULATED = "emcl_native", "emcl_emulated"

_libraries = [torch.library.Library(namespace, "DEF") for namespace in (NATIVE, EMULATED)]
for _library in _libraries:
    for _schema in SCHEMAS:
        _library.define(_schema)


def not_built(target: str) -> str:
    """Why the build left a library out, as setup.py wrote it down."""
    try:
        reason = json.loads(BUILD_INFO.read_text(encoding="utf-8"))["targets"][target]["reason"]
    except (OSError, ValueError, KeyError):
        reason = ""
    return f"was not built: {reason or 'the build did not get that far; run `make setup`, or `pip install .`'}"


def _flat(tensor: Tensor, keep: int) -> Tensor:
    """Leading dimensions as one, contiguous."""
    return tensor.reshape(-1, *tensor.shape[tensor.dim() - keep :]).contiguous()


class Kernels:
    """The functions of a backend (backends/__init__.py), on the ops of a compiled library.

    Args: namespace: which ops run on a tensor.
    """

    def __init__(self, namespace: Callable[[Tensor], str]) -> None:
        self._namespace = namespace

    def _run(self, op: str, first: Tensor, *rest: Any) -> None:
        getattr(getattr(torch.ops, self._namespace(first)), op)(first, *rest)

    def moments(self, x: Tensor) -> tuple[Tensor, Tensor]:
        dtype, width = accumulation_dtype(x.dtype), x.shape[-1]
        gram = x.new_empty((*x.shape[:-2], width, width), dtype=dtype)
        colsum = x.new_empty((*x.shape[:-2], width), dtype=dtype)
        self._run("em_moments", _flat(x, 2), gram, colsum)
        return gram, colsum

    def moments_backward(self, x: Tensor, d_gram: Tensor, d_colsum: Tensor) -> Tensor:
        d_x = x.new_empty(x.shape)
        self._run("_em_moments_backward", _flat(d_gram, 2), _flat(d_colsum, 1), _flat(x, 2), d_x)
        return d_x

    def fit(
        self, gram: Tensor, logits: Tensor, num_iters: int, temperature: float, eps: float
    ) -> tuple[Tensor, Tensor]:
        responsibilities = logits.new_empty(logits.shape)
        scale = logits.new_empty((*logits.shape[:-2], logits.shape[-1]))
        self._run("em_fit", _flat(gram, 2), _flat(logits, 2), num_iters, temperature, eps, responsibilities, scale)
        return responsibilities, scale

    def fit_backward(
        self,
        gram: Tensor,
        logits: Tensor,
        d_responsibilities: Tensor,
        d_scale: Tensor,
        num_iters: int,
        temperature: float,
        eps: float,
    ) -> tuple[Tensor, Tensor]:
        d_gram, d_logits = gram.new_empty(gram.shape), logits.new_empty(logits.shape)
        inputs = _flat(d_responsibilities, 2), _flat(d_scale, 1), _flat(gram, 2), _flat(logits, 2)
        self._run("_em_fit_backward", *inputs, num_iters, temperature, eps, d_gram, d_logits)
        return d_gram, d_logits

    def reconstruct(self, x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> Tensor:
        y = x.new_empty(x.shape)
        self._run("em_reconstruct", _flat(x, 2), _flat(responsibilities, 2), _flat(scale, 1), weight, y)
        return y

    def reconstruct_backward(
        self, d_y: Tensor, x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        d_x, d_scale = x.new_empty(x.shape), scale.new_empty(scale.shape)
        d_responsibilities = responsibilities.new_empty(responsibilities.shape)
        inputs = _flat(d_y, 2), _flat(x, 2), _flat(responsibilities, 2), _flat(scale, 1)
        self._run("_em_reconstruct_backward", *inputs, weight, d_x, d_responsibilities, d_scale)
        return d_x, d_responsibilities, d_scale

    def project(
        self, x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        leading, bases = x.shape[:-2], init.shape[-1]
        start = _flat(init, 2) if init.dim() == x.dim() else _flat(init.expand(*leading, bases), 1)
        y = x.new_empty(x.shape)
        mean_bases = init.new_empty((*leading, bases))
        responsibilities = init.new_empty((*leading, x.shape[-1], bases))
        scale = init.new_empty((*leading, bases))
        settings = num_iters, temperature, residual_weight, eps, False
        self._run("_em_project_fixed", _flat(x, 2), start, *settings, y, mean_bases, responsibilities, scale)
        return y, mean_bases, responsibilities, scale

    def pooled_moments(
        self, text: Tensor, frames: Tensor, frame_mask: Tensor, pooling_temperature: float, keep: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        dtype, width = accumulation_dtype(text.dtype), text.shape[-1]
        gram, colsum = text.new_empty((width, width), dtype=dtype), text.new_empty(width, dtype=dtype)
        kept = text.new_empty((*frames.shape[:2], text.shape[0]) if keep else 0, dtype=dtype)
        pool = *_rows(text, frames, frame_mask), pooling_temperature, keep
        self._run("_pooled_moments", *pool, gram, colsum, kept)
        return gram, colsum, kept

    def pooled_moments_backward(
        self,
        d_gram: Tensor,
        d_colsum: Tensor,
        text: Tensor,
        frames: Tensor,
        frame_mask: Tensor,
        kept: Tensor,
        pooling_temperature: float,
    ) -> tuple[Tensor, Tensor]:
        d_text, d_frames = text.new_empty(text.shape), frames.new_empty(frames.shape)
        pool = *_rows(text, frames, frame_mask), kept, pooling_temperature, True
        self._run("_pooled_moments_backward", d_gram.contiguous(), d_colsum.contiguous(), *pool, d_text, d_frames)
        return d_text, d_frames

    def pooled_cosine(
        self,
        text: Tensor,
        frames: Tensor,
        frame_mask: Tensor,
        kept: Tensor,
        responsibilities: Tensor,
        scale: Tensor,
        weight: float,
        pooling_temperature: float,
    ) -> tuple[Tensor, Tensor]:
        cosine = scale.new_empty((text.shape[0], frames.shape[0]))
        length = torch.empty_like(cosine)
        map_ = responsibilities.contiguous(), scale.contiguous(), weight
        pool = _rows(text, frames, frame_mask)
        self._run("_pooled_cosine", *pool, kept, *map_, pooling_temperature, False, cosine, length)
        return cosine, length

    def pooled_cosine_backward(
        self,
        d_cosine: Tensor,
        cosine: Tensor,
        length: Tensor,
        text: Tensor,
        frames: Tensor,
        frame_mask: Tensor,
        kept: Tensor,
        responsibilities: Tensor,
        scale: Tensor,
        weight: float,
        pooling_temperature: float,
        linear: bool,
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        d_text, d_frames = text.new_empty(text.shape), frames.new_empty(frames.shape)
        pull_text = scale.new_empty((text.shape[0], *scale.shape))
        pull_frames = scale.new_empty((*frames.shape[:2], *scale.shape))
        given = cosine.contiguous(), length.contiguous()
        pool = *_rows(text, frames, frame_mask), kept
        map_ = responsibilities.contiguous(), scale.contiguous()
        settings = weight, pooling_temperature, linear
        filled = d_text, d_frames, pull_text, pull_frames
        self._run("_pooled_cosine_backward", d_cosine.contiguous(), *pool, *map_, *given, *settings, *filled)
        return d_text, d_frames, pull_text, pull_frames

    def pooled_blocks(
        self,
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
        cosine = init.new_empty((text.shape[0], frames.shape[0]))
        em = num_iters, temperature, residual_weight, eps, relative
        inputs = *_rows(text, frames, frame_mask), init.contiguous()
        self._run("_pooled_blocks", *inputs, em_block, pooling_temperature, *em, cosine)
        return cosine.to(text.dtype)


def _rows(text: Tensor, frames: Tensor, frame_mask: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """As the ops take them: contiguous, the mask as numbers."""
    mask = frame_mask.to(accumulation_dtype(text.dtype))
    return text.contiguous(), frames.contiguous(), mask.contiguous()
