"""How soon `multiseg view` shows a large case: 512 x 512 x 300 voxels of two sequences and a label, made here.

    python -m benchmarks.first_slice FOLDER

The scans are smoothed noise in an ellipsoid that fills the volume, so that hardly any chunk is empty. The first number
is the time until the server has answered for the case and its first slice, the second until the browser has drawn it
(counted from the click in the list), the last until it has read all voxels. A headless browser draws without a graphics
card, so it stays with axial slices of a case this large.
"""

from __future__ import annotations

import argparse
import http.client
import json
import time
from pathlib import Path

import nibabel as nib
import numpy as np
from scipy import ndimage

from benchmarks.browser import chromium, missing_programs
from benchmarks.screenshots import served
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.recognise import find_source
from multiseg.store.sources.source_types import SourceOptions
from multiseg.viewer.page_server import PageServer
from multiseg.viewer.stored_cases import StoredCases

SHAPE, MM = (512, 512, 300), 0.5
REPEATS = 5
IS_READ = "return !/^(Opening|Reading)/.test(document.getElementById('reading').textContent)"


def write_case(folder: Path) -> None:
    """Two sequences and a lesion, as NIfTI."""
    generator = np.random.default_rng(0)
    axes = np.meshgrid(*(np.linspace(-1, 1, num, dtype=np.float32) for num in SHAPE), indexing="ij", sparse=True)
    brain = sum(axis**2 for axis in axes) < 1
    small = generator.normal(size=[num // 4 for num in SHAPE]).astype(np.float32)
    coarse = ndimage.zoom(small, 4, order=1)
    affine = np.diag([MM, MM, MM, 1.0])
    folder.mkdir(parents=True)
    for number, name in enumerate(("T1", "FLAIR")):
        noise = generator.normal(size=SHAPE).astype(np.float32)
        scan = np.where(brain, 500 + 100 * coarse * (1 - 2 * number) + 20 * noise, 0)
        nib.save(nib.Nifti1Image(np.rint(scan).astype(np.int16), affine), folder / f"{name}.nii")
    lesion = sum((axis - 0.3) ** 2 for axis in axes) < 0.01
    nib.save(nib.Nifti1Image(lesion.astype(np.uint8), affine), folder / "lesion.nii")


def make_store(folder: Path) -> str:
    """A store of the case; made once."""
    url = folder / "large.zarr"
    if not url.exists():
        if not (folder / "scans").exists():
            write_case(folder / "scans" / "case1")
        labels = {"lesion": "{case}/lesion.nii"}
        options = SourceOptions(name="large", pattern="{case}/{modality}.nii", labels=labels)
        ingest([find_source(folder / "scans", options)], str(url), IngestOptions(spacing_mm=(MM, MM, MM)))
    return str(url)


def answered(server: PageServer) -> float:
    """Seconds until the server has told of the case and sent its first slice."""
    server.page.open.clear()
    start = time.perf_counter()
    connection = http.client.HTTPConnection("127.0.0.1", server.access.port)
    headers = {"Cookie": server.access.cookie.partition(";")[0]}
    name = server.page.cases.listed[0].name
    connection.request("GET", f"/api/case?case={name}", headers=headers)
    k = json.load(connection.getresponse())["start"][2]
    connection.request("GET", f"/api/window?case={name}&first={k}&last={k + 1}", headers=headers)
    connection.getresponse().read()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    store = open_store(make_store(folder))
    (case,) = store.cases
    print(f"{case}: {store.size_on_disk(case.database) / 1e6:.0f} MB")
    with served(StoredCases(store, [case])) as server:
        before = time.process_time()
        seconds = sorted(answered(server) for _ in range(REPEATS))
        processor = (time.process_time() - before) / REPEATS
        print(
            f"server: first slice after {seconds[REPEATS // 2]:.2f} s (median of {REPEATS}), "
            f"{processor:.2f} s of processor time"
        )
        if not missing_programs():
            server.page.open.clear()
            with chromium() as browser:
                browser.go(server.access.address)
                browser.wait_for("return document.querySelector('#place b')", seconds=300)
                browser.wait_for(IS_READ, seconds=900)
                server.page.open.clear()
                start = time.perf_counter()
                browser.run(
                    "document.getElementById('place').replaceChildren(); document.querySelector('#list button').click()"
                )
                browser.wait_for("return document.querySelector('#place b')", seconds=300)
                print(f"browser: first slice after {time.perf_counter() - start:.2f} s")
                browser.wait_for(IS_READ, seconds=900)
                print(f"browser: all voxels read after {time.perf_counter() - start:.1f} s")


if __name__ == "__main__":
    main()
