"""Which sequences a run's model can read: the server's model, and that of a site with its own parts."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from multiseg.errors import UsageError
from multiseg.federation.centre.site_roster import Roster, personal_parts
from multiseg.federation.plan import FederationOptions
from multiseg.models.network_parts import OF_LABEL, Part, leaves, sequence_in
from multiseg.models.saved import ModelInfo

Learnt = Mapping[str, Sequence[str]]
"""By sequence, the databases, as "site/name", whose updates are in a model."""


def check_personal(all_parts: Sequence[Part], options: FederationOptions) -> None:
    """Raises UsageError for a personal pattern that fits no tensor, and for noise on running statistics."""
    personal = options.local.personal
    for pattern in personal:
        if all(leaves(part, [pattern]) for part in all_parts):
            tensors = list(dict.fromkeys(part.tensor for part in all_parts))
            raise UsageError(
                f"local.personal has {pattern!r}, which fits no tensor of the {options.model.builder} with "
                f'model.norm = "{options.model.norm}"; its tensors have names such as {tensors[0]} and {tensors[-1]}.'
            )
    noisy = [part.tensor for part in all_parts if part.is_statistic and leaves(part, personal)]
    if options.privacy.noise and noisy:
        raise UsageError(
            f"privacy.noise would be added to running statistics such as {noisy[0]}, which makes them useless: keep "
            'them at the sites by local.personal, or use model.norm = "instance".'
        )


def unreadable_sequences(roster: Roster, options: FederationOptions) -> frozenset[str]:
    """The sequences that the server's model cannot read, since weights they need never leave the sites.

    Those are a sequence's own weights, or shared ones, which all sequences need. Vectors do not count: norms and biases
    start as an identity.
    """
    alone, personal = personal_parts(roster, options), options.local.personal
    home = {part.group for part in roster.parts if len(part.shape) > 1 and not leaves(part, personal, alone)}
    sequences = {sequence_in(group) for group in home if not group.startswith(OF_LABEL)}
    return frozenset(roster.info.axis if "" in sequences else sequences)


def learnt_with(learnt: Learnt, roster: Roster, sites: Collection[str]) -> Learnt:
    """The databases that a model has learnt each sequence from, after adding updates of these sites."""
    new = dict(learnt)
    for name, databases in roster.info.trained_on.items():
        known = learnt.get(name, ())
        new[name] = tuple(entry for entry in databases if entry in known or entry.partition("/")[0] in sites)
    return new


def info_at_server(info: ModelInfo, roster: Roster, options: FederationOptions, learnt: Learnt) -> ModelInfo:
    """The description of the server's model, with what it has learnt from.

    Sequences that no site has trained, or that only sites can read, do not count as trained on.
    """
    unreadable = unreadable_sequences(roster, options)
    databases = {database for names in learnt.values() for database in names}
    return replace(
        info,
        trained_on={name: () if name in unreadable else tuple(learnt.get(name, ())) for name in info.axis},
        databases={name: about for name, about in info.databases.items() if name in databases},
    )


def info_at_site(info: ModelInfo, roster: Roster, options: FederationOptions, site: str, learnt: Learnt) -> ModelInfo:
    """The description of a site's model: also trained on the sequences that the site has learnt by itself."""
    trained_on = dict(info.trained_on)
    for name in unreadable_sequences(roster, options) & trained_on.keys():
        trained_on[name] = tuple(database for database in learnt.get(name, ()) if database.startswith(f"{site}/"))
    return replace(info, trained_on=trained_on)


def warnings(roster: Roster, options: FederationOptions) -> list[str]:
    """What users of the server's model files should know."""
    notes = []
    personal = [part.tensor for part in roster.parts if not leaves(part, options.local.personal)]
    if personal:
        notes.append(
            f"{len(set(personal))} personal tensors, such as {personal[0]}, never leave the sites: in the server's "
            "models they keep their initial values, and only the sites' own models are complete."
        )
    if unreadable := unreadable_sequences(roster, options):
        listed = ", ".join(sorted(unreadable))
        notes.append(f"do not give the server's models {listed}: sites keep those weights.")
    return notes
