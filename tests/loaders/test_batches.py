import shutil

import numpy as np
import pytest
import torch
import zarr
from streams import AXIS, FIELDS, LESION_AND_CSF, digests, stream_of
from torch.utils.data import DataLoader

from multiseg.errors import DataError, UsageError
from multiseg.labels import IGNORE, LabelSpace, SpaceLabel
from multiseg.loaders.batches import PatchStream, Share, StreamOptions
from multiseg.modalities import ModalityAxis
from multiseg.store.arrays import DatabaseArrays
from multiseg.store.reader import open_store

NUM = 8
"""Batches that are compared."""


@pytest.fixture(scope="module")
def store(store_url):
    return open_store(store_url)


@pytest.fixture
def expected(store):
    return list(stream_of(store).batches(0, 5))


@pytest.fixture(scope="module")
def hashed(store):
    found = digests(stream_of(store).batches(0, NUM))
    assert len(set(found)) == NUM
    return found


@pytest.mark.parametrize(
    ("workers", "start"),
    [(1, "fork"), (2, "fork"), (4, "auto"), (1, "thread"), (2, "thread"), (2, "spawn"), (1, "forkserver")],
)
def test_batches_are_the_same_from_any_number_of_workers(store, hashed, workers, start):
    assert digests(stream_of(store, workers=workers, start=start).batches(0, NUM)) == hashed


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("cache", ["200kB", "1GB"])
def test_a_cache_changes_no_batch(store, hashed, workers, cache):
    stream = stream_of(store, workers=workers, cache=cache)
    held = sum(case.cached_at >= 0 for case in stream._sources.cases)
    assert 0 < held < len(stream._sources.cases) if cache == "200kB" else held == len(stream._sources.cases)
    assert digests(stream.batches(0, NUM)) == hashed
    assert any(stream._cache.holds(case) for case in range(len(stream._sources.cases)))
    assert digests(stream.batches(0, NUM)) == hashed, "from what is in the cache"


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_are_the_same_when_started_in_the_middle(store, hashed, workers):
    assert digests(stream_of(store, workers=workers).batches(3, 5)) == hashed[3:5]
    assert list(stream_of(store, workers=workers).batches(5, 5)) == []


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_goes_on_where_another_one_was(store, hashed, workers):
    first, second = stream_of(store, workers=workers), stream_of(store)
    batches = iter(first)
    assert digests([next(batches) for _ in range(3)]) == hashed[:3]
    second.load_state_dict(first.state_dict())
    assert digests(batch for batch, _ in zip(second, range(3), strict=False)) == hashed[3:6]
    assert first.state_dict() == {"position": 3}


@pytest.mark.parametrize("workers", [0, 2])
def test_a_dataloader_gives_the_same_batches(store, hashed, workers):
    loader = DataLoader(stream_of(store), batch_size=None, num_workers=workers)
    batches = iter(loader)
    assert digests([next(batches) for _ in range(NUM)]) == hashed


def test_a_step_has_as_many_patches_from_each_database(store):
    two_each = stream_of(store, draw={"databases": "each"}, batch_size=8)
    for batch in two_each.batches(0, 3):
        assert sorted(batch.database) == sorted(2 * ("alder", "birch", "cedar", "dogwood"))
    halves = [stream_of(store, draw={"databases": "each"}, batch_size=2, share=Share(rank, 2)) for rank in range(2)]
    (first,), (second,) = (half.batches(0, 1) for half in halves)
    assert sorted(first.database + second.database) == ["alder", "birch", "cedar", "dogwood"]
    with pytest.raises(UsageError, match="6 patches per step cannot be split equally over 4 databases"):
        stream_of(store, draw={"databases": "each"}, batch_size=6)


def test_ranks_share_the_batches_that_one_process_would_get(store):
    whole = list(stream_of(store, batch_size=4).batches(0, 4))
    ranks = [list(stream_of(store, batch_size=2, share=Share(rank, 2)).batches(0, 4)) for rank in range(2)]
    for name in FIELDS:
        for at in range(4):
            together = torch.cat([getattr(batches[at], name) for batches in ranks])
            assert torch.equal(together, getattr(whole[at], name)), name
    drawn = [tuple(key) for batches in ranks for batch in batches for key in batch.draws.tolist()]
    assert len(set(drawn)) == len(drawn)
    with pytest.raises(UsageError, match="the rank is 2 of 2: give 0 to 1"):
        stream_of(store, share=Share(2, 2))


def test_no_batch_repeats(expected):
    """batches_per_epoch only names the draws."""
    seen = [(case, tuple(corner.tolist())) for b in expected for case, corner in zip(b.case, b.corner, strict=True)]
    assert len(set(seen)) > 0.8 * len(seen)


def test_what_is_absent_is_exactly_0(store):
    (batch,) = stream_of(store, draw={"drop": "none", "overhang": 0}).batches(0, 1)
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


@pytest.mark.slow
def test_the_order_of_sequences_in_a_store_does_not_matter(store, store_url, hashed, tmp_path):
    copy = shutil.copytree(store_url, tmp_path / "other.zarr")
    for name in store:
        group = zarr.open_group(copy / name, mode="r+")
        group.attrs["modalities"] = group.attrs["modalities"][::-1]
        for array in group.array_values():
            if "modality" in array.metadata.dimension_names:
                axis = array.metadata.dimension_names.index("modality")
                array[:] = np.flip(array[:], axis)
        DatabaseArrays(group).keep_copy()
    other = open_store(str(copy))
    assert all(other[name].modalities == store[name].modalities[::-1] for name in store)
    assert digests(stream_of(other).batches(0, NUM)) == hashed


def test_targets_are_in_the_label_space(store):
    seen = set()
    for batch in stream_of(store, draw={"patch": (24, 28, 24), "lesion_share": 1.0}).batches(0, 4):
        for at, name in enumerate(batch.database):
            database, case = store[name], store[name][batch.case[at]]
            corner = tuple(batch.corner[at].tolist())
            codes = database.codes(case, corner, (24, 28, 24))
            target = batch.target[at].numpy()
            place = np.indices(target.shape) + np.array(corner)[:, None, None, None]
            beyond = ((place < 0) | (place >= np.array(case.extent)[:, None, None, None])).any(axis=0)
            expected = np.where(beyond, 0, database.label_view(case, LESION_AND_CSF).target(codes))
            assert np.array_equal(target, expected)
            lesion = codes[0] > 0  # every structure of the first annotation is a lesion in these hospitals
            assert np.array_equal(target == 1, lesion & (codes[0] != IGNORE))
            if name == "alder":
                assert np.array_equal(target == 2, (codes[1] == 1) & ~lesion)
            assert not batch.images[at].numpy()[:, beyond].any()
            seen |= set(np.unique(target).tolist())
    assert seen == {0, 1, 2}


def test_what_nobody_looked_for_is_not_annotated(store):
    for batch in stream_of(store).batches(0, 4):
        looked_for_csf = [name == "alder" for name in batch.database]
        assert batch.annotated[:, 1].tolist() == looked_for_csf
        assert batch.annotated[:, 0].all()
        assert (batch.tissues, batch.sequences) == ((1,), tuple(AXIS))


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
    before, numpys = torch.get_rng_state(), np.random.get_state()[1].tolist()
    list(stream_of(store, workers=1).batches(0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert np.random.get_state()[1].tolist() == numpys


def test_options_of_no_known_name(store):
    with pytest.raises(UsageError, match=r"stream.start is 'magic': give one of auto, fork"):
        stream_of(store, start="magic")
    with pytest.raises(UsageError, match="cache 'much' is not a size"):
        stream_of(store, cache="much")


def test_lesions_that_the_space_leaves_out_are_no_background_without_a_word(store):
    """birch has three lesion structures; the space lists one."""
    whole = stream_of(store, databases=["birch"], space=LabelSpace.of(["oedema", "necrosis", "enhancing"]))
    assert next(whole.batches(0, 1)).target.shape[0]
    with pytest.raises(
        UsageError, match=r"leave out lesion structures that the data have \(birch: necrosis, enhancing\)"
    ):
        stream_of(store, databases=["birch"], space=LabelSpace.of("oedema"))
    for rest, code in (("ignore", IGNORE), ("background", 0)):
        stream = stream_of(store, databases=["birch"], space=LabelSpace.of("oedema", rest))
        values = {int(value) for batch in stream.batches(0, 4) for value in batch.target.unique()}
        assert values <= {0, 1, code}
        assert code in values


def test_no_case_fits(store):
    with pytest.raises(DataError, match="no train case with the structures ghost"):
        stream_of(store, space=LabelSpace((SpaceLabel("ghost", "tissue"),)))
    with pytest.raises(DataError, match="one of the sequences SWI"):
        stream_of(store, ModalityAxis(("SWI",)))


def test_sizes_that_make_no_stream(store):
    with pytest.raises(UsageError, match="batch_size is 0: give at least 1"):
        PatchStream(store, AXIS, LESION_AND_CSF, StreamOptions(batch_size=0))
    with pytest.raises(UsageError, match="workers is -1: give at least 0"):
        PatchStream(store, AXIS, LESION_AND_CSF, StreamOptions(workers=-1))
