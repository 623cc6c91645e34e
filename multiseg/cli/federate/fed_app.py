"""`multiseg fed`: hospitals train one model together without sharing their data."""

from __future__ import annotations

from collections.abc import Callable

import typer

from multiseg.cli.federate.operate import log_command, report_command, run_command, status_command, stop_command
from multiseg.cli.federate.server import app_command, enrol_app, revoke_command, serve_command
from multiseg.cli.federate.simulate import simulate_command
from multiseg.cli.federate.site_verbs import approve_command, audit_command, join_command

federation_app = typer.Typer(
    name="fed",
    help="Train one model across hospitals without sharing their data.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
COMMANDS: dict[str, Callable[..., int]] = {
    "simulate": simulate_command,
    "join": join_command,
    "approve": approve_command,
    "audit": audit_command,
    "revoke": revoke_command,
    "serve": serve_command,
    "run": run_command,
    "status": status_command,
    "log": log_command,
    "stop": stop_command,
    "report": report_command,
    "app": app_command,
}
for name, command in COMMANDS.items():
    federation_app.command(name)(command)
federation_app.add_typer(enrol_app)
