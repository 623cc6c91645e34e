"""The ground of experiments on anatomy with lesions: tissues of one database, lesions of another."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from multiseg.errors import DataError, UsageError
from multiseg.experiments.ground import Ground, Roles, digest_of, learnt_sequences, made_store, whole_url
from multiseg.experiments.scales import Scale
from multiseg.labels import LESION, LabelSpace, Structure
from multiseg.store.catalogue import select
from multiseg.store.reader import Case, Store, open_store
from multiseg.store.structures import hide, schemas_of, structures_of, written

TISSUES, LESIONS = "hazel", "ivy"
"""The synthetic hospitals: healthy heads, and gliomas whose tissues are known, also under the lesion."""


def synthetic_anatomy_ground(folder: Path, scale: Scale, num_seeds: int) -> Ground:
    """The ground of two synthetic hospitals. They are created and ingested into `folder`, unless that is done."""
    url = made_store(folder, scale, f"{scale.name}-anatomy", (TISSUES, LESIONS))
    return replace(anatomy_ground_of(url, scale, num_seeds, TISSUES, LESIONS), synthetic=True)


def synthetic_grafting_ground(folder: Path, scale: Scale, num_seeds: int) -> Ground:
    """The same hospitals, registered to a template, so that lesions of one can be grafted into the other.

    The anchor is the first healthy case that trains.
    """
    url = made_store(folder, scale, f"{scale.name}-grafting", (TISSUES, LESIONS), template_of=TISSUES)
    ground = anatomy_ground_of(url, scale, num_seeds, TISSUES, LESIONS)
    anchor, *_ = select(open_store(url), [TISSUES], split="train")
    roles = replace(roles_of(ground), anchor=f"{anchor.database}/{anchor.name}")
    return replace(ground, synthetic=True, roles=roles)


def anatomy_ground_of(store: str, scale: Scale, num_seeds: int, tissues: str = "", lesions: str = "") -> Ground:
    """The ground of a user's store.

    Args:
        tissues, lesions: the databases from which tissues and lesions are learnt; "" finds them.

    Raises:
        UsageError: a database is not in the store or does not fit; or it is not named, and none or several fit.
        DataError: no test case of `lesions` is annotated for lesions and tissues.
    """
    url = whole_url(store)
    opened = open_store(url)
    kinds = {name: kinds_of(opened, name) for name in opened}
    lesions = chosen_database(url, "--lesions", lesions, kinds, ("lesion", "tissue"), without="")
    tissues = chosen_database(url, "--tissues", tissues, kinds, ("tissue",), without=lesions)
    hidden = hidden_of_both(opened, tissues, lesions)
    learnt, tested = tissues_of(opened, tissues, "train"), tissues_of(opened, lesions, "test")
    both = tuple(name for name in learnt if name in tested)
    if not both:
        raise UsageError(
            f"{tissues} and {lesions} of {url} have no tissue in common: {', '.join(learnt)} and "
            f"{', '.join(tested) or 'none'}. Ingest both with the same --labels."
        )
    _check_tested(opened, lesions, both)
    digest = digest_of(opened)
    hide(opened, hidden)
    spaces = {tissues: LabelSpace.of([written("tissue", name) for name in learnt]), lesions: LabelSpace()}
    sequences = {name: learnt_sequences(opened, name, space) for name, space in spaces.items()}
    if not set(sequences[tissues]) & set(sequences[lesions]):
        raise UsageError(
            f"{tissues} and {lesions} of {url} have no sequence in common: {', '.join(sequences[tissues])} and "
            f"{', '.join(sequences[lesions]) or 'none'}."
        )
    roles = Roles(tissues, lesions, hidden, learnt, both)
    return Ground(url, sequences, scale, num_seeds, digest, synthetic=False, roles=roles)


def roles_of(ground: Ground) -> Roles:
    """The roles of the databases; a ground of other experiments has none, which is a fault of the caller."""
    assert ground.roles is not None
    return ground.roles


def shared_sequences(ground: Ground) -> tuple[str, ...]:
    """The sequences that both databases have, to which the single network of Roulet et al. 2019 is limited."""
    roles = roles_of(ground)
    return tuple(name for name in ground.sequences[roles.lesions] if name in ground.sequences[roles.tissues])


def kinds_of(store: Store, database: str) -> set[str]:
    """The kinds of structures that some case of a database is annotated for."""
    return {structure.kind for structure in _structures(store, select(store, [database]))}


def _structures(store: Store, cases: Sequence[Case]) -> list[Structure]:
    """The structures that some of the cases are annotated for, without an atlas's tissue "lesion"."""
    found = structures_of(schemas_of(store, cases))
    return [structure for structure in found if (structure.name, structure.kind) != (LESION.name, "tissue")]


def tissues_of(store: Store, database: str, split: str) -> tuple[str, ...]:
    """The tissues that some case of a split of a database is annotated for."""
    found = _structures(store, select(store, [database], split=split))
    return tuple(dict.fromkeys(structure.name for structure in found if structure.kind == "tissue"))


def chosen_database(
    url: str, flag: str, name: str, kinds: Mapping[str, set[str]], needed: tuple[str, ...], without: str
) -> str:
    """The named database, or the only one that is annotated for what is needed; raises UsageError without one."""
    fitting = [one for one, found in kinds.items() if set(needed) <= found and one != without]
    what = " and ".join(f"{kind}s" for kind in needed)
    if name in fitting or (not name and len(fitting) == 1):
        return name or fitting[0]
    other = "lesions" if flag == "--tissues" else "tissues"
    besides = f" (besides {without}, from which the {other} are learnt)" if without else ""
    there = f"the databases of {url} with cases annotated for {what}{besides} are: {', '.join(fitting) or 'none'}."
    if name:
        raise UsageError(f"{flag} {name} does not fit: {there}")
    raise UsageError(f"{there} " + (f"Choose one: {flag} {fitting[0]}." if fitting else "One is needed."))


def hidden_of_both(store: Store, tissues: str, lesions: str) -> tuple[str, ...]:
    """The annotations with tissues of the database of lesions, and with lesions of that of tissues; raises UsageError
    if one of them also has what must be seen."""
    return (*_hidden(store, lesions, "tissue", "lesion"), *_hidden(store, tissues, "lesion", "tissue"))


def _hidden(store: Store, database: str, kind: str, kept: str) -> tuple[str, ...]:
    """The annotations of a database that have structures of a kind, which trainings must not see."""
    hidden = []
    for name, schema in store[database].schemas.items():
        kinds = {structure.kind for structure in schema.structures}
        if kinds == {kind, kept}:
            raise UsageError(
                f"{database}/{name} has lesions and tissues in one annotation, so that its {kind}s cannot be hidden. "
                "Ingest it as two annotations."
            )
        if kind in kinds:
            hidden.append(f"{database}/{name}")
    return tuple(hidden)


def _check_tested(store: Store, database: str, tissues: Sequence[str]) -> None:
    """Raises DataError if no test case is annotated for lesions and tissues."""
    space = LabelSpace.of(["lesion", *(written("tissue", name) for name in tissues)])
    cases = select(store, [database], split="test")
    if not any(store[database].label_view(case, space).annotated.all() for case in cases):
        raise DataError(
            f"none of the {len(cases)} test cases of {database} in {store.url} is annotated for lesions and tissues. "
            "Ingest it with a fraction for test: --split."
        )
