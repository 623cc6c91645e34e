"""Reports on a federated run: tables, and an HTML page with plots that needs no other file."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

from multiseg.federation.centre.crosswise import CROSS
from multiseg.federation.centre.experiment_folder import read_fingerprint, read_history
from multiseg.federation.centre.run_events import clock_time, megabytes, number
from multiseg.federation.centre.scores import mean, worst
from multiseg.federation.centre.site_answers import number_of
from multiseg.pages.page import Section, Table, draw_lines, drawn, render
from multiseg.training.run_folder import LOG

NOTABLE = ("Refused", "Resent", "Noted", "Waiting", "Left", "WentBack")
"""Events that the report lists."""
CROSS_NOTE = "The model that each site trained in the last round, on the test cases of every site: mean Dice."
LIMIT = 200
"""Events that a page shows, the last ones."""


def round_table(history: Sequence[Mapping[str, Any]], final: Mapping[str, Any]) -> Table:
    """A row for each round: Dice of the model that it started from, losses, bytes, seconds; then the last model's."""
    sites = _sites(history)
    private = any(math.isfinite(number_of(entry.get("epsilon"))) for entry in history)
    columns = ["round", "mean", "worst", *sites, "loss", *(["epsilon"] if private else []), "sent", "received", "time"]
    columns.append("without")
    rows = []
    for entry in history:
        results = entry["sites"]
        row = [str(entry["round"]), number(number_of(entry["mean"])), number(number_of(entry["worst"]))]
        row += [number(number_of(results[site]["dice"])) if site in results else "" for site in sites]
        row.append(number(mean(number_of(result["loss"]) for result in results.values())))
        row += [f"{number_of(entry.get('epsilon')):.3g}"] if private else []
        row += [megabytes(sum(result[way] for result in results.values())) for way in ("sent", "received")]
        rows.append([*row, clock_time(entry["seconds"]), ", ".join(entry["failed"])])
    last = _mean_by_site(final.get("validation", {}))
    if last:
        scores = [mean(last.values()), worst(last.values()), *(last.get(site, math.nan) for site in sites)]
        rows.append(["end", *map(number, scores), *[""] * (6 if private else 5)])
    return Table(columns, rows, columns[:-1])


def _mean_by_site(scores: Mapping[str, Mapping[str, Any]]) -> dict[str, float]:
    return {site: mean(map(number_of, dice.values())) for site, dice in scores.items()}


def test_table(test: Mapping[str, Mapping[str, float]]) -> Table:
    """A row for each site and database (and subset) on which the best model was tested."""
    rows = [[site, name, number(number_of(dice))] for site, scores in test.items() for name, dice in scores.items()]
    return Table(["site", "database", "Dice"], rows, ["Dice"])


def cross_table(final: Mapping[str, Any]) -> Table:
    """A row for each model that was tested at every site, the joint one last; a column for each site."""
    cross = final.get(CROSS, {})
    rows = {**cross, "all (best joint model)": final.get("test", {})} if cross else {}
    sites = list(dict.fromkeys(site for scores in rows.values() for site in scores))
    table = [
        [owner, *(number(mean(map(number_of, scores.get(site, {}).values()))) for site in sites)]
        for owner, scores in rows.items()
    ]
    columns = [f"at {site}" for site in sites]
    return Table(["model of", *columns], table, columns)


def site_table(roster: Mapping[str, Any]) -> Table:
    """A row for each database of each site."""
    rows = []
    for kind, infos in (("trains", roster["sites"]), ("held out", roster["held_out"])):
        for site, info in infos.items():
            for name, about in info["databases"].items():
                counts = [str(about["num_cases"][split]) for split in ("train", "val", "test")]
                rows.append([site, kind, name, about["pathology"], " ".join(about["modalities"]), *counts])
    columns = ["site", "role", "database", "pathology", "sequences", "train", "val", "test"]
    return Table(columns, rows, columns[-3:])


def summary(folder: Path) -> dict[str, Any]:
    """All that a run's folder holds, for a page or for JSON.

    Raises:
        UsageError: the folder has no federated run with a finished round.
    """
    content = read_history(folder)
    return {
        "folder": str(folder),
        "round": content["round"],
        "best": content["mean"],
        "best_by_worst_site": content["worst"],
        "roster": content["roster"],
        "history": content["history"],
        "final": content["final"],
        "fingerprint": read_fingerprint(folder),
        "events": notable_events(folder),
    }


def notable_events(folder: Path) -> list[dict[str, Any]]:
    """What did not go smoothly, from the log; lines cut short by a kill are left out."""
    events = []
    path = folder / LOG
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
        try:
            event = json.loads(line)
        except ValueError:
            continue
        if isinstance(event, dict) and event.get("event") in NOTABLE:
            events.append(event)
    return events


def page(run: Mapping[str, Any]) -> str:
    """An HTML page with tables and plots of a `summary`."""
    history, final, best = run["history"], run["final"], run["best"]
    axis = ", ".join(run["roster"]["info"]["axis"])
    title = f"Federated run {Path(run['folder']).name}"
    intro = f"{run['round']} rounds over {len(run['roster']['sites'])} sites; the joint model reads {axis}."
    if best["round"] >= 0:
        intro += f" Best on average over the sites is the model after round {best['round']}, with a validation Dice of "
        intro += f"{number(number_of(best['score']))}."
    sections = [
        Section(
            "Dice on validation cases", [drawn(partial(_dice_plot, run))], "Of the model after each round, by site."
        ),
        Section("Loss", [drawn(partial(_loss_plot, run))], "Mean of each site's training in the round."),
        Section(
            "Bytes and time",
            [drawn(partial(_traffic_plot, run))],
            "Per round: received from each site, and its working time.",
        ),
        *([Section("Test cases", [test_table(final["test"])], "The best model.")] if final.get("test") else []),
        *([Section("From site to site", [cross_table(final)], CROSS_NOTE)] if final.get(CROSS) else []),
        Section("Rounds", [round_table(history, final)], "Dice is that of the model that the round started from."),
        Section("Sites", [site_table(run["roster"])], "Numbers of cases are rounded up by the sites."),
        Section("What happened", [_event_table(run["events"])]),
    ]
    return render(title, intro, sections)


def _sites(history: Sequence[Mapping[str, Any]]) -> list[str]:
    return list(dict.fromkeys(site for entry in history for site in (*entry["sites"], *entry["failed"])))


def _event_table(events: Sequence[Mapping[str, Any]]) -> Table:
    rows = []
    for event in events[-LIMIT:]:
        about = event.get("site") or ", ".join(event.get("sites", ()))
        text = event.get("reason") or event.get("text") or ("" if event.get("sites") else "all sites are online")
        rows.append([event["time"], str(event["round"]), event["event"].lower(), about, text])
    return Table(["time", "round", "what", "site", "message"], rows, ["round"], long=["message"])


def _curves(run: Mapping[str, Any], name: str, shift: int = 0) -> dict[str, list[tuple[float, float]]]:
    curves: dict[str, list[tuple[float, float]]] = {site: [] for site in _sites(run["history"])}
    for entry in run["history"]:
        for site, result in entry["sites"].items():
            curves[site].append((float(entry["round"] + shift), number_of(result[name])))
    return {site: points for site, points in curves.items() if points}


def _dice_plot(run: Mapping[str, Any], figure: Figure) -> None:
    """Round r evaluated the model after r - 1 rounds; the last model was evaluated at the end."""
    axes = figure.add_subplot()
    curves = _curves(run, "dice", shift=-1)
    means = [(entry["round"] - 1.0, number_of(entry["mean"])) for entry in run["history"]]
    last = _mean_by_site(run["final"].get("validation", {}))
    for site, dice in last.items():
        curves.setdefault(site, []).append((float(run["round"]), dice))
    if last:
        means.append((float(run["round"]), mean(last.values())))
    draw_lines(axes, curves, "Dice", "round")
    axes.plot(*zip(*means, strict=True), color="black", lw=2, label="mean over sites")
    axes.set_ylim(0, 1)
    if run["best"]["round"] >= 0:
        axes.axvline(run["best"]["round"], color="black", lw=0.8, ls=":", label="best model")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)


def _loss_plot(run: Mapping[str, Any], figure: Figure) -> None:
    draw_lines(figure.add_subplot(), _curves(run, "loss"), "loss", "round")
    figure.legend(loc="outside upper center", ncols=3, frameon=False)


def _traffic_plot(run: Mapping[str, Any], figure: Figure) -> None:
    left, right = figure.subplots(1, 2)
    received = _curves(run, "received")
    megabytes_of = {site: [(x, size / 1e6) for x, size in points] for site, points in received.items()}
    draw_lines(left, megabytes_of, "MB received", "round")
    draw_lines(right, _curves(run, "seconds"), "seconds of work", "round")
    for axes in (left, right):
        axes.margins(y=0.1)
        axes.set_ylim(bottom=0)
    figure.legend(*left.get_legend_handles_labels(), loc="outside upper center", ncols=3, frameon=False)
