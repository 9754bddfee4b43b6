"""Readers against files of strangers: each in a process of its own, with little memory and time, and watched.

    held(kind, make, read) makes a file in an empty folder and reads it there.

What must come of it: the file is read, or one UserError in one line that names it. Never a traceback, an end of the
process, more memory or time than a file of its size needs, a file written, or code run.
"""

import json
import os
import resource
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

MEMORY = 3 << 29
"""Bytes that reading may take beside what the process has already."""
SECONDS = 20
"""Of processor time."""
WAITING = 120
"""Seconds of any kind, after which a child that waits is ended: by SIGALRM, which its parent names."""
MARK = "code-was-run"
"""The file that code in a hostile file writes into the folder."""

Make = Callable[[Path], Path]
Read = Callable[[Path], object]


def held(make: Make, read: Read, folder: Path | None = None, *, refused: bool | None = None) -> str:
    """What came of reading a file: "" if all is as it must be, else what was wrong.

    Args:
        make: writes the file into the folder that it is given, and returns what is to be read.
        read: reads it.
        folder: where; None: a temporary folder.
        refused: whether it must be refused (True) or read (False); None: either.
    """
    with tempfile.TemporaryDirectory(dir=folder) as place:
        path = make(Path(place))
        before = _listing(Path(place))
        wrong = _in_a_child(lambda: _read(read, path, refused))
        after = _listing(Path(place))
        if before != after and not wrong:
            wrong = f"it wrote {sorted(after.symmetric_difference(before))}"
        return wrong


def _read(read: Read, path: Path, refused: bool | None) -> str:
    from emcl_train.errors import UserError

    try:
        read(path)
    except UserError as error:
        text = str(error)
        if refused is False:
            return f"it was refused: {text[:500]}"
        if "\n" in text:
            return f"an error of several lines: {text[:500]!r}"
        if path.name not in text and path.parent.name not in text:
            return f"an error that names no file: {text[:500]}"
        if len(text) > 3000:
            return f"an error of {len(text)} letters: {text[:200]}"
        return ""
    except BaseException:
        return traceback.format_exc()[-1500:]
    return "it was read" if refused else ""


def _in_a_child(work: Callable[[], str]) -> str:
    """What a fork of this process returns, or how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            os.close(reading)
            _limit()
            os.write(writing, json.dumps(work()).encode()[:60000])
            code = 0
        finally:
            os._exit(code)

    os.close(writing)
    with os.fdopen(reading, "rb") as pipe:
        said = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return f"its process was ended by {signal.Signals(os.WTERMSIG(status)).name}"
    return json.loads(said) if said else f"its process ended with {os.WEXITSTATUS(status)}"


def _limit() -> None:
    size = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    spent = resource.getrusage(resource.RUSAGE_SELF)
    seconds = int(spent.ru_utime + spent.ru_stime) + SECONDS
    signal.alarm(WAITING)
    for kind, most in ((resource.RLIMIT_AS, size + MEMORY), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
        resource.setrlimit(kind, (most, most))


def _listing(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*")}


def report(results: dict[str, str]) -> None:
    """What a program that tried many files prints, for the tests that started it."""
    json.dump(results, sys.stdout)


def spoiled(data: bytes, random: Any) -> bytes:
    """A file with a few bytes changed, cut out, put in or repeated, by a `random.Random`."""
    found = bytearray(data)
    for _ in range(random.choice((1, 1, 2, 8))):
        at = random.randrange(len(found) + 1)
        how = random.randrange(5)
        if how == 0 and at < len(found):
            found[at] = random.randrange(256)
        elif how == 1:
            del found[at : at + random.choice((1, 4, 100))]
        elif how == 2:
            found[at:at] = bytes(random.randrange(256) for _ in range(random.choice((1, 4, 8))))
        elif how == 3:
            found[at:at] = found[at : at + 64]
        else:
            found[at : at + 8] = random.choice((b"\xff" * 8, b"\x00" * 8, b"\x7f" + b"\xff" * 7))
    return bytes(found)


HOSTILE_VALUES: tuple[Any, ...] = (
    None, True, -1, 0, 1e308, float("nan"), float("inf"), 10**12, 2**31, 10**400, "", "\0", "\x1b[31m\u202e",
    "x" * 10**6, "1", [], {}, [[]] * 3, ["a", 1, None], {"a": {"b": []}}, "attacker/evil", "../../x", "/dev/stdin",
)  # fmt: skip
"""What stands in place of any value of a description."""


def places_in(value: Any, place: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """The way to each value in nested dicts and lists, itself first."""
    found = [place]
    if isinstance(value, dict):
        for name, one in value.items():
            found += places_in(one, (*place, name))
    elif isinstance(value, list):
        for number, one in enumerate(value[:3]):
            found += places_in(one, (*place, number))
    return found


def with_value(content: Any, place: tuple[Any, ...], value: Any) -> Any:
    """A copy of a content with another value in one place."""
    if not place:
        return value
    copied: Any = dict(content) if isinstance(content, dict) else list(content)
    copied[place[0]] = with_value(content[place[0]], place[1:], value)
    return copied
