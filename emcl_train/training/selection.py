"""Which epoch's weights a run keeps: the best by validation, or the last where too few clips would choose by chance."""

import math
from dataclasses import dataclass
from typing import Any, Literal

from torch import Tensor

from emcl_train.data.annotations import Split
from emcl_train.runs.records import SELECTED_BY

FEWEST_CLIPS = 50
"""Validation clips, or questions, below which no epoch is chosen by them: one more is two points of R@1 and over."""


@dataclass(frozen=True)
class Score:
    """What the validation of an epoch found."""

    value: float
    """By which epochs are compared; in percent, the higher the better."""
    figures: str
    """For the terminal."""
    chance: float
    """What the figures are of a model that knows nothing."""
    record: dict[str, Any]
    """For the line of metrics.jsonl."""


@dataclass
class Selection:
    """What is kept of the epochs so far.

    Args:
        split: that every epoch is evaluated on.
        chooses: whether the figures choose; else the last epoch is kept. A run goes on as it began.
        unit: what the figures are shares of: the clips of the split, or its captions, which are questions.
    """

    split: Split
    chooses: bool
    unit: Literal["clip", "question"] = "clip"
    best_score: float = -math.inf
    best_epoch: int = -1
    """The one whose weights are kept; counted from 1."""
    weights: dict[str, Tensor] | None = None
    """Its weights, until they are written."""
    too_few: bool = False
    """Whether the last epoch is kept for want of clips alone."""

    @classmethod
    def of(
        cls,
        split: Split,
        *,
        on_test: bool,
        keep: Literal["best", "last"] = "best",
        unit: Literal["clip", "question"] = "clip",
    ) -> "Selection":
        """That of a run which begins.

        Args:
            split: that every epoch is evaluated on.
            on_test: whether it is the test split, which somebody asked to choose by.
            keep: "last": nothing is chosen.
            unit: what the figures are shares of.
        """
        selection = cls(split, chooses=False, unit=unit)
        selection.chooses = keep == "best" and (on_test or selection.number >= FEWEST_CLIPS)
        selection.too_few = keep == "best" and not selection.chooses
        return selection

    @property
    def number(self) -> int:
        """Of the clips or questions that the figures are shares of."""
        return len(self.split.captions if self.unit == "question" else self.split.clips)

    @property
    def counted(self) -> str:
        """The same in words: "1 clip", "2 clips"."""
        return f"{self.number} {self.unit}{'' if self.number == 1 else 's'}"

    def warning(self) -> str | None:
        """What is said at the start where the last epoch is kept."""
        if not self.too_few:
            return None
        figure = "accuracy" if self.unit == "question" else "R@1"
        add = ", or add clips: where none are named, a tenth of the training clips is held out"
        return (
            f"warning: the validation split has {self.counted}, fewer than {FEWEST_CLIPS}, and one of them is "
            f"{100 / self.number:.3g} points of {figure}: no epoch is chosen by it, and the weights of the last one "
            f"are kept. Name {FEWEST_CLIPS} or more validation {self.unit}s in the annotations"
            f"{add if self.unit == 'clip' else ''}"
        )

    def take(self, epoch: int, score: Score, weights: dict[str, Tensor]) -> str:
        """Keep the weights of an epoch, if they are to be kept.

        Args:
            epoch: counted from 1.
            score: of its validation.
            weights: at its end.

        Returns:
            The figures for the terminal, beside those of chance.
        """
        best = score.value > self.best_score  # the first of equals stays
        if best or not self.chooses:
            self.best_score = score.value
            self.best_epoch = epoch
            self.weights = weights

        of_few = "" if self.chooses else f" of {self.counted}"
        return (
            f"{SELECTED_BY[self.split.name]} {score.figures} (chance {score.chance:.1f}{of_few})"
            f"{'  best so far' if best and self.chooses else ''}"
        )
