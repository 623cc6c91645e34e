"""What a task says, checked before anything is done with it."""

from __future__ import annotations

from typing import Any

from multiseg.config import checked
from multiseg.errors import FederationError
from multiseg.federation.messages import Task
from multiseg.federation.plan import FederationOptions, check, refuse_own
from multiseg.federation.privacy import from_payload
from multiseg.federation.sites.site import Order
from multiseg.models.saved import ModelInfo


def order_of(task: Task) -> Order:
    """The model of a task and what is asked for; FederationError where that is not to be understood."""
    try:
        info = ModelInfo.from_json(said(task, "info"))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise FederationError(f"a task's description of the model is not to be understood: {error!r}.") from error
    refuse_own(info.builder, "the model's network")
    return Order(
        info,
        options_of(task),
        from_payload(task.tensors),
        task.round,
        tuple(task.body.get("personal_parts", ())),
        int(task.body.get("steps_done", 0)),
    )


def options_of(task: Task) -> FederationOptions:
    """The run's settings.

    Raises:
        FederationError: they are missing, or of another experiment.
        UsageError: they cannot be meant.
    """
    options = checked(said(task, "options"), FederationOptions)
    check(options)
    if options.experiment != task.experiment:
        raise FederationError(f"a task of {task.experiment!r} with the settings of {options.experiment!r}.")
    return options


def said(task: Task, name: str) -> Any:
    """An entry of the body; FederationError where there is none."""
    if name not in task.body:
        raise FederationError(f"a task {task.kind!r} without {name!r}: is the server a multiseg of this version?")
    return task.body[name]
