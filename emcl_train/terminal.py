"""Where commands print: a log that cannot show a letter, is full or has gone away costs no run.

Progress bars are for terminals. A log file gets lines that say something, and no others.
"""

import io
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn

Step = TypeVar("Step")

PLAIN = {
    "→": "->", "←": "<-", "±": "+-", "×": "x", "·": ".", "…": "...", "–": "-", "—": "-", "−": "-",
    "‘": "'", "’": "'", "“": '"', "”": '"', "≤": "<=", "≥": ">=", "µ": "u",
}  # fmt: skip
"""What stands for a letter where an output's encoding does not have it; "?" for all others."""


class Output(io.TextIOBase):
    """A stream that failing to write to ends nothing: what it cannot show is written plainly, or lost.

    With `compact`, a log file gets no empty lines, such as tables have above and below.
    """

    def __init__(self, stream: Any = None, *, stderr: bool = False, compact: bool = False) -> None:
        self._stream = stream
        self._name = "stderr" if stderr else "stdout"
        self._compact = compact
        self._line_begins = True
        self.lost: OSError | None = None
        """Why something could not be written."""

    @property
    def stream(self) -> Any:
        """The stream behind it; None if the program was started without one."""
        stream = self._stream if self._stream is not None else getattr(sys, self._name)
        return None if stream is self else stream

    @property
    def encoding(self) -> str:  # type: ignore[override]
        return getattr(self.stream, "encoding", None) or "utf-8"

    def isatty(self) -> bool:
        try:
            return self.stream is not None and self.stream.isatty()
        except ValueError:  # it is closed
            return False

    def fileno(self) -> int:
        if self.stream is None:
            raise io.UnsupportedOperation("fileno")
        return self.stream.fileno()

    def writable(self) -> bool:
        return True

    def write(self, text: str) -> int:
        stream = self.stream
        if stream is not None:
            shown = self._without_empty_lines(text) if self._compact and not self.isatty() else text
            with self._losing():
                try:
                    stream.write(shown)
                except UnicodeEncodeError:
                    stream.write(plainly(shown, self.encoding))
        return len(text)

    def _without_empty_lines(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        kept = [line for n, line in enumerate(lines) if line.strip() or (n == 0 and not self._line_begins)]
        self._line_begins = text.endswith("\n") if text else self._line_begins
        return "".join(kept)

    def flush(self) -> None:
        if self.stream is not None:
            with self._losing():
                self.stream.flush()

    @contextmanager
    def _losing(self) -> Iterator[None]:
        """Take a full disk, a pipe that nobody reads and a closed file for an output that shows nothing any more."""
        try:
            yield
        except OSError as error:
            self.lost = error
            # What is left in its buffer would fail once more when the program ends.
            if self.stream in (sys.__stdout__, sys.__stderr__):
                with open(os.devnull, "wb") as nothing:
                    os.dup2(nothing.fileno(), self.fileno())
        except ValueError as error:
            if "closed file" not in str(error):
                raise

    def __getattr__(self, name: str) -> Any:
        """All else that the stream has."""
        if self.stream is None:
            raise AttributeError(name)
        return getattr(self.stream, name)


def plainly(text: str, encoding: str) -> str:
    """A text in letters that an encoding has."""

    def shown(letter: str) -> str:
        try:
            letter.encode(encoding)
        except UnicodeEncodeError:
            return PLAIN.get(letter, "?").encode(encoding, "replace").decode(encoding)
        return letter

    return "".join(map(shown, text))


def console_of(console: Console | None = None, *, stderr: bool = False) -> Console:
    """A console that printing to ends nothing.

    Args:
        console: one that is there already, which then prints in this way; None: one for the terminal.
        stderr: whether a new one is for stderr.
    """
    if console is None:
        return Console(file=Output(stderr=stderr, compact=True))  # type: ignore[arg-type]
    if not isinstance(console.file, Output):
        console.file = Output(console.file, compact=True)  # type: ignore[assignment]
    return console


def say(text: str) -> None:
    """A line on stderr, in rich's markup."""
    console_of(stderr=True).print(text, soft_wrap=True)


def is_watched(console: Console) -> bool:
    """Whether somebody sees a bar move: a terminal that can move its cursor, and no log file of whatever settings."""
    return console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


def progress_bar(*columns: ProgressColumn, console: Console | None = None, disable: bool = False) -> Progress:
    """A bar that is gone when it is done, on a terminal, and nothing elsewhere."""
    console = console or console_of(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=disable or not is_watched(console))


def with_progress(steps: Iterable[Step], description: str) -> Iterator[Step]:
    """The same steps, with a bar on stderr while they are taken; if they have a length, it says how many are left."""
    columns = TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with progress_bar(*columns) as progress:
        task = progress.add_task(description, total=length_hint(steps) or None)
        for step in steps:
            yield step
            progress.advance(task)


@contextmanager
def tolerant_output() -> Iterator[Output]:
    """Let whatever prints, the help of commands too, go through `Output`. Gives that of stdout."""
    stdout, stderr = sys.stdout, sys.stderr
    output = Output(stdout)
    sys.stdout = output  # type: ignore[assignment]
    sys.stderr = Output(stderr)  # type: ignore[assignment]
    try:
        yield output
        output.flush()
    finally:
        sys.stdout, sys.stderr = stdout, stderr
