"""Whether refining is worth it: hubs before and after, and whether there are rows enough to fit to."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from jaxtyping import Float
from torch import Tensor

from emcl_kernels.refine import affine, arrays
from emcl_kernels.refine.hubness import hubness
from emcl_kernels.refine.maps import Unchanged

if TYPE_CHECKING:
    from emcl_kernels.refine.refiner import Refiner

DIRECTIONS = {"text→video": ("text", "video"), "video→text": ("video", "text")}
FEWEST_ROWS = 50
"""Rows of a side below which whitening gives less than nine tenths of what it gives with more (docs/refine.md)."""
RISE = 0.1
"""Of hubness, beyond which a warning is given: smaller ones come and go with the rows that are looked at."""


@dataclass(frozen=True)
class Diagnosis:
    """What refining does to the hubs of some rows."""

    rows: int
    """Of the side with fewer, that the map was fitted to, or else that were looked at."""
    hubness_before: dict[str, float]
    """Skewness of N_10 by direction, "text→video" and "video→text"."""
    hubness_after: dict[str, float]
    fitted: bool = True
    """Whether the map depends on the rows; "none" does not."""

    @property
    def warnings(self) -> list[str]:
        """Reasons not to refine; none if there are none."""
        found = []
        if self.fitted and self.rows < FEWEST_ROWS:
            found.append(
                f"the map was fitted to {self.rows} rows of a side; below {FEWEST_ROWS} it gains less than with more, "
                "or loses: fit it to more rows, or measure it on pairs of your own"
            )
        for direction, before in self.hubness_before.items():
            after = self.hubness_after[direction]
            if after > before + RISE:
                found.append(
                    f"{direction}: hubness rises from {before:.2f} to {after:.2f}: refining makes hubs here, where it "
                    "should take them out; measure it on pairs of your own before you use it"
                )
        return found


def diagnose(refiner: "Refiner", text: Any, video: Any, *, rows_seen: int | None, max_rows: int) -> Diagnosis:
    """`Refiner.diagnose`. rows_seen: rows that the map was fitted to; None if that is not known."""
    rows = {}
    for side, x in {"text": text, "video": video}.items():
        arrays.require(x, side, ndim=2)
        if len(x) < 2:
            raise ValueError(f"{side} has {len(x)} rows; hubs are told apart from others among at least two")
        rows[side] = _some(x, side, max_rows)

    # With a bank of one side, one direction alone is corrected, and served.
    before = {}
    after = {}
    for name, (query, gallery) in DIRECTIONS.items():
        if refiner.serves(gallery):
            before[name] = hubness(affine.unit(rows[query]), affine.unit(rows[gallery]))
            after[name] = hubness(*refiner.compared(rows[query], rows[gallery], query_side=query))
    seen = min(map(len, rows.values())) if rows_seen is None else rows_seen
    return Diagnosis(seen, before, after, fitted=not isinstance(refiner.map, Unchanged))


def _some(x: Any, side: str, count: int) -> Float[Tensor, "N D"]:
    """At most so many rows, evenly spaced, in float64."""
    if len(x) > count:
        places = torch.linspace(0, len(x) - 1, count, dtype=torch.float64).round().long()
        x = x[places] if isinstance(x, Tensor) else x[places.numpy()]
    return torch.cat([part for _, part in arrays.chunks(x, side)])
