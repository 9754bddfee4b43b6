"""Moments of one side's rows: all that fitting a map needs to know of them, added up over chunks and processes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels import affine, rows
from emcl_kernels.ops import em_moments


@dataclass(frozen=True)
class Moments:
    """How many rows there were, their sum [D] and their Gram matrix [D, D], in float64 on the CPU.

    float64: in float32, chunks of a million rows in another order would change which basis takes a channel.
    """

    count: int = 0
    colsum: Tensor | None = None
    gram: Tensor | None = None

    @classmethod
    def of(cls, x: Any, name: str, *, normalize: bool) -> "Moments":
        """Of the rows of `x`, `[N, D]`, each read once.

        Raises: ValueError where a row is not finite.
        """
        found = cls()
        for _, part in rows.chunks(x, name):
            gram, colsum = em_moments(affine.unit(part) if normalize else part)
            found = found + cls(len(part), colsum.cpu(), gram.cpu())
        return found

    def __add__(self, other: "Moments") -> "Moments":
        if self.gram is None or self.colsum is None:
            return other
        if other.gram is None or other.colsum is None:
            return self
        return Moments(self.count + other.count, self.colsum + other.colsum, self.gram + other.gram)

    def packed(self, width: int) -> Float[Tensor, " M"]:
        """D² + D + 1 numbers that add up over processes."""
        if self.gram is None or self.colsum is None:
            return torch.zeros(width * width + width + 1, dtype=torch.float64)
        count = torch.tensor([float(self.count)], dtype=torch.float64)
        return torch.cat([self.gram.flatten(), self.colsum, count])

    @classmethod
    def unpacked(cls, vector: Float[Tensor, " M"], width: int) -> "Moments":
        count = int(vector[-1])
        if count == 0:
            return cls()
        return cls(count, vector[-width - 1 : -1].clone(), vector[: -width - 1].view(width, width).clone())

    @property
    def mean(self) -> Float[Tensor, " D"]:
        assert self.colsum is not None
        return self.colsum / self.count

    def gram_without_mean(self, share: float) -> Float[Tensor, "D D"]:
        """Mean over the rows of (x − share·mean)ᵀ(x − share·mean)."""
        assert self.gram is not None
        return self.gram / self.count - share * (2 - share) * torch.outer(self.mean, self.mean)

    def require_spread(self, name: str) -> None:
        """Raises: ValueError where there are fewer than two rows, or only one row many times."""
        if self.count < 2:
            raise ValueError(
                f"{name} has {self.count} row{'s' * (self.count != 1)}; a mean and its spread need at least two"
            )
        assert self.gram is not None
        size = float(self.gram.diagonal().sum()) / self.count
        spread = float(self.gram_without_mean(1.0).diagonal().sum())
        if spread <= 1e-12 * size or size == 0:
            raise ValueError(
                f"{name} has {self.count} rows that are all the same"
                + (" but for their lengths" if size else ", namely zero")
                + "; there is nothing to tell them apart by"
            )


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
