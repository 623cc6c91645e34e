"""Reads and checks a task before anything is done with it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from multiseg.config import checked
from multiseg.errors import FederationError
from multiseg.federation.messages import ROUND, SiteTask
from multiseg.federation.plan import FederationOptions, check, refuse_own
from multiseg.federation.privacy import from_payload
from multiseg.federation.sites.site import Order
from multiseg.labels import LabelSpace
from multiseg.models.saved import ModelInfo
from multiseg.training.run_folder import numbers_of


def order_of(task: SiteTask) -> Order:
    """The model and settings of a task; FederationError if they are invalid."""
    try:
        info = ModelInfo.from_json(entry_of(task, "info"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FederationError(f"a task's description of the model is invalid: {error!r}.") from error
    refuse_own(info.builder, "the model's network")
    options = options_of(task)
    _check_same(info, options)
    if not 0 <= task.round <= options.schedule.rounds:
        raise FederationError(f"a task of round {task.round} in a run of {options.schedule.rounds}.")
    steps_done = int(task.body.get("steps_done", 0))
    if task.kind == ROUND and steps_done != (task.round - 1) * options.local.steps:
        raise FederationError(f"round {task.round} starts after {steps_done} steps, which its settings do not allow.")
    return Order(
        info,
        options,
        from_payload(task.tensors),
        task.round,
        tuple(task.body.get("personal_parts", ())),
        steps_done,
    )


def _check_same(info: ModelInfo, options: FederationOptions) -> None:
    """Raises FederationError if the model differs from the run's settings, which the site has agreed to."""
    for name, value, expected in (
        ("network", (info.builder, _plain(info.numbers)), (options.model.builder, _plain(numbers_of(options.model)))),
        ("labels", (info.space.labels, info.space.rest), _labels(LabelSpace.of(options.labels, options.rest))),
        ("patch", tuple(info.patch), tuple(options.stream.draw.patch)),
    ):
        if value != expected:
            raise FederationError(f"the model's {name} is {value}, but the run's settings say {expected}.")


def _plain(numbers: Mapping[str, Any]) -> str:
    return json.dumps(numbers, sort_keys=True, default=list)


def _labels(space: LabelSpace) -> tuple[Any, ...]:
    return space.labels, space.rest


def options_of(task: SiteTask) -> FederationOptions:
    """The run's settings.

    Raises:
        FederationError: they are missing, or of another experiment.
        UsageError: they are invalid.
    """
    options = checked(entry_of(task, "options"), FederationOptions)
    check(options)
    if options.experiment != task.experiment:
        raise FederationError(f"a task of {task.experiment!r} with the settings of {options.experiment!r}.")
    return options


def entry_of(task: SiteTask, name: str) -> Any:
    """An entry of the body; FederationError if it is missing."""
    if name not in task.body:
        raise FederationError(f"a task {task.kind!r} without {name!r}: is the server a multiseg of this version?")
    return task.body[name]
