"""Verb: fed simulate."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson, FromRound, PrintConfig
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.federation.centre.rounds import RunResult
    from multiseg.federation.centre.run_events import Event
    from multiseg.federation.plan import FederationOptions
    from multiseg.federation.simulation import SimulationMachine
    from multiseg.training.events import Event as StepEvent

HINT = "Print one with: multiseg fed simulate --store a.zarr --store b.zarr --print-config"


def simulate_command(
    run: Annotated[Path | None, typer.Argument(metavar="[RUN.TOML]", help="Settings of the run.")] = None,
    store: Annotated[
        list[str] | None, typer.Option(help="Store of a site: SITE=URL, or a URL that ends with the site's name.")
    ] = None,
    out: Annotated[Path, typer.Option(help="Folder of the run.")] = Path("runs/federation"),
    rounds: Annotated[int | None, typer.Option(help="Rounds in total.", min=1)] = None,
    steps: Annotated[int | None, typer.Option(help="Optimiser steps of each site in a round.", min=1)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed for weights, dropout and sampling.")] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N; sites use it one after the other.")] = "auto",
    from_round: FromRound = None,
    least: Annotated[
        int, typer.Option(help="A site with fewer cases sends nothing, as with least in its site.toml.", min=1)
    ] = 5,
    hide: Annotated[
        list[str] | None,
        typer.Option(
            help="What a site does not use, as with hide in its site.toml: SITE=DATABASE/ANNOTATION (or .../SEQUENCE)."
        ),
    ] = None,
    print_config: PrintConfig = False,
    as_json: AsJson = False,
) -> int:
    """Run a federation on this machine: the same rounds as when deployed, but one site after the other.

    To resume a run, use the same command again.

    Examples:

    multiseg fed simulate --store alder.zarr --store birch.zarr --rounds 3 --out runs/fed

    multiseg fed simulate run.toml --store north=a.zarr --store south=s3://bucket/b.zarr

    multiseg fed simulate run.toml --store anatomy.zarr --store wmh.zarr --hide wmh=wmh/tissue
    """
    import tomli_w

    from multiseg.cli.console import print_json
    from multiseg.cli.train_flags import check_run_file
    from multiseg.federation.centre.earlier import go_back
    from multiseg.federation.plan import drop_ignored
    from multiseg.federation.simulation import SimulationMachine

    stores = named_stores(store or [])
    flags = {"seed": seed, "local": {"steps": steps}, "schedule": {"rounds": rounds}}
    options = federation_options(run, stores, flags, device)
    if print_config:
        settings = drop_ignored(asdict(options))
        print_json(settings) if as_json else typer.echo(tomli_w.dumps(settings), nl=False)
        return 0
    check_run_file(run, out, resumes=(out / "state.safetensors").is_file())
    if from_round is not None:
        go_back(out, options.experiment, from_round)
    machine = SimulationMachine(device, options.stream.workers, options.stream.cache, least, hidden_by_site(hide or []))
    result = _simulate_shown(options, stores, out, machine, as_json)
    if as_json:
        print_json(asdict(result) | {"folder": str(out)})
    return 0 if result.finished else 130


def named_stores(stores: Sequence[str]) -> dict[str, str]:
    """Stores by site, from "SITE=URL" or from a path or URL that ends with the site's name.

    Raises:
        UsageError: a site has two stores.
    """
    urls: dict[str, str] = {}
    for text in stores:
        match = re.fullmatch(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)", text)
        url = match[2] if match else text
        site = match[1] if match else url.rstrip("/").rpartition("/")[2].removesuffix(".zarr")
        if site in urls:
            raise UsageError(f"site {site} has two stores, {urls[site]} and {url}: name them, as --store SITE=URL.")
        urls[site] = url
    return urls


def hidden_by_site(hide: Sequence[str]) -> dict[str, tuple[str, ...]]:
    """What each site hides, from "SITE=DATABASE/NAME".

    Raises:
        UsageError: a text is not of this form.
    """
    hidden: dict[str, tuple[str, ...]] = {}
    for text in hide:
        site, _, name = text.partition("=")
        if not site or not name:
            raise UsageError(f"--hide is {text!r}: give SITE=DATABASE/ANNOTATION, such as --hide north=wmh/tissue.")
        hidden[site] = (*hidden.get(site, ()), name)
    return hidden


def federation_options(
    run: Path | None, stores: Mapping[str, str], flags: Mapping[str, Any], device: str = "auto"
) -> FederationOptions:
    """The options of a run, from the defaults of the machine, the run file, and the flags, which override it.

    If no sites are named, every store is one, except those of `held_out`.

    Raises:
        UsageError: a setting is invalid.
    """
    import torch

    from multiseg.config import checked, defaults, merged, training_settings
    from multiseg.federation.plan import FederationOptions, check, read_run

    file = read_run(run, HINT) if run else {}
    held_out = file.get("held_out", ())
    roster = {"experiment": "simulation", "sites": tuple(name for name in stores if name not in held_out)}
    settings = merged(merged(roster, file), flags)
    cuda = torch.cuda.is_available() if device == "auto" else device.startswith("cuda")
    options = checked(training_settings(merged(defaults(cuda, settings), settings)), FederationOptions)
    check(options)
    return options


def _simulate_shown(
    options: FederationOptions, stores: Mapping[str, str], out: Path, machine: SimulationMachine, quiet: bool
) -> RunResult:
    """Run with a progress bar on a terminal, a line per round, and tables at the end."""
    from multiseg.cli.console import messages, print_page_table, progress_bar
    from multiseg.federation.centre.run_report import cross_table, round_table, test_table
    from multiseg.federation.simulation import simulate

    console = messages(quiet)
    total = options.schedule.rounds * len(options.sites) * options.local.steps
    with progress_bar("simulate", total, "preparing", quiet) as bar:
        show = _Progress(bar, console, options)
        result = simulate(options, stores, out, show.event, show.step, machine)
    if not result.finished:
        console.print(f"Stopped after round {result.round}, saved.", soft_wrap=True)
    elif not quiet:
        print_page_table(
            f"{out}: Dice of the model at the start of each round", round_table(result.history, result.final)
        )
        print_page_table(f"Test Dice, model of round {result.best_round}", test_table(result.test))
        if options.schedule.cross_site:
            print_page_table("Test Dice of each site's model of the last round", cross_table(result.final))
    return result


class _Progress:
    """Shows steps in the progress bar, and prints a line for each event that the bar does not show."""

    def __init__(self, bar: Any, console: Any, options: FederationOptions) -> None:
        self.bar, self.console, self.options, self.round = bar, console, options, 0

    def step(self, site: str, event: StepEvent) -> None:
        """Move the bar to a site's step."""
        from multiseg.training.events import StepDone

        if isinstance(event, StepDone):
            done = event.step + self.options.local.steps * (
                self.round * (len(self.options.sites) - 1) + self.options.sites.index(site)
            )
            loss = f"loss {event.loss:.3f}" if math.isfinite(event.loss) else "loss not finite"
            self.bar.update(0, completed=done, details=f"round {self.round + 1} at {site}, {loss}")

    def event(self, event: Event) -> None:
        """Print what a person should see."""
        from multiseg.federation.centre.run_events import Began, Came, RoundDone, Waiting, in_words

        if isinstance(event, Began):
            self.round = event.round - 1
        if isinstance(event, RoundDone):
            self.bar.update(0, completed=event.round * len(self.options.sites) * self.options.local.steps)
        if not isinstance(event, Began | Came | Waiting):
            self.console.print(in_words(event), markup=False, soft_wrap=True)
