"""THE contract: schemas, shapes, autograd, autocast and one typed function for each op of `torch.ops.emcl`.

What an op computes is in reference.py; which backend computes it is in dispatch.py. `em_project` and
`pooled_similarity` are composed of the others, so that every backend serves them; the ops whose names begin with `_`
are the pieces that they need besides the public ones.
"""

from collections.abc import Callable
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels import checks, dispatch, pooled, reference
from emcl_kernels.checks import accumulation_dtype

Gradient = Literal["identity", "linear", "full"]

_library = torch.library.Library("emcl", "DEF")
for _schema in (
    "em_moments(Tensor x) -> (Tensor gram, Tensor colsum)",
    "em_fit(Tensor gram, Tensor logits, int num_iters=9, float temperature=1.0, float eps=1e-6) "
    "-> (Tensor responsibilities, Tensor scale)",
    "em_reconstruct(Tensor x, Tensor responsibilities, Tensor scale, float weight=3.0) -> Tensor",
    "em_project(Tensor x, Tensor init, int num_iters=9, float temperature=1.0, float residual_weight=3.0, "
    'float eps=1e-6, str gradient="identity") -> (Tensor y, Tensor mean_bases)',
    "pooled_similarity(Tensor text, Tensor frames, Tensor frame_mask, Tensor init, float pooling_temperature=3.0, "
    "int num_iters=9, float temperature=1.0, float residual_weight=3.0, float eps=1e-6, "
    'str gradient="identity") -> (Tensor similarity, Tensor mean_bases)',
    "_em_moments_backward(Tensor x, Tensor d_gram, Tensor d_colsum) -> Tensor",
    "_em_fit_backward(Tensor gram, Tensor logits, Tensor d_responsibilities, Tensor d_scale, int num_iters, "
    "float temperature, float eps) -> (Tensor d_gram, Tensor d_logits)",
    "_em_reconstruct_backward(Tensor d_y, Tensor x, Tensor responsibilities, Tensor scale, float weight) "
    "-> (Tensor d_x, Tensor d_responsibilities, Tensor d_scale)",
    "_em_project_fixed(Tensor x, Tensor init, int num_iters, float temperature, float residual_weight, float eps, "
    "bool linear) -> (Tensor y, Tensor mean_bases, Tensor responsibilities, Tensor scale)",
    "pooled_similarity_blocks(Tensor text, Tensor frames, Tensor frame_mask, Tensor init, int em_block=32, "
    "float pooling_temperature=3.0, int num_iters=9, float temperature=1.0, float residual_weight=3.0, "
    "float eps=1e-6, bool relative=False) -> Tensor",
    "_snapshot(Tensor bases) -> Tensor",
    "_pooled_moments(Tensor text, Tensor frames, Tensor frame_mask, float pooling_temperature, bool keep) "
    "-> (Tensor gram, Tensor colsum, Tensor kept)",
    "_pooled_moments_backward(Tensor d_gram, Tensor d_colsum, Tensor text, Tensor frames, Tensor frame_mask, "
    "Tensor kept, float pooling_temperature) -> (Tensor d_text, Tensor d_frames)",
    "_pooled_cosine(Tensor text, Tensor frames, Tensor frame_mask, Tensor kept, Tensor responsibilities, "
    "Tensor scale, float weight, float pooling_temperature, bool linear) -> (Tensor cosine, Tensor length)",
    "_pooled_cosine_backward(Tensor d_cosine, Tensor cosine, Tensor length, Tensor text, Tensor frames, "
    "Tensor frame_mask, Tensor kept, Tensor responsibilities, Tensor scale, float weight, float pooling_temperature, "
    "bool linear) -> (Tensor d_text, Tensor d_frames, Tensor pull_text, Tensor pull_frames)",
):
    _library.define(_schema, tags=(torch.Tag.pt2_compliant_tag,))


# ---- public functions ------------------------------------------------------------------------------------------------


def em_moments(x: Float[Tensor, "*G N D"]) -> tuple[Float[Tensor, "*G D D"], Float[Tensor, "*G D"]]:
    """Gram matrix and column sums of the rows: all that EM needs to know of them (docs/math.md, G).

    Args: x: float32, bfloat16, float16, or float64.
    Returns: gram = xᵀx and colsum = xᵀ1, accumulated in float32 (float64 for float64).
    Raises: ValueError where `x` has fewer than two dimensions or is empty, TypeError where it is no float.
    """
    checks.inputs(x=x)
    return torch.ops.emcl.em_moments(x)


def em_fit(
    gram: Float[Tensor, "*G D D"],
    logits: Float[Tensor, "*G D K"],
    *,
    num_iters: int = 9,
    temperature: float = 1.0,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "*G D K"], Float[Tensor, "*G K"]]:
    """Fit K bases to a batch that is known only by its Gram matrix (docs/math.md, GE and GM).

    Args: gram: xᵀx over all rows, of any number. logits: start of the E-step, before the temperature.
    Returns: responsibilities, each column summing to one over D; scale, 1 / (eps + length of the basis).
    Raises: ValueError where shapes disagree, num_iters < 1, or temperature <= 0; on the CPU also where the result is
        not finite (on other devices NaN passes through, because looking would stop the device).
    """
    checks.inputs(gram=gram, logits=logits)
    return torch.ops.emcl.em_fit(gram, logits, num_iters, temperature, eps)


def em_reconstruct(
    x: Float[Tensor, "*G N D"],
    responsibilities: Float[Tensor, "*G D K"],
    scale: Float[Tensor, "*G K"],
    *,
    weight: float = 3.0,
) -> Float[Tensor, "*G N D"]:
    """Apply a fitted map: x + weight · (x·(responsibilities·scale))·responsibilitiesᵀ (docs/math.md, GR).

    Args: x: rows, which need not be the rows that were fitted. responsibilities, scale: from `em_fit`.
    Returns: a tensor like `x`. One pass over the rows.
    Raises: ValueError where shapes disagree, TypeError where responsibilities or scale have not the dtype of `em_fit`.
    """
    checks.inputs(x=x, responsibilities=responsibilities, scale=scale)
    return torch.ops.emcl.em_reconstruct(x, responsibilities, scale, weight)


def em_project(
    x: Float[Tensor, "*G N D"],
    init: Float[Tensor, "*I"],
    *,
    num_iters: int = 9,
    temperature: float = 1.0,
    residual_weight: float = 3.0,
    eps: float = 1e-6,
    gradient: Gradient = "identity",
) -> tuple[Float[Tensor, "*G N D"], Float[Tensor, "*G K"]]:
    """EMCL: add to the rows their reconstruction from K bases found by EM (paper, Alg. 1; defaults of the release).

    Args:
        x: rows of both modalities, `[*, N, D]`; leading dimensions are separate problems.
        init: start of the bases: `[*, K]`, one value per basis shared by all rows (`[K]` serves every problem), or
            `[*, N, K]`, with as many dimensions as `x`. K may be larger than D.
        gradient: "identity" (the reconstruction is a constant, as released), "linear" (the fitted map is a constant),
            or "full" (through every iteration, exact; also to `init`).
    Returns: y like `x`; mean_bases `[*, K]`, the mean over rows of the bases, from which the next start is made.
    Raises: as `em_fit`.
    """
    checks.inputs(x=x, init=init)
    return torch.ops.emcl.em_project(x, init, num_iters, temperature, residual_weight, eps, gradient)


def pooled_similarity(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    init: Float[Tensor, " K"],
    *,
    pooling_temperature: float = 3.0,
    num_iters: int = 9,
    temperature: float = 1.0,
    residual_weight: float = 3.0,
    eps: float = 1e-6,
    gradient: Gradient = "identity",
) -> tuple[Float[Tensor, "A B"], Float[Tensor, " K"]]:
    """EMCL-Net's similarity of every text with every video, without the tensor `[A, B, D]` (docs/math.md, P).

    Frames are pooled per text by a softmax over `text·frame / pooling_temperature` (masked afterwards and not
    normalised again, as released), EM runs over all A·B + A rows, and the cosine is taken.

    Args: frame_mask: `[B, F]`, bool, or numbers that multiply the weights. init: `[K]`. gradient: as in `em_project`.
    Returns: similarity `[A, B]`; mean_bases `[K]`.
    Raises: as `em_fit`.
    """
    checks.inputs(text=text, frames=frames, frame_mask=frame_mask, init=init)
    return torch.ops.emcl.pooled_similarity(
        text, frames, frame_mask, init, pooling_temperature, num_iters, temperature, residual_weight, eps, gradient
    )


def pooled_cosine_similarity(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    *,
    pooling_temperature: float = 3.0,
) -> Float[Tensor, "A B"]:
    """`pooled_similarity` with EM left out: text-conditioned pooling and cosine, through the same code."""
    checks.inputs(text=text, frames=frames, frame_mask=frame_mask)
    no_bases = text.new_zeros((text.shape[-1], 0), dtype=accumulation_dtype(text.dtype))
    cosine, _ = torch.ops.emcl._pooled_cosine(
        text, frames, frame_mask, no_bases[0], no_bases, no_bases[0], 0.0, pooling_temperature, False
    )
    return cosine.to(text.dtype)


def pooled_similarity_blocks(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Tensor,
    init: Float[Tensor, " K"],
    *,
    em_block: int = 32,
    pooling_temperature: float = 3.0,
    num_iters: int = 9,
    temperature: float = 1.0,
    residual_weight: float = 3.0,
    eps: float = 1e-6,
    relative: bool = False,
) -> Float[Tensor, "A B"]:
    """`pooled_similarity` with one EM inside each block of `em_block` texts and videos, as the release evaluates.

    The order of texts and videos is part of the result; the last blocks are smaller. For evaluation: without gradient.

    Args: relative: multiply the weight by ‖x‖ / ‖reconstruction‖ of each block.
    Raises: as `pooled_similarity`, and ValueError where em_block < 1.
    """
    checks.inputs(text=text, frames=frames, frame_mask=frame_mask, init=init)
    return torch.ops.emcl.pooled_similarity_blocks(
        text,
        frames,
        frame_mask,
        init,
        em_block,
        pooling_temperature,
        num_iters,
        temperature,
        residual_weight,
        eps,
        relative,
    )


# ---- the composed ops ------------------------------------------------------------------------------------------------


def _em_project(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float, gradient: str
) -> tuple[Tensor, Tensor]:
    checks.no_tangent(x=x, init=init)
    checks.rows(x, "x")
    checks.start(x, init)
    checks.gradient(gradient)
    if gradient != "full":
        y, mean_bases, _, _ = torch.ops.emcl._em_project_fixed(
            x, init, num_iters, temperature, residual_weight, eps, gradient == "linear"
        )
        return y, mean_bases
    dtype = accumulation_dtype(x.dtype)
    if x.shape[-2] < checks.LOOP_ROWS:
        checks.iterations(num_iters, temperature, eps)
        bases, responsibilities, scale = reference.em_loop(
            x.to(dtype), init.to(dtype), num_iters=num_iters, temperature=temperature, eps=eps
        )
        return torch.ops.emcl.em_reconstruct(x, responsibilities, scale, residual_weight), bases.mean(-2)
    gram, colsum = torch.ops.emcl.em_moments(x)
    logits = reference.start_logits(x.to(dtype), colsum, init.to(dtype))
    responsibilities, scale = torch.ops.emcl.em_fit(gram, logits, num_iters, temperature, eps)
    y = torch.ops.emcl.em_reconstruct(x, responsibilities, scale, residual_weight)
    return y, reference.mean_of_bases(colsum, responsibilities, scale, x.shape[-2])


def _with_defaults(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
    """Torch leaves out of a call what has the schema's default at its end; this puts it back."""
    defaults = [argument.default_value for argument in getattr(torch.ops.emcl, name).default._schema.arguments]
    return lambda *args: function(*args, *defaults[len(args) :])


for _name, _function in (("em_project", _em_project), ("pooled_similarity", pooled.pooled_similarity)):
    _library.impl(_name, _with_defaults(_name, _function), "CompositeImplicitAutograd")


# ---- the ops that backends implement ---------------------------------------------------------------------------------


def _register(name: str, kernel: Callable[..., Any], fake: Callable[..., Any]) -> None:
    _library.impl(name, _with_defaults(name, kernel), "CompositeExplicitAutograd")
    torch.library.register_fake(f"emcl::{name}", _with_defaults(name, fake), lib=_library)


def _moments_fake(x: Tensor) -> tuple[Tensor, Tensor]:
    checks.rows(x, "x")
    dtype, width = accumulation_dtype(x.dtype), x.shape[-1]
    return x.new_empty((*x.shape[:-2], width, width), dtype=dtype), x.new_empty((*x.shape[:-2], width), dtype=dtype)


def _fit_fake(gram: Tensor, logits: Tensor, num_iters: int, temperature: float, eps: float) -> tuple[Tensor, Tensor]:
    checks.fit(gram, logits, num_iters, temperature, eps)
    return logits.new_empty(logits.shape), logits.new_empty((*logits.shape[:-2], logits.shape[-1]))


def _reconstruct_fake(x: Tensor, responsibilities: Tensor, scale: Tensor, weight: float) -> Tensor:
    checks.reconstruct(x, responsibilities, scale)
    return x.new_empty(x.shape)


def _project_fixed_fake(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float, linear: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    checks.rows(x, "x")
    checks.start(x, init)
    checks.iterations(num_iters, temperature, eps)
    bases, dtype = init.shape[-1], accumulation_dtype(x.dtype)
    per_basis = (*x.shape[:-2], bases)
    responsibilities = x.new_empty((*x.shape[:-2], x.shape[-1], bases), dtype=dtype)
    return (
        x.new_empty(x.shape),
        x.new_empty(per_basis, dtype=dtype),
        responsibilities,
        x.new_empty(per_basis, dtype=dtype),
    )


def _pooled_moments_fake(
    text: Tensor, frames: Tensor, frame_mask: Tensor, pooling_temperature: float, keep: bool
) -> tuple[Tensor, Tensor, Tensor]:
    checks.pooled(text, frames, frame_mask, pooling_temperature)
    texts, width, dtype = text.shape[0], text.shape[1], accumulation_dtype(text.dtype)
    videos, count = frames.shape[:2]
    kept = (videos, count, texts) if keep and pooled.keeps_products(texts, videos, count) else (0,)
    return (
        text.new_empty((width, width), dtype=dtype),
        text.new_empty(width, dtype=dtype),
        text.new_empty(kept, dtype=dtype),
    )


def _pooled_cosine_fake(
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    responsibilities: Tensor,
    scale: Tensor,
    weight: float,
    pooling_temperature: float,
    linear: bool,
) -> tuple[Tensor, Tensor]:
    checks.pooled(text, frames, frame_mask, pooling_temperature)
    return scale.new_empty((text.shape[0], frames.shape[0])), scale.new_empty((text.shape[0], frames.shape[0]))


def _pooled_cosine_backward_fake(
    d_cosine: Tensor,
    cosine: Tensor,
    length: Tensor,
    text: Tensor,
    frames: Tensor,
    frame_mask: Tensor,
    kept: Tensor,
    responsibilities: Tensor,
    *_: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    bases = responsibilities.shape[-1]
    return (
        text.new_empty(text.shape),
        frames.new_empty(frames.shape),
        responsibilities.new_empty((text.shape[0], bases)),
        responsibilities.new_empty((*frames.shape[:2], bases)),
    )


def _blocks_fake(
    text: Tensor, frames: Tensor, frame_mask: Tensor, init: Tensor, em_block: int, pooling_temperature: float, *_: Any
) -> Tensor:
    checks.pooled(text, frames, frame_mask, pooling_temperature)
    checks.shared_start(text, init)
    checks.block(em_block)
    return text.new_empty((text.shape[0], frames.shape[0]))


_register("em_moments", dispatch.em_moments, _moments_fake)
_register("em_fit", dispatch.em_fit, _fit_fake)
_register("em_reconstruct", dispatch.em_reconstruct, _reconstruct_fake)
_register("_em_project_fixed", dispatch.em_project_fixed, _project_fixed_fake)
# The start of a call, which backward may need after the buffer has moved on. torch.compile drops a plain clone, or
# makes it again in backward, from the buffer as it is then.
_register("_snapshot", torch.clone, torch.empty_like)
_register("_pooled_moments", dispatch.pooled_moments, _pooled_moments_fake)
_register("_pooled_cosine", dispatch.pooled_cosine, _pooled_cosine_fake)
_register("pooled_similarity_blocks", dispatch.pooled_blocks, _blocks_fake)
_register("_em_moments_backward", dispatch.em_moments_backward, lambda x, d_gram, d_colsum: x.new_empty(x.shape))
_register(
    "_em_fit_backward",
    dispatch.em_fit_backward,
    lambda gram, logits, *_: (gram.new_empty(gram.shape), logits.new_empty(logits.shape)),
)
_register(
    "_em_reconstruct_backward",
    dispatch.em_reconstruct_backward,
    lambda d_y, x, r, scale, _: (x.new_empty(x.shape), r.new_empty(r.shape), scale.new_empty(scale.shape)),
)
_register(
    "_pooled_moments_backward",
    dispatch.pooled_moments_backward,
    lambda d_gram, d_colsum, text, frames, *_: (text.new_empty(text.shape), frames.new_empty(frames.shape)),
)
_register("_pooled_cosine_backward", dispatch.pooled_cosine_backward, _pooled_cosine_backward_fake)


# ---- autograd --------------------------------------------------------------------------------------------------------


def _save_moments(ctx: Any, inputs: tuple[Tensor], output: Any) -> None:
    ctx.save_for_backward(*inputs)


def _moments_autograd(ctx: Any, d_gram: Tensor, d_colsum: Tensor) -> Tensor:
    (x,) = ctx.saved_tensors
    return torch.ops.emcl._em_moments_backward(x, d_gram, d_colsum)


def _save_fit(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    gram, logits, *ctx.settings = inputs
    ctx.save_for_backward(gram, logits)


def _fit_autograd(ctx: Any, d_responsibilities: Tensor, d_scale: Tensor) -> tuple[Tensor | None, ...]:
    gram, logits = ctx.saved_tensors
    d_gram, d_logits = torch.ops.emcl._em_fit_backward(gram, logits, d_responsibilities, d_scale, *ctx.settings)
    return d_gram, d_logits, None, None, None


def _save_reconstruct(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    x, responsibilities, scale, ctx.weight = inputs
    ctx.save_for_backward(x, responsibilities, scale)


def _reconstruct_autograd(ctx: Any, d_y: Tensor) -> tuple[Tensor | None, ...]:
    return *torch.ops.emcl._em_reconstruct_backward(d_y, *ctx.saved_tensors, ctx.weight), None


def _save_project_fixed(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    ctx.weight, ctx.linear = inputs[4], inputs[6]
    _, mean_bases, responsibilities, scale = output
    ctx.mark_non_differentiable(mean_bases, responsibilities, scale)
    ctx.save_for_backward(*((responsibilities, scale) if ctx.linear else ()))


def _project_fixed_autograd(ctx: Any, d_y: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    d_x = d_y
    if ctx.linear:  # P = I + w·r·diag(scale)·rᵀ is symmetric, so d_x = d_y·Pᵀ is the map itself
        d_x = torch.ops.emcl.em_reconstruct(d_y, *ctx.saved_tensors, ctx.weight)
    return d_x, None, None, None, None, None, None


def _save_pooled_moments(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    *tensors, ctx.pooling_temperature, _ = inputs
    kept = output[2]
    ctx.mark_non_differentiable(kept)
    ctx.save_for_backward(*tensors, kept)


def _pooled_moments_autograd(ctx: Any, d_gram: Tensor, d_colsum: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    d_text, d_frames = torch.ops.emcl._pooled_moments_backward(
        d_gram, d_colsum, *ctx.saved_tensors, ctx.pooling_temperature
    )
    return d_text, d_frames, None, None, None


def _save_pooled_cosine(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.weight, ctx.pooling_temperature, ctx.linear = inputs
    cosine, length = output
    ctx.mark_non_differentiable(length)
    ctx.save_for_backward(cosine, length, *tensors)


def _pooled_cosine_autograd(ctx: Any, d_cosine: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    saved = ctx.saved_tensors  # under activation checkpointing they can be read once
    _, _, text, frames, _, _, responsibilities, scale = saved
    d_text, d_frames, pull_text, pull_frames = torch.ops.emcl._pooled_cosine_backward(
        d_cosine, *saved, ctx.weight, ctx.pooling_temperature, ctx.linear
    )
    d_map: tuple[Tensor | None, Tensor | None] = (None, None)
    if ctx.needs_input_grad[4] or ctx.needs_input_grad[5]:
        d_map = pooled.map_backward(pull_text, pull_frames, text, frames, responsibilities, scale, weight=ctx.weight)
    return d_text, d_frames, None, None, *d_map, None, None, None


def _once_only(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "emcl ops have no second derivative; emcl_kernels.reference.em_project_loop and pooled_similarity_materialized "
        "are the release's formulas in plain torch, which differentiates them as often as is asked for"
    )


def _evaluation_only(ctx: Any, *_: Any) -> Any:
    raise NotImplementedError(
        "pooled_similarity_blocks is for evaluation and has no derivative; call pooled_similarity on each block"
    )


def _snapshot_autograd(ctx: Any, d_bases: Tensor) -> Tensor:
    return d_bases


for _name, _backward, _save in (
    ("_snapshot", _snapshot_autograd, None),
    ("em_moments", _moments_autograd, _save_moments),
    ("em_fit", _fit_autograd, _save_fit),
    ("em_reconstruct", _reconstruct_autograd, _save_reconstruct),
    ("_em_project_fixed", _project_fixed_autograd, _save_project_fixed),
    ("_pooled_moments", _pooled_moments_autograd, _save_pooled_moments),
    ("_pooled_cosine", _pooled_cosine_autograd, _save_pooled_cosine),
    ("pooled_similarity_blocks", _evaluation_only, None),
    ("_em_moments_backward", _once_only, None),
    ("_em_fit_backward", _once_only, None),
    ("_em_reconstruct_backward", _once_only, None),
    ("_pooled_moments_backward", _once_only, None),
    ("_pooled_cosine_backward", _once_only, None),
):
    torch.library.register_autograd(f"emcl::{_name}", _backward, setup_context=_save, lib=_library)


# ---- vmap ------------------------------------------------------------------------------------------------------------


def _to_leading_dimension(op: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """Every op takes leading batch dimensions, so vmap moves its own there."""
    moved = [
        arg.movedim(dim, 0)
        if dim is not None
        else arg.expand(info.batch_size, *arg.shape)
        if isinstance(arg, Tensor)
        else arg
        for arg, dim in zip(args, in_dims, strict=True)
    ]
    out = op(*moved)
    return out, (0,) * len(out) if isinstance(out, tuple) else 0


def _rows_and_start(op: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """`x` and `init`, whose `[K]` serves every problem; one that is mapped over is `[*, K]` to the op."""
    x, init, *settings = args
    x_dim, init_dim = in_dims[:2]
    x = x.movedim(x_dim, 0) if x_dim is not None else x.expand(info.batch_size, *x.shape)
    if init_dim is not None:
        init = init.movedim(init_dim, 0)
    elif init.dim() > 1:
        init = init.expand(info.batch_size, *init.shape)
    if init_dim is not None and init.dim() == 2 and x.dim() > 3:
        size, bases = init.shape
        init = init.view(size, *(1 for _ in x.shape[1:-2]), bases).expand(*x.shape[:-2], bases)
    out = op(x, init, *settings)
    return out, (0,) * len(out)


def _one_by_one(op: Callable[..., Any], info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """The pooled similarity is one problem over all its rows, so vmap runs it once for each."""
    calls = [
        op(*(arg.select(dim, i) if dim is not None else arg for arg, dim in zip(args, in_dims, strict=True)))
        for i in range(info.batch_size)
    ]
    if isinstance(calls[0], tuple):
        return tuple(torch.stack(parts) for parts in zip(*calls, strict=True)), (0,) * len(calls[0])
    return torch.stack(calls), 0


def _register_vmap(name: str, rule: Callable[..., Any]) -> None:
    op = getattr(torch.ops.emcl, name)
    torch.library.register_vmap(f"emcl::{name}", lambda info, dims, *args: rule(op, info, dims, *args), lib=_library)


for _name in (
    "em_moments",
    "em_fit",
    "em_reconstruct",
    "_snapshot",
    "_em_moments_backward",
    "_em_fit_backward",
    "_em_reconstruct_backward",
):
    _register_vmap(_name, _to_leading_dimension)
for _name in ("em_project", "_em_project_fixed"):
    _register_vmap(_name, _rows_and_start)
for _name in (
    "pooled_similarity",
    "_pooled_moments",
    "_pooled_cosine",
    "pooled_similarity_blocks",
    "_pooled_moments_backward",
    "_pooled_cosine_backward",
):
    _register_vmap(_name, _one_by_one)


# ---- autocast --------------------------------------------------------------------------------------------------------


def _register_autocast(name: str, device: str) -> None:
    """EM accumulates in float32 whatever its input is, so autocast casts nothing, and stays out of the op's inside.

    Text and frames may come in different dtypes from towers under autocast; the wider one serves both.
    """
    op = getattr(torch.ops.emcl, name)
    keys = torch._C.DispatchKeySet(getattr(torch._C.DispatchKey, f"Autocast{device}"))

    def kernel(*args: Any) -> Any:
        with torch._C._ExcludeDispatchKeyGuard(keys):
            if "pooled" in name:
                text, frames, *rest = args
                dtype = torch.promote_types(text.dtype, frames.dtype)
                return op(text.to(dtype), frames.to(dtype), *rest)
            return op(*args)

    _library.impl(name, kernel, f"Autocast{device}")


for _name in (
    "em_moments",
    "em_fit",
    "em_reconstruct",
    "em_project",
    "pooled_similarity",
    "pooled_similarity_blocks",
    "_pooled_moments",
    "_pooled_cosine",
):
    for _device in ("CPU", "CUDA"):
        _register_autocast(_name, _device)
