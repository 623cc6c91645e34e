"""What a site says of itself and its data, and what a model can learn from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from multiseg.errors import FederationError
from multiseg.federation.centre.site_answers import fault
from multiseg.federation.messages import Answer
from multiseg.labels import LabelSpace, Structure
from multiseg.models.network_parts import SHARED, groups_of


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


def learnt(info: SiteInfo, space: LabelSpace) -> dict[str, Mapping[str, Any]]:
    """The databases that a site trains on: those with training cases annotated for a label of the space."""
    return {
        name: about
        for name, about in info.databases.items()
        if int(about["num_cases"]["train"]) > 0 and annotated(about, space)
    }


def annotated(about: Mapping[str, Any], space: LabelSpace) -> tuple[str, ...]:
    """The labels of a space that a database is annotated for."""
    indices = {space.index_of(Structure(label["name"], label["kind"], ())) for label in about["labels"]}
    return tuple(name for index, name in enumerate(space.names, start=1) if index in indices)


def modalities_of(info: SiteInfo, space: LabelSpace) -> tuple[str, ...]:
    """The sequences of a site's training data, in the order that it reported."""
    return tuple(dict.fromkeys(name for about in learnt(info, space).values() for name in about["modalities"]))


def num_cases(info: SiteInfo, space: LabelSpace, group: str = SHARED) -> int:
    """The number of a site's training cases, of all its databases or of those that train a group of parts."""
    return sum(
        int(about["num_cases"]["train"])
        for about in learnt(info, space).values()
        if group in groups_of(about["modalities"], annotated(about, space), space)
    )


def groups_at(info: SiteInfo, space: LabelSpace) -> frozenset[str]:
    """The groups of parts that a site's training data train."""
    databases = learnt(info, space).values()
    return frozenset().union(*(groups_of(about["modalities"], annotated(about, space), space) for about in databases))


def has_validation(info: SiteInfo, space: LabelSpace) -> bool:
    """Whether a site has validation cases."""
    return any(int(about["num_cases"]["val"]) > 0 and annotated(about, space) for about in info.databases.values())
