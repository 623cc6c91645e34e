"""The verbs of a site: fed join, approve and audit."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}
AUDIT_COLUMNS = ("time", "direction", "kind", "experiment", "round", "bytes", "tensors", "metrics", "notes")
SiteFile = Annotated[Path, typer.Argument(metavar="SITE.TOML", help="The site's settings.")]


def join_command(
    settings: SiteFile,
    check: Annotated[bool, typer.Option("--check", help="Run and print all checks, but do not join.")] = False,
    as_json: AsJson = False,
) -> int:
    """Take part in a federation until Ctrl-C: run all checks, then wait for tasks from the server.

    Examples:

    multiseg fed join site.toml --check

    multiseg fed join site.toml
    """
    from multiseg.cli.console import after_document, plain, print_json, print_table
    from multiseg.federation.flower.joining import become
    from multiseg.federation.flower.preflight import ERROR, OK, hinders, preflight_apart
    from multiseg.federation.sites.site_settings import read_site

    site = read_site(settings)
    results = preflight_apart(site)
    shown = [result for result in results if check or result.level != OK]
    if as_json:
        print_json([vars(result) for result in results])
    elif shown:
        rows = [(result.what, f"[{STYLES[result.level]}]{result.level}[/]", plain(result.said)) for result in shown]
        print_table(f"Before joining: {site.site}", ("", "", "what, and what to do"), rows)
    # Some errors may pass while the site waits, such as a server that is offline: they do not prevent joining.
    failed = any(result.level == ERROR if check else hinders(result) for result in results)
    if not check and not failed:
        with after_document():
            become(site, settings)
    return 3 if failed else 0


def approve_command(
    settings: SiteFile,
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


def audit_command(
    place: Annotated[Path, typer.Argument(metavar="SITE.TOML|STATE", help="The site's settings, or its state folder.")],
    experiment: Annotated[str, typer.Option(help="Only this experiment.")] = "",
    verify: Annotated[bool, typer.Option("--verify", help="Check that no line was changed or removed.")] = False,
    as_json: AsJson = False,
) -> int:
    """Print the messages that this site received and sent. --verify checks the chain of hashes.

    Examples:

    multiseg fed audit site.toml

    multiseg fed audit site.toml --verify
    """
    from multiseg.cli.console import messages, plain, print_json, print_table
    from multiseg.federation.sites import audit_log
    from multiseg.federation.sites.site_settings import read_site
    from multiseg.shown import line

    log = (place if place.is_dir() else read_site(place).state) / audit_log.LOG
    faults = audit_log.verify(log) if verify else []
    rows = [] if faults else audit_log.rows(log, experiment)
    if as_json:
        print_json({"faults": faults, "entries": rows})
        return 3 if faults else 0
    for fault in faults:
        messages().print(f"{log}: {fault}", markup=False, soft_wrap=True)
    if not faults:
        table = [[plain(line(row[name])) for name in AUDIT_COLUMNS] for row in rows]
        print_table(f"{log}", AUDIT_COLUMNS, table, right=("round", "bytes", "tensors"))
    if verify and not faults:
        messages().print(f"{len(rows)} lines, none changed or removed.", highlight=False)
    return 3 if faults else 0
