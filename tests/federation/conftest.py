"""What tests of the federation share: hospitals with a store each."""

from pathlib import Path

import pytest
from once_a_run import made_once

from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.sources.manifest import find_manifest

SITES = ("alder", "birch", "dogwood")
"""T1 T2 FLAIR PD of multiple sclerosis; FLAIR T1 T1c T2 of glioma; T1 FLAIR of white matter hyperintensities."""


@pytest.fixture(scope="session")
def site_stores(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """A store for each of three hospitals, voxels of 5 mm, two train, one val, one test case. Only for reading."""

    def make(folder: Path) -> None:
        found = {files.name: files for files in find_manifest(hospitals / "manifest.toml")}
        options = IngestOptions(spacing_mm=(5.0, 5.0, 5.0), split={"train": 0.5, "val": 0.25, "test": 0.25})
        for name in SITES:
            report, *_ = ingest([found[name]], str(folder / f"{name}.zarr"), options)
            assert len(report.written) == 4, report

    folder = made_once(tmp_path_factory, "sites", make)
    return {name: str(folder / f"{name}.zarr") for name in SITES}
