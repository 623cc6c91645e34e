"""Connections that are closed when nothing is asked over them."""

from __future__ import annotations

import asyncio
from typing import Any

from uvicorn.protocols.http.h11_impl import H11Protocol

IDLE_S = 30.0


class ImpatientProtocol(H11Protocol):
    """uvicorn's own waits for ever for a first request, and for the rest of headers that stop half way: whoever opens
    as many connections as there may be would keep everybody else out."""

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Begin to count."""
        super().connection_made(transport)
        self.loop.call_later(IDLE_S, self._look, None)

    def _look(self, before: Any) -> None:
        """Close the connection where no request has come since the last look, and none is being answered."""
        if self.transport.is_closing():
            return
        if self.cycle is before and (before is None or before.response_complete):
            self.transport.close()
        else:
            self.loop.call_later(IDLE_S, self._look, self.cycle)
