"""What a refiner has seen: the moments of each side's rows, added up over batches and over processes."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from emcl_kernels.em import Moments
from emcl_kernels.refine import arrays
from emcl_kernels.refine.moments import agreed_width, moments_of, nothing, require_spread, unpack_whole

SIDES = ("text", "video")


class RowsSeen:
    """Moments of the texts and of the videos that were seen.

    Args:
        normalize: whether rows are brought to length one first.
    """

    def __init__(self, *, normalize: bool) -> None:
        self._normalize = normalize
        self._local: dict[str, Moments | None] = dict.fromkeys(SIDES)
        """Of this process, since the last sum over processes."""
        self._shared: dict[str, Moments | None] = dict.fromkeys(SIDES)
        """Of all processes, up to then."""

    def add(self, text: Any, video: Any) -> None:
        """Add rows. All are read before any are counted, so that a refused array leaves the moments as they were.

        Args:
            text: `[N, D]`, or None.
            video: `[M, D]`, or None.

        Raises:
            ValueError: an array has another shape than those before it, or holds NaN or infinite values.
            TypeError: a side is no array of floats.
        """
        given = {"text": text, "video": video}
        width, width_of = self.width
        for name, x in given.items():
            if x is not None:
                arrays.require(x, name, width=width, width_of=width_of, ndim=2)
                if width is None:
                    width = x.shape[-1]
                    width_of = name

        found = {
            side: moments_of(x, side, normalize=self._normalize) if x is not None else None for side, x in given.items()
        }
        self._local = {side: _together(self._local[side], found[side]) for side in SIDES}

    def add_up(self, add_up: Callable[[Tensor], Tensor], refused: Exception | None) -> None:
        """Move what this process has seen, summed over processes, to what all have seen.

        Args:
            add_up: sums one vector in float64 over the processes.
            refused: why this process has nothing to add, which is then an error in all of them.

        Raises:
            ValueError: as `agreed_width` does.
        """
        width = agreed_width(self.width[0], refused, add_up)

        # Both sides in one vector: one sum over processes.
        packed = [(self._local[side] or nothing(width)).pack() for side in SIDES]
        summed = add_up(torch.cat(packed)).cpu()
        for side, part in zip(SIDES, summed.chunk(len(SIDES)), strict=True):
            of_all = unpack_whole(part, width)
            self._shared[side] = _together(self._shared[side], of_all if of_all.num_rows else None)
            self._local[side] = None

    @property
    def any(self) -> bool:
        """Whether there are rows of a side."""
        return any(self._of(side) is not None for side in SIDES)

    @property
    def fewest(self) -> int:
        """Rows of the side that has fewer."""
        return min(int(moments.num_rows) if (moments := self._of(side)) is not None else 0 for side in SIDES)

    @property
    def width(self) -> tuple[int | None, str]:
        """D, and the side that it is known from."""
        for side in SIDES:
            if (moments := self._of(side)) is not None:
                return moments.gram.shape[-1], f"{side} seen before"
        return None, ""

    def both(self) -> tuple[Moments, Moments]:
        """Moments of all texts, and of all videos.

        Raises:
            ValueError: a side has fewer than two rows, or rows that do not differ.
        """
        return require_spread(self._of("text"), "text"), require_spread(self._of("video"), "video")

    def _of(self, side: str) -> Moments | None:
        return _together(self._local[side], self._shared[side])


def _together(some: Moments | None, others: Moments | None) -> Moments | None:
    """Moments of all rows of one side; None if there are no rows."""
    if some is None or others is None:
        return some or others
    return some + others
