"""Pictures of a store: a file a database, with colours where structures are."""

import weakref
from pathlib import Path

import numpy as np
import pytest
from matplotlib.image import imread

from multiseg.cli.app import run
from multiseg.evaluation import panels
from multiseg.evaluation.case_panel import CasePanel, Parcels
from multiseg.evaluation.montage import _colours
from multiseg.evaluation.panels import save_gallery
from multiseg.evaluation.slice_panel import slice_of
from multiseg.store.reader import Case, Store, open_store


def test_a_picture_a_database(store_url: str, tmp_path: Path) -> None:
    assert run(["view", store_url, "--png", str(tmp_path), "--rows", "1"]) == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == ["alder.png", "birch.png", "cedar.png", "dogwood.png"]
    assert run(["view", store_url, "--png", str(tmp_path / "one"), "--case", "alder/A002"]) == 0
    assert [path.name for path in (tmp_path / "one").iterdir()] == ["alder-A002.png"]


def test_structures_are_drawn_in_colour(store_url: str, tmp_path: Path) -> None:
    store = open_store(store_url)
    with_tissue = imread(save_gallery(tmp_path / "a.png", store, store["alder"].cases[:1]))
    plain = imread(save_gallery(tmp_path / "c.png", store, store["cedar"].cases[:1]))
    assert share_of_green(with_tissue) > 0.002 > share_of_green(plain) == 0


def test_only_slices_are_kept_of_cases(store_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    alive: list[int] = []
    made: list[weakref.ref[CasePanel]] = []

    def panel(store: Store, case: Case) -> CasePanel:
        alive.append(sum(one() is not None for one in made))
        found = CasePanel(case.name, "", {"T1": np.ones((4, 4, 4), np.float32)}, None, None)
        made.append(weakref.ref(found))
        return found

    monkeypatch.setattr(panels, "stored_panel", panel)
    store = open_store(store_url)
    save_gallery(tmp_path / "a.png", store, store["alder"].cases[:3])
    assert alive == [0, 0, 0]


def share_of_green(picture: np.ndarray) -> float:
    red, green, blue = picture[..., 0], picture[..., 1], picture[..., 2]
    return float(np.mean((green > red + 0.1) & (green > blue + 0.1)))


def test_a_name_has_one_colour_and_absent_structures_none() -> None:
    codes = np.zeros((2, 2, 2), dtype=np.uint8)
    codes[0], codes[1] = 1, 3
    one = Parcels(codes, ("grey", "absent", "white"))
    other = Parcels(codes, ("CSF", "absent", "grey"))
    panel = CasePanel("p", "", {}, None, None, parcels={"a": one, "b": other})
    colours = _colours([slice_of(panel)])
    assert list(colours) == ["grey", "white", "CSF"]
    assert len(set(colours.values())) == 3
