"""Trouble that passes: it is the machine's or the disk's, and says nothing of the file that was to be read."""

import errno
import mmap
import os
import re
from collections.abc import Mapping
from pathlib import Path

import av

from emcl_train.errors import UserError
from emcl_train.flags import again, flag

OF_FFMPEG = frozenset({errno.EINVAL, errno.ENOSYS, errno.ERANGE, errno.EDOM, errno.EILSEQ, errno.EOVERFLOW})
"""Numbers of the system's that FFmpeg takes for what is wrong with a file; beside them it has numbers of its own."""
OWN_NUMBERS = 1 << 16
"""FFmpeg's own numbers are made of four letters, and all of them are larger."""

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
"""Numbers that mean that there is no such file."""

EVERYWHERE = (errno.ENOMEM, errno.EMFILE, errno.ENFILE)
"""What the next file will meet as well."""

NO_MEMORY = re.compile(r"can't allocate memory|not enough memory|out of memory|unable to allocate", re.IGNORECASE)
"""In the words of torch and of numpy, which say it by errors of other kinds."""
LEAST_MEMORY = 256 << 20
"""Bytes that have to be free for a file's verdict to be one: FFmpeg calls data invalid if it could not unpack it."""
MUCH_MEMORY = 1 << 30
"""Bytes that are enough for any film within the limits: FFmpeg that has no memory beside them asks for more."""

OF_BOTH = (errno.EIO, errno.ENOMEM, errno.EAGAIN, errno.EPERM)
"""Numbers of the system's that FFmpeg's readers give as well, for data that end too early or announce too much."""
PIECE = 1 << 22
"""Bytes of a file that are read at once."""

SHOWN = 10
"""Files that an error names."""


class PassingError(UserError):
    """A file could not be read now. Nothing may be concluded from it: the file is neither damaged nor whole."""

    def __init__(self, path: Path, reason: str, code: int | None = None) -> None:
        super().__init__(path, reason, code)  # all of them, so that it can be pickled on its way from a worker process
        self.path = path
        self.reason = reason
        self.code = code

    @property
    def everywhere(self) -> bool:
        """Whether other files would meet it too, so that there is no use in going on."""
        return self.code in EVERYWHERE

    def __str__(self) -> str:
        return f"{self.path} cannot be read now: {self.reason}; {OF_THE_MACHINE}. {self._way_out()}"

    def _way_out(self) -> str:
        if self.code == errno.ENOMEM:
            return f"Free memory, or lower {flag('data.workers')}, and {again()}"
        if self.code in (errno.EMFILE, errno.ENFILE):
            return f"Allow more open files (`ulimit -n`), or lower {flag('data.workers')}, and {again()}"
        if self.code in (errno.EACCES, errno.EPERM):
            return f"Give the current user access to it, and {again()}"
        return f"When that is over, {again()}"


OF_THE_MACHINE = (
    "that is trouble of this machine or its disk and says nothing of the file, which is not left out for it"
)


def passing(error: BaseException, path: Path) -> PassingError | None:
    """The passing trouble that an error stands for; None if it stands for something else.

    Args:
        error: of the system, of FFmpeg, of numpy or of torch.
        path: what was read, for which the system had a size before: it was there.
    """
    if isinstance(error, PassingError):
        return error

    if isinstance(error, MemoryError) or (isinstance(error, RuntimeError) and NO_MEMORY.search(str(error))):
        return PassingError(path, "there is no memory for it", errno.ENOMEM)

    if not isinstance(error, OSError | av.error.FFmpegError):
        return None
    code = error.errno
    if isinstance(error, av.error.FFmpegError) and (code is None or code >= OWN_NUMBERS or code in OF_FFMPEG):
        return None
    return PassingError(path, os.strerror(code) if code else str(error), code)


def trouble_with(error: OSError, path: Path) -> PassingError:
    """The passing trouble that an error of the system stands for."""
    return PassingError(path, os.strerror(error.errno) if error.errno else str(error), error.errno)


def require_readable(path: Path, code: int | None) -> None:
    """Ask the system itself whether it is in the way of a file, where a number may be FFmpeg's own.

    Args:
        path: the file.
        code: the number; one of `OF_BOTH`.

    Raises:
        PassingError: the file cannot be read to its end now, or there is little memory.
    """
    if code == errno.ENOMEM:
        require_memory(path, 0, least=MUCH_MEMORY)
    try:
        with path.open("rb", buffering=0) as file:
            while file.read(PIECE):
                pass
    except OSError as error:
        raise trouble_with(error, path) from error


def require_memory(path: Path, pixels: int, least: int = LEAST_MEMORY) -> None:
    """Ask whether a verdict on a file was reached with memory to unpack it.

    Args:
        path: the file.
        pixels: of one of its frames.
        least: bytes that have to be free whatever it has.

    Raises:
        PassingError: there is none.
    """
    needed = max(least, 16 * pixels)
    try:
        mmap.mmap(-1, needed).close()
    except (OSError, ValueError, OverflowError) as error:
        reason = f"there is no memory for it (the system gave no {needed >> 20} MiB)"
        raise PassingError(path, reason, errno.ENOMEM) from error


def raise_together(troubles: Mapping[str, PassingError], total: int) -> None:
    """Raise an error that names all files which could not be read; nothing if there is none.

    Args:
        troubles: by the names of the clips.
        total: how many clips there are.
    """
    if not troubles:
        return
    first, *others = troubles.values()
    if not others:
        raise first

    named = [f"{name} ({trouble.reason})" for name, trouble in list(troubles.items())[:SHOWN]]
    more = f"; and {len(troubles) - SHOWN} more" if len(troubles) > SHOWN else ""
    raise UserError(
        f"{len(troubles)} of {total} clips cannot be read now: {'; '.join(named)}{more}; {OF_THE_MACHINE}. "
        f"When that is over, {again()}"
    ) from first
