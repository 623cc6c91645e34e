"""Verb: fed join."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def join_command(
    settings: Annotated[Path, typer.Argument(metavar="SITE.TOML", help="The site's settings.")],
    check: Annotated[bool, typer.Option("--check", help="Run and print all checks, but do not join.")] = False,
    as_json: AsJson = False,
) -> int:
    """Take part in a federation until Ctrl-C: run all checks, then wait for tasks from the server.

    Examples:

    multiseg fed join site.toml --check

    multiseg fed join site.toml
    """
    from multiseg.cli.console import plain, print_json, print_table
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
        become(site, settings)
    return 3 if failed else 0
