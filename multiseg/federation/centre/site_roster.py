"""The sites of a run, their data, and the joint model that follows from them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from typing import Any

from multiseg.errors import FederationError, UsageError
from multiseg.federation.centre.site_fit import check_labels, check_room, check_sites, spacing_of
from multiseg.federation.centre.site_info import SiteInfo, groups_at, learnt, num_cases
from multiseg.federation.plan import LEAST_MASKED, FederationOptions
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import found_numbers
from multiseg.models.network_parts import OF_KIND, OF_LABEL, SHARED, Part, parts, trained_parts
from multiseg.models.saved import ModelInfo
from multiseg.training.run_folder import numbers_of

DOMINANT_SHARE = 0.9
"""A site with more than this share of all cases gets a warning."""


@dataclass(frozen=True)
class Roster:
    """The sites of a run, and the model that they train.

    Attributes:
        sites: those that train, by name.
        held_out: those that only evaluate.
    """

    info: ModelInfo
    sites: Mapping[str, SiteInfo]
    held_out: Mapping[str, SiteInfo] = field(default_factory=dict)

    @cached_property
    def parts(self) -> tuple[Part, ...]:
        """The parts of the network. Listing them builds the network, so they are cached."""
        return parts(self.info)

    @cached_property
    def holders(self) -> dict[str, tuple[str, ...]]:
        """The sites that train each group of parts, in the roster's order."""
        have = {name: groups_at(info, self.info.space) for name, info in self.sites.items()}
        return {
            group: tuple(name for name, groups in have.items() if group in groups)
            for group in dict.fromkeys(part.group for part in self.parts)
        }

    @property
    def described(self) -> dict[str, Mapping[str, Mapping[str, Any]]]:
        """The databases that each site has described."""
        return {name: info.databases for name, info in {**self.sites, **self.held_out}.items()}

    def to_json(self) -> dict[str, Any]:
        return {
            "info": self.info.to_json(),
            "sites": {name: asdict(info) for name, info in self.sites.items()},
            "held_out": {name: asdict(info) for name, info in self.held_out.items()},
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Roster:
        return cls(
            ModelInfo.from_json(data["info"]),
            {name: SiteInfo.from_json(info) for name, info in data["sites"].items()},
            {name: SiteInfo.from_json(info) for name, info in data["held_out"].items()},
        )


def enrolled(infos: Mapping[str, SiteInfo], options: FederationOptions, before: ModelInfo | None = None) -> Roster:
    """The roster of these sites; for errors see `joint`."""
    return Roster(
        joint(infos, options, before),
        {name: infos[name] for name in options.sites},
        {name: infos[name] for name in options.held_out},
    )


def joint(infos: Mapping[str, SiteInfo], options: FederationOptions, before: ModelInfo | None = None) -> ModelInfo:
    """The model that the sites train: its sequences, labels and databases.

    Its axis is the union of the training sites' sequences. Databases are named "site/database" and have the numbers of
    training cases that the sites reported.

    Args:
        infos: by name, of all sites of the options.
        before: the model of a resumed run. Its axis only grows, at the end, and databases of sites that have left stay
            on record.

    Raises:
        FederationError: sites do not fit; the message lists all of them with every reason.
    """
    space = LabelSpace.of(options.labels, options.rest)
    check_sites(infos, options, before)
    by_site = {name: learnt(infos[name], space) for name in options.sites}
    databases = {f"{site}/{name}": about for site, own in by_site.items() for name, about in own.items()}
    check_labels(databases, space)
    axis = ModalityAxis.union(about["modalities"] for about in databases.values())
    if before is not None:
        axis = before.axis.grown(axis)
    check_room(axis, by_site, options)
    known = {name: before.trained_on.get(name, ()) if before else () for name in axis}
    known_databases = before.databases if before else {}
    now = {name: tuple(d for d, about in databases.items() if name in about["modalities"]) for name in axis}
    return ModelInfo(
        builder=options.model.builder,
        numbers={**numbers_of(options.model), **_found(options.model.builder, axis, space)},
        axis=axis,
        space=space,
        spacing_mm=spacing_of(infos, options, before),
        patch=options.stream.draw.patch,
        trained_on={name: tuple(dict.fromkeys((*known[name], *now[name]))) for name in axis},
        databases={**known_databases, **{name: _on_record(about) for name, about in databases.items()}},
    )


def _found(builder: str, axis: ModalityAxis, space: LabelSpace) -> dict[str, Any]:
    try:
        return found_numbers(builder, axis, space)
    except UsageError as error:
        raise FederationError(str(error)) from error


def _on_record(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's description holds of a database that it learnt from."""
    return {
        "pathology": about["pathology"],
        "num_cases": about["num_cases"]["train"],
        "recipe": about.get("recipe", {}),
        "licence": about.get("licence", ""),
    }


def trains(site: str, roster: Roster, options: FederationOptions) -> tuple[Part, ...]:
    """The parts that a site sends in every round."""
    return trained_parts(
        roster.parts,
        groups_at(roster.sites[site], roster.info.space),
        options.local.personal,
        personal_parts(roster, options),
    )


def personal_parts(roster: Roster, options: FederationOptions) -> tuple[str, ...]:
    """Under masks, the parts that too few sites train to hide in a sum, which each site keeps; else none."""
    if not options.privacy.masked:
        return ()
    return tuple(part.name for part in roster.parts if len(roster.holders[part.group]) < LEAST_MASKED)


def warnings(roster: Roster, options: FederationOptions) -> list[str]:
    """What the sites should know before they start: parts that only one site trains, and a site that dominates."""
    notes = []
    for group, names in roster.holders.items():
        what = _in_words(group)
        if options.privacy.masked and len(names) < LEAST_MASKED:
            notes.append(
                f"{what}: {', '.join(names) or 'nobody'} has it, too few to hide in a sum of {LEAST_MASKED}, so each "
                "site keeps that part of the network to itself."
            )
        elif not options.privacy.masked and len(names) == 1 and group != SHARED:
            notes.append(
                f"{what}: only {names[0]} has it, so the server sees that part of the site's update in the clear, and "
                "all sites see it in the new model."
            )
    cases = {site: num_cases(info, roster.info.space) for site, info in roster.sites.items()}
    for site, count in cases.items():
        if options.aggregate.weights == "cases" and len(cases) > 2 and count > DOMINANT_SHARE * sum(cases.values()):
            notes.append(
                f"{site} reports {count:,} of the {sum(cases.values()):,} training cases and dominates every mean: ask "
                'it whether that is right, or set aggregate.weights = "equal".'
            )
    return notes


def _in_words(group: str) -> str:
    """A group of parts, for a person."""
    if group.startswith(OF_LABEL):
        return f"label {group.removeprefix(OF_LABEL)}"
    if not group.startswith(OF_KIND):
        return group
    kind, _, sequence = group.removeprefix(OF_KIND).partition("/")
    return f"{sequence} in the branch of {kind}s" if sequence else f"the branch of {kind}s"
