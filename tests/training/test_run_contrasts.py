"""What a run's sequences look like is read from its cases, and kept by models that are made from it."""

import numpy as np
import pytest

from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.contrasts import Contrasts, histogram
from multiseg.models.saved import ModelInfo
from multiseg.store.catalogue import select
from multiseg.store.reader import open_store
from multiseg.training import run_contrasts as module
from multiseg.training.run_contrasts import run_contrasts


def info(*names: str) -> ModelInfo:
    return ModelInfo(
        builder="multi_unet", numbers={}, axis=ModalityAxis(names), space=LabelSpace(), spacing_mm=(5.0, 5.0, 5.0),
        patch=(8, 8, 8), trained_on={}, databases={},
    )  # fmt: skip


@pytest.mark.slow
def test_each_database_has_the_mean_of_its_cases(store_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    store = open_store(store_url)
    cases = select(store, ["alder", "dogwood"])
    made = run_contrasts(store, cases, info("FLAIR", "T1"), None)
    assert {name: set(means) for name, means in made.means.items()} == {
        name: {"alder", "dogwood"} for name in ("FLAIR", "T1")
    }
    database = store["alder"]
    channel = database.modalities.index("T1")
    scans = [histogram(database.whole(case)[0][channel]) for case in database.cases]
    assert made.means["T1"]["alder"] == pytest.approx(np.mean(scans, axis=0))
    monkeypatch.setattr(module, "MOST_CASES", 2)
    few = run_contrasts(store, cases, info("FLAIR", "T1"), None)
    assert few.means["T1"]["alder"] == pytest.approx(np.mean(scans[::2], axis=0))


def test_a_parents_sequences_are_kept_while_they_have_a_channel(store_url: str) -> None:
    flat = np.full(64, 1 / 64)
    parent = Contrasts({"T1": {"old": flat, "alder": flat}, "SWI": {"old": flat}, "T2": {"old": flat}}, margin=0.9)
    store = open_store(store_url)
    made = run_contrasts(store, select(store, ["alder"])[:1], info("T1", "SWI", "PD"), parent)
    assert {name: set(means) for name, means in made.means.items()} == {
        "T1": {"old", "alder"}, "SWI": {"old"}, "PD": {"alder"},
    }  # fmt: skip
    assert made.means["T1"]["old"] == pytest.approx(flat)
    assert made.means["T1"]["alder"] != pytest.approx(flat)
    assert made.margin == 0.9
