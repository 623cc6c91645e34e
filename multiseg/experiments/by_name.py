"""The experiments by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import pandas as pd

from multiseg.errors import UsageError
from multiseg.experiments import drop, federated, joint, leave_one_out, new_database, plus, unseen
from multiseg.experiments.comparisons import Table
from multiseg.experiments.ground import Ground
from multiseg.experiments.runs import Arm


@dataclass(frozen=True)
class Experiment:
    """A question, the arms that answer it, and the tables of their test results."""

    name: str
    question: str
    paper: str
    plan: Callable[[Ground], Sequence[Arm]]
    tables: Callable[[pd.DataFrame, Ground], Sequence[Table]]
    only_synthetic: bool = False


EXPERIMENTS = {
    experiment.name: experiment
    for experiment in (
        Experiment("joint", joint.QUESTION, "tables 3, 7 and 8", joint.plan, joint.tables),
        Experiment(
            "unseen-combinations",
            unseen.QUESTION,
            "tables 4, 9 and 10",
            unseen.plan,
            unseen.tables,
            only_synthetic=True,
        ),
        Experiment("leave-one-out", leave_one_out.QUESTION, "table 5", leave_one_out.plan, leave_one_out.tables),
        Experiment("drop", drop.QUESTION, "table 2", drop.plan, drop.tables),
        Experiment("plus", plus.QUESTION, "none", plus.plan, plus.tables),
        Experiment("finetune", new_database.QUESTION, "table 6", new_database.plan, new_database.tables),
        Experiment("federated", federated.QUESTION, "none", federated.plan, federated.tables),
    )
}
"""In the order in which `all` runs them: experiments whose runs others share come first."""


def check_name(name: str, synthetic: bool) -> None:
    """Check the name of an experiment, or "all".

    Raises:
        UsageError: there is no such experiment, or it needs the synthetic hospitals.
    """
    if name == "all":
        return
    if name not in EXPERIMENTS:
        raise UsageError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}, and all of them: all.")
    if EXPERIMENTS[name].only_synthetic and not synthetic:
        raise UsageError(f"{name} needs the synthetic hospitals fir and gorse: leave out --store.")


def chosen(name: str, synthetic: bool) -> list[Experiment]:
    """The experiment with this name; or for "all", all experiments that the ground allows. See `check_name`."""
    check_name(name, synthetic)
    if name == "all":
        return [experiment for experiment in EXPERIMENTS.values() if synthetic or not experiment.only_synthetic]
    return [EXPERIMENTS[name]]
