"""Whether a process runs: a number is also found of one that has ended and that nobody has waited for."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path


def is_running(pid: int) -> bool:
    """Whether there is a process of this number that has not ended.

    Under a first process that waits for nobody, as in many containers, whoever was killed stays in the list for good,
    and a signal reaches it: on Linux its state says that it is a zombie.
    """
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    with suppress(OSError, IndexError):  # no Linux, or it went in this moment
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[0] not in {"Z", "X"}
    return True
