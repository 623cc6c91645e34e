"""Whether the sites fit a run, with every reason why not."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from importlib.metadata import version
from typing import Any

from multiseg.errors import FederationError, UsageError
from multiseg.federation.centre.site_info import SiteInfo, annotated, learnt, modalities_of
from multiseg.federation.messages import PROTOCOL
from multiseg.federation.plan import FederationOptions
from multiseg.labels import LabelSpace, Structure
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import NETWORKS
from multiseg.models.saved import ModelInfo
from multiseg.store.structures import check_named, check_rest


def check_sites(infos: Mapping[str, SiteInfo], options: FederationOptions, before: ModelInfo | None) -> None:
    """Raises FederationError with every reason why sites do not fit."""
    space, spacing, misfits = LabelSpace.of(options.labels, options.rest), spacing_of(infos, options, before), []
    known = {
        name for site in options.sites for about in learnt(infos[site], space).values() for name in about["modalities"]
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


def check_room(
    axis: ModalityAxis, by_site: Mapping[str, Mapping[str, Mapping[str, Any]]], options: FederationOptions
) -> None:
    """Raises FederationError if the network cannot have that many channels."""
    network, limit = NETWORKS.get(options.model.builder), options.model.widths[0]
    if network is None or not network.is_bounded or len(axis) <= limit:
        return
    listed = "; ".join(
        f"{site}: {', '.join(dict.fromkeys(name for about in databases.values() for name in about['modalities']))}"
        for site, databases in by_site.items()
    )
    raise FederationError(
        f"the network takes at most {limit} sequences, its first width, but the sites have {len(axis)} "
        f"({', '.join(axis)}). {listed}. Give it a larger first width, or leave a site out."
    )


def check_labels(databases: Mapping[str, Mapping[str, Any]], space: LabelSpace) -> None:
    """Raises FederationError if no site has a label of the space, or a site has lesions that the space leaves out."""
    labels = [label for about in databases.values() for label in about["labels"]]
    structures = [Structure(label["name"], label["kind"], ()) for label in labels]
    try:
        check_named(space, structures, "the training data of the sites")
        check_rest(space, {name: about.get("unlisted", ()) for name, about in databases.items()})
    except UsageError as error:
        raise FederationError(f"{error} Change labels or rest in the run file.") from error


def spacing_of(
    infos: Mapping[str, SiteInfo], options: FederationOptions, before: ModelInfo | None
) -> tuple[float, float, float]:
    """The voxels of the model so far, or those that most of the training sites have."""
    usual = Counter(infos[name].spacing_mm for name in options.sites).most_common(1)[0][0]
    return before.spacing_mm if before else usual


def _versions(info: SiteInfo) -> list[str]:
    return [
        f"its {name} is {info.versions.get(name)} and the server's {expected}: install one version"
        for name, expected in (("protocol", PROTOCOL), ("multiseg", version("multiseg")))
        if info.versions.get(name) != expected
    ]


def _unusable(info: SiteInfo, space: LabelSpace, known: set[str], trains: bool) -> list[str]:
    """What keeps a site's data from training, or from evaluating."""
    fitting = [about for about in info.databases.values() if annotated(about, space)]
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
        for name, about in learnt(info, space).items()
        if kind in {label.kind for label in space.labels if label.name in annotated(about, space)}
        and set(sequences).isdisjoint(about["modalities"])
    ]
