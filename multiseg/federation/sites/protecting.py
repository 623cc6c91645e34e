"""Protects an update before it leaves a site: clipping, noise, masks, and the precision of the wire.

A site records for good which masks it has used in an experiment, and how many updates with noise it has sent. Answers
are deleted in later rounds, and a task may then be answered again. The same masks over another update would reveal
both, and every further update with noise reveals more, so these small records are never deleted.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from multiseg.errors import CheckpointError
from multiseg.federation.messages import SiteTask
from multiseg.federation.pairwise_masks import Circle, digest_of, masked, members_by_part
from multiseg.federation.privacy import clipped, noise_generator, noise_std, noised, to_payload, update_norm
from multiseg.federation.sites.site import Order, Site, private_key
from multiseg.federation.sites.tasks import entry_of
from multiseg.files import write_atomically

CIRCLES, RELEASES = "circles", "releases"
COMMON = ("info", "options", "holders", "personal_parts", "keys")
"""Entries that the tasks of all sites of a masked round share."""


@dataclass(frozen=True, eq=False)
class Protected:
    """An update as it leaves.

    Attributes:
        norm: of the update, clipped and without noise.
        release: digest of the update with its noise; "" without noise.
    """

    tensors: Mapping[str, Tensor]
    norm: float
    release: str


def protected(task: SiteTask, site: Site, order: Order, update: Mapping[str, Tensor]) -> Protected:
    """The update, protected as the run's privacy settings ask.

    The noise is a function of the update and of the noise's size: a repeated round with the same update gets the same
    noise, and another update gets independent noise.
    """
    privacy = order.options.privacy
    sent = clipped(update, privacy.clip)
    norm, release = update_norm(sent), ""
    weight = float(entry_of(task, "weight")) if privacy.masked else 1.0
    members = members_by_part(order.parts, entry_of(task, "holders")) if privacy.masked else {}
    if privacy.noise:
        std = {name: noise_std(privacy.noise, privacy.clip, len(members.get(name, (site,))), weight) for name in sent}
        digest = digest_of(sent, json.dumps(std, sort_keys=True))
        sent = noised(sent, std, noise_generator(private_key(site), task.experiment, task.round, digest))
        release = digest_of(sent)
    if not privacy.masked:
        return Protected(to_payload(sent, privacy.payload), norm, release)
    circle = Circle(task.experiment, task.round, circle_of(task), entry_of(task, "keys"), members)
    return Protected(masked(sent, weight, site.name, private_key(site), circle), norm, release)


def circle_of(task: SiteTask) -> str:
    """Digest of what all sites of a masked round received: it identifies the masks."""
    common = {name: entry_of(task, name) for name in COMMON} | {n: task.body[n] for n in ("course",) if n in task.body}
    return digest_of(task.tensors, json.dumps(common, sort_keys=True))


def check_circle(folder: Path, number: int, circle: str, tensors: Mapping[str, Tensor]) -> None:
    """Raises CheckpointError if other tensors were sent under the circle's masks in this round."""
    file = _circle(folder, number, circle)
    if file.is_file() and file.read_text() != digest_of(tensors):
        raise CheckpointError(
            "this site has already sent another answer under the same masks, and a second one would reveal the first: "
            "start the run under another experiment name."
        )


def note_circle(folder: Path, number: int, circle: str, tensors: Mapping[str, Tensor]) -> None:
    """Record what is sent under a circle, after it was stored and before it leaves; see `check_circle`."""
    check_circle(folder, number, circle, tensors)
    write_atomically(_circle(folder, number, circle), digest_of(tensors).encode())


def count_release(folder: Path, number: int, digest: str) -> int:
    """Record an update with noise, before it is stored; the number of different ones so far."""
    write_atomically(folder / RELEASES / f"{number:06d}-{digest}", b"")
    return sum(1 for file in (folder / RELEASES).iterdir() if not file.name.startswith("."))


def _circle(folder: Path, number: int, circle: str) -> Path:
    return folder / CIRCLES / f"{number:06d}-{circle}"
