"""Reads a task and checks it before any work: whether it is valid, and meets the site's conditions for a round."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from multiseg.config import checked
from multiseg.errors import FederationError
from multiseg.federation.messages import ROUND, SiteTask
from multiseg.federation.plan import FederationOptions, check, refuse_own
from multiseg.federation.privacy import from_payload
from multiseg.federation.sites.drawing import drawn_in_round, trained_by
from multiseg.federation.sites.policy import Leaves, check_tensors, fits
from multiseg.federation.sites.site import Order, Site
from multiseg.labels import LabelSpace
from multiseg.models.builders import found_numbers
from multiseg.models.saved import ModelInfo
from multiseg.store.reader import Store
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
    personal_parts = tuple(task.body.get("personal_parts", ()))
    return Order(info, options, from_payload(task.tensors), task.round, personal_parts, steps_done)


def _check_same(info: ModelInfo, options: FederationOptions) -> None:
    """Raises FederationError if the model differs from the run's settings, which the site has agreed to."""
    space = LabelSpace.of(options.labels, options.rest)
    builder = options.model.builder
    numbers = {**numbers_of(options.model), **found_numbers(builder, info.axis, space)}
    for name, value, expected in (
        ("network", (info.builder, _plain(info.numbers)), (builder, _plain(numbers))),
        ("labels", (info.space.labels, info.space.rest), (space.labels, space.rest)),
        ("patch", tuple(info.patch), tuple(options.stream.draw.patch)),
    ):
        if value != expected:
            raise FederationError(f"the model's {name} is {value}, but the run's settings say {expected}.")


def _plain(numbers: Mapping[str, Any]) -> str:
    return json.dumps(numbers, sort_keys=True, default=list)


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


def check_round(order: Order, site: Site, store: Store) -> None:
    """Raises FederationError, before any work, if the site would not let the round's answer leave."""
    check_protection(order.options, site.leaves)
    if not site.trains:
        raise FederationError(f"site {site.name} does not let others train on its data.")
    drawn = drawn_in_round(order, store, site)
    needed = max(site.leaves.cases, site.leaves.least)
    if len(drawn) < needed:
        raise FederationError(
            f"this site trains on {needed} cases or more, of databases with {site.leaves.least} or more, but the run "
            "would draw from fewer: its labels, sequences, weights of databases or num_cases exclude the others."
        )
    stream, fit = order.options.stream, order.options.fit
    if order.options.local.steps * stream.batch_size * fit.accumulate < site.leaves.least:
        raise FederationError(
            f"a round of {order.options.local.steps} steps of {stream.batch_size * fit.accumulate} patches shows fewer "
            f"than {site.leaves.least} cases, the least for this site: raise local.steps or stream.batch_size."
        )
    check_tensors((part.name for part in trained_by(order, drawn, store, site.leaves.least)), site.leaves)


def check_protection(options: FederationOptions, leaves: Leaves) -> None:
    """Raises FederationError if the run protects less than the site asks for, or needs what the site keeps back."""
    privacy = options.privacy
    if leaves.masked and not privacy.masked:
        raise FederationError("this site trains only under masks: set privacy.masked = true.")
    if privacy.noise < leaves.noise:
        raise FederationError(
            f"this site asks for privacy.noise of {leaves.noise:g} or more, but the run has {privacy.noise:g}."
        )
    if leaves.clip and not 0 < privacy.clip <= leaves.clip:
        raise FederationError(
            f"this site asks for privacy.clip above 0 and up to {leaves.clip:g}, but the run has {privacy.clip:g}."
        )
    if options.schedule.cross_site and not leaves.to_sites:
        raise FederationError(
            "the run would give this site's model to the other sites (schedule.cross_site), which this site does not "
            "allow (to_sites)."
        )
    if options.aggregate.weights == "exposure" and not (leaves.counts and fits("exposure/", leaves.metrics)):
        raise FederationError(
            "this site does not report numbers of patches, but the run weighs sites by them: set aggregate.weights to "
            '"cases" or "equal".'
        )
