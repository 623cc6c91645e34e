"""Verb: remove."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.shared_flags import AsJson, DryRun, ThisStore

if TYPE_CHECKING:
    from collections.abc import Sequence

    from multiseg.store.upkeep.removal import Removed

PSEUDONYMS = (
    "The file of pseudonyms lies outside the store and still holds the real names of these people: edit it, or keep it "
    "only as long as you may."
)


def remove_command(
    store: ThisStore,
    cases: Annotated[list[str] | None, typer.Argument(help="Cases as DATABASE/CASE.")] = None,
    subject: Annotated[list[str] | None, typer.Option(help="All cases of a person, as DATABASE/SUBJECT.")] = None,
    dry_run: DryRun = False,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
    as_json: AsJson = False,
) -> int:
    """Take cases off a store's disk for good: voxels, names, participants' data, provenance, all older versions.

    What stays are the date and the digests of the scans, by which `info MODEL --store STORE`, evaluate and finetune say
    that a model has learnt from a removed case. A kill at any moment is completed by the next remove or ingest. Copies
    elsewhere stay: source files, backups, caches of remote stores, pictures, models, and a bucket's older versions.

    Examples:

    multiseg remove brain.zarr ms/patient07 --dry-run

    multiseg remove brain.zarr ms/patient07 ms/patient09 --yes

    multiseg remove brain.zarr --subject ms/patient07
    """
    from multiseg.cli.console import messages, print_json
    from multiseg.errors import UsageError
    from multiseg.store.upkeep.removal import remove

    if not cases and not subject:
        raise UsageError("name what is to be removed: DATABASE/CASE, or --subject DATABASE/SUBJECT.")
    found = remove(store, cases or (), subject or (), dry_run=True)
    if not as_json:
        _print(found, store)
    if not dry_run and not yes:
        typer.confirm("Remove them for good?", abort=True, err=True)
    done = found if dry_run else remove(store, cases or (), subject or ())
    if as_json:
        told = [{"database": one.database, "case": one.case, "versions": len(one.rows)} for one in done]
        print_json({"store": store, "dry_run": dry_run, "removed": told})
    elif not dry_run:
        messages().print(f"{len(done)} cases removed from {store}", soft_wrap=True, highlight=False)
        if any(one.has_pseudonyms for one in done):
            messages().print(PSEUDONYMS, soft_wrap=True)
    return 0


def _print(found: Sequence[Removed], store: str) -> None:
    from multiseg.cli.console import plain, print_table

    rows = [[one.database, plain(one.case), plain(one.subject), str(len(one.rows))] for one in found]
    print_table(f"To be removed from {plain(store)}", ["database", "case", "subject", "versions"], rows)
