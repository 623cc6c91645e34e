"""Tasks as a server would send them, small enough for a test, and sites that answer them."""

from dataclasses import asdict, replace
from pathlib import Path

import torch

from multiseg.federation.centre.site_info import site_info
from multiseg.federation.centre.site_roster import joint
from multiseg.federation.messages import DESCRIBE, ROUND, SiteTask
from multiseg.federation.plan import FederationOptions, LocalOptions, ScheduleOptions
from multiseg.federation.sites.answering import answer
from multiseg.federation.sites.policy import Leaves
from multiseg.federation.sites.site import Site
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.builders import build
from multiseg.training.run_folder import ModelOptions

OPTIONS = FederationOptions(
    experiment="trial",
    sites=("alder", "birch", "dogwood"),
    model=ModelOptions("multi_unet", (8, 8), dropout=0.2, norm="batch"),
    stream=StreamOptions(DrawOptions(patch=(16, 16, 16)), batch_size=2, workers=0, batches_per_epoch=3),
    local=LocalOptions(steps=2),
    schedule=ScheduleOptions(rounds=4, validation_cases=1),
)


def with_local(**others):
    return replace(OPTIONS, local=replace(OPTIONS.local, **others))


def site_of(name: str, stores: dict[str, str], state: Path, **others) -> Site:
    return Site(name, stores[name], state / name, device="cpu", workers=0, **{"leaves": Leaves(least=1)} | others)


def described(stores, state, options=OPTIONS):
    """What the sites say of themselves, by name."""
    task = SiteTask(DESCRIBE, options.experiment, body={"options": asdict(options)})
    answers = {name: answer(task, site_of(name, stores, state)) for name in stores}
    assert not any(found.error for found in answers.values()), answers
    return {name: site_info(found) for name, found in answers.items()}


def first_state(info, seed=3):
    torch.manual_seed(seed)
    return build(info.builder, len(info.axis), info.space.num_logits, **info.numbers).state_dict()


def round_task(info, number=1, kept=None, options=OPTIONS, state=None, **others) -> SiteTask:
    body = {
        "info": info.to_json(),
        "options": asdict(options),
        "kept": number - 1 if kept is None else kept,
        "personal_parts": [],
        "steps_done": (number - 1) * options.local.steps,
    }
    return SiteTask(ROUND, options.experiment, number, body | others, first_state(info) if state is None else state)


def groups_of(infos, info):
    """The sites that train each group of parts."""
    from multiseg.federation.centre.site_roster import Roster

    return {group: list(sites) for group, sites in Roster(info, infos).holders.items()}


def joint_info(infos, options=OPTIONS):
    return joint(infos, options)


KEEPING = with_local(personal=("*norm*",), keep_optimiser=True)
