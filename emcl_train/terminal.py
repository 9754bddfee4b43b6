"""Where commands print: a log that cannot show a letter, is full or has gone away costs no run.

All that is printed passes here. Control characters and marks of direction, which captions, file names and other
people's JSON may have, are written as escapes: they can neither move the cursor nor turn a line around.

Progress bars are for terminals. A log file gets lines that say something, and no others.
"""

import errno
import io
import os
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from operator import length_hint
from typing import Any, TypeVar

from rich.console import Console, ConsoleOptions, ConsoleRenderable, RenderHook
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, ProgressColumn, TextColumn, TimeRemainingColumn
from rich.segment import Segment

Step = TypeVar("Step")

PLAIN = {
    "→": "->", "←": "<-", "±": "+-", "×": "x", "·": ".", "…": "...", "–": "-", "—": "-", "−": "-",
    "‘": "'", "’": "'", "“": '"', "”": '"', "≤": "<=", "≥": ">=", "µ": "u",
}  # fmt: skip
"""What stands for a letter where an output's encoding does not have it; "?" for all others."""

_quiet = False
"""Whether the command at hand is to be quiet."""
_shown = True
"""Whether this process says anything but what is wrong: of several, the first one does."""

HIDDEN = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
"""Control characters but tab and line feed, other ends of lines, and marks that turn the direction of writing."""
OF_LIBRARIES = re.compile(r"(\x1b\[(?:[0-9;]*m|[AK])|\r)")
"""Colours, and how bars of other libraries go back to the beginning of their line, or to the one above."""


def visible(text: str) -> str:
    r"""A text with escapes such as `\x1b` and `\\u202e` in place of control characters and marks of direction."""
    return HIDDEN.sub(lambda found: found[0].encode("unicode_escape").decode(), text)


def in_a_line(text: object) -> str:
    """The same for a text that is to stay in its line: a name, or an error."""
    return visible(str(text)).replace("\n", "\\n").replace("\t", "\\t")


def escaped(text: object) -> str:
    """A name or a sentence from a file or a data set, for rich's markup."""
    return escape(in_a_line(text))


class Output(io.TextIOBase):
    """A stream that failing to write to ends nothing: what it cannot show is written plainly, or lost."""

    def __init__(self, stream: Any = None, *, stderr: bool = False) -> None:
        self._stream = stream
        self._name = "stderr" if stderr else "stdout"
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
        if not (self.isatty() or os.environ.get("FORCE_COLOR")):
            self.pass_on(visible(text))
        else:
            # Every other part is what a library does to its own line or colours.
            parts = OF_LIBRARIES.split(text)
            self.pass_on("".join(part if n % 2 else visible(part) for n, part in enumerate(parts)))
        return len(text)

    def pass_on(self, text: str) -> None:
        """Write a text as it is."""
        stream = self.stream
        if stream is None:
            self.lost = self.lost or OSError(errno.EBADF, "it is closed")
            return
        with self._losing():
            try:
                stream.write(text)
            except UnicodeEncodeError:
                stream.write(plainly(text, self.encoding))

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


class Quiet(Output):
    """The same of a command that is to be quiet: of its lines, those that name a file or folder that is there."""

    def __init__(self, stream: Any = None) -> None:
        super().__init__(stream)
        self._rest = ""

    def pass_on(self, text: str) -> None:
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            if names_a_place(line):
                super().pass_on(f"{line}\n")

    def whole(self, text: str) -> None:
        """Write a text that was asked for."""
        super().pass_on(text)


def names_a_place(line: str) -> bool:
    """Whether a line begins with the name of a file or folder that is there, or has one behind its first word."""
    label, colon, rest = line.partition(": ")
    if not colon:
        return False
    names = [label, rest, rest.rpartition(", ")[0]]
    return any(name.strip(".") and os.path.lexists(name) for name in names)


class Rendered(Output):
    """The same behind a console of rich, which has made what it was given visible, and adds colours of its own.

    A log file gets no empty lines, such as tables have above and below.
    """

    def __init__(self, stream: Any = None, *, stderr: bool = False) -> None:
        super().__init__(stream, stderr=stderr)
        self._line_begins = True

    def write(self, text: str) -> int:
        shown = text if self.isatty() else self._without_empty_lines(text)
        if isinstance(self.stream, Output):
            self.stream.pass_on(shown)
        else:
            self.pass_on(shown)
        return len(text)

    def _without_empty_lines(self, text: str) -> str:
        lines = text.splitlines(keepends=True)
        kept = [line for n, line in enumerate(lines) if line.strip() or (n == 0 and not self._line_begins)]
        self._line_begins = text.endswith("\n") if text else self._line_begins
        return "".join(kept)


class _Visible:
    """What a console was given to print, with control characters and marks of direction as escapes."""

    def __init__(self, renderable: ConsoleRenderable) -> None:
        self._renderable = renderable

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> Iterator[Segment]:
        for segment in console.render(self._renderable, options):
            yield segment if segment.control else Segment(visible(segment.text), segment.style)


class _MakeVisible(RenderHook):
    def process_renderables(self, renderables: list[ConsoleRenderable]) -> list[ConsoleRenderable]:
        return [_Visible(renderable) for renderable in renderables]


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
        console = Console(file=Rendered(stderr=stderr), quiet=not _shown)  # type: ignore[arg-type]
    elif isinstance(console.file, Rendered):
        return console  # as this function made it
    else:
        console.file = Rendered(console.file)  # type: ignore[assignment]
    console.push_render_hook(_MakeVisible())
    return console


def warn(text: str, console: Console) -> None:
    """A line, in rich's markup, that a quiet command has too: on stderr, since its stdout has only places."""
    where = console_of(stderr=True) if _quiet else console
    where.print(text, soft_wrap=True, highlight=False)


def quiet_stderr() -> Any:
    """Where a command says what is for people while its stdout has a result for programs."""
    return Quiet(sys.stderr) if _quiet else sys.stderr


def say(text: str) -> None:
    """A line on stderr, in rich's markup."""
    console_of(stderr=True).print(text, soft_wrap=True)


def tell(text: str) -> None:
    """A line on stderr, as it stands."""
    print(in_a_line(text), file=sys.stderr)


def is_watched(console: Console) -> bool:
    """Whether somebody sees a bar move: a terminal that can move its cursor, and no log file of whatever settings."""
    return not _quiet and _shown and console.is_terminal and console.file.isatty() and not console.is_dumb_terminal


def progress_bar(*columns: ProgressColumn, console: Console | None = None, disable: bool = False) -> Progress:
    """A bar that is gone when it is done, on a terminal, and nothing elsewhere."""
    console = console or console_of(stderr=True)
    return Progress(*columns, console=console, transient=True, disable=disable or not is_watched(console))


def with_progress(steps: Iterable[Step], description: str) -> Iterator[Step]:
    """The same steps, with a bar on stderr while they are taken; if they have a length, it says how many are left."""
    description = escaped(description)
    columns = TextColumn(description), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn()
    with progress_bar(*columns) as progress:
        task = progress.add_task(description, total=length_hint(steps) or None)
        for step in steps:
            yield step
            progress.advance(task)


@contextmanager
def tolerant_output(*, quiet: bool = False, shown: bool = True) -> Iterator[Output]:
    """Let whatever prints, the help of commands too, go through `Output`. Gives that of stdout.

    Args:
        quiet: on stdout, only what names a file or folder that is there; no bars anywhere.
        shown: else consoles print nothing; errors are said all the same. Of several processes the first one is shown.
    """
    global _quiet, _shown
    stdout, stderr = sys.stdout, sys.stderr
    output = Quiet(stdout) if quiet else Output(stdout)
    sys.stdout = output  # type: ignore[assignment]
    sys.stderr = Output(stderr)  # type: ignore[assignment]
    before, was_shown = _quiet, _shown
    _quiet = quiet
    _shown = shown
    try:
        yield output
        output.flush()
    finally:
        sys.stdout, sys.stderr = stdout, stderr
        _quiet = before
        _shown = was_shown


def print_whole(text: str, stream: Any) -> None:
    """Print what a command was asked for to a stream, which may be of a quiet one."""
    if isinstance(stream, Quiet):
        stream.whole(text)
    else:
        print(text, end="", file=stream)
