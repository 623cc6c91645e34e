"""A write-back buffer for a remote store: many small objects, each sent once."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from zarr.core.buffer import Buffer

SMALL_BYTES = 2**18
"""Larger objects (the voxels) are not buffered but sent immediately."""

STATES, ROOT = "/status/c/", 2
"""The part of a key that marks the states of rows; and the stage at which the root's metadata are sent."""

Send = Callable[[str, Buffer | None], Awaitable[None]]


class WriteBack:
    """The small objects of a store that only this process writes to: read once, kept, and sent together.

    The order of sending keeps the store valid for readers, and for the next writer if this one dies: first everything
    else, then the metadata of groups, then the metadata of the root, which names the databases, and last the states of
    the rows, which commit the cases. (A named database must have states: those from before its first commit are sent
    before its name.) What was not sent is as if it had not been written.
    """

    def __init__(self) -> None:
        self._kept: dict[str, Buffer | None] = {}
        self._unsent: dict[str, Buffer | None] = {}
        self._first_states: dict[str, Buffer | None] = {}
        self._empty_prefixes: set[str] = set()
        self._sent_directly: set[str] = set()
        self._sending = asyncio.Lock()

    def __contains__(self, key: str) -> bool:
        return key in self._kept or (key not in self._sent_directly and self.is_empty(key))

    def get(self, key: str) -> Buffer | None:
        """A kept object; None if the object does not exist."""
        return self._kept.get(key)

    def keep(self, key: str, value: Buffer | None) -> None:
        """Keep an object that was read; None if it does not exist."""
        if key not in self._unsent and (value is None or len(value) <= SMALL_BYTES):
            self._kept[key] = value

    def keep_empty(self, prefix: str) -> None:
        """Note that nothing exists at a prefix, except what is written from now on."""
        self._empty_prefixes.add(prefix)

    def is_empty(self, prefix: str) -> bool:
        """Whether the server had nothing at a prefix."""
        return any(prefix.startswith(empty) for empty in self._empty_prefixes)

    def write(self, key: str, value: Buffer | None) -> None:
        """Buffer a write, or a deletion (None), until `send`."""
        if STATES in key and key not in self._unsent:
            self._first_states[key] = value
        self._kept[key] = self._unsent[key] = value

    def forget(self, key: str) -> None:
        """Forget an object, which is sent without this buffer."""
        self._sent_directly.add(key)
        self._kept.pop(key, None)
        self._unsent.pop(key, None)

    def below(self, prefix: str) -> list[str]:
        """The keys of existing objects with a prefix, sent or not."""
        existing = [key for key, value in self._kept.items() if value is not None]
        return [key for key in {*existing, *self._sent_directly} if key.startswith(prefix)]

    async def send(self, send: Send) -> None:
        """Send all buffered writes. After an error, unsent ones stay in the buffer.

        Raises: as `send`.
        """
        async with self._sending:
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
