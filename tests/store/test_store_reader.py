"""What is stored can be read: through multiseg, through xarray, and through another Zarr reader."""

import gzip
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import tensorstore as ts
import xarray as xr
import zarr

from multiseg.errors import StoreError
from multiseg.store import hierarchy, schema
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.cases import CaseFiles
from multiseg.store.checks.verification import verify_store
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.preparation.prepare import prepare_case
from multiseg.store.preparation.recipe import Recipe
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest


@pytest.fixture
def alder_files(hospitals: Path) -> tuple[CaseFiles, ...]:
    return find_manifest(hospitals / "manifest.toml")[0].cases


def test_a_store_is_a_mapping_of_databases(store_url: str) -> None:
    store = open_store(store_url)
    assert list(store) == ["alder", "birch", "cedar", "dogwood"]
    assert (len(store), len(store.cases), store.spacing_mm) == (4, 16, (5.0, 5.0, 5.0))
    alder = store["alder"]
    assert (alder.pathology, alder.modalities) == ("multiple sclerosis", ("PD", "FLAIR", "T1", "T2"))
    assert alder.schemas["tissue"].names == ("CSF", "grey matter", "white matter")
    assert (alder.recipe.brain_mask, store["birch"].recipe.brain_mask) == ("nonzero", "file")
    # Every third case of cedar has no FLAIR.
    assert [case.modalities for case in store["cedar"].cases][2] == ("DWI", "ADC")
    assert store["dogwood"].cases[0].participant.keys() == {"age", "sex", "scanner"}
    assert store.size_on_disk("alder") > 10_000
    with pytest.raises(StoreError, match=r"has no database 'elm'. It has: alder, birch, cedar, dogwood"):
        store["elm"]
    with pytest.raises(StoreError, match=r"database 'alder' has no case 'X'. It has: A001, A002, A003, A004"):
        alder["X"]


@pytest.mark.slow
def test_a_case_reads_as_it_was_prepared(store_url: str, alder_files: tuple[CaseFiles, ...]) -> None:
    database = open_store(store_url)["alder"]
    for files in alder_files[:2]:
        case = database[files.case]
        prepared = prepare_case(files, database.schemas, Recipe((5.0,) * 3))
        image, codes = database.whole(case)
        np.testing.assert_array_equal(image, prepared.images)
        np.testing.assert_array_equal(codes[0], prepared.labels["lesion"])
        np.testing.assert_array_equal(codes[1], prepared.labels["tissue"])
        np.testing.assert_array_equal(case.grid.affine, prepared.grid.affine)
        np.testing.assert_array_equal(case.foreground_count[0, 0], np.count_nonzero(codes[0] == 1))
        native, header = database.native(case)
        assert header == prepared.native_header == gzip.decompress(files.images["FLAIR"].read_bytes())[:348]
        np.testing.assert_array_equal(native.affine, read_volume(files.images["FLAIR"]).affine)
        assert [s["role"] for s in database.sources(case)] == [*database.modalities, "label:lesion", "label:tissue"]
        points = database.foreground(case)[1, 2]
        assert all(codes[1][tuple(point)] == 3 for point in points[points[:, 0] >= 0])


@pytest.mark.slow
def test_windows_are_padded_with_0(store_url: str) -> None:
    database = open_store(store_url)["alder"]
    case = database.cases[0]
    image, codes = database.whole(case)
    room = 40
    padded = np.pad(image, [(0, 0)] + [(room, room)] * 3)
    rng = np.random.default_rng(0)
    corners = [(0, 0, 0), (-3, 2, -1), (-40, 0, 0), (20, 20, 20), *rng.integers(-20, 30, (10, 3)).tolist()]
    for corner in corners:
        part = tuple(slice(room + c, room + c + n) for c, n in zip(corner, (9, 10, 8), strict=True))
        window = database.image(case, tuple(corner), (9, 10, 8))
        np.testing.assert_array_equal(window, padded[:, *part], err_msg=str(corner))
    assert database.codes(case, (-2, -2, -2), (70, 70, 70)).shape == (2, 70, 70, 70)
    assert not database.codes(case, (500, 0, 0), (4, 4, 4)).any()
    np.testing.assert_array_equal(database.codes(case, (0, 0, 0), case.extent), codes)


@pytest.mark.slow
def test_xarray_opens_a_database_by_name(store_url: str) -> None:
    database = open_store(store_url)["alder"]
    case = database["A002"]
    with xr.open_zarr(store_url + "/alder", consolidated=False) as dataset:
        assert dataset.image.dims == ("case", "modality", "i", "j", "k")
        assert dataset.modality.values.tolist() == ["PD", "FLAIR", "T1", "T2"]
        assert {"subject", "split", "available", "affine"} <= set(dataset.coords)
        assert set(dataset.data_vars) == {"image", "label"}
        flair = dataset.image.sel(case="A002", modality="FLAIR").values
        lesion = dataset.label.sel(case="A002", annotation="lesion").values
        i, j, k = case.extent
        np.testing.assert_array_equal(flair[:i, :j, :k], database.whole(case)[0][1])
        np.testing.assert_array_equal(lesion[:i, :j, :k], database.whole(case)[1][0])
        assert not flair[i:].any()


def test_xarray_opens_the_whole_tree(store_url: str) -> None:
    with xr.open_datatree(store_url, engine="zarr", consolidated=False) as tree:
        assert set(tree.children) == {"alder", "birch", "cedar", "dogwood"}
        assert tree["cedar"].ds.available.sel(case="C003", modality="FLAIR").item() is False
        assert tree["dogwood"].ds.age.sel(case="D001").item() >= 55


def opened_in_every_way(url: str, name: str) -> list[xr.Dataset]:
    tree = xr.open_datatree(url, engine="zarr", consolidated=False)
    zarr_of_xarray = xr.open_dataset(f"{url}/{name}", engine="zarr", consolidated=False)
    return [
        xr.open_zarr(f"{url}/{name}", consolidated=False),
        zarr_of_xarray,
        tree[name].to_dataset(),
        open_store(url).dataset(name),
    ]


@pytest.mark.slow
def test_what_xarray_sums_is_what_numpy_sums_in_float64(store_url: str) -> None:
    """Sums in float16 end at 65,504, so that means of large lesions and all deviations were inf, nan or 0."""
    database = open_store(store_url)["birch"]
    voxels = {case.name: database.whole(case)[0].astype(np.float64) for case in database.cases}
    everything = np.concatenate([image.ravel() for image in voxels.values()])
    assert np.square(everything).sum() > 65504  # so float16 would overflow
    for dataset in opened_in_every_way(store_url, "birch"):
        assert dataset.image.dtype == np.float64
        assert float((dataset.image**2).sum()) == pytest.approx(np.square(everything).sum(), rel=1e-9)
        for name, image in voxels.items():
            brain = image[0][image[0] != 0]
            flair = dataset.image.sel(case=name, modality="FLAIR")
            inside = flair.where(flair != 0)
            assert float(inside.mean()) == pytest.approx(brain.mean(), rel=1e-9, abs=1e-12)
            assert float(inside.std()) == pytest.approx(brain.std(), rel=1e-9)
            assert float(abs(inside).sum()) == pytest.approx(np.abs(brain).sum(), rel=1e-9)
        dataset.close()


@pytest.mark.slow
def test_an_older_store_is_decoded_after_the_next_ingest(hospitals: Path, tmp_path: Path) -> None:
    url = str(tmp_path / "old.zarr")
    cedar = [files for files in find_manifest(hospitals / "manifest.toml") if files.name == "cedar"]
    first = [replace(cedar[0], cases=cedar[0].cases[:1])]
    ingest(first, url, IngestOptions(spacing_mm=(5.0, 5.0, 5.0)))
    group = zarr.open_group(url)["cedar"]
    group["image"].attrs.put({})
    DatabaseArrays(group).keep_copy()
    assert xr.open_zarr(f"{url}/cedar", consolidated=False).image.dtype == np.float16
    assert open_store(url).dataset("cedar").image.dtype == np.float64
    found = verify_store(url)
    assert [(one.code, one.file) for one in found] == [("FLOAT16_IN_XARRAY", "cedar/image/zarr.json")]
    ingest(cedar, url, IngestOptions(spacing_mm=(5.0, 5.0, 5.0)))
    assert xr.open_zarr(f"{url}/cedar", consolidated=False).image.dtype == np.float64
    assert verify_store(url) == []


@pytest.mark.slow
def test_only_committed_rows_are_a_dataset(store_url: str) -> None:
    dataset = open_store(store_url).dataset("birch")
    assert dataset.case.values.tolist() == ["B001", "B002", "B003", "B004"]
    assert (dataset.status.values == schema.COMMITTED).all()


@pytest.mark.parametrize("name", ["image", "label"])
def test_another_zarr_reader_reads_the_same(name: str, store_url: str) -> None:
    ours = zarr.open_group(store_url, mode="r")["birch"][name]
    spec = {"driver": "zarr3", "kvstore": {"driver": "file", "path": f"{store_url}/birch/{name}"}}
    theirs = ts.open(spec, open=True).result()
    assert theirs.shape == ours.shape
    assert list(theirs.domain.labels) == list(ours.metadata.dimension_names)
    np.testing.assert_array_equal(theirs[:2].read().result(), ours[:2])


def test_a_store_that_is_made_while_it_is_opened_is_not_damaged(
    store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = tmp_path / "new.zarr"
    url.mkdir()

    def open_too_early(*_given: object, **_named: object) -> None:
        (url / "zarr.json").write_bytes(Path(store_url, "zarr.json").read_bytes())
        raise FileNotFoundError("no group found")

    with monkeypatch.context() as patched:
        patched.setattr(hierarchy, "open_group", open_too_early)
        with pytest.raises(StoreError) as caught:
            open_store(str(url))
    assert caught.value.code == "NO_STORE"


def test_a_case_is_one_file_of_inner_chunks(store_url: str) -> None:
    image = zarr.open_group(store_url, mode="r")["alder/image"]
    assert image.chunks == (1, 4, 32, 32, 32)
    assert image.shards == (1, 4, 256, 256, 256)
    assert len([p for p in Path(store_url, "alder/image/c/0").rglob("*") if p.is_file()]) == 1


def test_stores_that_are_none(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"there is no store at .* Make one with: multiseg ingest") as caught:
        open_store(str(tmp_path / "none.zarr"))
    assert caught.value.code == "NO_STORE"
    with pytest.raises(StoreError, match="is not a Zarr v3 store"):
        open_store(str(tmp_path))
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    with pytest.raises(StoreError, match="is a Zarr group but not a multiseg store"):
        open_store(str(tmp_path / "other.zarr"))
