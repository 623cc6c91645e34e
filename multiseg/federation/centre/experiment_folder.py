"""The server's folder of a run: its models, the state to resume from, and the result of each round.

One file commits: models are first written under temporary names, then state.safetensors says which of them count, then
they are renamed. A process killed between any two steps leaves a folder that opens as before or after the round.
"""

from __future__ import annotations

import csv
import io
import json
import math
import tomllib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor

from multiseg.errors import CheckpointError, UsageError
from multiseg.federation.centre.site_roster import Roster
from multiseg.federation.plan import IGNORED, FederationOptions, drop_ignored
from multiseg.files import check_folder, lock_folder, replace_file, write_atomically
from multiseg.models.saved import BEST, LAST, ModelInfo, load_weights, read_info, save_weights
from multiseg.shown import cell
from multiseg.training.run_folder import COMPUTING, LOCK, READING, RUN_FILE, flat

STATE, WORST = "state.safetensors", "worst.safetensors"
ROSTER, ROUNDS, FINGERPRINT = "roster.json", "rounds.csv", "fingerprint.json"
NEXT = ".next"
"""Suffix of a model that is written but does not count yet."""
FORMAT = 1
FREE = frozenset({"sites", "held_out", "schedule.quorum", "schedule.deadline_minutes", "schedule.keep_rounds"}).union(
    (f"fit.{name}" for name in COMPUTING), (f"stream.{name}" for name in READING)
)
"""Settings that may differ when a run is resumed: sites may change, and the others do not affect what is learnt."""
COLUMNS = ("round", "site", "dice", "loss", "num_cases", "sent", "received", "seconds", "norm", "note")


@dataclass(frozen=True)
class Best:
    """The best score so far, and the round of that model; NaN and -1 before there is any.

    Attributes:
        kept: by site, the last round whose update was in that model; the site's own parts of that round belong to it.
    """

    score: float = math.nan
    round: int = -1
    kept: Mapping[str, int] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class State:
    """All that a run needs to resume.

    Attributes:
        round: rounds done.
        network: the global weights, by tensor name.
        optimiser: the server's, by name.
        kept: by site, the last round whose update is in the network.
        learnt: by sequence, the databases that it was learnt from.
        history: one entry per round, as in log.jsonl.
        mean, worst: the best model by the mean over the sites, and by the worst of them.
        scored: the round of the last model that has been scored; -1 before the first.
        final: validation of the last model and test of the best one, after all rounds.
        course: how often the run was put back to an earlier round.
    """

    round: int
    roster: Roster
    network: Mapping[str, Tensor]
    optimiser: Mapping[str, Tensor] = field(default_factory=dict)
    kept: Mapping[str, int] = field(default_factory=dict)
    learnt: Mapping[str, Sequence[str]] = field(default_factory=dict)
    history: Sequence[Mapping[str, Any]] = ()
    mean: Best = Best()
    worst: Best = Best()
    scored: int = -1
    final: Mapping[str, Any] = field(default_factory=dict)
    course: int = 0


Models = Mapping[str, tuple[Mapping[str, Tensor], ModelInfo]]
"""Weights and info by file name."""


@contextmanager
def claimed(folder: Path, options: FederationOptions) -> Iterator[None]:
    """Lock the folder for this run; it must be empty, or hold a run with the same settings.

    Raises:
        ResourceError: another process runs it.
        UsageError: it holds a run with other settings, a model of another kind of run, or something else, such as a
            store or scans.
    """
    check_folder(folder, own=(STATE, LOCK))
    models = [name for name in (BEST, LAST) if (folder / name).exists()]
    if models and not (folder / STATE).exists():
        raise UsageError(f"{folder} holds a model ({models[0]}) that is not of a federated run: choose another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    with lock_folder(folder / LOCK, "it runs this experiment. Wait for it to end, or choose another folder."):
        for half_written in folder.glob(".*.tmp"):  # by a process that was killed
            half_written.unlink()
        check_same(folder, options)
        write_atomically(folder / RUN_FILE, tomli_w.dumps(drop_ignored(asdict(options))).encode())
        yield


def check_same(folder: Path, options: FederationOptions) -> None:
    """Raises UsageError, naming the settings, if the folder holds a run of which a setting that matters differs."""
    if not ((folder / STATE).is_file() and (folder / RUN_FILE).is_file()):
        return
    stored = tomllib.loads((folder / RUN_FILE).read_text(encoding="utf-8"))
    asked = tomllib.loads(tomli_w.dumps(asdict(options)))
    # A setting that an older version did not write had its default.
    defaults = tomllib.loads(tomli_w.dumps(asdict(FederationOptions(experiment="", sites=()))))
    before, now = flat(defaults) | flat(stored), flat(asked)
    free = FREE | IGNORED.keys() | ({"schedule.rounds"} if now["fit.schedule"] == "constant" else set())
    differing = sorted(key for key in (before.keys() | now.keys()) - free if before.get(key) != now.get(key))
    if not differing:
        return
    listed = "; ".join(f"{key} was {before.get(key)!r}, now {now.get(key)!r}" for key in differing[:5])
    if "schedule.rounds" in differing:
        listed += (
            f". Rounds can be added only with fit.schedule = 'constant': {before['fit.schedule']!r} set the learning "
            f"rate of every round for {before['schedule.rounds']} rounds"
        )
    raise UsageError(
        f"{folder} holds a run with other settings: {listed}. Use its settings, or give the experiment another name "
        "and folder."
    )


def commit(folder: Path, state: State, models: Models, alone: bool = False) -> None:
    """Save a state and its new models, completely or not at all.

    Args:
        alone: these are all models of the state; the others in the folder do not belong to it.

    Raises:
        ResourceError: the disk is full; the folder is unchanged.
    """
    steps = ({} if alone else _committed_steps(folder)) | {name: info.step for name, (_, info) in models.items()}
    for name, (weights, info) in models.items():
        save_weights(_beside(folder, name), weights, info)
    write_atomically(folder / STATE, _state_bytes(state, steps))  # from here on it counts
    for name in models:
        replace_file(_beside(folder, name), folder / name)
    write_atomically(folder / ROSTER, json.dumps(state.roster.to_json(), indent=1).encode())
    write_atomically(folder / ROUNDS, _table(state.history).encode())


def opened(folder: Path) -> State | None:
    """The last committed state, after moving its models into place; None if there is none.

    Raises:
        CheckpointError: a file is damaged or does not belong to the others.
    """
    if not (folder / STATE).is_file():
        for temporary in folder.glob(_beside(folder, "*").name):
            temporary.unlink()
        return None
    content, optimiser = _read_content(folder / STATE), _read_optimiser(folder / STATE)
    roster = Roster.from_json(content["roster"])
    for temporary in folder.glob(_beside(folder, "*").name):
        _settle(temporary, content["models"], roster)
    for pattern in (BEST, WORST, "site-*.safetensors"):
        for model in folder.glob(pattern):
            if model.name not in content["models"]:  # of rounds before the run was put back
                model.unlink()
    last, step = read_info(folder / LAST), content["models"][LAST]
    width = len(last.axis)
    if last.step != step or tuple(last.axis) != tuple(roster.info.axis)[:width]:
        raise CheckpointError(
            f"{folder / LAST} is of step {last.step} and reads {', '.join(last.axis)}, but {STATE} expects step {step} "
            f"and {', '.join(roster.info.axis)}: they do not belong together. Restore both from one copy of the folder."
        )
    if width < len(roster.info.axis):  # older versions saved the grown roster without the network: it grows again
        known = {name: roster.info.trained_on.get(name, ()) for name in last.axis}
        roster = replace(roster, info=replace(roster.info, axis=last.axis, trained_on=known))
    return State(
        **{name: content[name] for name in ("round", "kept", "history", "scored", "final")},
        roster=roster,
        network=load_weights(folder / LAST),
        optimiser=optimiser,
        learnt=content["learnt"] if "learnt" in content else _learnt(roster, content["kept"]),
        mean=Best(**content["mean"]),
        worst=Best(**content["worst"]),
        course=content.get("course", 0),
    )


def _learnt(roster: Roster, kept: Mapping[str, int]) -> dict[str, list[str]]:
    """An estimate of `learnt` for states of older versions, which lack it."""
    trained_on = roster.info.trained_on.items()
    return {name: [entry for entry in entries if entry.partition("/")[0] in kept] for name, entries in trained_on}


def read_history(folder: Path) -> dict[str, Any]:
    """The run in a folder as JSON: round, roster, history, mean, worst, final.

    Raises:
        UsageError: the folder has no saved round of a federated run.
        CheckpointError: it is damaged.
    """
    if not (folder / STATE).is_file():
        raise UsageError(f"{folder} has no federated run with a finished round (no {STATE}).")
    return _read_content(folder / STATE)


def save_fingerprint(folder: Path, fingerprint: Mapping[str, Mapping[str, Any]]) -> None:
    """Save the sites' statistics of their images, by site."""
    write_atomically(folder / FINGERPRINT, json.dumps(fingerprint, indent=1, sort_keys=True).encode())


def read_fingerprint(folder: Path) -> dict[str, Any]:
    """The saved statistics by site; empty if there are none."""
    try:
        return dict(json.loads((folder / FINGERPRINT).read_text(encoding="utf-8")))
    except FileNotFoundError:
        return {}


def _beside(folder: Path, name: str) -> Path:
    return folder / f".{name}{NEXT}"


def _committed_steps(folder: Path) -> dict[str, int]:
    return dict(_read_content(folder / STATE)["models"]) if (folder / STATE).is_file() else {}


def _settle(temporary: Path, steps: Mapping[str, int], roster: Roster) -> None:
    """Rename a model that was written for the committed state, and delete any other."""
    name, info = temporary.name[1:].removesuffix(NEXT), read_info(temporary)
    if (info.step, tuple(info.axis)) == (steps.get(name), tuple(roster.info.axis)):
        replace_file(temporary, temporary.with_name(name))
    else:
        temporary.unlink()


def _state_bytes(state: State, steps: Mapping[str, int]) -> bytes:
    content = {
        "format": FORMAT,
        "models": steps,
        **{name: value for name, value in vars(state).items() if name not in ("network", "optimiser")},
        "roster": state.roster.to_json(),
        "mean": asdict(state.mean),
        "worst": asdict(state.worst),
    }
    tensors = {name: tensor.detach().cpu().contiguous() for name, tensor in state.optimiser.items()}
    return save(tensors, metadata={"multiseg-federation": json.dumps(content)})


def _read_content(path: Path) -> dict[str, Any]:
    """A state without the optimiser's tensors, which may be twice as large as the network."""
    try:
        with safe_open(path, framework="pt") as file:
            content: dict[str, Any] = json.loads((file.metadata() or {})["multiseg-federation"])
        format_number = content["format"]
    except (SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path} cannot be resumed: {error!r}. Restore a copy of the folder.") from error
    if format_number != FORMAT:
        raise CheckpointError(f"{path} has format {format_number}; this multiseg reads {FORMAT}.")
    return content


def _read_optimiser(path: Path) -> dict[str, Tensor]:
    with safe_open(path, framework="pt") as file:
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (no mapping)


def _table(history: Sequence[Mapping[str, Any]]) -> str:
    """One line per round and site, for a spreadsheet."""
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for entry in history:
        results = {**entry["sites"], **{site: {"note": why} for site, why in entry["failed"].items()}}
        for site, result in results.items():
            row = {"round": entry["round"], "site": site, **result}
            writer.writerow({name: cell(value) for name, value in row.items()})
    return text.getvalue()
