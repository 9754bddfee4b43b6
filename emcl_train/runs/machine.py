"""Which machine this is, and whether one of its processes still runs. Nothing here needs torch."""

import functools
import hashlib
import os
import socket
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")
ENDED = ("Z", "X")
"""States of a process that has ended, and whose parent has not asked for its exit code yet."""
RANKS = ("RANK", "PMI_RANK", "OMPI_COMM_WORLD_RANK", "MV2_COMM_WORLD_RANK")
"""Variables in which torchrun and the kinds of mpirun tell a process its number, in accelerate's order."""
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")
"""Variables in which they tell it how many there are."""


@dataclass(frozen=True)
class Machine:
    """What tells one machine from another, as far as the system says it; "" for what it does not say."""

    name: str
    """As the network has it. Containers and clones may share it."""
    identity: str
    """Of the installed system, as a fingerprint."""
    boot: str
    """Changes each time that it is started; containers on one machine share it."""
    space: str
    """Of process numbers: processes with another one, as in another container, cannot be seen from here."""

    @property
    def tag(self) -> str:
        """Eight letters that stand for all four."""
        text = "\n".join((self.name, self.identity, self.boot, self.space))
        return hashlib.sha256(text.encode()).hexdigest()[:8]


@functools.cache
def this_machine() -> Machine:
    """The one that this process runs on."""
    identity = _text(Path("/etc/machine-id"))
    try:
        space = os.readlink(PROC / "self/ns/pid")
    except OSError:
        space = ""
    return Machine(
        name=socket.gethostname(),
        identity=hashlib.sha256(identity.encode()).hexdigest()[:16] if identity else "",
        boot=_text(PROC / "sys/kernel/random/boot_id"),
        space=space,
    )


def is_first_process() -> bool:
    """Whether this is the first of the processes that a launcher has started, or the only one."""
    numbers = (os.environ[name] for name in RANKS if os.environ.get(name, "").isdecimal())
    return int(next(numbers, "0")) == 0


def process_count() -> int:
    """How many processes a launcher has started, this one being one of them; 1 without a launcher."""
    counts = (os.environ.get(count, "") for rank, count in zip(RANKS, COUNTS, strict=True) if rank in os.environ)
    return int(next((count for count in counts if count.isdecimal()), "1"))


def cores_of_each_process() -> int:
    """How many cores this process may keep busy: of several that torchrun started on a machine, each has a share."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    here = os.environ.get("LOCAL_WORLD_SIZE", "")
    return max(1, cores // (int(here) if here.isdecimal() and int(here) else 1))


def started(process: int) -> str:
    """When a process of this machine was started, by the kernel's clock; "" where that cannot be seen."""
    return _status(process)[1]


def runs(process: int, since: str = "") -> bool:
    """Whether a process of this machine runs.

    Args:
        process: its number, which another process gets later.
        since: `started` of the one that is meant; "" if that is not known.
    """
    if process <= 0:
        return False
    try:
        os.kill(process, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # it belongs to somebody else
        pass

    state, begun = _status(process)
    return state not in ENDED and (not since or not begun or since == begun)


def _status(process: int) -> tuple[str, str]:
    """State and start of a process, both "" where they cannot be seen."""
    # The name, in parentheses, may hold anything.
    fields = _text(PROC / str(process) / "stat").rpartition(")")[2].split()
    return (fields[0], fields[19]) if len(fields) > 19 else ("", "")


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8", errors="replace").strip()
    except OSError:
        return ""
