"""Verb: repair."""

from __future__ import annotations

from typing import TYPE_CHECKING

from multiseg.cli.shared_flags import AsJson, DryRun, ThisStore

if TYPE_CHECKING:
    from multiseg.store.repairs.repair_report import Log


def repair_command(store: ThisStore, dry_run: DryRun = False, as_json: AsJson = False) -> int:
    """Make again what is damaged of a store, as far as it is held twice: metadata, coordinates, records, states.

    Sampled voxels are drawn again from the labels. Voxels are held once: cases that need a new ingest are named, and
    the exit code is 3 when there are any. Damaged files, and arrays that other programs wrote into a database, are kept
    in STORE.multiseg-damaged beside the store. What else is wrong with a store says verify.

    Examples:

    multiseg repair brain.zarr --dry-run

    multiseg repair brain.zarr

    multiseg repair s3://bucket/brain.zarr --json
    """
    from multiseg.cli.console import messages, print_json
    from multiseg.store.repairs.place import aside_url
    from multiseg.store.repairs.store_repair import repair

    log = repair(store, dry_run)
    if as_json:
        files = [{"file": one.file, "what": one.what} for one in log.files]
        lost = [{"database": x.database, "case": x.case, "file": x.file, "why": x.why} for x in log.cases]
        print_json({"store": store, "dry_run": dry_run, "repaired": files, "lost": lost})
        return 3 if log.cases else 0
    _print(log, dry_run)
    if log.files and not dry_run:
        messages().print(f"The files as they were: {aside_url(store)}", soft_wrap=True, highlight=False)
    if not log.files and not log.cases:
        messages().print(f"{store}: nothing to repair", soft_wrap=True, highlight=False)
    return 3 if log.cases else 0


def _print(log: Log, dry_run: bool) -> None:
    from multiseg.cli.console import plain, print_table

    if log.files:
        title = "Would be made again" if dry_run else "Made again"
        print_table(title, ["file", "what"], [[plain(one.file), plain(one.what)] for one in log.files])
    if log.cases:
        rows = [[x.database, plain(x.case or "(all)"), plain(x.file), plain(x.why)] for x in log.cases]
        title = "Only a new ingest brings back, with --redo CASE, or a copy of the store"
        print_table(title, ["database", "case", "file", "why"], rows)
