"""The verb with which a hospital takes part."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson

STYLES = {"ok": "green", "warning": "yellow", "error": "bold red"}


def join_command(
    settings: Annotated[Path, typer.Argument(metavar="SITE.TOML", help="The site's settings.")],
    check: Annotated[bool, typer.Option("--check", help="Look at everything, print it, and do not join.")] = False,
    as_json: AsJson = False,
) -> int:
    """Take part in a federation until Ctrl-C: look at everything first, then wait for the server's tasks.

    Examples:

    multiseg fed join site.toml --check

    multiseg fed join site.toml
    """
    from multiseg.cli.console import plain, print_json, print_table
    from multiseg.federation.flower.joining import become
    from multiseg.federation.flower.preflight import ERROR, OK, hinders, preflight_apart
    from multiseg.federation.sites.site_settings import read_site

    site = read_site(settings)
    checks = preflight_apart(site)
    shown = [one for one in checks if check or one.level != OK]
    if as_json:
        print_json([vars(one) for one in checks])
    elif shown:
        rows = [(one.what, f"[{STYLES[one.level]}]{one.level}[/]", plain(one.said)) for one in shown]
        print_table(f"Before joining: {site.site}", ("", "", "what, and what to do"), rows)
    failed = any(one.level == ERROR if check else hinders(one) for one in checks)
    if not check and not failed:
        become(site, settings)
    return 3 if failed else 0
