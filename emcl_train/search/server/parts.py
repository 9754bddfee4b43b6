"""The cache of parts that were made for a browser: bounded, each made once, and whole or not there.

A folder with one file a part, whose name says all that is known of it. A part is written under a name that says that
it is partial, and renamed when it is whole; what a killed server left goes with the next one. Several servers may share
the folder: the files in it are the truth, and nothing is remembered beside them.
"""

import asyncio
import hashlib
import os
import re
import stat
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import anyio.to_thread
from anyio import CapacityLimiter

from emcl_train.data.cache_use import PART
from emcl_train.errors import UserError
from emcl_train.runs.files import PARTIAL, clear_partial, discard, new_partial
from emcl_train.search.server.converting import Written
from emcl_train.search.server.lines import BUSY, Asker, gone
from emcl_train.search.server.playing import Kind, Way
from emcl_train.search.server.refusing import Refused
from emcl_train.search.server.tracks import Limits

VERSION = 2
"""Goes up when parts are made in another way, so that earlier ones are not taken."""
LEAST = 64_000_000
"""Bytes of a cache at least: there must be room for the parts that are being made."""
SHARE = 4
"""A part takes at most the cache's size over this."""
AT_ONCE = 2
"""Parts that are made at once. Each takes a decoder and an encoder, which fill a few cores."""
WAITING = 16
"""Parts that are made or wait for it, at most."""
LOOK = 0.5
"""Seconds after which it is looked again whether somebody still waits."""


@dataclass(frozen=True)
class Part:
    """A part that is there."""

    path: Path
    key: str
    begin: float
    """Which second of the film, from its first frame, is second 0 of the part."""
    end: float
    more: bool
    """Whether the film goes on behind it."""
    muted: bool
    """Whether there is sound in the film that cannot be decoded here."""
    kind: Kind
    way: Way
    """How it was made: what was to be copied may have been encoded."""


def key_of(*what: object) -> str:
    """The key of a part that depends on these things."""
    return hashlib.sha256(repr((VERSION, *what)).encode("utf-8", "surrogateescape")).hexdigest()[:32]


@dataclass
class _Making:
    """A part that is being made, and for how many."""

    task: "asyncio.Task[Part]" = field(init=False)
    waiting: int = 0
    begun: bool = False
    given_up: threading.Event = field(default_factory=threading.Event)
    """Set when it has begun, and nobody waits for it any more."""


class Parts:
    """The cache."""

    def __init__(self, folder: Path, most: int, at_once: int = AT_ONCE) -> None:
        """Open the cache, and clear away what a killed server left in it.

        Args:
            folder: of the cache, which is created.
            most: bytes that the files in it take.
            at_once: parts that are made at once.

        Raises:
            UserError: the folder cannot be used, or it may hold too little.
        """
        if most < LEAST:
            raise UserError(
                f"the cache may hold {most / 1e6:.0f} MB, expected at least {LEAST / 1e6:.0f}; give it more room"
            )
        try:
            folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError as error:
            raise UserError(
                f"{folder} cannot hold the parts of films that are converted: {error.strerror}; choose another folder "
                "with --cache"
            ) from error
        clear_partial(folder)
        self._folder = folder.resolve()
        self._most = most
        self._turn = asyncio.Semaphore(at_once)
        self._threads = CapacityLimiter(at_once)
        self._lookers = CapacityLimiter(AT_ONCE)
        self._making: dict[str, _Making] = {}
        self._stopped = threading.Event()
        self._clearing = threading.Lock()
        self._growing: set[str] = set()

    def find(self, key: str) -> Part | None:
        """A part that is there; it counts as used now."""
        for name in self._names():
            found = PART.fullmatch(name)
            if found is None or found["key"] != key:
                continue
            path = self._folder / name
            with suppress(OSError):
                # The time of its last use. That of its last change stays, since it is known by it.
                os.utime(path, ns=(time.time_ns(), path.stat().st_mtime_ns))
                return _part(path, found)
        return None

    async def get(self, request: Asker, key: str, make: Callable[[Path, Limits], Written]) -> Part:
        """A part, which is made if it is not there, once however many ask for it.

        Args:
            request: of whom it is for. Nothing is begun for those who have gone away.
            key: of the part.
            make: writes it, in a thread.

        Raises:
            Refused: too many are being made.
        """
        found = await anyio.to_thread.run_sync(self.find, key, limiter=self._lookers)
        if found is not None:
            return found

        making = self._making.get(key)
        if making is None or making.given_up.is_set():
            if making is None and len(self._making) >= WAITING:
                raise Refused(503, "too many films are being converted at the moment; ask again in a few seconds", BUSY)
            making = self._begin(key, make)
        making.waiting += 1
        try:
            while not making.task.done():
                await asyncio.wait({making.task}, timeout=LOOK)
                if not making.task.done() and await request.is_disconnected():
                    raise gone()
            return making.task.result()
        finally:
            making.waiting -= 1
            if making.begun and not making.waiting:
                making.given_up.set()

    def stop(self) -> None:
        """Let what is being made end soon, unfinished."""
        self._stopped.set()

    def _begin(self, key: str, make: Callable[[Path, Limits], Written]) -> _Making:
        making = self._making[key] = _Making()

        def done(task: "asyncio.Task[Part]") -> None:
            if self._making.get(key) is making:  # one that was given up may have a follower
                del self._making[key]
            if not task.cancelled():
                task.exception()  # those who wait have it; if nobody does, it is not to be told

        making.task = asyncio.create_task(self._made(key, making, make))
        making.task.add_done_callback(done)
        return making

    async def _made(self, key: str, making: _Making, make: Callable[[Path, Limits], Written]) -> Part:
        async with self._turn:
            if not making.waiting:
                raise gone()
            making.begun = True
            return await anyio.to_thread.run_sync(self._make, key, making.given_up, make, limiter=self._threads)

    def _make(self, key: str, given_up: threading.Event, make: Callable[[Path, Limits], Written]) -> Part:
        found = self.find(key)  # another server may have made it
        if found is not None:
            return found
        partial = new_partial(self._folder / key)
        try:
            with self._clearing:
                self._growing.add(partial.name)
                self._make_room()
            written = make(partial, Limits.from_now(self._most // SHARE, self._stopped, given_up))
            flags = f"{written.more:d}{written.muted:d}{written.way == 'transcoded':d}"
            begin, end = (max(0, round(second * 1e6)) for second in (written.begin, written.end))
            path = self._folder / f"{key}_{begin}_{end}_{flags}.{written.kind}"
            os.replace(partial, path)
        except BaseException:
            discard(partial)
            raise
        finally:
            with self._clearing:
                self._growing.discard(partial.name)
        with self._clearing:
            self._make_room(but=path)
        made = PART.fullmatch(path.name)
        assert made is not None
        return _part(path, made)

    def _make_room(self, but: Path | None = None) -> None:
        """Remove the parts that were not used for longest, until there is room for all that are being made here.

        One that is read stays readable. What others write counts as it is; what is no part neither counts nor goes.
        """
        found = []
        taken = len(self._growing) * (self._most // SHARE)
        for name in self._names():
            whole = PART.fullmatch(name) is not None
            if name in self._growing or not (whole or PARTIAL.fullmatch(name)):
                continue
            with suppress(OSError):
                status = (self._folder / name).stat(follow_symlinks=False)
                if stat.S_ISREG(status.st_mode):
                    taken += status.st_size
                    if whole and (but is None or name != but.name):
                        found.append((status.st_atime_ns, status.st_size, name))
        for _, size, name in sorted(found):
            if taken <= self._most:
                return
            discard(self._folder / name)
            taken -= size

    def _names(self) -> list[str]:
        with suppress(OSError):
            return os.listdir(self._folder)
        return []


def _part(path: Path, found: "re.Match[str]") -> Part:
    more, muted, encoded = (flag == "1" for flag in found["flags"].ljust(3, "0"))
    kind: Kind = "mp4" if found["kind"] == "mp4" else "webm"
    way: Way = "transcoded" if encoded else "remuxed"
    return Part(path, found["key"], int(found["begin"]) / 1e6, int(found["end"]) / 1e6, more, muted, kind, way)
