"""Sends a file, or the range of it that was asked for; and says which files may be sent at all."""

import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path

import anyio
import anyio.to_thread
from anyio import CapacityLimiter
from starlette.datastructures import Headers
from starlette.types import Receive, Scope, Send

from emcl_train.data.opening import Identity, identity_of
from emcl_train.search.server.refusing import Refused, said

PIECE = 256 << 10
"""Bytes that are read and sent at once: what a slow reader costs in memory."""
RANGE = re.compile(r"bytes=[ \t]*([0-9]{0,40})-([0-9]{0,40})[ \t]*", re.IGNORECASE)
"""One range. Several in a request are refused: no player asks for them."""
CANNOT = "the file of this moment cannot be read any more; run `emcl-train index` again"

ASKED_AGAIN = "private, no-cache"
"""A browser may keep it, and asks each time whether it is still the same."""


@dataclass(frozen=True)
class Span:
    """Bytes from `begin` up to, but without, `end`."""

    begin: int
    end: int


@dataclass(frozen=True)
class Opened:
    """A regular file that is open, and what it is known by."""

    descriptor: int
    size: int
    tag: str
    """What changes when its bytes do, in the quotes of an ETag."""


def open_regular(path: Path, tag: str | None = None, known_by: Identity | None = None) -> Opened:
    """Open a file whose path has no link in it.

    Args:
        path: as the library, or the cache of parts, gives it; nothing of a request.
        tag: what its bytes are known by; None: its size and when it was changed.
        known_by: what the file was known by when the library said that it is its own; None: any file may be there.

    Raises:
        Refused: it is gone, it is no regular file, a link leads to it, or it is another one by now.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0) | os.O_NONBLOCK
    try:
        descriptor = os.open(path, flags)
    except (OSError, ValueError) as error:
        raise Refused(404, CANNOT) from error
    try:
        status = os.fstat(descriptor)
        # A folder on its way may have become a link since the library looked.
        if not stat.S_ISREG(status.st_mode) or os.path.realpath(path) != str(path):
            raise Refused(404, CANNOT)
        if not os.path.samestat(os.stat(path), status):
            raise Refused(404, CANNOT)
        if known_by is not None and known_by != (status.st_size, status.st_mtime_ns):
            raise Refused(404, CANNOT)
    except BaseException as error:
        os.close(descriptor)
        if isinstance(error, OSError):
            raise Refused(404, CANNOT) from error
        raise
    return Opened(descriptor, status.st_size, tag or f'"{status.st_size:x}-{status.st_mtime_ns:x}"')


def require_same(path: Path, known_by: Identity) -> None:
    """See that a file is the one that it was, and that no link leads to it.

    Args:
        path: as the library gave it.
        known_by: what the file was known by then.

    Raises:
        Refused: another one is there by now, or a folder on its way has become a link.
        VideoError: it is gone, or no regular file.
        PassingError: the system cannot say.
    """
    if os.path.realpath(path) != str(path) or identity_of(path) != known_by:
        raise Refused(404, CANNOT)


def span_of(header: str, size: int) -> Span | None:
    """The bytes that a Range header asks for.

    Args:
        header: such as `bytes=0-499`, `bytes=500-` or `bytes=-500`.
        size: of the file.

    Returns:
        None if the header is of another unit than bytes, and so is to be ignored.

    Raises:
        Refused: 416: it asks for nothing that is there, for several ranges, or cannot be read.
    """
    if not header.lstrip().lower().startswith("bytes"):
        return None

    def refused(why: str) -> Refused:
        return Refused(416, f"the Range header {why}", {"content-range": f"bytes */{size}"})

    if "," in header:
        raise refused("asks for several ranges; ask for one")
    found = RANGE.fullmatch(header.strip())
    if found is None or not (found[1] or found[2]):
        raise refused("cannot be read; expected bytes=FIRST-LAST, bytes=FIRST- or bytes=-COUNT")

    if not found[1]:  # the last bytes of the file
        count = int(found[2])
        if not count or not size:
            raise refused(f"asks for no byte of {size}")
        return Span(max(0, size - count), size)

    first = int(found[1])
    last = int(found[2]) if found[2] else size - 1
    if first >= size:
        raise refused(f"begins at byte {first}, and the file has {size}")
    if last < first:
        raise refused("ends before it begins")
    return Span(first, min(last + 1, size))


def is_known(asked: Headers, tag: str) -> bool:
    """Whether a browser has what it asks for.

    Args:
        asked: the headers of its request.
        tag: of what would be sent, in quotes.
    """
    known = [one.strip().removeprefix("W/") for one in asked.get("if-none-match", "").split(",")]
    return tag in known or "*" in known


class FileAnswer:
    """An answer that is a file, or a range of it. The file is closed when it has been sent."""

    def __init__(self, opened: Opened, media_type: str, threads: CapacityLimiter) -> None:
        """The answer.

        Args:
            opened: the file.
            media_type: of its content.
            threads: that read files.
        """
        self._opened = opened
        self._type = media_type
        self._threads = threads

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await self._answer(scope, receive, send)
        finally:
            os.close(self._opened.descriptor)

    async def _answer(self, scope: Scope, receive: Receive, send: Send) -> None:
        asked, size, tag = Headers(scope=scope), self._opened.size, self._opened.tag
        headers = {"etag": tag, "accept-ranges": "bytes", "cache-control": ASKED_AGAIN}

        if is_known(asked, tag):
            await _begin(send, 304, headers)
            await send({"type": "http.response.body", "body": b""})
            return

        # A range of a file that is another one by now would be glued to bytes of the old one: If-Range then asks for
        # all of it. Range is a header of GET alone, and is there once.
        wanted = asked.getlist("range")
        try:
            if len(wanted) > 1:
                raise Refused(416, "there is more than one Range header", {"content-range": f"bytes */{size}"})
            holds = asked.get("if-range", tag).strip() == tag
            span = span_of(wanted[0], size) if wanted and holds and scope["method"] == "GET" else None
        except Refused as refusal:
            await said(refusal)(scope, receive, send)
            return

        headers["content-type"] = self._type
        if span is not None:
            headers["content-range"] = f"bytes {span.begin}-{span.end - 1}/{size}"
        sent = span or Span(0, size)
        headers["content-length"] = str(sent.end - sent.begin)
        await _begin(send, 200 if span is None else 206, headers)
        if scope["method"] == "HEAD":
            await send({"type": "http.response.body", "body": b""})
            return

        # Who goes away is noticed: nothing more is read for them.
        async with anyio.create_task_group() as tasks:

            async def watch() -> None:
                while (await receive())["type"] != "http.disconnect":
                    pass
                tasks.cancel_scope.cancel()

            tasks.start_soon(watch)
            await self._send(sent, send)
            tasks.cancel_scope.cancel()

    async def _send(self, sent: Span, send: Send) -> None:
        place = sent.begin
        while place < sent.end:
            count = min(PIECE, sent.end - place)
            piece = await anyio.to_thread.run_sync(
                os.pread, self._opened.descriptor, count, place, limiter=self._threads
            )
            if not piece:  # the file is shorter by now; the connection is closed, which tells that bytes are missing
                return
            await send({"type": "http.response.body", "body": piece, "more_body": True})
            place += len(piece)
        await send({"type": "http.response.body", "body": b""})


async def _begin(send: Send, status: int, headers: dict[str, str]) -> None:
    pairs = [(name.encode("latin-1"), value.encode("latin-1")) for name, value in headers.items()]
    await send({"type": "http.response.start", "status": status, "headers": pairs})
