"""The ground of experiments: a store, its training databases and their sequences."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from multiseg.errors import DataError, UsageError
from multiseg.experiments.scales import Scale
from multiseg.files import check_folder, write_atomically
from multiseg.labels import LabelSpace
from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store.catalogue import select
from multiseg.store.hierarchy import is_remote
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import Store, open_store
from multiseg.store.sources.manifest import find_manifest

TRAINING = ("alder", "birch", "cedar", "dogwood", "elm")
NEVER_TRAINED = ("fir", "gorse")
MADE, STORES = "synthetic.json", "stores.json"
RUNS = "runs"
OWN = (RUNS, "synthetic-*", ".hospitals-*")
"""Names of the files and folders that experiments write into their folder."""


@dataclass(frozen=True)
class Ground:
    """A store as the experiments see it.

    Attributes:
        sequences: by training database, the sequences that at least one of its training cases has.
        digest: of the cases, their splits and contents. It changes if any of them does.
        synthetic: whether the store has `fir` and `gorse`, which no model is trained on.
    """

    store: str
    sequences: Mapping[str, tuple[str, ...]]
    scale: Scale
    num_seeds: int
    digest: str
    synthetic: bool

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
    check_folder(folder, own=OWN)
    url = folder / f"synthetic-{scale.name}.zarr"
    record = folder / MADE.replace(".", f"-{scale.name}.")
    numbers = json.dumps([asdict(scale)[name] for name in ("spacing_mm", "num_cases", "coarseness", "split")])
    if not (record.is_file() and json.loads(record.read_text(encoding="utf-8")) == json.loads(numbers)):
        hospitals = folder / f".hospitals-{scale.name}"
        names = (*TRAINING, *NEVER_TRAINED)
        manifest = write_hospitals(hospitals, 0, scale.num_cases, scale.coarseness, names, overwrite=True)
        edge = scale.spacing_mm
        ingest(find_manifest(manifest), str(url), IngestOptions(spacing_mm=(edge, edge, edge), split=scale.split))
        write_atomically(record, numbers.encode())  # last, so that an interrupted ingest is completed next time
        shutil.rmtree(hospitals)
    return replace(_ground(str(url.resolve()), scale, num_seeds, TRAINING), synthetic=True)


def ground_of(store: str, scale: Scale, num_seeds: int) -> Ground:
    """The ground of a user's store. It trains on every database with an annotated lesion in a training case.

    Raises:
        UsageError: there are fewer than two such databases.
        DataError: a training database has no test case.
    """
    url = store if is_remote(store) else str(Path(store).resolve())
    return _ground(url, scale, num_seeds, tuple(open_store(url)))


def _ground(url: str, scale: Scale, num_seeds: int, names: tuple[str, ...]) -> Ground:
    store, space = open_store(url), LabelSpace.of(("lesion",))
    sequences = {}
    for name in names:
        cases = select(store, [name], split="train")
        labelled = [case for case in cases if store[name].label_view(case, space).annotated.any()]
        if labelled:
            present = {modality for case in labelled for modality in case.modalities}
            sequences[name] = tuple(modality for modality in store[name].modalities if modality in present)
    if len(sequences) < 2:
        raise UsageError(
            f"{url} has {len(sequences)} databases with an annotated lesion in a training case, but experiments need "
            "two."
        )
    for name in sequences:
        if not select(store, [name], split="test"):
            raise DataError(f"{name} has no test cases in {url}. Ingest it with a fraction for test: --split.")
    return Ground(url, sequences, scale, num_seeds, _digest(store), synthetic=False)


def _digest(store: Store) -> str:
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
