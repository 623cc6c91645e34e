"""Flower's SuperLink with a database that waits longer, is cleaned up, and answers 503 while it cannot be written.

Flower's own waits 5 s for a lock of its SQLite file and then answers HTTP 500, which ends the client; and it keeps the
messages of lost runs for ever.
"""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from collections.abc import Awaitable, Callable, Iterable
from logging import ERROR, INFO
from pathlib import Path
from typing import Any

BUSY_S = 60.0
"""A call waits this long for the database. Clients give up after at most 30 s, and retry."""
JOURNAL_BYTES = 64 * 2**20
"""The size to which the journal is truncated after it was written into the database."""
CLEAN_EVERY_S = 600.0
SLACK_BYTES = 64 * 2**20
"""Free space that stays in the database's file: the next round needs it."""
STEP_PAGES, STEP_PAUSE_S = 4096, 0.2
"""Space is freed in steps, between which others can write."""
RETRY_AFTER_S = 5
HAS_LEFT = """
    SELECT EXISTS (SELECT 1 FROM run_objects WHERE run_id = :run_id)
        OR EXISTS (SELECT 1 FROM message_ins WHERE run_id = :run_id)
        OR EXISTS (SELECT 1 FROM object_push_sessions WHERE run_id = :run_id) AS found
"""

Pragmas = tuple[tuple[str, str], ...]


def pragmas(flowers: Iterable[tuple[str, str]], busy_s: float = BUSY_S) -> Pragmas:
    """Settings of each connection to the database: Flower's own, overridden and extended by ours."""
    ours = {"busy_timeout": f"{busy_s * 1000:.0f}", "journal_size_limit": str(JOURNAL_BYTES)}
    # auto_vacuum comes first: it only takes effect while the file is empty.
    return (("auto_vacuum", "INCREMENTAL"), *{**dict(flowers), **ours}.items())


def away_for_once(translate: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
    """Flower's answer to an error, but 503 (retry) if the database was locked, full or unreadable."""
    from fastapi.responses import JSONResponse
    from flwr.supercore import log
    from sqlalchemy.exc import OperationalError

    async def answered(request: Any, call_next: Callable[[Any], Awaitable[Any]]) -> Any:
        async def call(request: Any) -> Any:
            try:
                return await call_next(request)
            except OperationalError as error:
                log(ERROR, "[%s] the database: %s", request.url.path, error.orig)
                body = {"detail": f"The server's database cannot be used at the moment ({error.orig})."}
                return JSONResponse(body, 503, {"Retry-After": str(RETRY_AFTER_S)})

        return await translate(request, call)

    return answered


def finished_runs(state: Any) -> list[int]:
    """Finished runs that still have messages or parts of models in the database."""
    from flwr.supercore.utils import int64_to_uint64

    rows = state.query("SELECT DISTINCT run_id FROM run_objects UNION SELECT DISTINCT run_id FROM message_ins")
    numbers = {int64_to_uint64(row["run_id"]) for row in rows if row["run_id"] is not None}
    return sorted(number for number, status in state.get_run_status(numbers).items() if status.status == "finished")


def clean(state: Any) -> None:
    """Delete what finished runs have left, and free the disk space."""
    from flwr.supercore import log

    for number in finished_runs(state):
        state.cleanup_run(number)
        log(INFO, "Deleted what run %s had left in the database.", number)
    while _slack(state) > SLACK_BYTES:
        before = _slack(state)
        _free_pages(state, STEP_PAGES)
        if _slack(state) >= before:  # a file of an earlier version: `serve` packs it at its next start
            return
        time.sleep(STEP_PAUSE_S)


def _free_pages(state: Any, num: int) -> None:
    """Return free pages to the disk. `state.query` takes only SQLite's first step, which frees a single page."""
    with state.session() as session:
        session.connection().connection.driver_connection.executescript(f"PRAGMA incremental_vacuum({num})")


def _slack(state: Any) -> int:
    free, size = (int(state.query(f"PRAGMA {name}")[0][name]) for name in ("freelist_count", "page_size"))
    return free * size


def where_left(clean_up: Callable[[Any, int], None]) -> Callable[[Any, int], None]:
    """Flower's cleanup of a run, without its three writes for every finished run whenever runs are listed."""

    def cleanup_run(state: Any, run_id: int) -> None:
        from flwr.supercore.utils import uint64_to_int64

        if state.query(HAS_LEFT, {"run_id": uint64_to_int64(run_id)})[0]["found"]:
            clean_up(state, run_id)

    return cleanup_run


def _clean_for_ever(state: Any) -> None:
    from flwr.supercore import log
    from sqlalchemy.exc import SQLAlchemyError

    while True:
        try:
            clean(state)
        except (SQLAlchemyError, sqlite3.Error) as error:  # retried next time
            log(ERROR, "the database was not cleaned: %s", error)
        time.sleep(CLEAN_EVERY_S)


def prepare() -> None:
    """Patch Flower before it starts."""
    from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
    from flwr.supercore import sql_mixin
    from flwr.superlink import main as superlink

    database: Any = sql_mixin
    link: Any = superlink
    database.SQLITE_PRAGMAS = pragmas(database.SQLITE_PRAGMAS)
    link.http_error_translator = away_for_once(link.http_error_translator)
    state_class: Any = SqlLinkState
    state_class.cleanup_run = where_left(state_class.cleanup_run)
    make = link.create_app

    def create_app(*words: Any, **more: Any) -> Any:
        app = make(*words, **more)
        state = app.state.linkstate_factory.state()
        threading.Thread(target=_clean_for_ever, args=(state,), daemon=True, name="cleaning").start()
        return app

    link.create_app = create_app


def main(arguments: list[str]) -> None:
    """Run it: `python -m multiseg.federation.flower.superlink flower-superlink OPTIONS`."""
    from flwr.superlink.cli.flower_superlink import flower_superlink

    sys.argv = [str(Path(arguments[0])), *arguments[1:]]
    prepare()
    flower_superlink()


if __name__ == "__main__":
    main(sys.argv[1:])
