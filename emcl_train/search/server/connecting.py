"""Connections: who asks for nothing holds none. There are so many at once, and silent ones would shut others out."""

import asyncio
from typing import Any, cast

from uvicorn.protocols.http.h11_impl import H11Protocol

PATIENCE = 10.0
"""Seconds in which a request has to come, whole, from when the connection is there or the answer before is sent."""


class Hurried(H11Protocol):
    """A connection that is closed where no request comes. uvicorn counts only behind a first answer, up to any byte."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._late: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        super().connection_made(cast(asyncio.Transport, transport))
        self._count()

    def data_received(self, data: bytes) -> None:
        super().data_received(data)
        self._count()

    def on_response_complete(self) -> None:
        super().on_response_complete()
        self._count()

    def connection_lost(self, exc: Exception | None) -> None:
        super().connection_lost(exc)
        self._count()

    def _count(self) -> None:
        """Count from when no request is under way; bytes of one that is not whole do not begin it anew."""
        if self.transport.is_closing() or (self.cycle is not None and not self.cycle.response_complete):
            if self._late is not None:
                self._late.cancel()
            self._late = None
        elif self._late is None:
            self._late = self.loop.call_later(PATIENCE, self.transport.close)
