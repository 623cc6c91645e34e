"""Verb: compact."""

from __future__ import annotations

from multiseg.cli.shared_flags import AsJson, DryRun, ThisStore


def compact_command(store: ThisStore, dry_run: DryRun = False, as_json: AsJson = False) -> int:
    """Give back the room of replaced versions of cases and of what dead writers left.

    Let trainings that read the store end first: who opened it before may still read a replaced version.

    Examples:

    multiseg compact brain.zarr --dry-run

    multiseg compact brain.zarr
    """
    from multiseg.cli.console import output, print_json
    from multiseg.store.upkeep.compaction import compact

    freed = compact(store, dry_run)
    if as_json:
        print_json({"store": store, "dry_run": dry_run, "bytes": freed})
        return 0
    what = "would be free" if dry_run else "are free"
    for name, num in freed.items():
        output().print(f"{name}: {num / 1e6:.1f} MB {what}", highlight=False)
    return 0
