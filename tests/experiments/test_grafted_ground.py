"""The grafted test cases of a user's store: none is lost without a word, and whose scan may be the anchor."""

import json
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from multiseg.errors import DataError
from multiseg.evaluation.grafted_cases import MANIFEST, GraftedCases, GraftOptions, Origin
from multiseg.experiments import decoupled, grafted_ground
from multiseg.experiments.grafted_ground import anchor_of, grafted_store
from multiseg.experiments.ground import Ground, Roles
from multiseg.experiments.scales import SCALES
from multiseg.store.findings import Finding, Severity
from multiseg.store.ingest.ingestion import IngestReport


@dataclass
class Stored:
    """What is read of a store."""

    databases: dict[str, Any]
    url: str = "brain.zarr"
    spacing_mm: tuple[float, ...] = (4.0, 4.0, 4.0)

    def __getitem__(self, name: str) -> Any:
        return self.databases[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.databases)


@dataclass
class Faults:
    """The grafted cases that cannot be ingested, and how often lesions were grafted."""

    failing: tuple[str, ...] = ()
    grafted: list[str] = field(default_factory=list)


@pytest.fixture
def faults(monkeypatch: pytest.MonkeyPatch) -> Faults:
    """Instead of grafting and ingesting: one grafted case, and two that are left out."""
    faults = Faults()

    def write(store: object, options: GraftOptions, folder: Path, overwrite: bool) -> GraftedCases:
        faults.grafted.append(folder.name)
        folder.mkdir(exist_ok=True)
        origins = (Origin("one", "hazel/1", "ivy/7", 1.0, 0.0),)
        return GraftedCases(folder / MANIFEST, origins, ("hazel/2",), ("hazel/3",))

    def ingest(databases: object, url: str, options: object) -> list[IngestReport]:
        errors = [Finding(Severity.ERROR, "", "hazel-grafted", case, "", "no brain.") for case in faults.failing]
        return [IngestReport("hazel-grafted", ("one",), (), faults.failing, tuple(errors))]

    monkeypatch.setattr(grafted_ground, "write_grafted_cases", write)
    monkeypatch.setattr(grafted_ground, "ingest", ingest)
    monkeypatch.setattr(grafted_ground, "find_manifest", lambda path: [])
    return faults


def made(folder: Path) -> dict[str, Any]:
    store: Any = Stored({"hazel": SimpleNamespace(recipe=SimpleNamespace(normalise="zscore"))})
    return grafted_store(folder, store, "digest", "hazel", "ivy")[1]


def test_a_grafted_case_that_cannot_be_ingested_is_an_error_each_time(faults: Faults, tmp_path: Path) -> None:
    faults.failing = ("two",)
    for _ in range(2):
        with pytest.raises(DataError, match=r"could not be ingested \(hazel-grafted/two\): no brain\."):
            made(tmp_path)
    assert not list(tmp_path.glob("grafted-*.json"))
    faults.failing = ()
    assert made(tmp_path)["cases"] == {"one": ["hazel/1", "ivy/7"]}


def test_what_got_no_lesion_is_recorded_and_said(faults: Faults, tmp_path: Path) -> None:
    expected = {"cases": {"one": ["hazel/1", "ivy/7"]}, "without": ["hazel/2"], "with_lesions": ["hazel/3"]}
    assert made(tmp_path) == made(tmp_path) == expected
    assert len(faults.grafted) == 1
    (record,) = tmp_path.glob("grafted-*.json")
    assert json.loads(record.read_text()) == expected
    record.write_text(json.dumps({"one": ["hazel/1", "ivy/7"]}))  # of a version that did not say it
    assert made(tmp_path) == expected
    assert len(faults.grafted) == 2
    roles = Roles("hazel", "ivy", (), (), (), test_store="tests.zarr", without=("hazel/2",), with_lesions=("hazel/3",))
    ground = Ground("brain.zarr", {}, SCALES["tiny"], 1, "", False, roles)
    assert "; 2 others are left out, since no lesion fits into them (1) or they have" in decoupled.note_of(ground)
    complete = replace(ground, roles=replace(roles, without=(), with_lesions=()))
    assert "left out" not in decoupled.note_of(complete)


def test_the_anchor_is_healthy_and_not_of_the_database_of_lesions(monkeypatch: pytest.MonkeyPatch) -> None:
    hidden = {"ivy/1": False, "hazel/1": True, "hazel/2": False}
    cases = [SimpleNamespace(database=name[:-2], name=name[-1], modalities=("T1",)) for name in hidden]
    annotated = SimpleNamespace(annotated=np.ones(1, bool))
    database = SimpleNamespace(pathology="phantom", label_view=lambda case, space: annotated)
    store: Any = Stored({"ivy": database, "hazel": database})

    def select(store: object, names: list[str], split: str) -> list[SimpleNamespace]:
        return [case for case in cases if case.database in names]

    def has_lesion(database: object, case: SimpleNamespace, even_hidden: bool = False) -> bool:
        return even_hidden and hidden[f"{case.database}/{case.name}"]

    monkeypatch.setattr(grafted_ground, "select", select)
    monkeypatch.setattr(grafted_ground, "has_lesion", has_lesion)
    assert anchor_of(store, ("GM",), "ivy") == "hazel/2"
    assert anchor_of(store, ("GM",), "hazel") == "ivy/1"
    cases.pop()
    assert anchor_of(store, ("GM",), "ivy") == ""
