"""Verb: experiment."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson, Device
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.experiments.by_name import Experiment
    from multiseg.experiments.ground import Ground
    from multiseg.experiments.results import Machine, Result
    from multiseg.experiments.runner import Progress
    from multiseg.experiments.scales import Scale


def experiment_command(
    name: Annotated[str, typer.Argument(help="One of --list, or all of them: all.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for runs and tables; experiments share runs in it.")] = None,
    store: Annotated[str, typer.Option(help="Your own store (default: synthetic hospitals, made in --out).")] = "",
    seeds: Annotated[int, typer.Option(help="Number of trainings of every arm.", min=1)] = 3,
    jobs: Annotated[int, typer.Option(help="Processes, each with one thread.", min=1)] = 2,
    scale: Annotated[
        str,
        typer.Option(
            help="tiny (quick check), small, anatomy, hetero or two-branch (CPU), full (GPU). Default: its own."
        ),
    ] = "",
    steps: Annotated[int | None, typer.Option(help="Steps of every training (default: of the scale).", min=1)] = None,
    tissues: Annotated[str, typer.Option(help="Database of --store for tissues (ace, hetero, two-branch).")] = "",
    lesions: Annotated[
        str,
        typer.Option(
            help="Database to learn lesions from, and to test on (ace, hetero), or whose lesions are grafted into test "
            "cases of --tissues (two-branch)."
        ),
    ] = "",
    device: Device = "auto",
    list_them: Annotated[bool, typer.Option("--list", help="List the experiments and exit.")] = False,
    as_json: AsJson = False,
) -> int:
    """Repeat published findings: several seeds, paired differences with intervals, Markdown tables.

    Experiments share the runs that they have in common. To resume after an interruption, run the same command again.

    Examples:

    multiseg experiment --list

    multiseg experiment joint --out experiments

    multiseg experiment all --out experiments --store brain.zarr --scale full --jobs 1

    multiseg experiment ace --out experiments --store brain.zarr --tissues anatomy --lesions wmh

    multiseg experiment hetero --out experiments --store brain.zarr --tissues anatomy --lesions wmh

    multiseg experiment two-branch --out experiments --store brain.zarr --tissues anatomy --lesions wmh
    """
    if list_them:
        return _list(as_json)
    if not name or out is None:
        raise UsageError("give a name and a folder: multiseg experiment NAME --out DIR. --list prints the names.")
    from multiseg.cli.console import messages, output, print_json
    from multiseg.experiments.by_name import check_name, chosen, ground_for
    from multiseg.experiments.results import Machine
    from multiseg.models.devices import resolve_device

    machine = Machine(jobs, str(resolve_device(device)))
    check_name(name, synthetic=not store)
    experiments = chosen(name, synthetic=not store)
    scales = [_scale(scale or experiment.scale, steps) for experiment in experiments]
    if not store:
        messages().print(f"Making the synthetic hospitals in {out}, unless they exist already.", soft_wrap=True)
    grounds = [
        ground_for(experiment, out, numbers, seeds, store, (tissues, lesions))
        for experiment, numbers in zip(experiments, scales, strict=True)
    ]
    results = [_run(one, ground, out, machine) for one, ground in zip(experiments, grounds, strict=True)]
    if as_json:
        print_json([
            {"experiment": result.name, "folder": str(result.folder), "failures": dict(result.failures),
             "table": result.text}
            for result in results
        ])  # fmt: skip
    else:
        for result in results:
            output().print(result.text, markup=False, soft_wrap=True, highlight=False)
    return 4 if any(result.failures for result in results) else 0


def _list(as_json: bool) -> int:
    from multiseg.cli.console import print_json, print_table
    from multiseg.experiments.by_name import EXPERIMENTS

    rows = [(one.name, one.question, f"{one.authors}: {one.paper}") for one in EXPERIMENTS.values()]
    if as_json:
        print_json([dict(zip(("name", "question", "paper"), row, strict=True)) for row in rows])
    else:
        print_table("Experiments", ["name", "question", "paper"], rows)
    return 0


def _scale(name: str, steps: int | None) -> Scale:
    from multiseg.experiments.scales import SCALES

    if name not in SCALES:
        raise UsageError(f"there is no scale {name!r}; there are {', '.join(SCALES)}.")
    return replace(SCALES[name], steps=steps, finetune_steps=max(1, steps // 2)) if steps else SCALES[name]


def _run(experiment: Experiment, ground: Ground, out: Path, machine: Machine) -> Result:
    from multiseg.cli.console import messages, progress_bar
    from multiseg.experiments.results import run_experiment, tasks_of

    console, tasks = messages(), tasks_of(experiment.plan(ground), ground, out, machine.device)
    with progress_bar(experiment.name, round(sum(task.run.cost for task in tasks))) as bar:
        show = _Bar(bar, console, len(tasks))
        result = run_experiment(experiment, ground, out, machine, show.event)
    console.print(f"{experiment.name}: tables in {result.folder}", soft_wrap=True)
    return result


class _Bar:
    """A bar over the work of all runs. It prints a line when a run ends, and off a terminal also when one starts."""

    def __init__(self, bar: Any, console: Any, num_runs: int) -> None:
        self.bar, self.console, self.num_runs, self.num_ended, self.cost = bar, console, num_runs, 0, 0.0

    def event(self, progress: Progress) -> None:
        name = progress.task.run.name
        if progress.what != "started":
            self.num_ended += 1
            self.cost += progress.task.run.cost
        count = f"{self.num_ended}/{self.num_runs}"
        self.bar.update(0, completed=round(self.cost), details=f"{count} runs, {name}")
        if progress.what == "failed":
            self.console.print(f"{name} FAILED: {progress.failure}", soft_wrap=True, markup=False)
        elif progress.what == "finished" or (self.bar.disable and progress.what == "started"):
            duration = f" after {progress.seconds:.0f} s" if progress.seconds else ""
            self.console.print(f"{count} {progress.what}{duration}: {name}", soft_wrap=True)
