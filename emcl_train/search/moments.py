"""How a film is cut into moments, each of which is found by itself."""

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

from emcl_train.config import MAX_PIXELS
from emcl_train.data.video import Span
from emcl_train.errors import UserError
from emcl_train.search.ways import PIECE, Way

LONGEST = 12.0
"""Seconds of a moment at most: what is longer, as a take without a cut may be, is cut into equal parts."""
DETECTOR = "scenedetect"
PACKAGE = "scenedetect-headless"


@dataclass(frozen=True)
class Cutting:
    """How the films of a library are cut; all of them alike."""

    way: Literal["shots", "pieces"]
    """At the cuts that PySceneDetect finds, or every so many seconds."""
    seconds: float = PIECE
    """Of a piece."""
    longest: float = LONGEST
    """Seconds of a moment at most."""
    detector: str | None = None
    """What found the cuts."""

    def said(self) -> str:
        """For a reader."""
        if self.way == "pieces":
            return f"pieces of {self.seconds:g} s"
        return f"shots by {self.detector}, those over {self.longest:g} s in equal parts"

    def as_json(self) -> dict[str, Any]:
        return asdict(self)

    def spans(self, path: Path, max_pixels: int = MAX_PIXELS) -> Callable[[float], Sequence[Span]]:
        """What cuts one film: takes its seconds, and gives the moments in their order.

        Args:
            path: of the film, in which cuts are looked for when the seconds are known.
            max_pixels: of a frame.
        """
        if self.way == "pieces":
            return lambda seconds: pieces(seconds, self.seconds)

        from emcl_train.search.shots import cuts_of

        return lambda seconds: shots(cuts_of(path, max_pixels), seconds, self.longest)


def choose(way: Way, seconds: float | None = None) -> Cutting:
    """The cutting of a new library.

    Args:
        way: "auto" is shots where PySceneDetect is installed, else pieces.
        seconds: of a piece, with which "auto" is pieces. None: 4.

    Raises:
        UserError: shots were asked for, and PySceneDetect is not installed, or pieces have a length; or the seconds are
            none.
    """
    if seconds is not None and way == "shots":
        raise UserError("piece is the length of pieces, and shots have none; leave --piece out, or pass --cut pieces")
    way = "pieces" if seconds is not None else way
    seconds = PIECE if seconds is None else seconds
    if not (math.isfinite(seconds) and seconds >= 0.1):
        raise UserError(f"piece is {seconds:g} s, expected 0.1 s or more; pass --piece {PIECE:g}")
    there = find_spec(DETECTOR) is not None
    if way == "shots" and not there:
        raise UserError(
            f"{PACKAGE}, which finds shots, is not installed; install it with `pip install {PACKAGE}`, or pass --cut "
            f"pieces"
        )
    if way == "pieces" or not there:
        return Cutting("pieces", seconds)
    return Cutting("shots", seconds, detector=f"PySceneDetect {_version()} ContentDetector")


def pieces(seconds: float, length: float = PIECE) -> list[Span]:
    """A film in pieces of one length. A rest of less than half a piece belongs to the last one.

    Examples:
        >>> pieces(9.0, 4.0)
        [(0.0, 4.0), (4.0, 9.0)]
        >>> pieces(11.0, 4.0)
        [(0.0, 4.0), (4.0, 8.0), (8.0, 11.0)]
    """
    count = max(1, math.floor(seconds / length + 0.5))
    ends = [min(seconds, number * length) for number in range(1, count)]
    return _between([0.0, *ends, seconds])


def shots(cuts: Sequence[float], seconds: float, longest: float = LONGEST) -> list[Span]:
    """The parts between cuts, those that are longer than a moment may be in equal parts.

    Args:
        cuts: seconds at which a new shot begins.
        seconds: of the film.
        longest: of a moment.

    Examples:
        >>> shots([5.0], 8.0)
        [(0.0, 5.0), (5.0, 8.0)]
        >>> shots([], 30.0, longest=12.0)
        [(0.0, 10.0), (10.0, 20.0), (20.0, 30.0)]
    """
    inner = sorted({cut for cut in cuts if 0.0 < cut < seconds})
    found: list[Span] = []
    for start, end in _between([0.0, *inner, seconds]):
        parts = max(1, math.ceil((end - start) / longest - 1e-9))
        edges = [start + (end - start) * number / parts for number in range(parts)]
        found.extend(_between([*edges, end]))
    return found


def _between(edges: Sequence[float]) -> list[Span]:
    return list(itertools.pairwise(edges))


def _version() -> str:
    for name in (PACKAGE, "scenedetect"):
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return "of unknown version"
