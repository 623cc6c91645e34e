"""Verb: fed approve."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson


def approve_command(
    settings: Annotated[Path, typer.Argument(metavar="SITE.TOML", help="The site's settings.")],
    run: Annotated[
        str, typer.Argument(metavar="[HASH]", help="Hash of the run's settings, eight digits or more.")
    ] = "",
    refuse: Annotated[bool, typer.Option("--refuse", help="Refuse the run, even if it was approved before.")] = False,
    as_json: AsJson = False,
) -> int:
    """List the runs that need this site's approval, with all their settings; or approve one of them.

    With approve_runs = true in SITE.TOML, the site answers no request of a run before its approval. A waiting run
    starts within a minute of it. If the settings of a run change, so does its hash, and it needs a new approval.

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
        print_json([vars(request) for request in runs])
        return 0
    for request in runs:
        messages().print(f"{request.experiment}: {request.answer}, hash {request.digest}", markup=False, soft_wrap=True)
        if request.answer == approvals.WAITS:
            typer.echo(request.settings)
    if not runs:
        messages().print("No run has asked for this site's approval.", markup=False)
    return 0
