"""EM on channels and their negatives. A refiner adds a multiple of the resulting map to its rows."""

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels.em import relative_scale
from emcl_kernels.ops.fit import em_fit


def signed_map(
    gram: Float[Tensor, "D D"],
    *,
    num_bases: int,
    num_starts: int,
    num_iters: int,
    temperature: float,
    seed: int,
    eps: float = 1e-6,
) -> tuple[Float[Tensor, "D R"], Float[Tensor, "D R"]]:
    """EMCL's reconstruction as a linear map of rows, scaled to their size, averaged over starts (docs/math.md, F).

    If a channel changes its sign in every row, no inner product of rows changes, but EM's softmax does: it never puts a
    channel and the negative of another into one basis. So EM runs on all channels and all their negatives, with bases
    that start as pairs of opposites and stay so. One half of each result then says it all, and signs do not matter.

    Args:
        gram: xᵀx of the rows `[D, D]`, float64.
        num_bases: bases K of one run of EM.
        num_starts: runs of EM, whose maps are averaged.
        num_iters: E-steps and M-steps.
        temperature: of the E-step's softmax, in units of the channels' root mean square length.
        seed: decides which channels the bases start from.
        eps: added to the sums and lengths that are divided by.

    Returns:
        left and right `[D, R]`, with reconstruction = rows · left · rightᵀ and R = num_starts · num_bases.

    Raises:
        ValueError: fewer than num_bases channels have a length above zero.
    """
    gram = gram / gram.diagonal().mean()

    alive = (gram.diagonal() > 1e-12).nonzero().flatten()
    if len(alive) < num_bases:
        raise ValueError(
            f"num_bases is {num_bases} but only {len(alive)} of {len(gram)} channels are not zero in every row; EM "
            f"clusters the channels, so pass num_bases of at most {len(alive)}"
        )

    generator = torch.Generator().manual_seed(seed)
    both = _with_negatives(gram)
    left = []
    right = []
    for _ in range(num_starts):
        # Every basis starts as one channel, and its twin as the negative of that.
        start = alive[torch.randperm(len(alive), generator=generator)[:num_bases]]
        logits = gram[:, start] / gram.diagonal()[start].sqrt()  # (FS)
        responsibilities, scale = em_fit(
            both, _with_negatives(logits), num_iters=num_iters, temperature=temperature, eps=eps
        )

        # The first half of the bases, with the sign by which each channel belongs to them.
        signed = (responsibilities[: len(gram)] - responsibilities[len(gram) :])[:, :num_bases]  # (FE)
        scale = scale[:num_bases]
        scale = scale * relative_scale(gram, signed, scale)
        left.append(signed * scale / num_starts)  # (FM)
        right.append(signed)

    return torch.cat(left, dim=1), torch.cat(right, dim=1)


def _with_negatives(x: Float[Tensor, "M N"]) -> Float[Tensor, "M2 N2"]:
    """[[x, −x], [−x, x]]."""
    return torch.cat([torch.cat([x, -x], dim=1), torch.cat([-x, x], dim=1)])
