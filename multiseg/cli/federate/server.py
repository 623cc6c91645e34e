"""The verbs of the coordinating centre: fed enrol, revoke, serve and app."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite

ServerHome = Annotated[Path, typer.Argument(metavar="HOME", help="The server's folder.")]

enrol_app = typer.Typer(
    name="enrol",
    help="Create the server's folder, and a start-up kit for each site.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)


@enrol_app.command("server")
def enrol_server_command(
    folder: ServerHome,
    host: Annotated[
        list[str] | None, typer.Option(help="Name or address that hospitals connect to. May be repeated.")
    ] = None,
    port: Annotated[int | None, typer.Option(help="Public port (default 8443).")] = None,
    superlink_port: Annotated[int | None, typer.Option(help="Port of Flower, on loopback (default 8000).")] = None,
    metrics_port: Annotated[int | None, typer.Option(help="Port for Prometheus, on loopback (default 9400).")] = None,
    new_authority: Annotated[bool, typer.Option("--new-authority", help="Also create a new authority.")] = False,
    now: Annotated[
        bool, typer.Option("--now", help="Refuse sites without the new authority's ca.crt at once.")
    ] = False,
) -> int:
    """Create the authority, the certificate, the keys and the settings of a server.

    For an existing server this renews the certificate, and keeps authority, keys and sites.

    With --new-authority, sites that have only the old ca.crt can connect until it expires, or until --now.

    Examples:

    multiseg fed enrol server centre --host fed.example.org --host 10.0.0.5

    multiseg fed enrol server centre --new-authority
    """
    from multiseg.cli.console import output
    from multiseg.federation.identity.authority import describe_authority
    from multiseg.federation.identity.enrol import enrol_server

    flags = {"port": port, "superlink_port": superlink_port, "metrics_port": metrics_port}
    ports = {name: value for name, value in flags.items() if value is not None}
    server = enrol_server(folder, host or [], ports, new_authority, now)
    output().print(
        f"{folder} serves {server.public}. {describe_authority(server)}\n"
        f"Next: multiseg fed enrol site {folder} NAME -o NAME-kit",
        markup=False, soft_wrap=True, highlight=False,
    )  # fmt: skip
    return 0


@enrol_app.command("site")
def enrol_site_command(
    folder: ServerHome,
    name: Annotated[str, typer.Argument(help="Name of the site, as in the sites of a run.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Folder for the kit (default NAME-kit).")] = None,
    public_key: Annotated[
        Path | None, typer.Option(help="The .pub file of the site's key; no other key is created.")
    ] = None,
) -> int:
    """Enrol a site, and create its start-up kit: key, certificate, settings and instructions.

    A running server accepts the site within seconds.

    Examples:

    multiseg fed enrol site centre alder -o alder-kit

    multiseg fed enrol site centre birch --public-key birch.pub
    """
    from multiseg.cli.console import output
    from multiseg.federation.identity.enrol import enrol_site

    kit, archive = enrol_site(folder, name, out or Path(f"{name}-kit"), public_key)
    note = "It has no key: the site uses its own." if public_key else "It contains the site's key: keep it secret."
    output().print(
        f"{name} may connect. Its kit: {kit} ({archive}). {note}", markup=False, soft_wrap=True, highlight=False
    )
    return 0


def revoke_command(folder: ServerHome, name: Annotated[str, typer.Argument(help="Name of the site.")]) -> int:
    """Remove a site: its key is refused from now on.

    Example:

    multiseg fed revoke centre alder
    """
    from multiseg.cli.console import messages, output
    from multiseg.federation.flower.submit import active_with
    from multiseg.federation.identity.enrol import revoke_site

    revoke_site(folder, name)
    output().print(f"{name} removed. To enrol it again with a new key: multiseg fed enrol site {folder} {name}")
    for experiment in active_with(folder, name):
        text = f"{experiment} continues without {name}, from the last saved round. To include {name} after it is "
        text += f"enrolled again: multiseg fed stop {folder} {experiment}, and submit the run again."
        messages().print(text, markup=False, soft_wrap=True)
    return 0


def serve_command(folder: ServerHome) -> int:
    """Run the server until Ctrl-C: the gate that hospitals connect to, Flower behind it, and the runs.

    Processes that die are restarted. A run that was active when the server stopped is resumed.

    Example:

    multiseg fed serve centre
    """
    from multiseg.cli.console import messages
    from multiseg.federation.flower.serve import serve

    console = messages()
    serve(folder, lambda line: console.print(line, markup=False, soft_wrap=True))
    return 0


def app_command(
    show_hash: Annotated[bool, typer.Option("--hash", help="Only print its SHA-256, which sites approve.")] = False,
    out: Annotated[Path | None, typer.Option("--out", "-o", help="Write it to a file for inspection (.fab).")] = None,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Show the app for Flower: a manifest without code, with the hash of the source files of this multiseg.

    Example:

    multiseg fed app --hash
    """
    from importlib.metadata import version

    from multiseg.cli.console import output, print_json
    from multiseg.federation.fab import app_bytes, app_hash, sources_hash
    from multiseg.files import check_files, write_atomically

    about = {"version": version("multiseg"), "sources": sources_hash(), "sha256": app_hash(), "bytes": len(app_bytes())}
    if out:
        check_files([out], overwrite=overwrite, kinds=(".fab", ".zip"))
        write_atomically(out, app_bytes())
    if as_json:
        print_json(about)
    elif show_hash:
        output().print(about["sha256"])
    else:
        text = "multiseg {version}\nsources: SHA-256 {sources}\napp: SHA-256 {sha256}, {bytes} bytes"
        output().print(text.format(**about), soft_wrap=True, highlight=False)
    return 0
