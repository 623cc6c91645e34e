"""A file that is not there is an error that names it, on opening, at first touch and in `verify`; never fill values."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from stores import KilledError, alone, case, chunks_of, contents, count_writes, kill_at, make_store, take
from sweeps import sample

from multiseg.errors import StoreError
from multiseg.store import schema
from multiseg.store.checks.verification import verify_store
from multiseg.store.columns import watch
from multiseg.store.durable import DurableStore
from multiseg.store.findings import Severity
from multiseg.store.hierarchy import open_root
from multiseg.store.reader import open_store
from multiseg.store.shard_names import shards_named, shards_text

NEEDED_BY_NO_READER = ("record", "revision")
"""What only those who write, verify and repair read."""


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("sound"))


@contextmanager
def without(url: Path, *keys: str) -> Iterator[None]:
    aside = url.parent / "aside"
    for key in keys:
        (aside / key).parent.mkdir(parents=True, exist_ok=True)
        (url / key).rename(aside / key)
    try:
        yield
    finally:
        for key in keys:
            (aside / key).rename(url / key)


def errors(url: Path | str) -> set[tuple[str, str]]:
    return {(one.code, one.file) for one in verify_store(str(url)) if one.severity is Severity.ERROR}


def test_the_store_has_every_kind_of_file(sound: Path) -> None:
    keys, cases = chunks_of(sound), {one.name: one for one in open_store(str(sound)).cases}
    assert errors(sound) == set()
    assert cases["P2"].extent[0] > 256
    assert cases["P2"].shards == ("foreground:0/0/0/0,1/0/0/0 image:0/0/0/0,0/1/0/0 label:0/0/0/0,0/1/0/0")
    assert cases["Q2"].shards == "image:0/0/0/0"
    # Of fill values alone, and there all the same.
    assert {"beta/session/c/0", "beta/site/c/0", "beta/split_given/c/0"} <= set(keys)
    assert [f"alpha/record/c/{row}" in keys for row in range(4)] == [True, True, True, False]


@pytest.mark.slow
@pytest.mark.parametrize("database", ["alpha", "beta"])
def test_a_reader_names_every_file_that_is_gone(database: str, sound: Path, tmp_path: Path) -> None:
    url, silent = alone(sound, database, tmp_path), []
    before = contents(url)
    for key in chunks_of(url):
        is_of_a_replaced_case = "/".join(key.split("/")[1:4]) in ("image/c/0", "label/c/0", "foreground/c/0")
        with without(url, key):
            said, after = "", None
            try:
                after = contents(url)
            except StoreError as error:
                said = str(error)
        if after is None:
            assert key in said
            assert "multiseg verify" in said
            continue
        assert after == before, key
        if not (is_of_a_replaced_case and database == "alpha"):
            silent.append(key)
    assert {key.split("/")[1] for key in silent} <= set(NEEDED_BY_NO_READER), silent


@pytest.mark.slow
def test_verify_names_every_file_that_is_gone(sound: Path) -> None:
    keys = chunks_of(sound)
    first = [key for key in keys if key.split("/")[1] in ("status", "shards")]
    with without(sound, *(keys_left := [key for key in keys if key not in first])):
        found = {file for code, file in errors(sound) if code == "MISSING_FILE"}
        warned = {one.file for one in verify_store(str(sound)) if one.code == "MISSING_FILE"}
    of_replaced = {key for key in keys_left if key.split("/")[1] in ("image", "label", "foreground", "record")}
    of_replaced = {key for key in of_replaced if key.startswith("alpha") and key.split("/")[3] == "0"}
    assert found == set(keys_left) - of_replaced
    assert of_replaced <= warned
    for key in first:
        with without(sound, key):
            assert ("MISSING_FILE", key) in errors(sound)


@pytest.mark.slow
def test_an_empty_file_is_one_that_is_gone(sound: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sound, tmp_path / "brain.zarr")
    (copy / "alpha/age/c/0").write_bytes(b"")
    with pytest.raises(StoreError, match="alpha/age/c/0 is missing or empty"):
        open_store(str(copy))["alpha"]
    (copy / "alpha/age/c/0").write_bytes((sound / "alpha/age/c/0").read_bytes())
    (copy / "alpha/label/c/1/0/1/0/0").write_bytes(b"")
    store = open_store(str(copy))
    with pytest.raises(StoreError, match="alpha/label/c/1/0/1/0/0"):
        store["alpha"].whole(store["alpha"]["P2"])


def test_a_writer_never_takes_a_lost_file_for_fill_values(sound: Path, tmp_path: Path) -> None:
    """It would write them over the other cases of the chunk, with no trace left of the loss."""
    copy = shutil.copytree(sound, tmp_path / "brain.zarr")
    for key in ("alpha/modality/c/0", "alpha/site/c/0", "alpha/status/c/0", "alpha/source_sha256/c/0"):
        with without(copy, key):
            with pytest.raises(StoreError, match=f"{key} is missing or empty"):
                take(copy, case(tmp_path, "P7", 7, split="train"), labels=("lesion", "tissue"))
            assert not (copy / key).exists()


@pytest.mark.slow
def test_a_swapped_file_is_not_as_recorded(tmp_path: Path) -> None:
    url, known = tmp_path / "brain.zarr", {"split": "train", "participant": {"age": 31.0}}
    take(url, case(tmp_path, "P1", 1, site="north", **known), case(tmp_path, "P2", 2, split="val"))
    before = shutil.copytree(url, tmp_path / "before.zarr")
    known["participant"] = {"age": 32.0}
    report = take(url, case(tmp_path, "P1", 1, site="south", **known), case(tmp_path, "P2", 2, split="val"))
    assert report.described == ("P1",)
    assert errors(url) == set()
    for key in ("alpha/site/c/0", "alpha/age/c/0"):
        aside = (url / key).read_bytes()
        shutil.copy(before / key, url / key)
        assert errors(url) == {("NOT_AS_RECORDED", key)}
        (url / key).write_bytes(aside)
    shutil.copy(before / "alpha/record/c/0", url / "alpha/record/c/0")
    assert {code for code, _ in errors(url)} == {"NOT_AS_RECORDED"}
    shutil.copytree(before, url, dirs_exist_ok=True)
    shutil.copy(url / "alpha/label/c/0/0/0/0/0", url / "alpha/label/c/0/0/0/0/1")
    assert ("UNNAMED_FILE", "alpha/label/c/0/0/0/0/1") not in errors(url)  # beyond the axes
    image = zarr.open_array(url / "alpha/image", mode="r+")
    image[0] = -np.asarray(image[0])  # as plausible as before
    assert errors(url) == {("NOT_AS_RECORDED", "alpha/image/c/0/0/0/0/0")}


@pytest.mark.slow
def test_names_that_were_swapped_are_not_believed(sound: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sound, tmp_path / "brain.zarr")
    names = zarr.open_array(copy / "alpha/modality", mode="r+")
    names[:] = np.array(list(names[:])[::-1], dtype=object)
    with pytest.raises(
        StoreError, match=r"alpha/modality names T1, FLAIR, but the database's attributes name FLAIR, T1"
    ):
        open_store(str(copy))["alpha"]
    assert "alpha/modality" in {file.removesuffix("/c/0") for _, file in errors(copy)}


@pytest.mark.slow
def test_a_new_annotation_is_written_for_the_cases_that_are_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever write is the writer's last, readers and `verify` see whole cases, and the next writer completes it."""
    first, both = tmp_path / "first.zarr", ("lesion", "tissue")
    take(first, case(tmp_path, "P1", 1, split="train"))
    new = case(tmp_path, "P2", 2, ("tissue",), split="train")
    num_writes = count_writes(lambda: take(shutil.copytree(first, tmp_path / "counted.zarr"), new, labels=both))
    assert num_writes > 50
    for at in sample(range(0, num_writes, 7), 7):
        url = shutil.copytree(first, tmp_path / "brain.zarr", dirs_exist_ok=True)
        with monkeypatch.context() as dying:
            written = kill_at(dying, at)
            with suppress(KilledError):
                take(url, new, labels=both)
        assert [one.name for one in open_store(str(url)).cases][:1] == ["P1"]
        store = open_store(str(url))
        assert all(store["alpha"].whole(one)[0].any() for one in store.cases)
        assert errors(url) == set(), written[-3:]
        take(url, new, labels=both)
        assert errors(url) == set()
        assert (url / "alpha/annotated/c/0/1").exists()
        assert zarr.open_group(url / "alpha", mode="r").attrs["annotations"] == ["lesion", "tissue"]
        shutil.rmtree(url)


@pytest.mark.slow
def test_a_writer_that_dies_when_it_has_written_the_second_of_two_names(
    sound: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Over a network, the chunks of an array are written in any order: the first name is lost, the second is there."""
    url, both = tmp_path / "brain.zarr", ("lesion", "tissue")
    one = case(tmp_path, "P1", 1, both, split="train")
    write = DurableStore._write

    def dying(store: DurableStore, key: str, value: Any) -> None:
        if key.endswith("annotation/c/0"):
            return
        write(store, key, value)
        if key.endswith("annotation/c/1"):
            raise KilledError

    with monkeypatch.context() as patch:
        patch.setattr(DurableStore, "_write", dying)
        with pytest.raises(KilledError):
            take(url, one, labels=both)
    assert list(zarr.open_array(url / "alpha/annotation", mode="r")[:]) == ["", "tissue"]
    take(url, one, labels=both)
    take(tmp_path / "undisturbed.zarr", one, labels=both)
    assert errors(url) == set()
    assert contents(url) == contents(tmp_path / "undisturbed.zarr")
    assert list(open_store(str(url))["alpha"].schemas) == ["lesion", "tissue"]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["native_header", "sources", "foreground"])
def test_a_damaged_file_that_is_read_only_when_it_is_asked_for_is_named(name: str, sound: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(sound, tmp_path / "brain.zarr")
    path = next(path for path in sorted((copy / "beta" / name / "c").rglob("*")) if path.is_file())
    path.write_bytes(path.read_bytes()[:-5])
    with pytest.raises(StoreError) as caught:
        contents(copy)
    assert str(path.relative_to(copy)) in str(caught.value)


@pytest.mark.slow
def test_names_that_a_dead_writer_left_behind_are_no_names(tmp_path: Path) -> None:
    """Neither to a reader nor to the next writer, who needs fewer of them."""
    url = tmp_path / "brain.zarr"
    take(url, case(tmp_path, "P1", 1, split="train"))
    before, group = contents(url), zarr.open_group(url / "alpha", mode="r+")
    for name in ("annotation", "modality", "available"):
        array = group[name]
        array.resize(tuple(n + (axis in schema.NAMED_AXES) for axis, n in zip(
            array.metadata.dimension_names, array.shape, strict=True)))  # fmt: skip
    group["annotation"][1:] = group["modality"][2:] = np.array(["left"], dtype=object)
    store = open_store(str(url))["alpha"]
    assert (store.modalities, list(store.schemas)) == (("FLAIR", "T1"), ["lesion"])
    new = case(tmp_path, "P2", 2, split="train")
    take(url, new)
    assert (list(group["annotation"][:]), list(group["modality"][:])) == (["lesion"], ["FLAIR", "T1"])
    assert errors(url) == set()
    assert contents(url)["alpha", "P1"] == before["alpha", "P1"]


@pytest.mark.slow
def test_a_writer_that_dies_while_it_describes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Old or new, no error, and the next ingest completes it: the record and the coordinates say the same."""
    first, said = tmp_path / "first.zarr", {"split": "train", "participant": {"age": 31.0}}
    old, new = (case(tmp_path, "P1", 1, site=site, **said) for site in ("north", "south"))
    take(first, old)
    counted = shutil.copytree(first, tmp_path / "counted.zarr")
    num_writes = count_writes(lambda: take(counted, new))
    assert num_writes > 2
    assert open_store(str(counted))["alpha"]["P1"].site == "south"
    for at in sample(range(num_writes), 7, always=(0, num_writes - 1)):
        url = shutil.copytree(first, tmp_path / "brain.zarr")
        with monkeypatch.context() as dying:
            written = kill_at(dying, at)
            with suppress(KilledError):
                take(url, new)
        (held,) = open_store(str(url)).cases
        assert held.site in ("north", "south")
        assert errors(url) == set(), written
        take(url, new)
        assert open_store(str(url))["alpha"]["P1"].site == "south"
        assert [one.code for one in verify_store(str(url)) if one.code != "VOXEL_SIZE"] == []
        shutil.rmtree(url)


@pytest.mark.slow
def test_rows_that_no_case_is_in_need_no_file(sound: Path, tmp_path: Path) -> None:
    """Whoever opens a database while it grows past a chunk of rows meets arrays that are longer than their chunks."""
    copy = shutil.copytree(sound, tmp_path / "brain.zarr")
    group = open_root(str(copy), "r+")["alpha"]
    for array in group.array_values():
        if array.metadata.dimension_names[0] == "case":
            array.resize((1500, *array.shape[1:]))
    assert len(watch(group)[0]) == 1500
    assert contents(copy) == contents(sound)
    assert errors(copy) == set()


def test_the_text_that_names_shards() -> None:
    text = shards_text(["image/0/1/0/0", "image/0/0/0/0", "foreground/1/0/0/0"])
    assert text == "foreground:1/0/0/0 image:0/0/0/0,0/1/0/0"
    assert shards_named(text, "image") == {"0/0/0/0", "0/1/0/0"}
    assert shards_named(text, "label") == shards_named("", "image") == frozenset()
