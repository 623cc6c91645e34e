"""The experiments by name."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import pandas as pd

from multiseg.errors import UsageError
from multiseg.experiments import (
    ace,
    decoupled,
    drop,
    federated,
    hetero,
    joint,
    leave_one_out,
    new_database,
    plus,
    unseen,
)
from multiseg.experiments.anatomy_ground import (
    anatomy_ground_of,
    synthetic_anatomy_ground,
    synthetic_grafting_ground,
)
from multiseg.experiments.comparisons import Table
from multiseg.experiments.grafted_ground import grafted_ground_of
from multiseg.experiments.ground import Ground, ground_of, synthetic_ground
from multiseg.experiments.runs import Arm
from multiseg.experiments.scales import Scale

XU = "Xu et al. 2024"


@dataclass(frozen=True)
class Experiment:
    """A question, the arms that answer it, and the tables of their test results.

    Attributes:
        paper: the published tables that it repeats, or is related to.
        authors: of that paper.
        scale: the name of its scale, if the user names none.
        needs: "" (synthetic hospitals or a store), "hospitals" or "store".
        hospitals: makes the ground of synthetic hospitals in a folder.
        of_store: makes the ground of a user's store, if the experiment has roles; what it makes, it makes in a folder.
        has_roles: whether it learns tissues from one database and lesions from another, so that its ground has roles.
        pictured: the arms that are drawn side by side for a test case, if any.
    """

    name: str
    question: str
    paper: str
    plan: Callable[[Ground], Sequence[Arm]]
    tables: Callable[[pd.DataFrame, Ground], Sequence[Table]]
    authors: str = XU
    scale: str = "small"
    needs: Literal["", "hospitals", "store"] = ""
    hospitals: Callable[[Path, Scale, int], Ground] = synthetic_ground
    of_store: Callable[[Path, str, Scale, int, str, str], Ground] = lambda folder, *others: anatomy_ground_of(*others)
    has_roles: bool = False
    pictured: Callable[[Ground], Sequence[Arm]] = lambda ground: ()


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
            needs="hospitals",
        ),
        Experiment("leave-one-out", leave_one_out.QUESTION, "table 5", leave_one_out.plan, leave_one_out.tables),
        Experiment("drop", drop.QUESTION, "table 2", drop.plan, drop.tables),
        Experiment("plus", plus.QUESTION, "none", plus.plan, plus.tables),
        Experiment("finetune", new_database.QUESTION, "table 6", new_database.plan, new_database.tables),
        Experiment("federated", federated.QUESTION, "none", federated.plan, federated.tables),
        Experiment("ace", ace.QUESTION, "table 1, tissues and WMH", ace.plan, ace.tables, ace.ROULET, "anatomy",
                   "store", synthetic_anatomy_ground, has_roles=True, pictured=ace.pictured),
        Experiment("ace-tumour", ace.QUESTION, "table 1, tissues and tumour", ace.plan, ace.tables, ace.ROULET,
                   "anatomy", "hospitals", synthetic_anatomy_ground, has_roles=True, pictured=ace.pictured),
        Experiment("hetero", hetero.QUESTION, "table 1", hetero.plan, hetero.tables, hetero.DORENT, "hetero",
                   "store", synthetic_anatomy_ground, has_roles=True, pictured=hetero.pictured),
        Experiment("two-branch", decoupled.QUESTION, "related to tables 2, 4 and 5, and figure 10", decoupled.plan,
                   decoupled.tables, decoupled.HIMMETOGLU, "two-branch", hospitals=synthetic_grafting_ground,
                   of_store=grafted_ground_of, has_roles=True, pictured=decoupled.pictured),
    )
}  # fmt: skip
"""In the order in which `all` runs them: experiments whose runs others share come first."""


def check_name(name: str, synthetic: bool) -> None:
    """Check the name of an experiment, or "all".

    Raises:
        UsageError: there is no such experiment, or it needs the synthetic hospitals, or a store.
    """
    if name == "all":
        return
    if name not in EXPERIMENTS:
        raise UsageError(f"there is no experiment {name!r}; there are {', '.join(EXPERIMENTS)}, and all of them: all.")
    needs = EXPERIMENTS[name].needs
    if needs == "hospitals" and not synthetic:
        raise UsageError(f"{name} is about some of the synthetic hospitals: leave out --store.")
    if needs == "store" and synthetic:
        raise UsageError(f"{name} needs a store with tissues of one database and lesions of another: --store.")


def chosen(name: str, synthetic: bool) -> list[Experiment]:
    """The experiment with this name; or for "all", all experiments that the ground allows. See `check_name`.

    Of a user's store, "all" leaves out those that need tissues in it.
    """
    check_name(name, synthetic)
    if name != "all":
        return [EXPERIMENTS[name]]
    if synthetic:
        return [experiment for experiment in EXPERIMENTS.values() if experiment.needs != "store"]
    return [one for one in EXPERIMENTS.values() if one.needs != "hospitals" and not one.has_roles]


def ground_for(
    experiment: Experiment,
    folder: Path,
    scale: Scale,
    num_seeds: int,
    store: str = "",
    roles: tuple[str, str] = ("", ""),
) -> Ground:
    """The ground of an experiment: the user's store, or synthetic hospitals in the folder.

    Args:
        roles: the databases of the store from which tissues and lesions are learnt; "" finds them.

    Raises:
        UsageError: roles are named that the experiment does not have; and see the grounds.
        DataError: see the grounds.
    """
    if any(roles) and not (experiment.has_roles and store):
        with_roles = [one.name for one in EXPERIMENTS.values() if one.has_roles and one.needs != "hospitals"]
        raise UsageError(
            f"--tissues and --lesions are for {', '.join(with_roles)} with --store, not {experiment.name}."
        )
    if not store:
        return experiment.hospitals(folder, scale, num_seeds)
    if experiment.has_roles:
        return experiment.of_store(folder, store, scale, num_seeds, *roles)
    return ground_of(store, scale, num_seeds)
