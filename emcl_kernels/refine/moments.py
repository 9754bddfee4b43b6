"""Moments of one side's rows: all that fitting a map needs to know of them, added up over chunks and processes."""

from collections.abc import Callable
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels.em import Moments
from emcl_kernels.ops.moments import em_moments
from emcl_kernels.refine import affine, arrays


def moments_of(x: Any, name: str, *, normalize: bool) -> Moments:
    """Of the rows of `x`, `[N, D]`, each read once, in float64 on the CPU.

    float64: in float32, chunks of a million rows in another order would change which basis takes a channel.

    Raises:
        ValueError: a row is not finite.
    """
    width = x.shape[-1]
    found = nothing(width)
    for _, part in arrays.chunks(x, name):
        gram, colsum = em_moments(affine.unit(part) if normalize else part)
        found = found + Moments(gram.cpu(), colsum.cpu(), len(part))
    return found


def nothing(width: int) -> Moments:
    """Of no rows."""
    gram = torch.zeros(width, width, dtype=torch.float64)
    return Moments(gram, gram[0].clone(), 0)


def unpack_whole(vector: Float[Tensor, " M"], width: int) -> Moments:
    """`Moments.unpack`, with the count as a number."""
    moments = Moments.unpack(vector, width)
    return Moments(moments.gram.clone(), moments.colsum.clone(), int(moments.num_rows))


def mean(moments: Moments) -> Float[Tensor, " D"]:
    return moments.colsum / moments.num_rows


def gram_without_mean(moments: Moments, share: float) -> Float[Tensor, "D D"]:
    """Mean over the rows of (x − share·mean)ᵀ(x − share·mean)."""
    of_side = mean(moments)
    return moments.gram / moments.num_rows - share * (2 - share) * torch.outer(of_side, of_side)


def require_spread(moments: Moments | None, name: str) -> Moments:
    """The same moments.

    Raises:
        ValueError: there are fewer than two rows, or only one row many times.
    """
    count = 0 if moments is None else int(moments.num_rows)
    if moments is None or count < 2:
        raise ValueError(f"{name} has {count} row{'s' * (count != 1)}; a mean and its spread need at least two")

    size = float(moments.gram.diagonal().sum()) / count
    spread = float(gram_without_mean(moments, 1.0).diagonal().sum())
    if spread <= 1e-12 * size or size == 0:
        raise ValueError(
            f"{name} has {count} rows that are all the same"
            + (" but for their lengths" if size else ", namely zero")
            + "; there is nothing to tell them apart by"
        )
    return moments


def agreed_width(width: int | None, refused: Exception | None, add_up: Callable[[Tensor], Tensor]) -> int:
    """D of the rows of all processes, also in one that has none.

    Args: width: of this process's rows, None where it has none. refused: why its rows cannot be used, where that is so.
    Raises: ValueError where rows of any process were refused, none has rows, or widths differ. It is the same in every
        process, and after the sum: one that raised before would leave the others waiting for it.
    """
    has, own = float(width is not None), float(width or 0)
    vector = torch.tensor([1.0, float(refused is not None), has, own, own * own], dtype=torch.float64)
    processes, refusing, having, total, squares = (round(value) for value in add_up(vector).tolist())
    if refusing:
        raise ValueError(
            f"rows of {refusing} of {processes} processes were refused, so nothing was added up; what is wrong with "
            "them is the cause of this error there"
        ) from refused
    if having == 0:
        raise ValueError(f"none of {processes} processes has seen rows; pass rows of each side to at least one of them")
    if having * squares != total * total:  # equal only where all widths are
        raise ValueError(
            f"rows of {having} processes are of different widths, {total / having:g} on average; all must come from "
            "one joint space"
        )
    return total // having


def sum_over_processes(vector: Float[Tensor, " M"]) -> Float[Tensor, " M"]:
    """With torch.distributed. Raises: ValueError where there is no process group."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        raise ValueError(
            "all_reduce needs processes that know each other: call torch.distributed.init_process_group first, or pass "
            "add_up, a function that returns the sum of a vector over the processes"
        )
    if torch.distributed.get_backend() == "nccl":
        vector = vector.cuda()
    torch.distributed.all_reduce(vector)
    return vector
