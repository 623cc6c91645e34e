"""The ground of experiments on the tissue under lesions: lesions of one database grafted into test cases of another."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path

from multiseg.errors import UsageError
from multiseg.evaluation.grafted_cases import GraftOptions, write_grafted_cases
from multiseg.experiments.anatomy_ground import chosen_database, hidden_of_both, kinds_of, tissues_of
from multiseg.experiments.ground import GRAFTED, OWN, Ground, Roles, digest_of, learnt_sequences, whole_url
from multiseg.experiments.scales import Scale
from multiseg.files import check_folder, write_atomically
from multiseg.labels import LabelSpace
from multiseg.loaders.graft import check_graftable
from multiseg.models.two_branch import ANATOMY_SEQUENCES
from multiseg.store.catalogue import select
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import Store, open_store
from multiseg.store.sources.manifest import find_manifest
from multiseg.store.structures import hide, written
from multiseg.training.anchors import PUBLIC


def grafted_ground_of(
    folder: Path, store: str, scale: Scale, num_seeds: int, tissues: str = "", lesions: str = ""
) -> Ground:
    """The ground of a user's store whose databases were ingested with a template.

    Every test case of `tissues` gets a lesion of a test case of `lesions` (`multiseg graft`), in a store of its own in
    `folder`, which is made once. The sequences of `lesions` that grafted cases do not have are hidden from every
    training, since the test could not show them.

    Args:
        tissues, lesions: the databases from which tissues and lesions are learnt; "" finds them.

    Raises:
        UsageError: a database is not in the store or does not fit, or it is not named, and none or several fit; or it
            has no template; or a sequence of the anatomy branch is missing.
        DataError: there is no test case, or no lesion fits into one.
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
    names = tissues_of(opened, tissues, "train")
    digest = digest_of(opened)
    tests = _grafted_store(folder, opened, digest, tissues, lesions)
    further = tuple(f"{lesions}/{name}" for name in opened[lesions].modalities if name not in shared)
    annotations = hidden_of_both(opened, tissues, lesions)
    anchor = _anchor(opened, names)
    hide(opened, (*annotations, *further))
    spaces = {tissues: LabelSpace.of([written("tissue", name) for name in names]), lesions: LabelSpace()}
    sequences = {name: learnt_sequences(opened, name, space) for name, space in spaces.items()}
    tested = tuple(open_store(tests))
    roles = Roles(tissues, lesions, (*annotations, *further), names, names, anchor, tests, tested)
    return Ground(url, sequences, scale, num_seeds, digest, synthetic=False, roles=roles)


def _grafted_store(folder: Path, store: Store, digest: str, tissues: str, lesions: str) -> str:
    """The store of the grafted test cases, made in `folder` unless that is done."""
    check_folder(folder, own=OWN)
    name = hashlib.sha256(json.dumps([store.url, digest, tissues, lesions]).encode()).hexdigest()[:12]
    url, record = folder / f"{GRAFTED}-{name}.zarr", folder / f"{GRAFTED}-{name}.json"
    if not record.is_file():
        files = folder / f".{GRAFTED}-{name}"
        grafted = write_grafted_cases(store, GraftOptions((lesions,), (tissues,)), files, overwrite=True)
        options = IngestOptions(spacing_mm=store.spacing_mm, normalise=store[tissues].recipe.normalise)
        ingest(find_manifest(grafted.manifest), str(url), options)
        origins = {origin.case: [origin.healthy, origin.lesion] for origin in grafted.origins}
        write_atomically(record, json.dumps(origins, indent=1).encode())  # last: an interrupted one is completed
        shutil.rmtree(files)
    return str(url.resolve())


def _anchor(store: Store, tissues: tuple[str, ...]) -> str:
    """The first train case that may travel in a model file, with T1 and tissues of the model; "" if there is none."""
    space = LabelSpace.of([written("tissue", name) for name in tissues])
    public = [name for name in store if store[name].pathology in PUBLIC]
    for case in select(store, public, split="train") if public else ():
        view = store[case.database].label_view(case, space)
        if set(ANATOMY_SEQUENCES) <= set(case.modalities) and view.annotated.any():
            return f"{case.database}/{case.name}"
    return ""
