"""What a run's model has learnt to read: as the server has it, and as a site has it with its own parts laid in."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from multiseg.errors import UsageError
from multiseg.federation.centre.roster import Roster, personal_parts
from multiseg.federation.plan import FederationOptions
from multiseg.models.parts import SHARED, Part, leaves, parts
from multiseg.models.saved import ModelInfo


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
    all_parts = parts(roster.info)
    alone = personal_parts(roster, all_parts, options)
    home = {part.group for part in all_parts if len(part.shape) > 1 and not leaves(part, options.local.personal, alone)}
    return frozenset(roster.info.axis if SHARED in home else home.intersection(roster.info.axis))


def as_the_server_has_it(
    info: ModelInfo, roster: Roster, options: FederationOptions, heard: Collection[str]
) -> ModelInfo:
    """A model of the run with what it has learnt from: the databases of the sites whose updates it holds.

    Sequences that none of them has, or that only sites can read, do not count as trained on.

    Args:
        heard: sites whose update is in the model, those that have left included.
    """
    home = kept_home(roster, options)
    return replace(
        info,
        trained_on={name: () if name in home else _of(known, heard) for name, known in _known(info, roster)},
        databases={name: info.databases[name] for name in _of(info.databases, heard)},
    )


def as_a_site_has_it(
    info: ModelInfo, roster: Roster, options: FederationOptions, site: str, heard: Collection[str]
) -> ModelInfo:
    """The server's model with those sequences among what it was trained on that this site has learnt by itself."""
    home = kept_home(roster, options)
    own = {name: _of(known, {site}.intersection(heard)) for name, known in _known(info, roster)}
    return replace(info, trained_on={n: own[n] if n in home else known for n, known in info.trained_on.items()})


def _known(info: ModelInfo, roster: Roster) -> list[tuple[str, tuple[str, ...]]]:
    return [(name, roster.info.trained_on.get(name, ())) for name in info.axis]


def _of(databases: Iterable[str], sites: Collection[str]) -> tuple[str, ...]:
    """The databases, as "site/name", of these sites."""
    return tuple(name for name in databases if name.partition("/")[0] in sites)


def warnings(roster: Roster, options: FederationOptions) -> list[str]:
    """What to know of the server's model files before they are used."""
    said = []
    personal = [part.tensor for part in parts(roster.info) if not leaves(part, options.local.personal)]
    if personal:
        said.append(
            f"{len(set(personal))} personal tensors, such as {personal[0]}, never leave the sites: in the server's "
            "models they are as the run began, and only the sites' own models are whole."
        )
    if home := kept_home(roster, options):
        said.append(f"the server's models are not to be given {', '.join(sorted(home))}: sites keep those weights.")
    return said
