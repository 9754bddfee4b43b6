"""EM, the reconstruction and the pooled similarity in plain torch: one line per equation of docs/math.md.

There are two forms of the same maths. `em_project_loop` and `pooled_similarity_materialized` follow the release of EMCL
(NeurIPS 2022) step by step; every test compares with them. The others are the Gram form, which does not touch the rows
inside the EM loop. Everything here differentiates by autograd, in the dtype of its input.

Functions that multiply rows take `products`: backends compute those products in other dtypes, by the same equations.
"""

import math
from collections.abc import Callable

import torch
from jaxtyping import Bool, Float
from torch import Tensor


class Products:
    """How matrices are multiplied of which rows are one: here as torch does it, in their dtype."""

    of: Callable[[Tensor, Tensor], Tensor] = staticmethod(torch.matmul)
    """left·right, over leading dimensions."""

    def added(self, addend: Tensor, left: Tensor, right: Tensor, weight: float = 1.0) -> Tensor:
        """addend + weight · left·right, where addend may have one row for all."""
        return addend + weight * (left @ right)


PLAIN = Products()


def em_project_loop(
    x: Float[Tensor, "*G N D"],
    init: Float[Tensor, "*I"],
    *,
    num_iters: int = 9,
    temperature: float = 1.0,
    residual_weight: float = 3.0,
    eps: float = 1e-6,
    gradient: str = "identity",
) -> tuple[Float[Tensor, "*G N D"], Float[Tensor, "*G K"]]:
    """EMCL as released: every iteration reads all rows. Ground truth.

    Args:
        x: rows of both modalities `[*, N, D]`.
        init: start of the bases, `[*, K]` (one value per basis) or `[*, N, K]`.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax.
        residual_weight: of the reconstruction.
        eps: added to the sums and lengths that are divided by.
        gradient: "identity", "linear" or "full", see `emcl_kernels.em_project`.

    Returns:
        x + residual_weight · reconstruction, and the mean of the bases over rows `[*, K]`, from which the next start is
        made.
    """
    em_input, start = (x, init) if gradient == "full" else (x.detach(), init.detach())

    bases, responsibilities, scale = em_loop(em_input, start, num_iters=num_iters, temperature=temperature, eps=eps)
    if gradient == "linear":
        reconstruction = x @ (responsibilities * scale.unsqueeze(-2)) @ responsibilities.mT  # (R), the map a constant
    else:
        reconstruction = bases @ responsibilities.mT  # (R)
    return x + residual_weight * reconstruction, bases.mean(-2)  # (R), (I)


def em_loop(
    x: Float[Tensor, "*G N D"],
    init: Float[Tensor, "*I"],
    *,
    num_iters: int,
    temperature: float,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "*G N K"], Float[Tensor, "*G D K"], Float[Tensor, "*G K"]]:
    """The release's iterations.

    Args:
        x: rows `[*, N, D]`.
        init: start of the bases, `[*, K]` or `[*, N, K]`.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax.
        eps: added to the sums and lengths that are divided by.

    Returns:
        bases `[*, N, K]`, and the map that they amount to: responsibilities `[*, D, K]` and scale `[*, K]`.
    """
    rows = x.shape[-2]
    per_row = init.dim() == x.dim()
    bases = init if per_row else init.unsqueeze(-2).expand(*init.shape[:-1], rows, init.shape[-1])  # (0)

    for _ in range(num_iters):
        responsibilities = torch.softmax(x.mT @ bases / temperature, dim=-1)  # (E)
        responsibilities = responsibilities / (eps + responsibilities.sum(-2, keepdim=True))  # (E)
        bases = x @ responsibilities  # (M)
        length = torch.linalg.vector_norm(bases, dim=-2)
        # A length that overflows is NaN: a scale of zero would make bases of zero, and the next ones look like a fit.
        scale = 1 / (eps + length.nan_to_num(nan=math.nan, posinf=math.nan))
        bases = bases * scale.unsqueeze(-2)  # (M)

    return bases, responsibilities, scale


def em_moments(
    x: Float[Tensor, "*G N D"], *, products: Products = PLAIN
) -> tuple[Float[Tensor, "*G D D"], Float[Tensor, "*G D"]]:
    """All that EM needs to know of the rows: xᵀx and xᵀ1."""
    gram = products.of(x.mT, x)
    return gram, x.sum(-2, dtype=gram.dtype)


def em_moments_backward(
    x: Float[Tensor, "*G N D"],
    d_gram: Float[Tensor, "*G D D"],
    d_colsum: Float[Tensor, "*G D"],
    *,
    products: Products = PLAIN,
) -> Float[Tensor, "*G N D"]:
    return products.added(d_colsum.unsqueeze(-2), x, d_gram + d_gram.mT)  # (BG)


def em_fit(
    gram: Float[Tensor, "*G D D"],
    logits: Float[Tensor, "*G D K"],
    num_iters: int,
    temperature: float,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "*G D K"], Float[Tensor, "*G K"]]:
    """Every iteration of EM on the Gram matrix alone."""
    for _ in range(num_iters):
        responsibilities = torch.softmax(logits / temperature, dim=-1)  # (GE)
        responsibilities = responsibilities / (eps + responsibilities.sum(-2, keepdim=True))  # (GE)
        g = gram @ responsibilities  # (GM)
        length = (responsibilities * g).sum(-2).clamp_min(0).sqrt()
        scale = 1 / (eps + length.nan_to_num(nan=math.nan, posinf=math.nan))  # (GM), as in the loop
        logits = g * scale.unsqueeze(-2)  # (GM)

    return responsibilities, scale


def em_fit_backward(
    gram: Float[Tensor, "*G D D"],
    logits: Float[Tensor, "*G D K"],
    d_responsibilities: Float[Tensor, "*G D K"],
    d_scale: Float[Tensor, "*G K"],
    *,
    num_iters: int,
    temperature: float,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "*G D D"], Float[Tensor, "*G D K"]]:
    """Gradients of `em_fit` to `gram` and `logits` (docs/math.md, BE and BM)."""
    # Forward again, keeping every iteration.
    trace = []
    for _ in range(num_iters):
        p = torch.softmax(logits / temperature, dim=-1)
        total = eps + p.sum(-2, keepdim=True)
        r = p / total
        g = gram @ r
        length = (r * g).sum(-2, keepdim=True).clamp_min(0).sqrt()
        logits = g / (eps + length)
        trace.append((p, total, r, g, length))

    # Backward, from the last iteration to the first. Only the last one's responsibilities and scale leave em_fit.
    d_gram = torch.zeros_like(gram)
    d_logits = torch.zeros_like(logits)
    d_r = d_responsibilities
    d_s = d_scale.unsqueeze(-2)
    for p, total, r, g, length in reversed(trace):
        scale = 1 / (eps + length)
        d_s = d_s + (d_logits * g).sum(-2, keepdim=True)  # (BM)
        d_square = torch.where(length > 0, -d_s * scale.square() / (2 * length), 0)  # (BM), d ‖basis‖²
        d_g = d_logits * scale + d_square * r  # (BM)
        d_r = d_r + d_square * g + gram.mT @ d_g  # (BM)
        d_gram = d_gram + d_g @ r.mT  # (BM)
        d_p = (d_r - (d_r * r).sum(-2, keepdim=True)) / total  # (BE)
        d_logits = p * (d_p - (d_p * p).sum(-1, keepdim=True)) / temperature  # (BE)
        d_r = torch.zeros_like(d_r)
        d_s = torch.zeros_like(d_s)

    return d_gram, d_logits


def em_reconstruct(
    x: Float[Tensor, "*G N D"],
    responsibilities: Float[Tensor, "*G D K"],
    scale: Float[Tensor, "*G K"],
    *,
    weight: float,
    products: Products = PLAIN,
) -> Float[Tensor, "*G N D"]:
    """The rows with their weighted reconstruction added, as two thin products."""
    coefficients = products.of(x, responsibilities * scale.unsqueeze(-2))
    return products.added(x, coefficients, responsibilities.mT, weight)  # (GR)


def em_reconstruct_backward(
    d_y: Float[Tensor, "*G N D"],
    x: Float[Tensor, "*G N D"],
    responsibilities: Float[Tensor, "*G D K"],
    scale: Float[Tensor, "*G K"],
    *,
    weight: float,
    products: Products = PLAIN,
) -> tuple[Float[Tensor, "*G N D"], Float[Tensor, "*G D K"], Float[Tensor, "*G K"]]:
    """Gradients of `em_reconstruct` to its three tensors (docs/math.md, BR)."""
    scaled = responsibilities * scale.unsqueeze(-2)

    d_coefficients = weight * products.of(d_y, responsibilities)
    d_scaled = products.of(x.mT, d_coefficients)
    d_x = products.added(d_y, d_coefficients, scaled.mT)
    d_responsibilities = weight * products.of(d_y.mT, products.of(x, scaled)) + d_scaled * scale.unsqueeze(-2)
    return d_x, d_responsibilities, (d_scaled * responsibilities).sum(-2)


def start_logits(
    x: Float[Tensor, "*G N D"], colsum: Float[Tensor, "*G D"], init: Float[Tensor, "*I"]
) -> Float[Tensor, "*G D K"]:
    """The first E-step's logits, before the temperature."""
    if init.dim() == x.dim():
        return x.mT.to(init.dtype) @ init  # (G0), one start per row
    return colsum.unsqueeze(-1) * init.unsqueeze(-2)  # (G0)


def mean_of_bases(
    colsum: Float[Tensor, "*G D"],
    responsibilities: Float[Tensor, "*G D K"],
    scale: Float[Tensor, "*G K"],
    rows: int | torch.SymInt | Tensor,
) -> Float[Tensor, "*G K"]:
    """Mean over rows of the last M-step's bases."""
    return (colsum.unsqueeze(-2) @ responsibilities).squeeze(-2) * scale / rows  # (GI)


def em_project(
    x: Float[Tensor, "*G N D"],
    init: Float[Tensor, "*I"],
    *,
    num_iters: int = 9,
    temperature: float = 1.0,
    residual_weight: float = 3.0,
    eps: float = 1e-6,
    products: Products = PLAIN,
) -> tuple[Float[Tensor, "*G N D"], Float[Tensor, "*G K"], Float[Tensor, "*G D K"], Float[Tensor, "*G K"]]:
    """EMCL in the Gram form.

    Args:
        x: rows `[*, N, D]`.
        init: start of the bases, `[*, K]` or `[*, N, K]`.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax.
        residual_weight: of the reconstruction.
        eps: added to the sums and lengths that are divided by.
        products: how rows are multiplied.

    Returns:
        y, mean_bases, and the fitted map: responsibilities and scale.
    """
    gram, colsum = em_moments(x, products=products)
    logits = start_logits(x, colsum, init)
    responsibilities, scale = em_fit(gram, logits, num_iters=num_iters, temperature=temperature, eps=eps)
    y = em_reconstruct(x, responsibilities, scale, weight=residual_weight, products=products)
    return y, mean_of_bases(colsum, responsibilities, scale, x.shape[-2]), responsibilities, scale


def frame_weights(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Bool[Tensor, "B F"] | Float[Tensor, "B F"],
    *,
    pooling_temperature: float,
) -> Float[Tensor, "A B F"]:
    """Text-conditioned weights: softmax over all frames, masked afterwards and not normalised again (as released)."""
    similarity = torch.einsum("ad,bfd->abf", text, frames)
    return torch.softmax(similarity / pooling_temperature, dim=-1) * frame_mask.to(text.dtype)


def pooled_cosine_similarity(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Bool[Tensor, "B F"] | Float[Tensor, "B F"],
    *,
    pooling_temperature: float = 3.0,
) -> Float[Tensor, "A B"]:
    """Cosine of each text with each video's frames pooled for that text, materialised. No EM."""
    weights = frame_weights(text, frames, frame_mask, pooling_temperature=pooling_temperature)
    pooled = torch.einsum("abf,bfd->abd", weights, frames)
    return torch.einsum("ad,abd->ab", unit(text), unit(pooled))


def pooled_similarity_materialized(
    text: Float[Tensor, "A D"],
    frames: Float[Tensor, "B F D"],
    frame_mask: Bool[Tensor, "B F"] | Float[Tensor, "B F"],
    init: Float[Tensor, " K"],
    *,
    pooling_temperature: float = 3.0,
    num_iters: int = 9,
    temperature: float = 1.0,
    residual_weight: float = 3.0,
    eps: float = 1e-6,
    gradient: str = "identity",
) -> tuple[Float[Tensor, "A B"], Float[Tensor, " K"]]:
    """EMCL-Net's similarity as released: pool to [A, B, D], EM over all A·B + A rows, cosine. Ground truth."""
    weights = frame_weights(text, frames, frame_mask, pooling_temperature=pooling_temperature)
    pooled = torch.einsum("abf,bfd->abd", weights, frames)

    rows = torch.cat([pooled.flatten(0, 1), text])
    rows, mean_bases = em_project_loop(
        rows,
        init,
        num_iters=num_iters,
        temperature=temperature,
        residual_weight=residual_weight,
        eps=eps,
        gradient=gradient,
    )

    texts = text.shape[0]
    pooled = rows[:-texts].view_as(pooled)
    text = rows[-texts:]
    return torch.einsum("ad,abd->ab", unit(text), unit(pooled)), mean_bases


def unit(x: Float[Tensor, "*G D"]) -> Float[Tensor, "*G D"]:
    """Rows of length one; a row of zeros stays zero."""
    return x / torch.linalg.vector_norm(x, dim=-1, keepdim=True).clamp_min(1e-12)
