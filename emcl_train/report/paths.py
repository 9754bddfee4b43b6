"""Absolute paths in the texts of a page: which ones it carries, and how they look where they are left out."""

import os
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

PATH = re.compile(r"(?<![\w.:</\\~-])(?:~|[A-Za-z]:)?[/\\][^\s\"'<>|;,()\[\]{}]+")
"""One inside a sentence, as far as it has no spaces: /data/videos, ~/runs, C:\\runs."""
SLASH = re.compile(r"[/\\]")
LEFT_OUT = "…"


class Paths:
    """The absolute paths in texts, which are found on the way, and left out if so asked."""

    def __init__(self, *sources: Any, leave_out: bool) -> None:
        """Know the paths that are whole values, spaces and all.

        Args:
            *sources: values as JSON and dataclasses have them.
            leave_out: whether `shown` gives a path's last part alone.
        """
        # The longest first: one may be the beginning of another.
        self._known = sorted({path for source in sources for path in _whole(source)}, key=len, reverse=True)
        self._leave_out = leave_out
        self.found: dict[str, None] = {}
        """In the order in which they were met."""

    def shown(self, text: str) -> str:
        """A text as it is, or without what leads to the last part of each path."""
        for path in self._known:
            if path in text:
                self.found[path] = None
                text = text.replace(path, self._without_folders(path))
        return PATH.sub(self._met, text)

    def _met(self, match: re.Match[str]) -> str:
        path = match[0].rstrip(".:")
        if not any(path in known for known in self.found):
            self.found[path] = None
        return self._without_folders(path) + match[0][len(path) :]

    def _without_folders(self, path: str) -> str:
        if not self._leave_out:
            return path
        # Not behind a slash: the rest would be found as a path once more.
        last = SLASH.split(path.rstrip("/\\"))[-1]
        return f"{LEFT_OUT}{last}"


def _whole(value: Any) -> Iterator[str]:
    """Every value inside a value that is an absolute path."""
    if isinstance(value, Mapping):
        for one in value.values():
            yield from _whole(one)
    elif isinstance(value, (list, tuple)):
        for one in value:
            yield from _whole(one)
    elif isinstance(value, (str, Path)):
        text = str(value)
        if "\n" not in text and len(text) > 1 and os.path.isabs(os.path.expanduser(text)):
            yield text
