"""Waiting lines for blocking work: so many at once, so many behind them, and no more."""

import asyncio
from collections.abc import Callable
from typing import ParamSpec, Protocol, TypeVar, runtime_checkable

import anyio.to_thread
from anyio import CapacityLimiter

from emcl_train.search.server.refusing import Refused

P = ParamSpec("P")
T = TypeVar("T")

BUSY = {"retry-after": "2"}


@runtime_checkable
class Asker(Protocol):
    """Who asks, and may have gone away by now: a request."""

    async def is_disconnected(self) -> bool: ...


class Line:
    """Runs functions in threads of its own number."""

    def __init__(self, what: str, at_once: int, waiting: int) -> None:
        """A line.

        Args:
            what: is done there, for the sentence to those who find it full.
            at_once: threads at most.
            waiting: who is there at most, those who are served included.
        """
        self._what = what
        self._room = waiting
        self._here = 0
        self._turn = asyncio.Semaphore(at_once)
        self._threads = CapacityLimiter(at_once)

    async def run(self, request: Asker | None, function: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
        """Call a function when it is its turn.

        Args:
            request: of whom it is for: who has gone away by then gets nothing done. None: it is done in any case.
            function: what blocks.
            args: of the function.
            kwargs: of the function.

        Raises:
            Refused: too many wait, or the one who asked has gone.
        """
        if self._here >= self._room:
            raise Refused(503, f"too many are {self._what} at the moment; ask again in a few seconds", BUSY)
        self._here += 1
        try:
            async with self._turn:
                if request is not None and await request.is_disconnected():
                    raise gone()
                return await anyio.to_thread.run_sync(lambda: function(*args, **kwargs), limiter=self._threads)
        finally:
            self._here -= 1


def gone() -> Refused:
    """For those who do not wait for their answer any more: it is not read."""
    return Refused(503, "you have gone away")
