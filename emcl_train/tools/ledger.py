"""Which copy was made of what: written before the copy appears, and believed only beside the copy that it speaks of."""

import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from emcl_train.data.provenance import COMPRESSED
from emcl_train.errors import UserError
from emcl_train.flags import again
from emcl_train.reading.plain_files import read_regular
from emcl_train.runs.files import append_line, json_if_whole

COPIES = "copies"
"""The entry of compressed.json with what copies were made of."""
JOURNAL = ".compressed.jsonl"
"""What was made since compressed.json was written; a killed run leaves it. Each other process has one of its own."""


class Ledger:
    """The sizes of copies and of their videos, in bytes.

    An entry is written before its copy takes the place of an older one. Killed between the two, the older copy still
    has its own entry, since a copy is known by its size: an entry of another size does not speak of it.
    """

    def __init__(self, out: Path, entries: dict[str, set[tuple[int, int]]], process: int = 0) -> None:
        self._out = out
        self._entries = entries
        # Not every disk that several machines have lets them add lines to one file.
        self._journal = JOURNAL if process == 0 else JOURNAL.replace(".jsonl", f"-{process}.jsonl")

    @classmethod
    def open(cls, out: Path) -> "Ledger":
        """What is written in a folder of copies; an entry that is not as we write it is as if absent.

        Raises:
            UserError: what a killed run wrote last cannot be read.
        """
        ledger = cls(out, {})
        manifest = json_if_whole(out / COMPRESSED)
        copies = manifest.get(COPIES) if isinstance(manifest, dict) else None
        ledger.take_up(copies if isinstance(copies, dict) else {})

        for journal in ledger._journals():
            for line in _lines_of(journal):
                try:
                    name, pair = json.loads(line)
                except (ValueError, TypeError, RecursionError):  # the last line of a killed run
                    continue
                ledger._take_up(name, pair)
        return ledger

    def take_up(self, entries: dict[str, Any]) -> None:
        """Add what another process has written down, or compressed.json."""
        for name, pairs in entries.items():
            for pair in pairs if isinstance(pairs, list) else ():
                self._take_up(name, pair)

    def _take_up(self, name: Any, pair: Any) -> None:
        if isinstance(name, str) and isinstance(pair, list) and [type(size) for size in pair] == [int, int]:
            self._entries.setdefault(name, set()).add((pair[0], pair[1]))

    def name_of(self, target: Path) -> str:
        return target.relative_to(self._out).as_posix()

    def add(self, target: Path, copy: Path, video: list[int]) -> None:
        """Write down what a copy is made of.

        Args:
            target: the name that it is about to have.
            copy: the copy, whole, under another name.
            video: the fingerprint of its video.
        """
        name = self.name_of(target)
        pair = (os.stat(copy).st_size, video[0])
        append_line(self._out / self._journal, [name, pair])
        self._entries.setdefault(name, set()).add(pair)

    def agrees(self, target: Path, copy_size: int, video_size: int) -> bool:
        """Whether a copy is of a video of this size, as far as anything is written down of it."""
        videos = {video for copy, video in self._entries.get(self.name_of(target), ()) if copy == copy_size}
        return not videos or video_size in videos

    def entries(self, names: Iterable[str] | None = None) -> dict[str, list[list[int]]]:
        """All that is known, for compressed.json; with names, of these alone and of the copies that are there."""
        if names is None:
            return {name: sorted(map(list, pairs)) for name, pairs in sorted(self._entries.items())}
        found = {}
        for name in sorted(names):
            path = self._out / name
            size = path.stat().st_size if path.is_file() else None
            pairs = sorted([copy, video] for copy, video in self._entries.get(name, ()) if copy == size)
            if pairs:
                found[name] = pairs
        return found

    def close(self) -> None:
        """Remove the journals, all of which stands in compressed.json by now."""
        for journal in self._journals():
            journal.unlink(missing_ok=True)

    def _journals(self) -> list[Path]:
        """Those that are there, of this run or of a killed one."""
        stem = JOURNAL.removesuffix(".jsonl")
        others = self._out.glob(f"{stem}-*.jsonl") if self._out.is_dir() else ()
        first = self._out / JOURNAL
        return [*([first] if os.path.lexists(first) else []), *sorted(others)]


def _lines_of(journal: Path) -> list[str]:
    try:
        return read_regular(journal).decode("utf-8", "replace").splitlines()
    except FileNotFoundError:
        return []
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(
            f"{journal}, the list of copies that a killed run left, cannot be read: {reason}; remove it, and {again()}"
        ) from error
