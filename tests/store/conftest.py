"""What the tests of whole ingests share: hospitals smaller than those of all tests, and a store of them."""

from pathlib import Path

import pytest
from once_a_run import made_once

from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.sources.manifest import find_manifest


@pytest.fixture(scope="session")
def few_hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two hospitals with three cases each: two annotations in one, a participants' table in the other."""
    return made_once(
        tmp_path_factory,
        "few-hospitals",
        lambda folder: write_hospitals(folder, num_cases=3, coarseness=4.0, names=["alder", "dogwood"]),
    )


@pytest.fixture(scope="session")
def few_url(few_hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of them in voxels of 10 mm. Only for reading: every test shares it."""

    def make(folder: Path) -> None:
        options = IngestOptions(spacing_mm=(10.0, 10.0, 10.0))
        reports = ingest(find_manifest(few_hospitals / "manifest.toml"), str(folder / "few.zarr"), options)
        assert [len(report.written) for report in reports] == [3, 3], reports

    return str(made_once(tmp_path_factory, "few", make) / "few.zarr")
