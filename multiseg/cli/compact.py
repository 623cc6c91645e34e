"""Verb: compact."""

from __future__ import annotations

from multiseg.cli.shared_flags import AsJson, DryRun, ThisStore


def compact_command(store: ThisStore, dry_run: DryRun = False, as_json: AsJson = False) -> int:
    """Free the disk space of replaced versions of cases, and of writes that were interrupted.

    Wait for trainings that read the store: a process that opened it earlier may still read a replaced version.

    Examples:

    multiseg compact brain.zarr --dry-run

    multiseg compact brain.zarr
    """
    from multiseg.cli.console import case_counter, output, print_json
    from multiseg.store.upkeep.removal import compact

    with case_counter("compact") as on_step:
        freed = compact(store, dry_run, on_step)
    if as_json:
        print_json({"store": store, "dry_run": dry_run, "bytes": freed})
        return 0
    outcome = "would be freed" if dry_run else "freed"
    for name, num_bytes in freed.items():
        output().print(f"{name}: {num_bytes / 1e6:.1f} MB {outcome}", highlight=False)
    return 0
