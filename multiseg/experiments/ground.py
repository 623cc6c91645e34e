"""The ground of experiments: a store, its training databases and their sequences."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from multiseg.errors import DataError, UsageError
from multiseg.experiments.scales import Scale
from multiseg.files import check_folder, write_atomically
from multiseg.labels import LabelSpace
from multiseg.phantoms.hospitals import MANIFEST, write_hospitals
from multiseg.store.catalogue import select
from multiseg.store.hierarchy import is_remote
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import Store, open_store
from multiseg.store.sources.manifest import find_manifest

TRAINING = ("alder", "birch", "cedar", "dogwood", "elm")
NEVER_TRAINED = ("fir", "gorse")
STORES = "stores.json"
RUNS = "runs"
GRAFTED = "grafted"
"""Begins the names of stores of grafted test cases."""
OWN = (RUNS, "synthetic-*", ".hospitals-*", f"{GRAFTED}-*", f".{GRAFTED}-*")
"""Names of the files and folders that experiments write into their folder."""


@dataclass(frozen=True)
class Roles:
    """What an experiment on anatomy with lesions learns from which database.

    Attributes:
        tissues, lesions: the databases from which tissues and lesions are learnt; the second is tested on, for both,
            unless there are test cases apart from them.
        hidden: what trainings must not see, as "DATABASE/ANNOTATION": the tissues of `lesions`, and the lesions of
            `tissues`; and sequences, as "DATABASE/SEQUENCE".
        names: the tissues that `tissues` is annotated for.
        tested: those of them that `lesions` is annotated for, too.
        anchor: a healthy case, "DATABASE/CASE", that models may hold for adaptations; "" for none.
        test_store, test_databases: the store of the test cases and its databases, if they are apart: see
            `grafted_ground`.
        without, with_lesions: test cases of `tissues` that are not tested: no lesion fits them, or they have lesions of
            their own.
    """

    tissues: str
    lesions: str
    hidden: tuple[str, ...]
    names: tuple[str, ...]
    tested: tuple[str, ...]
    anchor: str = ""
    test_store: str = ""
    test_databases: tuple[str, ...] = ()
    without: tuple[str, ...] = ()
    with_lesions: tuple[str, ...] = ()


@dataclass(frozen=True)
class Ground:
    """A store as the experiments see it.

    Attributes:
        sequences: by training database, the sequences that at least one of its training cases has.
        digest: of the cases, their splits and contents. It changes if any of them does.
        synthetic: whether the store is one of synthetic hospitals.
        roles: of the databases in experiments on anatomy with lesions; None in the others.
    """

    store: str
    sequences: Mapping[str, tuple[str, ...]]
    scale: Scale
    num_seeds: int
    digest: str
    synthetic: bool
    roles: Roles | None = None

    @property
    def training(self) -> tuple[str, ...]:
        """The databases that models are trained on."""
        return tuple(self.sequences)

    def others(self, database: str) -> tuple[str, ...]:
        """All training databases except this one."""
        return tuple(name for name in self.training if name != database)

    def known_without(self, database: str) -> tuple[str, ...]:
        """The sequences of a database that at least one other training database has."""
        elsewhere = {name for other in self.others(database) for name in self.sequences[other]}
        return tuple(name for name in self.sequences[database] if name in elsewhere)

    def known_only_to(self, database: str) -> tuple[str, ...]:
        """The sequences of a database that no other training database has."""
        known = self.known_without(database)
        return tuple(name for name in self.sequences[database] if name not in known)


def synthetic_ground(folder: Path, scale: Scale, num_seeds: int) -> Ground:
    """The ground of the synthetic hospitals. They are created and ingested into `folder`, unless that is done."""
    url = made_store(folder, scale, scale.name, (*TRAINING, *NEVER_TRAINED))
    return replace(_ground(url, scale, num_seeds, TRAINING), synthetic=True)


def made_store(folder: Path, scale: Scale, name: str, hospitals: Sequence[str], template_of: str = "") -> str:
    """The store `synthetic-NAME.zarr` of these hospitals, created and ingested into `folder` unless that is done.

    Args:
        template_of: a hospital without lesions; every case is registered to one more head of it, and its own heads may
            be anchors (pathology "phantom").
    """
    check_folder(folder, own=OWN)
    url, record = folder / f"synthetic-{name}.zarr", folder / f"synthetic-{name}.json"
    numbers = json.dumps([asdict(scale)[name] for name in ("spacing_mm", "num_cases", "coarseness", "split")])
    if not (record.is_file() and json.loads(record.read_text(encoding="utf-8")) == json.loads(numbers)):
        files = folder / f".hospitals-{name}"
        manifest = write_hospitals(files, 0, scale.num_cases, scale.coarseness, hospitals, overwrite=True)
        edge = scale.spacing_mm
        databases, options = find_manifest(manifest), IngestOptions(spacing_mm=(edge, edge, edge), split=scale.split)
        if template_of:
            databases = [replace(one, pathology="phantom") if one.name == template_of else one for one in databases]
            options = replace(options, template=str(_template(files / ".template", template_of, scale.coarseness)))
        ingest(databases, str(url), options)
        write_atomically(record, numbers.encode())  # last, so that an interrupted ingest is completed next time
        shutil.rmtree(files)
    return str(url.resolve())


def _template(folder: Path, hospital: str, coarseness: float) -> Path:
    """The T1 of a head of a hospital that is not among its cases, since it has another seed."""
    write_hospitals(folder, 1, 1, coarseness, [hospital], overwrite=True)
    (case,) = find_manifest(folder / MANIFEST)[0].cases
    return Path(str(case.images["T1"]))


def ground_of(store: str, scale: Scale, num_seeds: int) -> Ground:
    """The ground of a user's store. It trains on every database with an annotated lesion in a training case.

    Raises:
        UsageError: there are fewer than two such databases.
        DataError: a training database has no test case.
    """
    url = whole_url(store)
    return _ground(url, scale, num_seeds, tuple(open_store(url)))


def whole_url(store: str) -> str:
    """The address of a store from any folder."""
    return store if is_remote(store) else str(Path(store).resolve())


def _ground(url: str, scale: Scale, num_seeds: int, names: tuple[str, ...]) -> Ground:
    store, space = open_store(url), LabelSpace.of(("lesion",))
    found = {name: learnt_sequences(store, name, space) for name in names}
    sequences = {name: modalities for name, modalities in found.items() if modalities}
    if len(sequences) < 2:
        raise UsageError(
            f"{url} has {len(sequences)} databases with an annotated lesion in a training case, but experiments need "
            "two."
        )
    for name in sequences:
        if not select(store, [name], split="test"):
            raise DataError(f"{name} has no test cases in {url}. Ingest it with a fraction for test: --split.")
    return Ground(url, sequences, scale, num_seeds, digest_of(store), synthetic=False)


def learnt_sequences(store: Store, database: str, space: LabelSpace) -> tuple[str, ...]:
    """The sequences of a database's training cases that are annotated for any structure of the space."""
    cases = select(store, [database], split="train")
    labelled = [case for case in cases if store[database].label_view(case, space).annotated.any()]
    present = {modality for case in labelled for modality in case.modalities}
    return tuple(modality for modality in store[database].modalities if modality in present)


def digest_of(store: Store) -> str:
    """The digest of all cases of a store: their splits, sequences, intensities and lesion volumes."""
    rows = [
        [case.database, case.name, case.split, dict(case.intensity), [num.tolist() for num in case.foreground_count]]
        for case in select(store)
    ]
    return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def claim(folder: Path, ground: Ground) -> None:
    """Record the ground of the runs in a folder, which may have runs of several stores.

    Raises:
        UsageError: the folder has runs of the same store with other cases, or is not a folder of runs.
    """
    check_folder(folder.parent, own=OWN)
    file = folder / STORES
    digests = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if digests.setdefault(ground.store, ground.digest) != ground.digest:
        raise UsageError(
            f"the runs in {folder} were made before the cases of {ground.store} changed. Choose another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(digests, indent=1).encode())
