"""What a writer has written to a remote store and not sent yet: many small objects, each sent once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from zarr.core.buffer import Buffer

SMALL_BYTES = 2**18
"""Larger objects, the voxels, are sent at once."""

STATES, ROOT = "/status/c/", 2
"""Part of the keys of rows' states, and the stage at which the root's metadata is sent."""

Send = Callable[[str, Buffer | None], Awaitable[None]]


class WriteBack:
    """The small objects of a store that only this process writes to: read once, kept, and sent together.

    They are sent in an order that whoever reads in between, or comes after a writer that died, can live with: all
    else, then the metadata of groups, then that of the root, which names the databases, and the states of the rows
    last: they commit the cases. (A database that is named has states: those of before its first commit go before its
    name.) What was not sent is as if it had not been written.
    """

    def __init__(self) -> None:
        self._held: dict[str, Buffer | None] = {}
        self._unsent: dict[str, Buffer | None] = {}
        self._first_states: dict[str, Buffer | None] = {}
        self._empty: set[str] = set()
        self._past: set[str] = set()
        self._turn = asyncio.Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._held or (key not in self._past and self.is_empty(key))

    def get(self, key: str) -> Buffer | None:
        """An object that is kept; None where there is none."""
        return self._held.get(key)

    def keep(self, key: str, value: Buffer | None) -> None:
        """Keep what was read."""
        if key not in self._unsent and (value is None or len(value) <= SMALL_BYTES):
            self._held[key] = value

    def keep_empty(self, prefix: str) -> None:
        """Nothing is below a prefix, but for what is written from now on."""
        self._empty.add(prefix)

    def is_empty(self, prefix: str) -> bool:
        """Whether a server had nothing at or below a prefix."""
        return any(prefix.startswith(one) for one in self._empty)

    def write(self, key: str, value: Buffer | None) -> None:
        """Send an object, or that it is gone (None), with the next ones."""
        if STATES in key and key not in self._unsent:
            self._first_states[key] = value
        self._held[key] = self._unsent[key] = value

    def forget(self, key: str) -> None:
        """An object is sent past this."""
        self._past.add(key)
        self._held.pop(key, None)
        self._unsent.pop(key, None)

    def below(self, prefix: str) -> list[str]:
        """Keys below a prefix that are there, sent or not."""
        kept = [key for key, value in self._held.items() if value is not None]
        return [key for key in {*kept, *self._past} if key.startswith(prefix)]

    async def send(self, send: Send) -> None:
        """Send all that was written. What could not be sent stays to be sent.

        Raises: as `send`.
        """
        async with self._turn:
            stages: dict[int, list[str]] = {}
            for key in self._unsent:
                stages.setdefault(_stage(key), []).append(key)
            for stage in sorted(stages):
                if stage == ROOT:
                    await asyncio.gather(*(send(key, value) for key, value in self._first_states.items()))
                await asyncio.gather(*(self._send(key, send) for key in stages[stage]))
            self._first_states.clear()

    async def _send(self, key: str, send: Send) -> None:
        value = self._unsent[key]
        await send(key, value)
        if self._unsent.get(key) is value:  # not written again meanwhile
            del self._unsent[key]


def _stage(key: str) -> int:
    if STATES in key:
        return 3
    if key.endswith("zarr.json"):
        return {0: ROOT, 1: 1}.get(key.count("/"), 0)
    return 0
