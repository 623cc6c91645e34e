"""Attacks on a store, counted: writers that are killed at random moments, and every file damaged in turn.

Run all:                   python -m benchmarks.attack
60 kills of every writer:  python -m benchmarks.attack --only kills --num 60
Every third file:          python -m benchmarks.attack --only files --every 3

After each attack the whole store is read. "Wrong" is the worst column: contents that differ, without an error.
"""

from __future__ import annotations

import argparse
import hashlib
import multiprocessing
import os
import random
import shutil
import signal
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory

from multiseg.errors import MultisegError, StoreError
from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store.checks.verification import verify_store
from multiseg.store.findings import Severity
from multiseg.store.hierarchy import NO_STORE
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.ingest.parallel import Workers
from multiseg.store.reader import open_store
from multiseg.store.repairs.store_repair import repair
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.sources.source_types import DatabaseFiles
from multiseg.store.upkeep.removal import compact, remove

OPTIONS = IngestOptions((6.0, 6.0, 6.0), workers=Workers(2, "threads"))
REMOVED = "alder/A002"
PRELOADED = [one.__module__ for one in (ingest, remove, compact, repair, find_manifest)]

Contents = dict[str, str]


def contents_of(url: Path) -> Contents:
    """A digest of all that the store holds of each case, by DATABASE/CASE.

    Raises:
        StoreError: some of it cannot be read.
    """
    store, held = open_store(str(url)), {}
    store.check_sound()
    for case in store.cases:
        database = store[case.database]
        digest = hashlib.sha256()
        for array in (*database.whole(case), database.foreground(case), case.grid.affine, case.annotated):
            digest.update(array.tobytes())
        grid, header = database.native(case)
        said = case.subject, case.session, case.site, case.split, case.pathology, case.modalities, case.content
        more = sorted(case.participant.items()), case.intensity, database.sources(case), case.extent, case.source_sha256
        names = database.modalities, {name: str(codes) for name, codes in database.schemas.items()}
        digest.update(repr((said, more, names, database.recipe, grid.affine.tolist(), grid.shape, header)).encode())
        held[f"{case.database}/{case.name}"] = digest.hexdigest()
    return held


def _or_nothing(url: Path) -> Contents:
    """The same of a store that may not be there yet."""
    try:
        return contents_of(url)
    except StoreError as error:
        if error.code != NO_STORE:
            raise
        return {}


def errors_in(url: Path) -> set[str]:
    return {f"{one.code} {one.file}" for one in verify_store(str(url)) if one.severity is Severity.ERROR}


def killed(act: Callable[[], object], seconds: float | None) -> bool:
    """Whether a process that did this was still at it when it was killed; without `seconds` it may end."""
    # Forked from a server that has imported all of it and has no threads: it begins at once.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(PRELOADED)
    process = context.Process(target=_quietly, args=(act,))
    process.start()
    if seconds is not None:
        time.sleep(seconds)
        process.kill()
    process.join()
    if process.exitcode not in (0, -signal.SIGKILL):
        raise RuntimeError(f"the process that was to be killed failed by itself, with exit code {process.exitcode}")
    return process.exitcode != 0


def _quietly(act: Callable[[], object]) -> None:
    with open(os.devnull, "w") as nowhere, redirect_stdout(nowhere), redirect_stderr(nowhere):  # noqa: PTH123
        act()


@dataclass(frozen=True)
class Writer:
    """Who is killed: what there is before, what is done, what a reader has to see in the end, and who completes it."""

    start: Path | None
    act: Callable[[Path], object]
    goal: Contents
    again: Callable[[Path], object]


def _ingest(databases: Sequence[DatabaseFiles], url: Path) -> None:
    ingest(databases, str(url), OPTIONS)


def _remove_one(url: Path) -> None:
    remove(str(url), [REMOVED])


def _compact(url: Path) -> None:
    compact(str(url))


def _repair(url: Path) -> None:
    repair(str(url))


def writers(folder: Path, databases: Sequence[DatabaseFiles]) -> dict[str, Writer]:
    whole = folder / "whole.zarr"
    ingest(databases, str(whole), OPTIONS)
    # Rows of replaced versions, as a compaction needs them.
    redone = [case.case for database in databases for case in database.cases[:2]]
    ingest(databases, str(whole), replace(OPTIONS, redo=redone))
    all_there = contents_of(whole)
    damaged = folder / "damaged.zarr"  # by what is held twice: of alder the records, of birch what they tell
    shutil.copytree(whole, damaged)
    for key in ("alder/image/zarr.json", "birch/zarr.json", "zarr.json"):
        (damaged / key).write_bytes((damaged / key).read_bytes()[:100])
    for path in (
        *damaged.glob("birch/status/c/*"),
        *damaged.glob("birch/extent/c/*/*"),
        *damaged.glob("alder/record/c/*"),
    ):
        path.unlink()
    without = {name: digest for name, digest in all_there.items() if name != REMOVED}

    again = partial(_ingest, databases)
    return {
        "ingest": Writer(None, again, all_there, again),
        "remove": Writer(whole, _remove_one, without, _compact),  # whoever writes next completes a removal
        "compact": Writer(whole, _compact, all_there, _compact),
        "repair": Writer(damaged, _repair, all_there, _repair),
    }


def attack_kills(folder: Path, databases: Sequence[DatabaseFiles], num: int, chance: random.Random) -> None:
    print(
        "| killed | kills in mid-run | unreadable after it | wrong | not completed by the next run |\n"
        "|---|---|---|---|---|"
    )
    all_writers = writers(folder, databases)
    killed(partial(time.sleep, 0), None)  # the first has to wait for what is imported once
    for name, writer in all_writers.items():
        counted: Counter[str] = Counter()
        url, began = folder / "victim.zarr", time.monotonic()
        _begin(writer, url)
        killed(partial(writer.act, url), None)
        took = time.monotonic() - began
        while counted["kills"] < num:
            _begin(writer, url)
            before = contents_of(url) if writer.start and name != "repair" else {}
            _attack_once(writer, url, before, took, chance, counted, is_read=name != "repair")
        print(
            f"| {name} | {counted['kills']} | {counted['unreadable']} | {counted['wrong']} | {counted['left']} |",
            flush=True,
        )


def _begin(writer: Writer, url: Path) -> None:
    shutil.rmtree(url, ignore_errors=True)
    if writer.start:
        shutil.copytree(writer.start, url)


def _attack_once(
    writer: Writer,
    url: Path,
    before: Contents,
    took: float,
    chance: random.Random,
    counted: Counter[str],
    is_read: bool,
) -> None:
    """Kill a writer until it ends by itself, and look at what it left each time."""
    while killed(partial(writer.act, url), chance.uniform(0, took)):
        counted["kills"] += 1
        try:
            found = _or_nothing(url) if is_read else {}
        except MultisegError as error:
            print("unreadable:", error, flush=True)
            counted["unreadable"] += 1
            break
        # What was there, or is to be there; each case whole, and none gone that stays.
        is_wrong = any(digest != {**before, **writer.goal}.get(case) for case, digest in found.items())
        counted["wrong"] += is_wrong or (is_read and not before.keys() & writer.goal.keys() <= found.keys())
        # One store is met by several deaths, but of those who may do it again: what is removed is not there twice.
        if writer.again is not writer.act or (before and chance.random() < 0.5):
            break
    try:
        writer.again(url)
        done = contents_of(url)
        if before and REMOVED in done and REMOVED not in writer.goal:  # killed before it began
            writer.act(url)
            done = contents_of(url)
        left = errors_in(url)
        is_whole = done == writer.goal and not left
        if not is_whole:
            print("not completed:", *sorted(writer.goal.items() ^ done.items()), *sorted(left), flush=True)
    except (MultisegError, RuntimeError) as error:
        print("not completed:", error, flush=True)
        is_whole = False
    counted["left"] += not is_whole


def _remove(data: bytes, _chance: random.Random) -> bytes | None:
    return None


def _halve(data: bytes, _chance: random.Random) -> bytes | None:
    return data[: len(data) // 2]


def _flip(data: bytes, chance: random.Random) -> bytes | None:
    at = chance.randrange(len(data))
    return data[:at] + bytes([data[at] ^ 1 << chance.randrange(8)]) + data[at + 1 :]


DAMAGES = {"removed": _remove, "cut in half": _halve, "one bit flipped": _flip}


def attack_files(folder: Path, databases: Sequence[DatabaseFiles], every: int, chance: random.Random) -> None:
    sound = folder / "sound.zarr"
    ingest(databases, str(sound), OPTIONS)
    reference = contents_of(sound)
    keys = sorted(str(path.relative_to(sound)) for path in sound.rglob("*") if path.is_file())[::every]
    print(
        "| each file | files | error that names it | another error | read as before, and `verify` names it | "
        "read as before, and nobody notices | wrong | a bug | repaired whole | what cannot be repaired is named | "
        "repair wrong |\n|---|---|---|---|---|---|---|---|---|---|---|"
    )
    for name, damage in DAMAGES.items():
        counted: Counter[str] = Counter()
        for key in keys:
            url = folder / "victim.zarr"
            shutil.rmtree(url, ignore_errors=True)
            shutil.copytree(sound, url)
            data = damage((url / key).read_bytes(), chance)
            if data is None:
                (url / key).unlink()
            else:
                (url / key).write_bytes(data)
            read, repaired = after_reading(url, key, reference), after_repair(url, key, reference)
            if read in ("another", "unnoticed", "wrong", "bug") or repaired == "wrong":
                print(f"{key} {name}: {read}, repair {repaired}", flush=True)
            counted.update((read, f"repair {repaired}"))
        read = [counted[kind] for kind in ("named", "another", "verified", "unnoticed", "wrong", "bug")]
        repairs = [counted[f"repair {kind}"] for kind in ("whole", "named", "wrong")]
        print(f"| {name} | {' | '.join(map(str, [len(keys), *read, *repairs]))} |", flush=True)


def after_reading(url: Path, key: str, reference: Contents) -> str:
    try:
        found = contents_of(url)
    except MultisegError as error:
        return "named" if key in str(error) else "another"
    except Exception:  # noqa: BLE001 (every traceback is a bug, and counted)
        traceback.print_exc()
        return "bug"
    if found != reference:
        return "wrong"
    try:
        return "verified" if any(key in one for one in errors_in(url)) else "unnoticed"
    except MultisegError as error:
        return "verified" if key in str(error) else "another"


def after_repair(url: Path, key: str, reference: Contents) -> str:
    try:
        log = repair(str(url))
        found, left = contents_of(url), errors_in(url)
    except MultisegError as error:
        return "named" if key in str(error) else "wrong"
    except Exception:  # noqa: BLE001 (every traceback is a bug, and counted)
        traceback.print_exc()
        return "wrong"
    if found == reference and not left and not log.cases:
        return "whole"
    lost = {f"{one.database}/{one.case}" for one in log.cases}
    is_told = bool(left) or all(case in lost or found.get(case) == digest for case, digest in reference.items())
    return "named" if is_told and all(reference.get(case) == digest for case, digest in found.items()) else "wrong"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", choices=("kills", "files"))
    parser.add_argument("--num", type=int, default=20, help="kills in mid-run of every writer")
    parser.add_argument("--every", type=int, default=1, help="damage only every so-manieth file")
    parser.add_argument("--cases", type=int, default=4, help="of each of two databases")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args(arguments)
    warnings.simplefilter("ignore")
    with TemporaryDirectory() as name:
        folder, chance = Path(name), random.Random(given.seed)
        manifest = write_hospitals(folder / "hospitals", num_cases=given.cases, coarseness=2.0)
        databases = find_manifest(manifest)[:2]
        if given.only != "files":
            attack_kills(folder, databases, given.num, chance)
        if given.only != "kills":
            attack_files(folder, databases, given.every, chance)


if __name__ == "__main__":
    main()
