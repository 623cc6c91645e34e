"""Verb: remove."""

from __future__ import annotations

from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, DryRun, ThisStore

PSEUDONYMS = (
    "The file of pseudonyms, which is not in the store, still has the real names of these people: edit it, or delete "
    "it once you may no longer keep it."
)


def remove_command(
    store: ThisStore,
    cases: Annotated[list[str] | None, typer.Argument(help="Cases as DATABASE/CASE.")] = None,
    subject: Annotated[list[str] | None, typer.Option(help="All cases of a person, as DATABASE/SUBJECT.")] = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask for confirmation.")] = False,
    as_json: AsJson = False,
) -> int:
    """Delete cases from a store for good: voxels, names, participants' data, provenance, all older versions.

    The date and the digests of the scans stay: with them `info MODEL --store STORE`, evaluate and finetune tell whether
    a model has learnt from a removed case. After an interruption, the next remove or ingest completes the removal.
    Copies elsewhere stay: source files, backups, caches of remote stores, pictures, models, older versions in a bucket.

    Examples:

    multiseg remove brain.zarr ms/patient07 --dry-run

    multiseg remove brain.zarr ms/patient07 ms/patient09 --yes

    multiseg remove brain.zarr --subject ms/patient07
    """
    from multiseg.cli.console import case_counter, messages, plain, print_json, print_table
    from multiseg.errors import UsageError, counted
    from multiseg.store.upkeep.removal import remove

    if not cases and not subject:
        raise UsageError("name the cases to remove: DATABASE/CASE, or --subject DATABASE/SUBJECT.")
    removed = remove(store, cases or (), subject or (), dry_run=True)
    if not as_json:
        table = [[case.database, plain(case.case), plain(case.subject), str(len(case.rows))] for case in removed]
        print_table(f"To be removed from {plain(store)}", ["database", "case", "subject", "versions"], table)
    if not dry_run and not yes:
        typer.confirm("Remove them for good?", abort=True, err=True)
    if not dry_run:
        with case_counter("remove") as on_step:
            removed = remove(store, cases or (), subject or (), on_step=on_step)
    if as_json:
        rows = [{"database": case.database, "case": case.case, "versions": len(case.rows)} for case in removed]
        print_json({"store": store, "dry_run": dry_run, "removed": rows})
    elif not dry_run:
        messages().print(f"{counted(len(removed), 'case')} removed from {store}", soft_wrap=True, highlight=False)
        if any(case.has_pseudonyms for case in removed):
            messages().print(PSEUDONYMS, soft_wrap=True)
    return 0
