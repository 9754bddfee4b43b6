"""What refining gave on sets that its defaults were not chosen on: figures of benchmarks/refine/results."""

from dataclasses import dataclass

from emcl_kernels import Refiner


@dataclass(frozen=True)
class Expectation:
    """Gains in R@1, in points, means of 20 halves, fitted to the other half; a bank is the queries of that half."""

    of: str
    """Which direction."""
    mean: float
    lowest: float
    """Of a set."""
    highest: float
    sets: int

    @property
    def sentence(self) -> str:
        return (
            f"what to expect: on {self.sets} sets that were not used to choose the defaults R@1 of {self.of} rose by "
            f"{self.mean:.1f} points in the mean, by {self.lowest:+.1f} to {self.highest:+.1f} a set (docs/refine.md)"
        )


BOTH = "both directions"
DIRECTION = {"text": "text→video", "video": "video→text"}
"""The direction that a bank of a side corrects."""
SMALLEST_BANK = 50
"""Rows of the smallest bank that was measured."""

MEASURED: dict[tuple[str, str], Expectation] = {
    ("whitening", BOTH): Expectation(BOTH, 1.8, 0.9, 2.4, 3),
    ("em", BOTH): Expectation(BOTH, 1.1, 0.3, 1.6, 3),
    ("mean", BOTH): Expectation(BOTH, 1.0, 0.0, 1.8, 3),
    ("whitening", "text→video"): Expectation("text→video", 3.7, 1.3, 6.4, 3),
    ("whitening", "video→text"): Expectation("video→text", 1.2, 0.4, 2.6, 3),
    ("em", "text→video"): Expectation("text→video", 3.4, 1.1, 6.0, 3),
    ("em", "video→text"): Expectation("video→text", 1.1, 0.2, 2.6, 3),
    ("none", "text→video"): Expectation("text→video", 3.3, 1.4, 6.0, 3),
    ("none", "video→text"): Expectation("video→text", 1.4, 0.8, 2.5, 3),
}
"""By the name of a map with its defaults, and direction: both without a bank, with one that which it corrects."""


def expectation(refiner: Refiner) -> Expectation | None:
    """What was measured with such a map and bank; None if nothing was.

    Args:
        refiner: fitted, with its bank.
    """
    settings = Refiner()
    banks = {side: rows for side in DIRECTION if (rows := refiner.bank(side)) is not None}
    if len(banks) > 1 or any(len(rows) < SMALLEST_BANK for rows in banks.values()):
        return None
    if banks and (refiner.num_neighbors, refiner.bank_weight) != (settings.num_neighbors, settings.bank_weight):
        return None
    seed = {"seed": refiner.map.seed} if hasattr(refiner.map, "seed") else {}  # which changes no mean
    if refiner.map != Refiner.MAPS[refiner.map.name](**seed) or not refiner.normalize:
        return None
    return MEASURED.get((refiner.map.name, DIRECTION[next(iter(banks))] if banks else BOTH))
