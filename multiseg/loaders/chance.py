"""Random choices that are a pure function of a few numbers."""

from __future__ import annotations

import struct
from hashlib import blake2b

BITS = 512
_MASK = (1 << BITS) - 1
_FINE = 1 << 53


class Chance:
    """A number of 512 bits, uniform in [0, 1), of which every choice uses up some bits.

    The number is the BLAKE2b digest of the keys: neighbouring keys are independent, it is the same on every machine
    and for every version of every library, and it costs a tenth of seeding a generator of numpy. A choice among n uses
    log2(n) of the bits, so a hundred choices among thirty are practically fair.

    >>> chance = Chance(0, 3, 14)
    >>> chance.below(6) + 1, chance.happens(0.5)
    (4, False)

    Args:
        keys: each from 0 to 2**64 - 1.
    """

    __slots__ = ("_left",)

    def __init__(self, *keys: int) -> None:
        self._left = int.from_bytes(blake2b(struct.pack(f"<{len(keys)}Q", *keys)).digest(), "little")

    def below(self, stop: int) -> int:
        """One of 0, 1 .. stop - 1, all equally likely."""
        scaled = self._left * stop
        self._left = scaled & _MASK
        return scaled >> BITS

    def happens(self, probability: float) -> bool:
        """True with this probability; never with 0, always with 1."""
        return self.below(_FINE) < probability * _FINE
