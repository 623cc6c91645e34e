"""The ground of experiments on the tissue under lesions: lesions of one database grafted into test cases of another."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from multiseg.errors import DataError, UsageError, few
from multiseg.evaluation.grafted_cases import GraftOptions, write_grafted_cases
from multiseg.experiments.anatomy_ground import chosen_database, hidden_of_both, kinds_of, tissues_of
from multiseg.experiments.ground import GRAFTED, OWN, Ground, Roles, digest_of, learnt_sequences, whole_url
from multiseg.experiments.scales import Scale
from multiseg.files import check_folder, write_atomically
from multiseg.labels import LabelSpace
from multiseg.loaders.graft import check_graftable, has_lesion
from multiseg.models.two_unets import ANATOMY_SEQUENCES
from multiseg.store.catalogue import select
from multiseg.store.findings import Severity
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import IngestReport, ingest
from multiseg.store.reader import Store, open_store
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.structures import hide, written
from multiseg.training.anchors import PUBLIC

LEFT_OUT = ("without", "with_lesions")
"""Test cases without a graft, as `GraftedCases` names them."""


def grafted_ground_of(
    folder: Path, store: str, scale: Scale, num_seeds: int, tissues: str = "", lesions: str = ""
) -> Ground:
    """The ground of a user's store whose databases were ingested with a template.

    Every test case of `tissues` gets a lesion of a test case of `lesions` (`multiseg graft`), in a store of its own in
    `folder`, which is made once. Those that no lesion fits, or that have lesions of their own, are left out; the roles
    name them. The sequences of `lesions` that grafted cases do not have are hidden from every training, since the test
    could not show them.

    Args:
        tissues, lesions: the databases from which tissues and lesions are learnt; "" finds them.

    Raises:
        UsageError: a database is not in the store or does not fit, or it is not named, and none or several fit; or it
            has no template; or a sequence of the anatomy branch is missing.
        DataError: there is no test case, or no lesion fits into one, or a grafted case cannot be ingested.
    """
    url = whole_url(store)
    opened = open_store(url)
    kinds = {name: kinds_of(opened, name) for name in opened}
    lesions = chosen_database(url, "--lesions", lesions, kinds, ("lesion",), without=tissues)
    tissues = chosen_database(url, "--tissues", tissues, kinds, ("tissue",), without=lesions)
    shared = check_graftable(opened, (lesions,), (tissues,))
    if not set(ANATOMY_SEQUENCES) & set(shared):
        raise UsageError(
            f"{tissues} and {lesions} of {url} share {', '.join(shared)}, but the anatomy branch sees "
            f"{', '.join(ANATOMY_SEQUENCES)}: name databases that have it."
        )
    annotations = hidden_of_both(opened, tissues, lesions)  # before grafting, which takes long: it may refuse
    names = tissues_of(opened, tissues, "train")
    digest = digest_of(opened)
    tests, made = grafted_store(folder, opened, digest, tissues, lesions)
    further = tuple(f"{lesions}/{name}" for name in opened[lesions].modalities if name not in shared)
    anchor = anchor_of(opened, names, lesions)
    hide(opened, (*annotations, *further))
    spaces = {tissues: LabelSpace.of([written("tissue", name) for name in names]), lesions: LabelSpace()}
    sequences = {name: learnt_sequences(opened, name, space) for name, space in spaces.items()}
    tested, left_out = tuple(open_store(tests)), (tuple(made[key]) for key in LEFT_OUT)
    roles = Roles(tissues, lesions, (*annotations, *further), names, names, anchor, tests, tested, *left_out)
    return Ground(url, sequences, scale, num_seeds, digest, synthetic=False, roles=roles)


def grafted_store(folder: Path, store: Store, digest: str, tissues: str, lesions: str) -> tuple[str, dict[str, Any]]:
    """The store of the grafted test cases, made in `folder` unless that is done, and its record.

    The record has `cases` (of each its healthy case and that of its lesion) and the names in `LEFT_OUT`.

    Raises:
        DataError: a grafted case cannot be ingested; then there is no record.
    """
    check_folder(folder, own=OWN)
    name = hashlib.sha256(json.dumps([store.url, digest, tissues, lesions]).encode()).hexdigest()[:12]
    url, record = folder / f"{GRAFTED}-{name}.zarr", folder / f"{GRAFTED}-{name}.json"
    made = _read_record(record)
    if not made:
        files = folder / f".{GRAFTED}-{name}"
        grafted = write_grafted_cases(store, GraftOptions((lesions,), (tissues,)), files, overwrite=True)
        options = IngestOptions(spacing_mm=store.spacing_mm, normalise=store[tissues].recipe.normalise)
        _check_complete(ingest(find_manifest(grafted.manifest), str(url), options), files)
        origins = {origin.case: [origin.healthy, origin.lesion] for origin in grafted.origins}
        made = {"cases": origins, **{key: list(getattr(grafted, key)) for key in LEFT_OUT}}
        write_atomically(record, json.dumps(made, indent=1).encode())  # last: an interrupted one is completed
        shutil.rmtree(files)
    return str(url.resolve()), made


def _read_record(file: Path) -> dict[str, Any]:
    """The record of a store of grafted cases; empty if there is none, or one of a version that lost cases silently."""
    made: dict[str, Any] = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return made if set(LEFT_OUT) <= made.keys() else {}


def _check_complete(reports: Sequence[IngestReport], files: Path) -> None:
    """Raises DataError if a grafted case was not ingested: results on the others would look like those of all."""
    failed = [f"{report.database}/{case}" for report in reports for case in report.failed]
    if failed:
        errors = [one.message for report in reports for one in report.findings if one.severity is Severity.ERROR]
        raise DataError(
            f"{len(failed)} of the grafted test cases in {files} could not be ingested ({few(failed)}): "
            f"{few(errors, 1) or 'no reason is given'}. Run multiseg verify {files}, and correct the cases that they "
            "come from."
        )


def anchor_of(store: Store, tissues: tuple[str, ...], lesions: str) -> str:
    """The first train case that may travel in a model file, with T1 and tissues of the model; "" if there is none.

    It is never a case with a lesion, not even a hidden one, and never of the database of lesions, whose tissues no
    training may see.
    """
    space = LabelSpace.of([written("tissue", name) for name in tissues])
    public = [name for name in store if store[name].pathology in PUBLIC and name != lesions]
    for case in select(store, public, split="train") if public else ():
        database = store[case.database]
        is_shown = set(ANATOMY_SEQUENCES) <= set(case.modalities)
        is_annotated = database.label_view(case, space).annotated.any()
        if is_shown and is_annotated and not has_lesion(database, case, even_hidden=True):
            return f"{case.database}/{case.name}"
    return ""
