"""What a run's model has learnt to read: as the server has it, and as a site has it with its own parts laid in."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from multiseg.errors import UsageError
from multiseg.federation.centre.site_roster import Roster, personal_parts
from multiseg.federation.plan import FederationOptions
from multiseg.models.network_parts import SHARED, Part, leaves
from multiseg.models.saved import ModelInfo

Learnt = Mapping[str, Sequence[str]]
"""By sequence, the databases, as "site/name", whose updates are in a model."""


def check_personal(all_parts: Sequence[Part], options: FederationOptions) -> None:
    """Raises UsageError for a personal pattern without a tensor, and for noise on running statistics."""
    personal = options.local.personal
    for pattern in personal:
        if all(leaves(part, [pattern]) for part in all_parts):
            some = list(dict.fromkeys(part.tensor for part in all_parts))
            raise UsageError(
                f"local.personal names {pattern!r}, but no tensor of the {options.model.builder} with model.norm = "
                f'"{options.model.norm}" is called so; its tensors are such as {some[0]} and {some[-1]}.'
            )
    noisy = [part.tensor for part in all_parts if part.is_statistic and leaves(part, personal)]
    if options.privacy.noise and noisy:
        raise UsageError(
            f"privacy.noise would be added to running statistics such as {noisy[0]}, which then fit no data: keep them "
            'at the sites by local.personal, or take model.norm = "instance".'
        )


def kept_home(roster: Roster, options: FederationOptions) -> frozenset[str]:
    """The sequences that the server's model cannot read, since weights they need never leave the sites.

    Those are the sequences' own, or shared ones, which all sequences need. Vectors do not count: norms and biases
    begin as what does nothing.
    """
    alone, personal = personal_parts(roster, options), options.local.personal
    home = {part.group for part in roster.parts if len(part.shape) > 1 and not leaves(part, personal, alone)}
    return frozenset(roster.info.axis if SHARED in home else home.intersection(roster.info.axis))


def learnt_with(learnt: Learnt, roster: Roster, sites: Collection[str]) -> Learnt:
    """What a model has learnt from once updates of these sites are added to it, by sequence."""
    new = {
        name: tuple(one for one in known if one in learnt.get(name, ()) or one.partition("/")[0] in sites)
        for name, known in roster.info.trained_on.items()
    }
    return {**learnt, **new}


def as_the_server_has_it(info: ModelInfo, roster: Roster, options: FederationOptions, learnt: Learnt) -> ModelInfo:
    """A model of the run with what it has learnt from.

    Sequences of which nobody has taught it anything, or that only sites can read, do not count as trained on.
    """
    home = kept_home(roster, options)
    known = {one for some in learnt.values() for one in some}
    return replace(
        info,
        trained_on={name: () if name in home else tuple(learnt.get(name, ())) for name in info.axis},
        databases={name: about for name, about in info.databases.items() if name in known},
    )


def as_a_site_has_it(
    info: ModelInfo, roster: Roster, options: FederationOptions, site: str, learnt: Learnt
) -> ModelInfo:
    """The server's model with those sequences among what it was trained on that this site has learnt by itself."""
    home = kept_home(roster, options)
    own = {name: tuple(one for one in learnt.get(name, ()) if one.startswith(f"{site}/")) for name in info.axis}
    return replace(info, trained_on={n: own[n] if n in home else known for n, known in info.trained_on.items()})


def warnings(roster: Roster, options: FederationOptions) -> list[str]:
    """What to know of the server's model files before they are used."""
    said = []
    personal = [part.tensor for part in roster.parts if not leaves(part, options.local.personal)]
    if personal:
        said.append(
            f"{len(set(personal))} personal tensors, such as {personal[0]}, never leave the sites: in the server's "
            "models they are as the run began, and only the sites' own models are whole."
        )
    if home := kept_home(roster, options):
        said.append(f"the server's models are not to be given {', '.join(sorted(home))}: sites keep those weights.")
    return said
