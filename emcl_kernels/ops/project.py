"""em_project: EMCL on rows in one call."""

from typing import Any

from jaxtyping import Float
from torch import Tensor

from emcl_kernels import checks, em, forms, reference
from emcl_kernels.checks import ACCUMULATION, LARGEST, LEAST_EPS, MOST_ITERATIONS, SMALLEST
from emcl_kernels.em import Gradient, Map, Moments, Settings
from emcl_kernels.ops import reconstruct
from emcl_kernels.ops.define import Composite, Op, Rule, Spec


def em_project(
    x: Float[Tensor, "*G N D"],
    init: Float[Tensor, "*I"],
    *,
    num_iters: int = 9,
    temperature: float = 1.0,
    residual_weight: float = 3.0,
    eps: float = 1e-6,
    gradient: Gradient = "identity",
    relative: bool = False,
) -> tuple[Float[Tensor, "*G N D"], Float[Tensor, "*G K"]]:
    """EMCL: add to the rows their reconstruction from K bases found by EM (paper, Alg. 1; defaults of the release).

    Args:
        x: rows of both modalities, `[*, N, D]`, of any length, in float32, bfloat16, float16 or float64; leading
            dimensions are separate problems.
        init: start of the bases: `[*, K]`, one value a basis shared by all rows (`[K]` serves every problem), or
            `[*, N, K]`, with as many dimensions as `x`. K may be larger than D. Its dtype may be another of those.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax.
        residual_weight: of the reconstruction.
        eps: added to the sums and lengths that are divided by.
        gradient: "identity" (the reconstruction is a constant, as released), "linear" (the fitted map is a constant),
            or "full" (through every iteration, exact; also to `init`).
        relative: multiply the weight by ‖x‖ / ‖reconstruction‖ of each problem.

    Returns:
        y like `x`, and mean_bases `[*, K]`, the mean over rows of the bases, from which the next start is made; in
        float32, or float64 for rows in float64.

    Raises:
        ValueError: shapes disagree, num_iters < 1, temperature <= 0, or gradient is unknown. On the CPU also if the
            input holds NaN or infinite values; on other devices these pass through.
        TypeError: an input is no tensor of floats.

    Examples:
        >>> x = torch.nn.functional.normalize(torch.randn(2000, 512), dim=-1)
        >>> y, mean_bases = em_project(x, torch.randn(32))
    """
    if not (isinstance(x, Tensor) and isinstance(init, Tensor)):
        checks.inputs(x=x, init=init)  # type: ignore[unreachable]  # says which; small calls are spared this one
    if relative or gradient not in ("identity", "linear"):
        return composed.call(x, init, num_iters, temperature, residual_weight, eps, gradient, relative)
    # The composed op comes to the same; this saves a way through torch's dispatcher.
    y, mean_bases, _, _ = fixed.call(x, init, num_iters, temperature, residual_weight, eps, gradient == "linear")
    return y, mean_bases


def _compose(x: Tensor, init: Tensor, *args: Any) -> tuple[Tensor, Tensor]:
    settings = Settings(*args)
    checks.inputs(x=x, init=init)
    checks.rows_and_start(x, init)
    checks.gradient(settings.gradient)

    full = settings.gradient == "full"
    if not full and not settings.relative:
        y, mean_bases, _, _ = fixed.call(x, init, *settings[:4], settings.gradient == "linear")
        return y, mean_bases

    rows = x if full else x.detach()
    start = (init if full else init.detach()).to(ACCUMULATION[x.dtype])
    fitted, mean_bases = _fit_few(rows, start, settings) if forms.few(x.shape[-2]) else _fit(rows, start, settings)
    return fitted.apply(x, weight=settings.residual_weight, gradient=settings.gradient), mean_bases


def _fit(x: Tensor, start: Tensor, settings: Settings) -> tuple[Map, Tensor]:
    moments = Moments.of(x)
    logits = reference.start_logits(x.to(start.dtype), moments.colsum, start)
    return em.fit(moments, logits, settings)


def _fit_few(x: Tensor, start: Tensor, settings: Settings) -> tuple[Map, Tensor]:
    """By the loop, through which autograd goes step by step."""
    num_iters, temperature, residual_weight, eps, _, relative = settings
    checks.iteration(num_iters, temperature, eps)
    checks.finite(residual_weight, "residual_weight")
    rows = x.to(start.dtype)
    bases, responsibilities, scale = reference.em_loop(
        rows, start, num_iters=num_iters, temperature=temperature, eps=eps
    )
    fitted = Map(responsibilities, scale)
    # One look: what is not finite in a scale is not finite in the relative one, either.
    fitted = fitted.relative(rows.mT @ rows) if relative else fitted.looked_at()
    return fitted, bases.mean(-2)


def rows_and_start(op: Any, info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
    """vmap over `x` and `init`, whose `[K]` serves every problem; one that is mapped over is `[*, K]` to the op."""
    x, init, *settings = args
    x_dim, init_dim = in_dims[:2]
    x = x.movedim(x_dim, 0) if x_dim is not None else x.expand(info.batch_size, *x.shape)
    if init_dim is not None:
        init = init.movedim(init_dim, 0)
    elif init.dim() > 1:
        init = init.expand(info.batch_size, *init.shape)

    # One start for each mapped index, which all problems of that index begin with.
    if init_dim is not None and init.dim() == 2 and x.dim() > 3:
        size, num_bases = init.shape
        init = init.view(size, *([1] * (x.dim() - 3)), num_bases).expand(*x.shape[:-2], num_bases)

    out = op(x, init, *settings)
    return out, (0,) * len(out)


composed = Composite(
    "em_project(Tensor x, Tensor init, int num_iters=9, float temperature=1.0, float residual_weight=3.0, "
    'float eps=1e-6, str gradient="identity", bool relative=False) -> (Tensor y, Tensor mean_bases)',
    _compose,
    batch=rows_and_start,
    public=em_project,
)


# ---- the whole projection in one call of a backend -------------------------------------------------------------------


def _accept(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float, linear: bool
) -> tuple[Any, ...]:
    """With a start for each problem, in the dtype that is summed in."""
    checks.rows_and_start(x, init)
    iterates = 1 <= num_iters <= MOST_ITERATIONS and SMALLEST <= temperature <= LARGEST
    if not (iterates and (LEAST_EPS <= eps <= LARGEST or eps == 0)):
        checks.iteration(num_iters, temperature, eps)  # says which; small calls are spared this one
    if not -LARGEST <= residual_weight <= LARGEST:
        checks.finite(residual_weight, "residual_weight")  # says why; small calls are spared this one
    start = init.to(ACCUMULATION[x.dtype])
    if start.dim() < x.dim() - 1:
        start = start.expand(*x.shape[:-2], start.shape[-1])
    return x, start, num_iters, temperature, residual_weight, eps, linear


def _shapes(x: Tensor, init: Tensor, *_: Any) -> tuple[Spec, ...]:
    leading = x.shape[:-2]
    width = x.shape[-1]
    num_bases = init.shape[-1]
    dtype = ACCUMULATION[x.dtype]
    per_basis = (*leading, num_bases)
    return (x.shape, x.dtype), (per_basis, dtype), ((*leading, width, num_bases), dtype), (per_basis, dtype)


def _in_parts(
    x: Tensor, init: Tensor, num_iters: int, temperature: float, residual_weight: float, eps: float, linear: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """By the ops that it is made of, each on the backend that is best for it."""
    settings = Settings(num_iters, temperature, residual_weight, eps)
    fitted, mean_bases = _fit(x, init, settings)
    y = reconstruct.op.call(x, fitted.responsibilities, fitted.scale, residual_weight)
    return y, mean_bases, fitted.responsibilities, fitted.scale


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _, mean_bases, responsibilities, scale = output
    ctx.weight = inputs[4]
    ctx.linear = inputs[6]
    ctx.mark_non_differentiable(mean_bases, responsibilities, scale)
    ctx.save_for_backward(*((responsibilities, scale) if ctx.linear else ()))


def _backward(ctx: Any, d_y: Tensor, *_: Any) -> tuple[Tensor | None, ...]:
    """P = I + w·r·diag(scale)·rᵀ is symmetric, so d_x = d_y·Pᵀ is the map itself; released, it is the identity."""
    d_x = d_y
    if ctx.linear:
        d_x = reconstruct.op.call(d_y, *ctx.saved_tensors, ctx.weight)
    return d_x, None, None, None, None, None, None


fixed = Op(
    "_em_project_fixed(Tensor x, Tensor init, int num_iters, float temperature, float residual_weight, float eps, "
    "bool linear) -> (Tensor y, Tensor mean_bases, Tensor responsibilities, Tensor scale)",
    accept=_accept,
    shapes=_shapes,
    verify=(3, checks.finite_scale),
    gradient=Rule(_backward, _save),
    batch=rows_and_start,
    family="em_project",
    fallback=_in_parts,
)
