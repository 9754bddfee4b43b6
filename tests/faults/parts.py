"""What a part of the fault tests is, and how it says what it found.

A module `*_parts.py` of this folder has a tuple `PARTS`; run.py finds it by its name.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent
BUILD = ROOT / "build" / "faults"
"""Built libraries, logs, and whatever else is made on the way; git does not see it."""
CORPUS = Path(__file__).resolve().parent / "corpus"
"""What once failed, one small file each."""


@dataclass(frozen=True)
class Size:
    """How much is tried.

    Args:
        short: a few minutes, as continuous integration has them; or the whole.
        seed: of everything that is drawn; the same seed draws the same.
        jobs: processes at a time.
    """

    short: bool
    seed: int
    jobs: int


@dataclass
class Tried:
    """One line of the table at the end.

    Args:
        count: how many were tried.
        what: what they were, as it follows the number: "random calls under the address sanitizer".
        failures: what did not hold, one text each; its first line says what and with which seed.
    """

    count: int
    what: str
    failures: list[str] = field(default_factory=list)


class CannotRun(Exception):
    """Why a part cannot run on this machine, and the way out. It counts as a failure: nothing is left out silently."""


@dataclass(frozen=True)
class Part:
    """A kind of fault.

    Args:
        name: as it is called on the command line.
        about: one line for --list.
        run: tries it, and yields a line of the table as soon as it is known.
    """

    name: str
    about: str
    run: Callable[[Size], Iterator[Tried]]
