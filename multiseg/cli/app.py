"""The `multiseg` command: its verbs, and the exit code of each error."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

import click
import typer
from typer.main import get_command

from multiseg.cli.flag_groups import with_single_flags
from multiseg.errors import MultisegError
from multiseg.faults import NOT_SUPPORTED, OUT_OF_RESOURCE, raise_descriptor_limit, remedy
from multiseg.shown import lines

EXIT_CODES = """
Exit codes: 0 done, 1 a bug in multiseg, 2 usage, 3 invalid data, 4 nothing to do or partly done,
5 out of a resource, 130 interrupted. Every command has --help with examples.
"""

BUG = "This is a bug in multiseg. Please report it with the lines above."
INTERRUPTED = "Interrupted. Finished work is saved; to resume, run the same command again."

Consume = Callable[[click.Context, Mapping[str, Any]], tuple[Any, click.core.ParameterSource]]
STARTS_OVER = ("train", "finetune", "predict", "bids")
"""Verbs that resume in their folder, but with --overwrite do all of it again."""
STORES = frozenset({"store", "of_store", "path"})
"""Parameters that are a path or a URL."""

COMMANDS: dict[str, str] = {
    "demo": "demo:demo_command",
    "doctor": "doctor:doctor_command",
    "phantoms": "phantoms:phantoms_command",
    "ingest": "ingest:ingest_command",
    "info": "info:info_command",
    "view": "view:view_command",
    "graft": "graft_cases:graft_command",
    "verify": "verify:verify_command",
    "upgrade": "upgrade:upgrade_command",
    "repair": "repair:repair_command",
    "remove": "remove:remove_command",
    "compact": "compact:compact_command",
    "train": "train:train_command",
    "finetune": "finetune:finetune_command",
    "train-brain": "train_brain:train_brain_command",
    "evaluate": "evaluate:evaluate_command",
    "calibrate": "calibrate:calibrate_command",
    "report": "report:run_report_command",
    "export": "export:export_command",
    "pack": "pack:pack_command",
    "bids": "bids_app:bids_command",
    "brain-mask": "brain_mask:brain_mask_command",
    "predict": "predict:predict_command",
    "experiment": "experiment:experiment_command",
    "import-weights": "import_weights:import_weights_command",
}
"""By name, the module of multiseg.cli with the command, and its function."""
FEDERATION = "fed"


def build_app(verb: str = "") -> typer.Typer:
    """The command line with all commands, or with one alone, since importing all of them takes half of its start.

    Args:
        verb: the command; if there is none of this name, all are built.
    """
    app = typer.Typer(
        name="multiseg",
        help="Segment brain lesions from any set of MRI sequences, with one model trained on databases that differ.",
        epilog=EXIT_CODES,
        no_args_is_help=True,
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback()(_root)
    is_single = verb in COMMANDS or verb == FEDERATION
    for name in [verb] if is_single else [*COMMANDS, FEDERATION]:
        if name == FEDERATION:
            app.add_typer(import_module("multiseg.cli.federate.fed_app").federation_app, name=name)
            continue
        module, _, function = COMMANDS[name].partition(":")
        app.command(name)(with_single_flags(getattr(import_module(f"multiseg.cli.{module}"), function)))
    return app


def _print_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        print(f"multiseg {version('multiseg')}")  # noqa: T201
        raise typer.Exit


def _root(
    show: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    pass


def run(arguments: Sequence[str]) -> int:
    """Run one command line and return its exit code."""
    message = ""
    try:
        command = refuse_empty(get_command(build_app(*arguments[:1])))
        code = command(list(arguments), standalone_mode=False, obj=tuple(arguments)) or 0
        if code == 130:  # typer turns Ctrl-C into this
            message = interruption_message(arguments)
    except click.ClickException as error:
        if "Did you mean" in error.message:
            error.possibilities = None  # type: ignore[attr-defined]  # typer's message already lists them
        error.show()
        _print_error(error, error.format_message(), arguments)
        return error.exit_code
    except (KeyboardInterrupt, click.Abort):
        code, message = 130, interruption_message(arguments)
    except MultisegError as error:
        code, message = error.exit_code, f"{type(error).__name__}: {error}"
        _print_error(error, str(error), arguments)
    except BrokenPipeError:
        code = 0  # the program that reads our output has closed it, as `head` does
    except OSError as error:
        code, message = 5, f"{error}. {remedy(error, '')}"
        if error.errno not in OUT_OF_RESOURCE and not (error.filename and error.errno in NOT_SUPPORTED):
            traceback.print_exc()
            code, message = 1, BUG
        _print_error(error, message, arguments)
    except MemoryError as error:
        code, message = 5, "Out of memory. Use smaller patches or batches, or fewer workers."
        _print_error(error, message, arguments)
    except Exception as error:  # noqa: BLE001 (the outermost border: everything else is a bug)
        traceback.print_exc()
        code, message = 1, BUG
        _print_error(error, message, arguments)
    sys.stderr.write(lines(message) + "\n" if message else "")
    return code


def refuse_empty(command: click.Command) -> click.Command:
    """Make an empty path or argument a usage error of a command and all its subcommands; returns the command.

    A script passes an empty text when a variable is not set. It would mean the current folder, or the newest run.
    """
    for parameter in command.params:
        is_path = isinstance(parameter.type, click.Path) or parameter.name in STORES
        if is_path or isinstance(parameter, click.Argument):
            setattr(parameter, "consume_value", partial(_consume, parameter, parameter.consume_value))  # noqa: B010
    for subcommand in getattr(command, "commands", {}).values():
        refuse_empty(subcommand)
    return command


def _consume(
    parameter: click.Parameter, consume: Consume, ctx: click.Context, typed: Mapping[str, Any]
) -> tuple[Any, click.core.ParameterSource]:
    """Replaces the parameter's `consume_value`, which returns the value as it was typed.

    Raises:
        click.BadParameter: an empty text was typed.
    """
    value, source = consume(ctx, typed)
    is_empty = value == "" or (isinstance(value, list | tuple) and "" in value)
    if is_empty and source is click.core.ParameterSource.COMMANDLINE:
        raise click.BadParameter(
            "an empty text was given. Give a value (. is the current folder), or leave it out.", ctx, parameter
        )
    return value, source


def interruption_message(arguments: Sequence[str]) -> str:
    """What an interrupted command prints. Repeating --overwrite would delete the training that it should resume."""
    starts_over = "--overwrite" in arguments and arguments[0] in STARTS_OVER
    return INTERRUPTED.replace("command", "command without --overwrite") if starts_over else INTERRUPTED


def _print_error(error: Exception, message: str, arguments: Sequence[str]) -> None:
    """With --json, print an error as JSON, for scripts that expect JSON on stdout; unless a document is there."""
    if "--json" not in arguments:
        return
    from multiseg.cli.console import HAS_DOCUMENT, print_json

    if getattr(error, HAS_DOCUMENT, False):
        return

    is_ours = isinstance(error, MultisegError)
    name = "UsageError" if isinstance(error, click.ClickException) else type(error).__name__
    details = {key: getattr(error, key, "") if is_ours else "" for key in ("code", "file")}
    print_json({"error": name, **details, "message": message})


def main() -> None:
    """Entry point of the `multiseg` command."""
    _remove_current_folder_from_path()
    raise_descriptor_limit()
    sys.exit(run(sys.argv[1:]))


def _remove_current_folder_from_path() -> None:
    """Remove the current folder from sys.path, where `python -m` puts it first.

    Otherwise a model file in a downloaded folder could name a module in that folder, whose code would then run.
    Folders in PYTHONPATH stay.
    """
    is_module_run = getattr(sys.modules["__main__"], "__spec__", None) is not None
    if is_module_run and not sys.flags.safe_path and sys.path[:1] == [str(Path.cwd())]:
        del sys.path[0]


if __name__ == "__main__":
    main()
