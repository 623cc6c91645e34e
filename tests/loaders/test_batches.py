import os
import signal

import numpy as np
import pytest
import torch

from multiseg.errors import DataError, ResourceError, UsageError
from multiseg.labels import IGNORE, LabelSpace, SpaceLabel
from multiseg.loaders import batches as module
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.store.reader import open_store

AXIS = ModalityAxis(("PD", "FLAIR", "T1", "T1c", "T2", "DWI", "ADC"))
LESION_AND_CSF = LabelSpace((SpaceLabel("lesion", "lesion"), SpaceLabel("CSF", "tissue")))
FIELDS = ("images", "present", "target", "annotated", "corner", "draws")


@pytest.fixture
def store(store_url):
    return open_store(store_url)


def stream_of(store, axis=AXIS, space=LESION_AND_CSF, workers=0, databases=(), **draw):
    drawn = DrawOptions(**{"patch": (12, 14, 10)} | draw)
    options = StreamOptions(drawn, batch_size=3, workers=workers, batches_per_epoch=2)
    return PatchStream(store, axis, space, options, databases=databases)


def assert_same(some, others):
    assert len(some) == len(others)
    for a, b in zip(some, others, strict=True):
        assert (a.database, a.case) == (b.database, b.case)
        for name in FIELDS:
            assert torch.equal(getattr(a, name), getattr(b, name)), name


@pytest.fixture
def expected(store):
    return list(stream_of(store).batches(0, 5))


@pytest.mark.parametrize("workers", [1, 2])
def test_batches_are_the_same_from_any_number_of_workers(store, expected, workers):
    assert_same(list(stream_of(store, workers=workers).batches(0, 5)), expected)


def test_batches_are_the_same_when_started_in_the_middle(store, expected):
    assert_same(list(stream_of(store).batches(3, 5)), expected[3:])
    assert list(stream_of(store).batches(5, 5)) == []


def test_no_batch_repeats(expected):
    """batches_per_epoch only names the draws."""
    seen = [(case, tuple(corner.tolist())) for b in expected for case, corner in zip(b.case, b.corner, strict=True)]
    assert len(set(seen)) > 0.8 * len(seen)


def test_a_remote_store_is_read_by_spawned_workers(store, expected, monkeypatch):
    monkeypatch.setattr(module, "is_remote", lambda url: True)
    assert_same(list(stream_of(store, workers=1).batches(0, 5)), expected)


def test_what_is_absent_is_exactly_0(store):
    (batch,) = stream_of(store, drop="none").batches(0, 1)
    for at, database in enumerate(batch.database):
        names = [AXIS[channel] for channel in np.flatnonzero(batch.present[at]).tolist()]
        own = store[database][batch.case[at]]
        assert set(names) == set(own.modalities), "a sequence that the case lacks is not present"
        assert not batch.images[at][~batch.present[at]].any()
        for name in names:
            channel, row = AXIS.channels([name])[0], store[database].modalities.index(name)
            read = store[database].image(own, tuple(batch.corner[at].tolist()), (12, 14, 10))[row]
            assert np.array_equal(batch.images[at, channel].numpy(), read)
    assert batch.images.dtype == torch.float16


def test_a_dropped_sequence_is_0_although_the_case_has_it(store):
    dropped = 0
    for batch in stream_of(store, databases=["alder"]).batches(0, 4):
        assert not batch.images[~batch.present].any()
        assert batch.present.any(dim=1).all()
        dropped += int((~batch.present[:, AXIS.channels(["PD", "FLAIR", "T1", "T2"])]).sum())
    assert dropped > 0


def test_the_order_of_a_databases_sequences_does_not_matter(store, expected, store_url):
    other = open_store(store_url)
    database = other["alder"]
    read = database.image
    database.modalities = tuple(reversed(database.modalities))
    database.image = lambda *window: read(*window)[::-1]
    assert_same(list(stream_of(other).batches(0, 5)), expected)
    assert any("alder" in batch.database for batch in expected)


def test_targets_are_in_the_label_space(store):
    seen = set()
    for batch in stream_of(store, patch=(24, 28, 24), lesion_share=1.0).batches(0, 4):
        for at, name in enumerate(batch.database):
            database = store[name]
            codes = database.codes(database[batch.case[at]], tuple(batch.corner[at].tolist()), (24, 28, 24))
            lesion = codes[0] > 0  # every structure of the first annotation is a lesion in these hospitals
            target = batch.target[at].numpy()
            assert np.array_equal(target == 1, lesion & (codes[0] != IGNORE))
            if name == "alder":
                assert np.array_equal(target == 2, (codes[1] == 1) & ~lesion)
            seen |= set(np.unique(target).tolist())
    assert seen == {0, 1, 2}


def test_what_nobody_looked_for_is_not_annotated(store):
    for batch in stream_of(store).batches(0, 4):
        looked_for_csf = [name == "alder" for name in batch.database]
        assert batch.annotated[:, 1].tolist() == looked_for_csf
        assert batch.annotated[:, 0].all()


def test_a_drop_leaves_a_sequence_of_the_axis(store):
    """Only T2 of alder's four is on this axis, so there is nothing to drop."""
    for batch in stream_of(store, ModalityAxis(("T2",)), databases=["alder"]).batches(0, 4):
        assert batch.present.all()
        assert batch.images.any()


def test_to_casts_images_to_float32(expected):
    moved = expected[0].to(torch.device("cpu"))
    assert moved.images.dtype == torch.float32
    assert torch.equal(moved.images.half(), expected[0].images)


def test_loading_leaves_the_global_generators_alone(store):
    before = torch.get_rng_state()
    list(stream_of(store, workers=1).batches(0, 1))
    assert torch.equal(torch.get_rng_state(), before)


def test_no_case_fits(store):
    with pytest.raises(DataError, match="no train case with the structures ghost"):
        stream_of(store, space=LabelSpace((SpaceLabel("ghost", "tissue"),)))
    with pytest.raises(DataError, match="one of the sequences SWI"):
        stream_of(store, ModalityAxis(("SWI",)))


def test_sizes_that_make_no_stream(store):
    with pytest.raises(UsageError, match="0 patches a batch"):
        PatchStream(store, AXIS, LESION_AND_CSF, StreamOptions(batch_size=0))
    with pytest.raises(UsageError, match="-1 workers"):
        PatchStream(store, AXIS, LESION_AND_CSF, StreamOptions(workers=-1))


def signal_oneself(monkeypatch, number):
    get = module._Patches.__getitem__

    def get_after_signal(self, key):
        os.kill(os.getpid(), number)
        return get(self, key)

    monkeypatch.setattr(module._Patches, "__getitem__", get_after_signal)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_workers_leave_signals_to_their_parent(store, expected, monkeypatch, number):
    signal_oneself(monkeypatch, number)
    assert_same(list(stream_of(store, workers=1).batches(0, 2)), expected[:2])


def test_a_killed_worker_is_no_bug_of_ours(store, monkeypatch):
    signal_oneself(monkeypatch, signal.SIGKILL)
    with pytest.raises(ResourceError, match=r"fewer workers than 1"):
        list(stream_of(store, workers=1).batches(0, 2))
