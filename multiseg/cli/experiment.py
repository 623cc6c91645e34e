"""The verb that repeats the paper's experiments."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.experiments.by_name import Experiment
    from multiseg.experiments.ground import Ground
    from multiseg.experiments.results import Machine, Result
    from multiseg.experiments.runner import Progress


def experiment_command(
    name: Annotated[str, typer.Argument(help="One of --list, or all.")] = "",
    out: Annotated[Path | None, typer.Option(help="Folder for runs and tables; experiments share runs in it.")] = None,
    store: Annotated[str, typer.Option(help="Your own store (default: synthetic hospitals, made in --out).")] = "",
    seeds: Annotated[int, typer.Option(help="Trainings of every arm.", min=1)] = 3,
    jobs: Annotated[int, typer.Option(help="Processes, each with one thread.", min=1)] = 2,
    scale: Annotated[str, typer.Option(help="tiny (shows that it runs), small (CPU) or full (GPU).")] = "small",
    steps: Annotated[int | None, typer.Option(help="Of every training, instead of the scale's.", min=1)] = None,
    device: Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")] = "auto",
    list_them: Annotated[bool, typer.Option("--list", help="Say what experiments there are and stop.")] = False,
    as_json: AsJson = False,
) -> int:
    """Repeat the findings of Xu et al. 2024: several seeds, paired differences with intervals, Markdown tables.

    Runs are trained once and shared; the same command goes on where it was cut short.

    Examples:

    multiseg experiment --list

    multiseg experiment joint --out experiments

    multiseg experiment all --out experiments --store brain.zarr --scale full --jobs 1
    """
    if list_them:
        return _list(as_json)
    if not name or out is None:
        raise UsageError("say which and where: multiseg experiment NAME --out DIR. Names: multiseg experiment --list.")
    from multiseg.experiments.results import Machine
    from multiseg.models.devices import resolve_device

    machine = Machine(jobs, str(resolve_device(device)))
    ground, experiments = _ground(name, out, store, scale, seeds, steps)
    results = [_run(one, ground, out, machine) for one in experiments]
    return _tell(results, as_json)


def _list(as_json: bool) -> int:
    from multiseg.cli.console import print_json, print_table
    from multiseg.experiments.by_name import EXPERIMENTS

    if as_json:
        print_json([{"name": e.name, "question": e.question, "paper": e.paper} for e in EXPERIMENTS.values()])
        return 0
    rows = [(e.name, e.question, e.paper) for e in EXPERIMENTS.values()]
    print_table("Experiments", ["name", "question", "Xu et al. 2024"], rows)
    return 0


def _ground(
    name: str, out: Path, store: str, scale: str, seeds: int, steps: int | None
) -> tuple[Ground, Sequence[Experiment]]:
    from multiseg.cli.console import messages
    from multiseg.experiments.by_name import check_name, chosen
    from multiseg.experiments.ground import ground_of, synthetic_ground
    from multiseg.experiments.scales import SCALES

    check_name(name, synthetic=not store)
    if scale not in SCALES:
        raise UsageError(f"there is no scale {scale!r}; there are {', '.join(SCALES)}.")
    numbers = SCALES[scale]
    if steps:
        numbers = replace(numbers, steps=steps, finetune_steps=max(1, steps // 2))
    if store:
        ground = ground_of(store, numbers, seeds)
    else:
        messages().print(f"The synthetic hospitals of scale {scale} are made in {out} where they are not there yet.")
        ground = synthetic_ground(out, numbers, seeds)
    return ground, chosen(name, ground.synthetic)


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
    """A bar over the work of all runs; a line for each that ends, off a terminal also for each that starts."""

    def __init__(self, bar: Any, console: Any, num_runs: int) -> None:
        self.bar, self.console, self.num_runs, self.ended, self.cost = bar, console, num_runs, 0, 0.0

    def event(self, progress: Progress) -> None:
        name = progress.task.run.name
        if progress.what != "started":
            self.ended += 1
            self.cost += progress.task.run.cost
        self.bar.update(0, completed=round(self.cost), details=f"{self.ended}/{self.num_runs} runs, {name}")
        if progress.what == "failed":
            self.console.print(f"{name} FAILED: {progress.failure}", soft_wrap=True, markup=False)
        elif progress.what == "finished" or (self.bar.disable and progress.what == "started"):
            took = f" after {progress.seconds:.0f} s" if progress.seconds else ""
            self.console.print(f"{self.ended}/{self.num_runs} {progress.what}{took}: {name}", soft_wrap=True)


def _tell(results: Sequence[Result], as_json: bool) -> int:
    from multiseg.cli.console import output, print_json

    if as_json:
        print_json([
            {"experiment": one.name, "folder": str(one.folder), "failures": dict(one.failures), "table": one.text}
            for one in results
        ])  # fmt: skip
    else:
        for one in results:
            output().print(one.text, markup=False, soft_wrap=True, highlight=False)
    return 4 if any(one.failures for one in results) else 0
