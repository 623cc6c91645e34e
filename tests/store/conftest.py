"""What the tests of whole ingests share: hospitals smaller than those of all tests, and a store of them."""

from pathlib import Path

import pytest

from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.sources.manifest import find_manifest


@pytest.fixture(scope="session")
def few_hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of two hospitals with three cases each: two annotations in one, a participants' table in the other."""
    folder = tmp_path_factory.mktemp("few")
    write_hospitals(folder, num_cases=3, coarseness=4.0, names=["alder", "dogwood"])
    return folder


@pytest.fixture(scope="session")
def few_url(few_hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of them in voxels of 10 mm. Only for reading: every test shares it."""
    url = str(tmp_path_factory.mktemp("store") / "few.zarr")
    reports = ingest(find_manifest(few_hospitals / "manifest.toml"), url, IngestOptions(spacing_mm=(10.0, 10.0, 10.0)))
    assert [len(report.written) for report in reports] == [3, 3], reports
    return url
