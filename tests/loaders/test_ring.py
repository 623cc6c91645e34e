"""What is lent stays as it is for as long as anybody looks at it, and comes back afterwards."""

import gc
import weakref
from collections import deque
from pathlib import Path

import pytest
import torch
from streams import digests, stream_of

from multiseg.loaders.ring import MAX_LENT, Ring
from multiseg.store.reader import open_store

NUM = 12
pytestmark = pytest.mark.usefixtures("few_objects")


@pytest.fixture(scope="module")
def store(store_url):
    return open_store(store_url)


@pytest.fixture(scope="module")
def hashed(store):
    found = digests(stream_of(store).batches(0, 30))
    assert len(set(found)) == 30
    return found


def addresses(batches):
    return [batch.images.data_ptr() for batch in batches]


@pytest.mark.parametrize("workers", [0, 2])
def test_whoever_keeps_all_batches_has_them_all(store, hashed, workers):
    kept = list(stream_of(store, workers=workers).batches(0, NUM))
    assert digests(kept) == hashed[:NUM]
    assert len(set(addresses(kept))) == NUM


@pytest.mark.parametrize("workers", [0, 1])
def test_a_batch_that_is_kept_long_is_left_alone(store, hashed, workers):
    batches = stream_of(store, workers=workers).batches(0, 30)
    kept = next(batches)
    assert digests(batches) == hashed[1:]
    assert digests([kept]) == hashed[:1]


@pytest.mark.slow
@pytest.mark.parametrize(
    "look",
    [
        lambda batch: batch.images[1:],
        lambda batch: batch.images[0, 0].flatten(),
        lambda batch: batch.target.view(-1),
        lambda batch: batch.target[0].numpy(),
        lambda batch: iter(batch.images),
    ],
)
def test_whatever_looks_at_a_batch_keeps_its_memory(store, look):
    batches = stream_of(store, workers=1).batches(0, 30)
    batch = next(batches)
    images, target = batch.images.data_ptr(), batch.target.data_ptr()
    looking = look(batch)
    del batch
    for other in batches:
        assert other.images.data_ptr() != images
        assert other.target.data_ptr() != target
    del looking


def test_a_loop_gets_few_places_of_memory_again_and_again(store):
    seen = {batch.images.data_ptr() for batch in stream_of(store, workers=1, ahead=2).batches(0, 30)}
    assert len(seen) <= 2 + MAX_LENT


def test_places_come_back_after_somebody_kept_many(store, hashed):
    batches = stream_of(store, workers=1, ahead=1).batches(0, 30)
    kept = [next(batches) for _ in range(6)]
    lent = set(addresses(kept[:MAX_LENT]))
    assert not lent & set(addresses(kept[MAX_LENT:])), "copies"
    kept.clear()
    seen = [(batch.images.data_ptr(), *digests([batch])) for batch in batches]
    assert [digest for _, digest in seen] == hashed[6:]
    assert lent <= {address for address, _ in seen}
    assert len({address for address, _ in seen}) <= 1 + MAX_LENT


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_batches_outlive_the_stream(store, hashed, workers):
    stream = stream_of(store, workers=workers)
    batches = stream.batches(0, NUM)
    kept = [next(batches) for _ in range(3)]
    batches.close()
    del batches, stream
    gc.collect()
    again = digests(stream_of(store, workers=workers).batches(0, NUM))  # where the memory could be taken again
    assert digests(kept) == hashed[:3]
    assert again == hashed[:NUM]


@pytest.mark.slow
def test_two_iterations_at_a_time_do_not_meet(store, hashed):
    stream = stream_of(store, workers=1, cache="1GB")
    both = list(zip(stream.batches(0, NUM), stream.batches(5, 5 + NUM), strict=True))
    assert digests(one for one, _ in both) == hashed[:NUM]
    assert digests(other for _, other in both) == hashed[5 : 5 + NUM]


@pytest.mark.slow
def test_the_rings_memory_is_gone_with_its_last_batch(store):
    batches = stream_of(store).batches(0, NUM)
    kept = next(batches)
    memory = weakref.ref(batches.gi_yieldfrom.gi_frame.f_locals["work"].memory.map)
    batches.close()
    del batches
    gc.collect()
    assert memory() is not None
    del kept
    gc.collect()
    assert memory() is None


def held_by_this_process():
    mapped = Path("/proc/self/maps").read_text().count("memfd:multiseg")
    return len(list(Path("/proc/self/fd").iterdir())), mapped


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/fd").is_dir(), reason="needs /proc")
@pytest.mark.parametrize("options", [{"workers": 2}, {"workers": 1, "start": "thread"}, {"cache": "1GB"}])
def test_nothing_is_left_open(store, options):
    def once():
        batches = stream_of(store, **options).batches(0, 6)
        deque(zip(batches, range(3), strict=False), maxlen=0)
        batches.close()

    once()
    gc.collect()
    before = held_by_this_process()
    for _ in range(3):
        once()
    gc.collect()
    assert held_by_this_process() == before


def test_a_case_whose_decoding_was_broken_off_is_decoded_later(store, monkeypatch):
    stream = stream_of(store, cache="1GB")
    batches = stream.batches(0, 6)
    next(batches)
    due = set(stream._cache._due)
    batches.close()
    assert len(stream._cache._due) > len(due)
    assert stream._cache._due | stream._cache._decoded == set(range(len(stream._sources.cases)))


@pytest.mark.slow
def test_messages_by_the_thousand_fill_no_line_up(store, monkeypatch):
    """More patches ahead than the lines between processes have room for."""
    given = []
    give = Ring._give
    monkeypatch.setattr(Ring, "_give", lambda ring, task: (given.append(task.case), give(ring, task))[1])
    stream = stream_of(store, workers=1, batch_size=800, draw={"patch": (1, 1, 1)})
    (batch,) = stream.batches(2, 3)
    assert len(batch.case) == 800
    assert sum(1 for _ in stream.batches(0, 2)) == 2
    assert len(given) == 2400
    assert torch.isfinite(batch.images).all()
