"""Parse sizes in bytes, such as 4GiB."""

from __future__ import annotations

import re

from multiseg.errors import UsageError

_POWERS = ("", "k", "m", "g", "t")


def num_bytes(text: str, option: str) -> int:
    """The number of bytes of a size such as "4GiB", "500MB" or "0".

    Raises:
        UsageError: it is not a size; the message names the option.
    """
    match = re.fullmatch(r"(\d+(?:\.\d*)?|\.\d+)\s*([kmgt]?)(i?)b?", text.strip().lower())
    if match is None:
        raise UsageError(f"{option} {text!r} is not a size. Write it like 8GB or 500MB.")
    return int(float(match[1]) * (1024 if match[3] else 1000) ** _POWERS.index(match[2]))
