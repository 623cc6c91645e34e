"""The verb with which a hospital approves the runs that it takes part in."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson


def approve_command(
    settings: Annotated[Path, typer.Argument(metavar="SITE.TOML", help="The site's settings.")],
    run: Annotated[str, typer.Argument(metavar="[HASH]", help="Of the run's settings, eight digits or more.")] = "",
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse it, also one that was approved.")] = False,
    as_json: AsJson = False,
) -> int:
    """List the runs that were asked of this site with all their settings, or approve one of them.

    With approve_runs = true in SITE.TOML nothing of a run is answered before. A run that waits begins within a minute
    of its approval. Other settings have another hash, and wait again.

    Examples:

    multiseg fed approve site.toml

    multiseg fed approve site.toml 3f9a1c20

    multiseg fed approve site.toml 3f9a1c20 --refuse
    """
    from multiseg.cli.console import messages, print_json
    from multiseg.federation.sites import approvals, audit_log
    from multiseg.federation.sites.site_settings import read_site

    state = read_site(settings).state
    if run:
        runs = [approvals.decide(state, run, not refuse)]
        audit_log.record_decision(state / audit_log.LOG, runs[0].experiment, runs[0].digest, runs[0].answer)
    else:
        runs = approvals.asked(state)
    if as_json:
        print_json([vars(one) for one in runs])
        return 0
    for one in runs:
        messages().print(f"{one.experiment}: {one.answer}, hash {one.digest}", markup=False, soft_wrap=True)
        if one.answer == approvals.WAITS:
            typer.echo(one.settings)
    if not runs:
        messages().print("No run was asked of this site that needs an approval.", markup=False)
    return 0
