"""The sites of a run, their data, and the joint model that follows from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from functools import cached_property
from importlib.metadata import version
from typing import Any

from multiseg.errors import FederationError, UsageError
from multiseg.federation.centre.site_answers import fault
from multiseg.federation.messages import PROTOCOL, Answer
from multiseg.federation.plan import LEAST_MASKED, FederationOptions
from multiseg.labels import LabelSpace, Structure
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import NETWORKS, found_numbers
from multiseg.models.network_parts import OF_KIND, OF_LABEL, SHARED, Part, groups_of, parts, trained_parts
from multiseg.models.saved import ModelInfo
from multiseg.store.structures import check_named, check_rest
from multiseg.training.run_folder import numbers_of

DOMINANT_SHARE = 0.9
"""A site with more than this share of all cases gets a warning."""


@dataclass(frozen=True)
class SiteInfo:
    """A site's description of itself.

    Attributes:
        databases: by name: pathology, num_cases by split (rounded up), modalities, labels (name and kind of the
            annotated structures), recipe and licence.
        public_key: for masks, as hex.
    """

    site: str
    databases: Mapping[str, Mapping[str, Any]]
    spacing_mm: tuple[float, float, float]
    versions: Mapping[str, Any]
    can_train: bool
    public_key: str = ""
    device: str = ""

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> SiteInfo:
        """Raises FederationError if something is missing or has a wrong type."""
        try:
            i, j, k = (float(edge) for edge in data["spacing_mm"])
            return cls(
                site=str(data["site"]),
                databases=dict(data["databases"]),
                spacing_mm=(i, j, k),
                versions=dict(data["versions"]),
                can_train=bool(data["can_train"]),
                public_key=str(data.get("public_key") or ""),
                device=str(data.get("device") or ""),
            )
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            raise FederationError(
                f"a site's description of itself is invalid ({type(error).__name__}: {error}): does it run this "
                "version of multiseg?"
            ) from error


def site_info(answer: Answer) -> SiteInfo:
    """The description in an answer; FederationError if it is invalid or of another site."""
    if why := fault(answer):
        raise FederationError(why)
    info = SiteInfo.from_json(answer.body)
    if info.site != answer.site:
        raise FederationError(f"site {answer.site} describes itself as {info.site}: correct the name in its site.toml.")
    return info


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
    _check(infos, options, before)
    by_site = {name: _learnt(infos[name], space) for name in options.sites}
    databases = {f"{site}/{name}": about for site, learnt in by_site.items() for name, about in learnt.items()}
    _check_labels(databases, space)
    axis = ModalityAxis.union(about["modalities"] for about in databases.values())
    if before is not None:
        axis = before.axis.grown(axis)
    _check_room(axis, by_site, options)
    known = {name: before.trained_on.get(name, ()) if before else () for name in axis}
    known_databases = before.databases if before else {}
    now = {name: tuple(d for d, about in databases.items() if name in about["modalities"]) for name in axis}
    return ModelInfo(
        builder=options.model.builder,
        numbers={**numbers_of(options.model), **_found(options.model.builder, axis, space)},
        axis=axis,
        space=space,
        spacing_mm=_spacing(infos, options, before),
        patch=options.stream.draw.patch,
        trained_on={name: tuple(dict.fromkeys((*known[name], *now[name]))) for name in axis},
        databases={**known_databases, **{name: _on_record(about) for name, about in databases.items()}},
    )


def _found(builder: str, axis: ModalityAxis, space: LabelSpace) -> dict[str, Any]:
    try:
        return found_numbers(builder, axis, space)
    except UsageError as error:
        raise FederationError(str(error)) from error


def _check_labels(databases: Mapping[str, Mapping[str, Any]], space: LabelSpace) -> None:
    """Raises FederationError if no site has a label of the space, or a site has lesions that the space leaves out."""
    labels = [label for about in databases.values() for label in about["labels"]]
    structures = [Structure(label["name"], label["kind"], ()) for label in labels]
    try:
        check_named(space, structures, "the training data of the sites")
        check_rest(space, {name: about.get("unlisted", ()) for name, about in databases.items()})
    except UsageError as error:
        raise FederationError(f"{error} Change labels or rest in the run file.") from error


def _on_record(about: Mapping[str, Any]) -> dict[str, Any]:
    """What a model's description holds of a database that it learnt from."""
    return {
        "pathology": about["pathology"],
        "num_cases": about["num_cases"]["train"],
        "recipe": about.get("recipe", {}),
        "licence": about.get("licence", ""),
    }


def modalities_of(info: SiteInfo, space: LabelSpace) -> tuple[str, ...]:
    """The sequences of a site's training data, in the order that it reported."""
    return tuple(dict.fromkeys(name for about in _learnt(info, space).values() for name in about["modalities"]))


def num_cases(info: SiteInfo, space: LabelSpace, group: str = SHARED) -> int:
    """The number of a site's training cases, of all its databases or of those that train a group of parts."""
    return sum(
        int(about["num_cases"]["train"])
        for about in _learnt(info, space).values()
        if group in groups_of(about["modalities"], _annotated(about, space), space)
    )


def groups_at(info: SiteInfo, space: LabelSpace) -> frozenset[str]:
    """The groups of parts that a site's training data train."""
    databases = _learnt(info, space).values()
    return frozenset().union(*(groups_of(about["modalities"], _annotated(about, space), space) for about in databases))


def has_validation(info: SiteInfo, space: LabelSpace) -> bool:
    """Whether a site has validation cases."""
    return any(int(about["num_cases"]["val"]) > 0 and _annotated(about, space) for about in info.databases.values())


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


def _learnt(info: SiteInfo, space: LabelSpace) -> dict[str, Mapping[str, Any]]:
    """The databases that a site trains on: those with training cases annotated for a label of the space."""
    return {
        name: about
        for name, about in info.databases.items()
        if int(about["num_cases"]["train"]) > 0 and _annotated(about, space)
    }


def _annotated(about: Mapping[str, Any], space: LabelSpace) -> tuple[str, ...]:
    indices = {space.index_of(Structure(label["name"], label["kind"], ())) for label in about["labels"]}
    return tuple(name for index, name in enumerate(space.names, start=1) if index in indices)


def _spacing(
    infos: Mapping[str, SiteInfo], options: FederationOptions, before: ModelInfo | None
) -> tuple[float, float, float]:
    """The voxels of the model so far, or those that most of the training sites have."""
    usual = Counter(infos[name].spacing_mm for name in options.sites).most_common(1)[0][0]
    return before.spacing_mm if before else usual


def _check(infos: Mapping[str, SiteInfo], options: FederationOptions, before: ModelInfo | None) -> None:
    """Raises FederationError with every reason why sites do not fit."""
    space, spacing, misfits = LabelSpace.of(options.labels, options.rest), _spacing(infos, options, before), []
    known = {
        name for site in options.sites for about in _learnt(infos[site], space).values() for name in about["modalities"]
    }
    known |= set(before.axis) if before else set()
    for site in (*options.sites, *options.held_out):
        reasons = _versions(infos[site])
        if infos[site].spacing_mm != spacing:
            reasons.append(
                f"its voxels are {list(infos[site].spacing_mm)} mm and the run's {list(spacing)} mm: ingest again with "
                "--spacing"
            )
        reasons += _unusable(infos[site], space, known, trains=site in options.sites)
        reasons += _unseen(infos[site], space, options) if site in options.sites else []
        if options.privacy.masked and site in options.sites and not infos[site].public_key:
            reasons.append("it has no key for masks")
        misfits += [f"{site}: {'; '.join(reasons)}"] if reasons else []
    if misfits:
        raise FederationError("these sites do not fit the run. " + ". ".join(misfits) + ".")


def _versions(info: SiteInfo) -> list[str]:
    return [
        f"its {name} is {info.versions.get(name)} and the server's {expected}: install one version"
        for name, expected in (("protocol", PROTOCOL), ("multiseg", version("multiseg")))
        if info.versions.get(name) != expected
    ]


def _unusable(info: SiteInfo, space: LabelSpace, known: set[str], trains: bool) -> list[str]:
    """What keeps a site's data from training, or from evaluating."""
    fitting = [about for about in info.databases.values() if _annotated(about, space)]
    if not fitting:
        labels = sorted({label["name"] for about in info.databases.values() for label in about["labels"]})
        return [
            f"it has no annotation of {', '.join(space.names)}, or in fewer cases than its `least`; its labels are "
            f"{', '.join(labels) or 'none'}"
        ]
    reasons = []
    if trains and not info.can_train:
        reasons.append(
            "it does not let others train on its data, or has fewer training cases than its `least`: list it in "
            "held_out, or allow training in its site.toml"
        )
    if trains and not any(int(about["num_cases"]["train"]) for about in fitting):
        reasons.append("it has no training cases, or fewer than its `least`: list it in held_out")
    elif trains and not modalities_of(info, space):
        reasons.append("its training cases have no sequences")
    if not trains and known and known.isdisjoint(name for about in fitting for name in about["modalities"]):
        reasons.append(f"none of its sequences is among {', '.join(sorted(known))}, which the others have")
    return reasons


def _unseen(info: SiteInfo, space: LabelSpace, options: FederationOptions) -> list[str]:
    """Databases that a branch of the network would learn from without seeing anything of them."""
    sees = NETWORKS[options.model.builder].sees if options.model.builder in NETWORKS else {}
    return [
        f"{name} is annotated for {kind}s, but has no {' or '.join(sequences)}, which the {options.model.builder} "
        f'segments {kind}s from: hide them in its site.toml (hide = ["{name}/ANNOTATION"])'
        for kind, sequences in sees.items()
        for name, about in _learnt(info, space).items()
        if kind in {label.kind for label in space.labels if label.name in _annotated(about, space)}
        and set(sequences).isdisjoint(about["modalities"])
    ]


def _check_room(
    axis: ModalityAxis, learnt: Mapping[str, Mapping[str, Mapping[str, Any]]], options: FederationOptions
) -> None:
    """Raises FederationError if the network cannot have that many channels."""
    network, limit = NETWORKS.get(options.model.builder), options.model.widths[0]
    if network is None or not network.is_bounded or len(axis) <= limit:
        return
    listed = "; ".join(
        f"{site}: {', '.join(dict.fromkeys(name for about in databases.values() for name in about['modalities']))}"
        for site, databases in learnt.items()
    )
    raise FederationError(
        f"the network takes at most {limit} sequences, its first width, but the sites have {len(axis)} "
        f"({', '.join(axis)}). {listed}. Give it a larger first width, or leave a site out."
    )
