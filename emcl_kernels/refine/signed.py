"""EM on channels and their negatives: the map whose multiple a refiner adds to its rows."""

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
    """EMCL's reconstruction as a linear map of rows, of their own size, averaged over starts (docs/math.md, F).

    No inner product changes when a channel changes its sign in every row, but EM's softmax does: it never puts a
    channel and the negative of another into one basis. So EM runs on all channels and all their negatives, with bases
    that start as pairs of opposites and stay so. Half of each result is then all of it, and signs do not matter.

    Args: gram: of the rows. temperature: in units of the channels' root mean square length.
    Returns: left and right, with reconstruction = rows · left · rightᵀ and R = num_starts · num_bases.
    Raises: ValueError where fewer than num_bases channels have a length above zero.
    """
    gram = gram / gram.diagonal().mean()
    alive = (gram.diagonal() > 1e-12).nonzero().flatten()
    if len(alive) < num_bases:
        raise ValueError(
            f"num_bases is {num_bases} but only {len(alive)} of {len(gram)} channels are not zero in every row; EM "
            f"clusters the channels, so pass num_bases of at most {len(alive)}"
        )
    both = torch.cat([torch.cat([gram, -gram], dim=1), torch.cat([-gram, gram], dim=1)])
    generator = torch.Generator().manual_seed(seed)
    left, right = [], []
    for _ in range(num_starts):
        start = alive[torch.randperm(len(alive), generator=generator)[:num_bases]]
        logits = gram[:, start] / gram.diagonal()[start].sqrt()  # (FS)
        responsibilities, scale = em_fit(
            both,
            torch.cat([torch.cat([logits, -logits], dim=1), torch.cat([-logits, logits], dim=1)]),
            num_iters=num_iters,
            temperature=temperature,
            eps=eps,
        )
        signed = (responsibilities[: len(gram)] - responsibilities[len(gram) :])[:, :num_bases]  # (FE)
        scale = scale[:num_bases]
        scale = scale * relative_scale(gram, signed, scale)
        left.append(signed * scale / num_starts)  # (FM)
        right.append(signed)
    return torch.cat(left, dim=1), torch.cat(right, dim=1)
