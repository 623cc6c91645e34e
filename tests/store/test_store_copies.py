"""The small JSON texts of a store have no checksum: their second copy and the files themselves tell what is wrong."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from stores import case, contents, make_store, take

from multiseg.errors import StoreError
from multiseg.store.checks.verification import verify_store
from multiseg.store.copies import COPY, continues, copy_of, sound_copy
from multiseg.store.findings import Severity
from multiseg.store.reader import open_store
from multiseg.store.repairs.store_repair import repair


@pytest.fixture(scope="module")
def sound(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_store(tmp_path_factory.mktemp("sound"))


@pytest.fixture(scope="module")
def sound_contents(sound: Path) -> dict[tuple[str, str], Any]:
    return contents(sound)


@pytest.fixture
def store(sound: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(sound, tmp_path / "brain.zarr"))


def edit(file: Path, change: Callable[[Any], None]) -> None:
    held = json.loads(file.read_text())
    change(held)
    file.write_text(json.dumps(held, indent=2))


def shorter(axis: int) -> Callable[[Any], None]:
    def change(held: Any) -> None:
        held["shape"][axis] -= 1

    return change


def set_(*path: Any, to: Any) -> Callable[[Any], None]:
    def change(held: Any) -> None:
        *above, last = path
        for key in above:
            held = held[key]
        assert held[last] != to
        held[last] = to

    return change


SILENT = {
    "a row less": ("alpha/status/zarr.json", shorter(0)),
    "a sequence less": ("alpha/available/zarr.json", shorter(1)),
    "a structure less": ("alpha/foreground_count/zarr.json", shorter(2)),
    "less room": ("alpha/image/zarr.json", shorter(2)),
    "an annotation less": ("alpha/label/zarr.json", shorter(1)),
    "a scale": ("alpha/image/zarr.json", set_("attributes", "scale_factor", to=3.0)),
    "a fill value": ("beta/split_given/zarr.json", set_("fill_value", to=True)),
    "a meaning": ("beta/label/zarr.json", set_("dimension_names", 1, to="annotatioo")),
    "a code": ("alpha/zarr.json", set_("attributes", "pathology", to="sclerosiq")),
    "a normalisation": ("alpha/zarr.json", set_("attributes", "recipe", "normalise", to="zscors")),
    "a sequence that is swapped": ("alpha/zarr.json", set_("attributes", "modalities", to=["T1", "FLAIR"])),
    "the copy": ("beta/record/zarr.json", set_("attributes", COPY, "attributes", "pathology", to="sclerosiq")),
    "the copy of an array": (
        "beta/record/zarr.json",
        set_("attributes", COPY, "arrays", "affine", "fill_value", to=1.0),
    ),
    "the voxel size": ("zarr.json", set_("attributes", "multiseg", "grid_mm", to=[2.0, 2.0, 6.0])),
    "a name": ("zarr.json", set_("attributes", "multiseg", "databases", to=["alpha", "betb"])),
    "a name gone": ("zarr.json", set_("attributes", "multiseg", "databases", to=["alpha"])),
    "the format": ("zarr.json", set_("attributes", "multiseg", "format", to=1)),
}


@pytest.mark.slow
@pytest.mark.parametrize("what", SILENT)
def test_what_a_zarr_json_says_wrongly_is_noticed_and_repaired(
    what: str, store: Path, sound: Path, sound_contents: dict[tuple[str, str], Any]
) -> None:
    file, change = SILENT[what]
    edit(store / file, change)
    if what != "a name gone":  # the one thing that nothing else says
        with pytest.raises(StoreError, match=r"zarr\.json|betb"):
            open_store(store).check_sound()
    findings = [one for one in verify_store(str(store)) if one.severity in (Severity.ERROR, Severity.WARNING)]
    assert [one for one in findings if one.code != "VOXEL_SIZE" and one.file.endswith("zarr.json")]
    assert repair(str(store)).cases == []
    assert contents(store) == sound_contents
    assert {one.code for one in verify_store(str(store))} == {"VOXEL_SIZE"}
    for path in sound.rglob("zarr.json"):
        assert json.loads((store / path.relative_to(sound)).read_text()) == json.loads(path.read_text())


def test_an_ingest_does_not_make_damage_the_second_copy(store: Path, tmp_path: Path) -> None:
    edit(store / "alpha/zarr.json", set_("attributes", "pathology", to="sclerosiq"))
    held = (store / "alpha/record/zarr.json").read_bytes()
    with pytest.raises(StoreError, match=r"alpha/zarr\.json.*multiseg repair"):
        take(store, case(tmp_path, "P3", 5), labels=("lesion", "tissue"))
    assert (store / "alpha/record/zarr.json").read_bytes() == held


def test_attributes_continue_the_copy_where_a_writer_died() -> None:
    before = {
        "pathology": "stroke", "licence": "", "modalities": ["T1"], "label_schemas": {"lesion": {"1": "core"}},
        "recipe": {"normalise": "histogram", "landmarks": {"T1": [1.0]}}, "num_structures": 1, "coordinates": "case",
    }  # fmt: skip
    grown = before | {
        "modalities": ["T1", "FLAIR"], "label_schemas": before["label_schemas"] | {"tissue": {}}, "num_structures": 3,
        "recipe": {"normalise": "histogram", "landmarks": {"T1": [1.0], "FLAIR": [2.0]}}, "licence": "CC0",
        "coordinates": "case age", "participant_columns": ["age"],
    }  # fmt: skip
    assert continues(before, before)
    assert continues(before, grown)
    assert not continues(grown, before)
    assert not continues(before, before | {"recipe": {"normalise": "none", "landmarks": {"T1": [1.0]}}})
    assert not continues(before, before | {"more": 1})
    assert not continues(before, {key: value for key, value in before.items() if key != "licence"} | {"licence": 1})


def test_a_copy_that_was_changed_is_none() -> None:
    held = {COPY: copy_of({"pathology": "stroke"}, {"image": {"fill_value": 0}})}
    assert sound_copy(held) == {"attributes": {"pathology": "stroke"}, "arrays": {"image": {"fill_value": 0}}}
    held[COPY]["attributes"]["pathology"] = "strokf"
    assert sound_copy(held) is None
