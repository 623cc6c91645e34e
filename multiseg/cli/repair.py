"""Verb: repair."""

from __future__ import annotations

from multiseg.cli.shared_flags import AsJson, DryRun, ThisStore


def repair_command(store: ThisStore, dry_run: DryRun = False, as_json: AsJson = False) -> int:
    """Repair what is stored twice or can be computed again: metadata, coordinates, records, states, sampled voxels.

    Images and labels are stored only once: cases that need a new ingest are listed, and then the exit code is 3.
    Damaged files, and arrays that other programs wrote into a database, are moved to STORE.multiseg-damaged, next to
    the store. To find other faults of a store, use verify.

    Examples:

    multiseg repair brain.zarr --dry-run

    multiseg repair brain.zarr

    multiseg repair s3://bucket/brain.zarr --json
    """
    from multiseg.cli.console import case_counter, messages, plain, print_json, print_table
    from multiseg.store.repairs.place import aside_url
    from multiseg.store.repairs.store_repair import repair

    with case_counter("repair") as on_step:
        log = repair(store, dry_run, on_step)
    if as_json:
        lost = list(map(vars, log.cases))
        print_json({"store": store, "dry_run": dry_run, "repaired": list(map(vars, log.files)), "lost": lost})
        return 3 if log.cases else 0
    if log.files:
        title = "Would be repaired" if dry_run else "Repaired"
        print_table(title, ["file", "what"], [[plain(file.file), plain(file.what)] for file in log.files])
    if log.cases:
        rows = [[case.database, plain(case.case or "(all)"), plain(case.file), plain(case.why)] for case in log.cases]
        title = "Cannot be repaired: ingest again with --redo CASE, or restore a copy of the store"
        print_table(title, ["database", "case", "file", "why"], rows)
    if log.files and not dry_run:
        messages().print(f"The damaged files are kept in {aside_url(store)}", soft_wrap=True, highlight=False)
    if not log.files and not log.cases:
        messages().print(f"{store}: nothing to repair", soft_wrap=True, highlight=False)
    return 3 if log.cases else 0
