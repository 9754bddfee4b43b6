"""Batches come from worker processes through shared memory, of which containers have little: said in one line."""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from emcl_train.errors import UserError
from emcl_train.flags import flag

SHARED_MEMORY = Path("/dev/shm")

# torch's words for it, of its own and of those that it passes on.
NO_ROOM = re.compile(r"shared memory|/torch_|bus error|no space left|too many open files|ancdata", re.IGNORECASE)
ENDED = re.compile(r"DataLoader worker \(pid[^)]*\) (.*?)(?:\. |\.?$)", re.MULTILINE)


def require_room(batch: int, clips: int) -> None:
    """Look before workers are started whether one batch fits at all.

    Args:
        batch: its size in bytes.
        clips: how many it has, for the error.

    Raises:
        UserError: it does not.
    """
    room = _room()
    if room is not None and room < batch:
        raise UserError(
            f"a batch of {clips} clips takes {batch / 1e6:.1f} MB, and {SHARED_MEMORY}, through which worker processes "
            f"hand it over, has {room / 1e6:.1f} MB; {_way_out()}"
        )


@contextmanager
def explained() -> Iterator[None]:
    """Say in one line what ended worker processes inside the block.

    Raises:
        UserError: they had no shared memory left, or the system ended them.
    """
    try:
        yield
    except (RuntimeError, OSError) as error:
        said = str(error)
        if isinstance(error, OSError) or NO_ROOM.search(said):
            room = _room()
            has = f"{SHARED_MEMORY} has {room / 1e6:.1f} MB" if room is not None else f"see {SHARED_MEMORY}"
            reason = said.strip().splitlines()[-1] if said.strip() else type(error).__name__
            raise UserError(
                f"worker processes have no shared memory to hand batches over in ({has}): {reason}; {_way_out()}"
            ) from error
        if (ended := ENDED.search(said)) is not None:
            raise UserError(
                f"a worker process that decodes clips {ended.group(1)}; if the system ended it for want of memory, "
                f"{_way_out()}"
            ) from error
        raise


def _room() -> int | None:
    try:
        return shutil.disk_usage(SHARED_MEMORY).total
    except OSError:  # there is none on this system
        return None


def _way_out() -> str:
    return f"pass {flag('data.workers')} 0, or give a container more, as in `docker run --shm-size 8g`"
