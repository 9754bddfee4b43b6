"""How far indexing has come: a bar on a terminal, and a line every so often in a log."""

import time
from types import TracebackType

from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn

from emcl_train.terminal import console_of, is_watched, progress_bar

EVERY = 30.0
"""Seconds from one line of a log to the next."""


class Progress:
    """Counts files and moments; time left goes by the bytes of the files."""

    def __init__(self, files: int, size: int, *, quiet: bool = False, title: str = "Index") -> None:
        self._files = files
        self._size = max(1, size)
        self._quiet = quiet or not files
        self._done_files = 0
        self._done_size = 0
        self._moments = 0
        self._began = time.monotonic()
        self._said = self._began
        self._console = console_of(stderr=True)
        columns = (
            TextColumn(title),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.description}"),
            TimeRemainingColumn(),
        )
        self._bar = progress_bar(*columns, console=self._console, disable=self._quiet)

    def __enter__(self) -> "Progress":
        self._bar.__enter__()
        self._task = self._bar.add_task("", total=self._files)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.__exit__(kind, error, trace)

    def moments(self, number: int) -> None:
        """So many are embedded."""
        self._moments += number
        self._bar.update(self._task, description=self._rate())
        self._say()

    def file(self, size: int) -> None:
        """A file has come to its end."""
        self._done_files += 1
        self._done_size += size
        self._bar.advance(self._task)

    def _rate(self) -> str:
        elapsed = max(1e-3, time.monotonic() - self._began)
        return f"{self._moments} moments, {self._moments / elapsed:.1f} a second"

    def _say(self) -> None:
        """A line, where there is no terminal to draw a bar on."""
        now = time.monotonic()
        if self._quiet or is_watched(self._console) or now - self._said < EVERY:
            return
        self._said = now
        share = self._done_size / self._size
        left = "" if share <= 0 else f", {_minutes((now - self._began) * (1 - share) / share)} left"
        self._console.print(
            f"{self._done_files} of {self._files} files, {self._rate()}{left}", soft_wrap=True, highlight=False
        )


def _minutes(seconds: float) -> str:
    return (
        f"{seconds:.0f} s"
        if seconds < 90
        else f"{seconds / 60:.0f} min"
        if seconds < 5400
        else f"{seconds / 3600:.1f} h"
    )
