"""What an expert says of a clip, and what every reader of experts' files gives: steps by name, or nothing."""

from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from jaxtyping import Float32

from emcl_train.errors import UserError


@dataclass(frozen=True)
class ExpertSteps:
    """What an expert says of a clip, a row a step; an expert that was averaged over time has one step."""

    values: Float32[np.ndarray, "steps D"]
    """At least one step, and every value is a number."""
    times: Float32[np.ndarray, "steps 2"] | None = None
    """Seconds at which each step starts and ends; None where that is not known."""


class ExpertReader(ABC):
    """The features of a data set."""

    experts: tuple[str, ...]
    """Sorted names."""

    @property
    @abstractmethod
    def widths(self) -> Mapping[str, int]:
        """Of each expert: what was asked for, else what most clips that were looked at have."""

    @abstractmethod
    def __contains__(self, video_id: str) -> bool:
        """Whether there is anything of a clip."""

    @property
    def shared_files(self) -> tuple[Path, ...]:
        """Files with features of all clips."""
        return ()

    def files_of(self, video_id: str) -> tuple[Path, ...]:
        """Files with features of this clip alone, if there is something of it."""
        return ()

    @abstractmethod
    def ids(self) -> Iterable[str]:
        """Of every clip of which there is something."""

    @abstractmethod
    def read(self, video_id: str) -> dict[str, ExpertSteps | None]:
        """Each expert's steps, by its name; None where it has nothing on this clip.

        Raises:
            ExpertError: an expert has another width, or values that are no numbers.
            UserError: there is nothing of this clip, or its file cannot be read.
        """

    @abstractmethod
    def examine(self, video_id: str) -> "Examined":
        """The same for somebody who counts faults instead of ending at the first."""


class ExpertError(UserError):
    """What an expert has on one clip cannot be used."""

    kind = "fault"
    """What is wrong, in a word or two, for those who count."""


class WidthError(ExpertError):
    """Features are wider or narrower than the expert's."""

    kind = "wrong width"


class ValueFault(ExpertError):
    """Features have values that are no numbers."""

    kind = "NaN or infinite"


class ShapeFault(ExpertError):
    """Features, or their times, have another shape."""

    kind = "wrong shape"


@dataclass
class Examined:
    """What was found of a clip."""

    steps: dict[str, ExpertSteps | None] = field(default_factory=dict)
    """Of the experts that can be used, or have nothing."""
    faults: dict[str, ExpertError] = field(default_factory=dict)
    """Of the others."""

    @property
    def missing(self) -> list[str]:
        """Experts that have nothing."""
        return [expert for expert, found in self.steps.items() if found is None]

    def whole(self) -> dict[str, ExpertSteps | None]:
        """The steps, where there is no fault; else the first fault is raised."""
        for fault in self.faults.values():
            raise fault
        return self.steps


def checked_steps(
    values: np.ndarray,
    times: np.ndarray | None = None,
    *,
    expert: str,
    video_id: str,
    place: Path,
    width: int | None,
) -> ExpertSteps | None:
    """The steps of an expert, of the width that it should have; None if it has none.

    Args:
        values: `[steps, D]`, or `[D]` for a single step, of any kind of numbers. No steps, or NaN throughout, stand for
            an expert that has nothing.
        times: `[steps, 2]`, or more rows, which are cut.
        expert: its name, for errors.
        video_id: the clip, for errors.
        place: the file, for errors.
        width: D; None: any.

    Raises:
        ExpertError: the message names the expert, the clip, the file, and what was expected.
    """
    of = f"{place}: {expert} of {video_id}"
    steps = values[None] if values.ndim == 1 else values
    if steps.ndim != 2:
        raise ShapeFault(f"{of} has the shape {list(values.shape)}, expected [steps, width] or [width]")
    if not steps.size:
        return None

    steps = np.asarray(steps, dtype=np.float32)
    finite = np.isfinite(steps)
    if not finite.all():
        if np.isnan(steps).all():
            return None
        step = int(np.argmin(finite.all(1)))
        raise ValueFault(
            f"{of} has {int((~finite).sum())} values of {steps.size} that are NaN or infinite, the first in step "
            f"{step}; an expert that has nothing on a clip is NaN throughout, or absent. Extract it again, or take the "
            f"clip's {expert} out"
        )
    if width is not None and steps.shape[1] != width:
        raise WidthError(
            f"{of} is {steps.shape[1]} wide, expected {width}; take the features that the model was made for, or train "
            f"one with sizes of its own"
        )
    return ExpertSteps(steps, None if times is None else _checked_times(times, len(steps), of))


def _checked_times(times: np.ndarray, steps: int, of: str) -> np.ndarray:
    if times.ndim != 2 or times.shape[1] != 2 or len(times) < steps:
        raise ShapeFault(f"{of} has {steps} steps and times of shape {list(times.shape)}, expected [{steps}, 2]")
    cut = np.asarray(times[:steps], dtype=np.float32)
    if not np.isfinite(cut).all():
        raise ValueFault(f"{of} has times that are NaN or infinite; extract it again")
    return cut


def most_common_width(found: Iterable[int]) -> int | None:
    """The width that most have; of several, the one that came first. None if there are none."""
    counted: dict[int, int] = {}
    for width in found:
        counted[width] = counted.get(width, 0) + 1
    return max(counted, key=lambda width: counted[width]) if counted else None


def no_features(video_id: str, place: Path) -> UserError:
    """The error on a clip of which there is nothing."""
    return UserError(
        f"{place} has no features of {video_id}; copy the archive again, or take the clip off the list that names it"
    )
