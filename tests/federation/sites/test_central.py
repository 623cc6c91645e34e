"""A step that sites take together is the step that one would take with all their data."""

from dataclasses import replace

import pytest
import torch
from asked import OPTIONS, first_state

from multiseg.federation.aggregate import aggregated
from multiseg.federation.plan import AggregateOptions, LocalOptions, ScheduleOptions
from multiseg.federation.sites.learning import learn, network_of
from multiseg.federation.sites.personal import PersonalState
from multiseg.federation.sites.training import Counted
from multiseg.labels import LabelSpace
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.models.network_parts import difference, moved, parts, split
from multiseg.models.saved import ModelInfo
from multiseg.store.reader import open_store
from multiseg.training.fit import FitOptions

AXIS = ModalityAxis(("FLAIR", "T1"))
INFO = ModelInfo(
    builder="multi_unet",
    numbers={"widths": [4, 8], "dropout": 0.0, "norm": "instance"},
    axis=AXIS,
    space=LabelSpace(),
    spacing_mm=(5.0, 5.0, 5.0),
    patch=(8, 8, 8),
    trained_on={},
    databases={},
)
ALONE = replace(
    OPTIONS,
    augment=AugmentOptions(preset="none"),
    fit=FitOptions(learning_rate=0.1, clip_norm=0.0, schedule="constant"),
    local=LocalOptions(steps=1, optimiser="sgd"),
    schedule=ScheduleOptions(rounds=3),
)


class Given:
    """A stream of these batches."""

    def __init__(self, batches):
        self._batches = batches

    def batches(self, start, stop):
        yield from self._batches[start:stop]


@pytest.fixture(scope="module")
def batches(site_stores):
    options = StreamOptions(DrawOptions(patch=(8, 8, 8), lesion_share=1.0), batch_size=2, workers=0)
    stream = PatchStream(open_store(site_stores["dogwood"]), AXIS, LabelSpace(), options)
    return [replace(b, images=b.images.clone(), target=b.target.clone()) for b in stream.batches(0, 6)]


def stepped(batches, options, steps_done=0, own=None, state=None):
    """What the weights became, and what the steps told."""
    network = network_of(INFO, first_state(INFO) if state is None else state, torch.device("cpu"))
    learnt = learn(network, Given(batches), options, steps_done, own=own)
    return {name: tensor.clone() for name, tensor in network.state_dict().items()}, learnt


@pytest.mark.parametrize("num_sites", [2, 3])
def test_a_step_of_all_sites_is_the_central_step(batches, num_sites):
    start, all_parts = first_state(INFO), parts(INFO)
    updates = {f"site{at}": difference(stepped([batches[at]], ALONE)[0], start, all_parts) for at in range(num_sites)}
    weights = {site: {part.group: 1.0 for part in all_parts} for site in updates}
    mean = aggregated(updates, weights, all_parts, AggregateOptions(weights="equal"))
    together = moved(mean.update, start, all_parts)
    central, _ = stepped(batches, replace(ALONE, fit=replace(ALONE.fit, accumulate=num_sites)))
    assert split(together, all_parts).keys() == mean.update.keys()
    for name, tensor in together.items():
        assert torch.allclose(tensor, central[name], atol=1e-6, rtol=0), name
    assert max((central[name] - start[name]).abs().max() for name in central) > 1e-3


def test_rounds_with_a_kept_optimiser_are_one_training(batches):
    options = replace(ALONE, local=LocalOptions(steps=1, optimiser="adam", keep_optimiser=True))
    once, _ = stepped(
        batches, replace(options, local=replace(options.local, steps=3), schedule=ScheduleOptions(rounds=1))
    )
    state, own = None, None
    for done in range(3):
        state, learnt = stepped(batches, options, done, own, state)
        own = PersonalState(moments=learnt.moments, scaler=learnt.scaler)
    assert all(torch.equal(state[name], once[name]) for name in once)
    anew, _ = stepped(
        batches,
        options,
        2,
        PersonalState(),
        stepped(batches, replace(options, local=replace(options.local, steps=2)))[0],
    )
    assert not all(torch.equal(anew[name], once[name]) for name in once)


def test_fedprox_pulls_towards_what_was_received(batches):
    mu, rate = 0.5, ALONE.fit.learning_rate
    start = first_state(INFO)
    first, _ = stepped(batches, ALONE)
    two = replace(ALONE, local=replace(ALONE.local, steps=2))
    plain, _ = stepped(batches, two)
    pulled, _ = stepped(batches, replace(two, local=replace(two.local, proximal=mu)))
    for name in start:
        # The second gradient is the same, and mu (w - w_received) is added to it.
        expected = plain[name] - rate * mu * (first[name] - start[name])
        assert torch.allclose(pulled[name], expected, atol=1e-7), name
    assert any(not torch.equal(pulled[name], plain[name]) for name in start)


def test_patches_are_counted_as_they_are_shown(batches):
    counted = Counted(Given(batches), INFO, parts(INFO))
    given = list(counted.batches(0, 3))
    assert counted.patches[""] == 6
    assert counted.patches["T1"] == sum(int(batch.present[:, 1].sum()) for batch in given)
    assert counted.patches.keys() == {"", "FLAIR", "T1"}


def test_a_round_tells_its_mean_loss(batches):
    spoilt = [batches[0], replace(batches[1], images=torch.full_like(batches[1].images, torch.nan)), batches[2]]
    _, learnt = stepped(spoilt, replace(ALONE, local=replace(ALONE.local, steps=3)))
    assert learnt.bad_steps == 1
    assert 0 < learnt.loss < 10
