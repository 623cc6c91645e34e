"""Examine a machine before work starts on it: every check says what was found, and what to do if that is not enough.

Each check runs whatever happened to the others, so that one call shows all that is wrong.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

from multiseg.doctor import machine, trials
from multiseg.doctor.check_record import ERROR, OK, WARNING, Check, Found
from multiseg.errors import MultisegError
from multiseg.faults import remedy

Look = Callable[[], Found]
OnCheck = Callable[[int, int, str], None]

MACHINE: Mapping[str, Look] = {
    "python": machine.python,
    "packages": machine.packages,
    "processors": machine.processors,
    "memory": machine.memory,
    "shared memory": machine.shared_memory,
    "open files": machine.open_files,
    "home": machine.home,
    "gpu": machine.gpu,
    "temporary files": machine.temporary_files,
}
"""The checks that need no place of work."""
BROKEN = "Repair what the message names, or install multiseg again from its folder or wheel, in a new environment."


def examine(folder: Path, store: str = "", on_check: OnCheck = lambda done, total, name: None) -> tuple[Check, ...]:
    """Run all checks and return their results, in the order in which to fix problems.

    Args:
        folder: where stores and runs are to lie. The trials write into a temporary folder in it, which they remove.
        store: path or URL of a store from which patches are read as well; "" for none. It is only read.
        on_check: called before each check with the number that are done, the number of all, and its name.
    """
    with ExitStack() as stack:
        looks: list[tuple[str, Look]] = [*MACHINE.items(), *_in_folder(folder, stack)]
        if store:
            looks.append(("store", partial(trials.read_store, store)))
        results: list[Check] = []
        for done, (name, look) in enumerate(looks):
            on_check(done, len(looks), name)
            results.append(checked(name, look))
    return tuple(results)


def worst(checks: tuple[Check, ...]) -> str:
    """The worst verdict of all checks."""
    return max((check.verdict for check in checks), key=[OK, WARNING, ERROR].index)


def checked(name: str, look: Look) -> Check:
    """The result of one check. A check that fails is a result as well."""
    try:
        found = look()
    except MultisegError as error:
        found = Found(str(error), ERROR, "Do what the message says. For all faults of a store: multiseg verify STORE.")
    except OSError as error:
        found = Found(str(error), ERROR, remedy(error, BROKEN))
    except Exception as error:  # noqa: BLE001 (a border: what is examined may be broken in any way)
        found = Found(f"{type(error).__name__}: {error}", ERROR, BROKEN)
    return Check(name, *found)


def _in_folder(folder: Path, stack: ExitStack) -> Iterator[tuple[str, Look]]:
    """The checks of a folder. Their temporary folder is removed when the stack is closed."""
    yield "disk", partial(trials.disk, folder)
    try:
        scratch = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix=".multiseg-doctor-", dir=folder)))
    except OSError as error:
        advice = f"{remedy(error, 'Check the path.')} --folder names another one."
        unwritable = Found(f"cannot write into {folder}: {error.strerror}", ERROR, advice)
        not_tried = Found(
            f"not tried, since nothing can be written into {folder}", WARNING, "First fix the check above."
        )
        yield "write", lambda: unwritable
        yield "ingest", lambda: not_tried
        yield "stream", lambda: not_tried
        return
    yield "write", partial(trials.write, scratch)
    yield "ingest", partial(trials.ingest_phantoms, scratch)
    yield "stream", partial(trials.stream_phantoms, scratch)
