"""Which epoch's weights a run keeps: the best by validation, or the last where too few clips would choose by chance."""

import math
from dataclasses import dataclass
from typing import Literal

from torch import Tensor

from emcl_train.data.annotations import Split
from emcl_train.evaluation.metrics import chance
from emcl_train.evaluation.table import Line
from emcl_train.runs.records import SELECTED_BY, selecting_score

FEWEST_CLIPS = 50
"""Validation clips below which no epoch is chosen by them: one clip more is two points of R@1 and over."""


@dataclass
class Selection:
    """What is kept of the epochs so far.

    Args:
        split: that every epoch is evaluated on.
        chooses: whether the figures choose; else the last epoch is kept. A run goes on as it began.
    """

    split: Split
    chooses: bool
    best_score: float = -math.inf
    best_epoch: int = -1
    """The one whose weights are kept; counted from 1."""
    weights: dict[str, Tensor] | None = None
    """Its weights, until they are written."""
    too_few: bool = False
    """Whether the last epoch is kept for want of clips alone."""
    by: Literal["R@1", "geometric-mean"] = "R@1"
    """The figure that chooses: `train.select_by`."""

    @classmethod
    def of(
        cls,
        split: Split,
        *,
        on_test: bool,
        keep: Literal["best", "last"] = "best",
        by: Literal["R@1", "geometric-mean"] = "R@1",
    ) -> "Selection":
        """That of a run which begins.

        Args:
            split: that every epoch is evaluated on.
            on_test: whether it is the test split, which somebody asked to choose by.
            keep: "last": nothing is chosen.
            by: the figure that chooses.
        """
        chooses = keep == "best" and (on_test or len(split.clips) >= FEWEST_CLIPS)
        return cls(split, chooses, too_few=keep == "best" and not chooses, by=by)

    def warning(self) -> str | None:
        """What is said at the start where the last epoch is kept."""
        if not self.too_few:
            return None
        clips = len(self.split.clips)
        return (
            f"warning: the validation split has {clips} clip{'' if clips == 1 else 's'}, fewer than {FEWEST_CLIPS}, "
            f"and one of them is {100 / clips:.3g} points of R@1: no epoch is chosen by it, and the weights of the "
            f"last one are kept. Name {FEWEST_CLIPS} or more validation clips in the annotations, or add clips: where "
            f"none are named, a tenth of the training clips is held out"
        )

    def take(self, epoch: int, line: Line, weights: dict[str, Tensor]) -> str:
        """Keep the weights of an epoch, if they are to be kept.

        Args:
            epoch: counted from 1.
            line: of its validation.
            weights: at its end.

        Returns:
            The figures for the terminal, beside those of chance.
        """
        score = selecting_score(line.text_to_video, self.by)
        best = score > self.best_score  # the first of equals stays
        if best or not self.chooses:
            self.best_score = score
            self.best_epoch = epoch
            self.weights = weights

        clips = len(self.split.clips)
        of_few = "" if self.chooses else f" of {clips} clip{'' if clips == 1 else 's'}"
        recall, back = (found["R@1"] for found in (line.text_to_video, line.video_to_text))
        return (
            f"{SELECTED_BY[self.split.name]} R@1: text→video {recall:.1f}, video→text {back:.1f} "
            f"(chance {chance(clips)['R@1']:.1f}{of_few}){'  best so far' if best and self.chooses else ''}"
        )
