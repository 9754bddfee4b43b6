"""When the packets of a film are shown, and which of them a frame depends on."""

from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import NamedTuple


class VideoError(Exception):
    """A video file that cannot be decoded, and why. What is the machine's fault is a `PassingError`."""

    def __init__(self, path: Path, reason: str, *, pixels: int = 0) -> None:
        """A verdict on a file.

        Args:
            path: the file.
            reason: what is wrong with it.
            pixels: of one of its frames, as far as is known.
        """
        super().__init__(path, reason)  # both, so that it can be pickled on its way from a worker process
        self.path = path
        self.reason = reason
        self.pixels = pixels

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}"


class MissingFile(VideoError):
    """There is no file where annotations name one."""


class Place(NamedTuple):
    """One packet among those of its stream."""

    time: float
    """When it is shown, in seconds."""
    shown: bool
    """False where it is there for others to be decoded, since an edit list hides it."""
    key: bool
    """Decoding can begin with it."""


@dataclass(frozen=True)
class Timeline:
    """When the packets of a stream are shown, in seconds."""

    packets: list[Place]
    """In the order of decoding."""
    times: list[float]
    """Sorted presentation times of those that are shown."""
    end: float
    """When the last of them is over."""
    interval: float
    """Usual seconds from one frame to the next."""
    complete: bool
    """False where the file ends before its headers say."""
    torn: float | None
    """When the first packet is shown whose parts do not add up to it: it was overwritten. None: there is none."""
    parts: int = 1
    """How often its time stamps begin, each time anew: films that were joined."""
    alone: bool = False
    """Whether every packet that is shown has a time of presentation of its own, by which its frame is known."""

    @cached_property
    def keyframes(self) -> list[int]:
        """Numbers of the packets with which decoding can begin."""
        return [number for number, packet in enumerate(self.packets) if packet.key]

    @cached_property
    def _numbers(self) -> dict[float, int]:
        return {packet.time: number for number, packet in enumerate(self.packets) if packet.shown}

    def number_of(self, time: float) -> int:
        """The packet, by its number, that is shown from this one of `times` on."""
        return self._numbers[time]

    @property
    def seconds(self) -> float:
        """From the first frame to the end of the last."""
        return self.end - self.times[0]

    @property
    def longest_gap(self) -> tuple[float, float]:
        """For how many seconds one frame is shown at most, behind the second from which on it is."""
        seconds, begin = max((later - earlier, earlier) for earlier, later in pairwise([*self.times, self.end]))
        return begin - self.times[0], seconds

    def entry(self, time: float) -> int:
        """The packet, by its number, from which on packets have to be decoded for the frame that is shown at a time."""
        number = self.number_of(time)

        # A frame that is shown before the keyframe which it follows in the file depends on the group before that one.
        keys = self.keyframes
        before = bisect_right(keys, number)
        while before and not self.packets[keys[before - 1]].time <= time:
            before -= 1
        return keys[before - 1] if before else 0
