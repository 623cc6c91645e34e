"""What experiments stand on: a store, its databases and their sequences."""

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
"""What experiments leave in their folder."""


@dataclass(frozen=True)
class Ground:
    """A store as the experiments see it.

    Attributes:
        sequences: of each training database, those that some of its training cases have.
        digest: of the cases, their splits and contents: another one is another ground.
        synthetic: whether `fir` and `gorse` are there, which nothing is trained on.
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
        """The training databases but this one."""
        return tuple(name for name in self.training if name != database)

    def known_without(self, database: str) -> tuple[str, ...]:
        """Those of its sequences that some other training database has."""
        elsewhere = {name for other in self.others(database) for name in self.sequences[other]}
        return tuple(name for name in self.sequences[database] if name in elsewhere)


def synthetic_ground(folder: Path, scale: Scale, num_seeds: int) -> Ground:
    """The synthetic hospitals, made and ingested into `folder` where they are not there yet."""
    check_folder(folder, own=OWN)
    url = folder / f"synthetic-{scale.name}.zarr"
    made = folder / MADE.replace(".", f"-{scale.name}.")
    wanted = json.loads(
        json.dumps([asdict(scale)[name] for name in ("spacing_mm", "num_cases", "coarseness", "split")])
    )
    if not (made.is_file() and json.loads(made.read_text(encoding="utf-8")) == wanted):
        hospitals = folder / f".hospitals-{scale.name}"
        names = (*TRAINING, *NEVER_TRAINED)
        manifest = write_hospitals(hospitals, 0, scale.num_cases, scale.coarseness, names, overwrite=True)
        edge = scale.spacing_mm
        ingest(find_manifest(manifest), str(url), IngestOptions(spacing_mm=(edge, edge, edge), split=scale.split))
        write_atomically(made, json.dumps(wanted).encode())  # last, so that a half-made store is made whole
        shutil.rmtree(hospitals)
    return replace(_ground(str(url.resolve()), scale, num_seeds, TRAINING), synthetic=True)


def ground_of(store: str, scale: Scale, num_seeds: int) -> Ground:
    """A user's own store: every database with an annotated lesion in a training case is trained on.

    Raises:
        UsageError: there are fewer than two.
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
            had = {modality for case in labelled for modality in case.modalities}
            sequences[name] = tuple(modality for modality in store[name].modalities if modality in had)
    if len(sequences) < 2:
        raise UsageError(
            f"{url} has {len(sequences)} databases with an annotated lesion in a training case: experiments on joint "
            "training need two."
        )
    for name in sequences:
        if not select(store, [name], split="test"):
            raise DataError(f"{name} has no test case in {url}. Ingest it with a share for test: --split.")
    return Ground(url, sequences, scale, num_seeds, _digest(store), synthetic=False)


def _digest(store: Store) -> str:
    """One for the cases that are in a store, their splits, sequences, intensities and lesions."""
    told = [
        [
            case.database,
            case.name,
            case.split,
            dict(case.intensity),
            [counts.tolist() for counts in case.foreground_count],
        ]
        for case in select(store)
    ]
    return hashlib.sha256(json.dumps(told).encode()).hexdigest()


def claim(folder: Path, ground: Ground) -> None:
    """Note the ground that the runs of a folder stand on.

    Raises:
        UsageError: they stand on the same store, but its cases were others; or the folder is something else.
    """
    check_folder(folder.parent, own=OWN)
    file = folder / STORES
    known = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    if known.setdefault(ground.store, ground.digest) != ground.digest:
        raise UsageError(
            f"the runs in {folder} were made before the cases of {ground.store} changed. Choose another --out."
        )
    folder.mkdir(parents=True, exist_ok=True)
    write_atomically(file, json.dumps(known, indent=1).encode())
