import importlib
import math
import sys

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiseg.errors import FederationError
from multiseg.federation.flower.forked import Forked
from multiseg.federation.privacy import (
    clipped,
    derived_key,
    epsilon,
    from_payload,
    noise_generator,
    noise_std,
    noised,
    to_payload,
    update_norm,
)

UPDATE = {"trunk": torch.tensor([[1.0, 2.0]]), "stem[T1]": torch.tensor([2.0]), "bias": torch.tensor(4.0)}
SECRET = bytes(range(32))


def test_norm_and_clip_by_hand():
    assert update_norm(UPDATE) == 5.0
    assert update_norm({}) == 0.0
    half = clipped(UPDATE, 2.5)
    assert half["trunk"].tolist() == [[0.5, 1.0]]
    assert half["bias"].item() == 2.0
    assert UPDATE["bias"].item() == 4.0
    for clip in (0.0, 5.0, 6.0):
        assert all(torch.equal(tensor, UPDATE[name]) for name, tensor in clipped(UPDATE, clip).items())


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=8), st.floats(1e-3, 1e3))
def test_no_update_is_longer_than_its_clip(values, clip):
    update = {str(at): torch.tensor([value]) for at, value in enumerate(values)}
    after = clipped(update, clip)
    assert update_norm(after) <= clip * (1 + 1e-6)
    if update_norm(update) > clip:
        assert update_norm(after) == pytest.approx(clip, rel=1e-5)


def test_a_large_update_in_half_precision_has_its_norm():
    assert update_norm({"w": torch.full((1000,), 6e4).half()}) == pytest.approx(6e4 * 1000**0.5, rel=1e-3)


def test_noise_is_of_its_size_and_adds_to_the_update():
    update = {"w": torch.full((200, 500), 3.0), "v": torch.zeros(100_000)}
    noisy = noised(update, {"w": 0.5, "v": 2.0}, noise_generator(SECRET, "run", 1, "d"))
    assert noisy["w"].dtype == torch.float32
    for name, std, mean in (("w", 0.5, 3.0), ("v", 2.0, 0.0)):
        assert noisy[name].std().item() == pytest.approx(std, rel=0.01)
        assert noisy[name].mean().item() == pytest.approx(mean, abs=4 * std / 100_000**0.5)
    same = noised(update, 0.0, noise_generator(SECRET, "run", 1, "d"))
    assert all(torch.equal(same[name], update[name]) for name in update)
    assert bool((update["w"] == 3).all())


def test_the_noise_of_a_round_can_be_drawn_again_with_the_secret_only():
    def draw(update=UPDATE, secret=SECRET, experiment="run", number=1, digest="d"):
        return noised(update, 1.0, noise_generator(secret, experiment, number, digest))["trunk"]

    first = draw()
    assert torch.equal(first, draw())
    assert torch.equal(first, draw(update=dict(reversed(UPDATE.items()))))
    others = [draw(secret=bytes(32)), draw(experiment="ru"), draw(number=2), draw(digest="e")]
    for other in others:
        assert not torch.isclose(other, first).any()


def test_a_key_means_what_it_was_derived_for():
    assert derived_key(SECRET, 16, "ab", "c") != derived_key(SECRET, 16, "a", "bc")
    assert derived_key(SECRET, 16, 1) != derived_key(SECRET, 16, "1")
    assert len(derived_key(SECRET, 32, "a")) == 32


def test_how_much_noise_a_site_adds():
    assert noise_std(1.5, 2.0) == 3.0
    assert noise_std(1.5, 2.0, num_sites=4) == 1.5
    assert noise_std(1.5, 2.0, num_sites=4, weight=0.5) == 3.0


@settings(deadline=None, max_examples=50)
@given(st.lists(st.floats(0.01, 1), min_size=2, max_size=8))
def test_the_noise_of_a_sum_hides_its_heaviest_site(weights):
    weights = [*weights, 1.0]
    variance = sum((w * noise_std(1.3, 0.7, len(weights), w)) ** 2 for w in weights)
    assert variance**0.5 == pytest.approx(1.3 * 0.7 * max(weights))


def closed_epsilon(noise, rounds, delta):
    """Divergences alpha / (2 noise^2) a round, made (epsilon, delta) by Canonne et al. 2020 (proposition 12)."""
    alpha = np.linspace(1.01, 200, 2_000_000)
    renyi = rounds * alpha / (2 * noise**2)
    return float(np.min(renyi + np.log1p(-1 / alpha) - (math.log(delta) + np.log(alpha)) / (alpha - 1)))


def test_epsilon_by_hand():
    # noise 2, 4 rounds: alpha / 2 + log(1 - 1 / alpha) + (log(1e5) - log(alpha)) / (alpha - 1); at alpha = 5.4 this is
    # 2.7 + log(0.814815) + (11.512925 - 1.686399) / 4.4 = 2.7 - 0.204794 + 2.233302 = 4.728508, next to its minimum.
    assert 2.7 + math.log(1 - 1 / 5.4) + (math.log(1e5) - math.log(5.4)) / 4.4 == pytest.approx(4.728508, abs=1e-6)
    assert epsilon(2.0, 4, 1e-5) == pytest.approx(4.7285, abs=2e-3)


@pytest.mark.parametrize(("noise", "rounds", "delta"), [(1.0, 1, 1e-5), (4.0, 20, 1e-5), (1.0, 20, 1e-6)])
def test_epsilon_is_the_closed_one_but_for_the_orders_tried(noise, rounds, delta):
    exact = closed_epsilon(noise, rounds, delta)
    assert exact - 1e-6 <= epsilon(noise, rounds, delta) <= exact * 1.01


def test_epsilon_at_the_ends():
    assert epsilon(1.0, 0, 1e-5) == 0.0
    assert epsilon(0.0, 0, 1e-5) == 0.0
    assert epsilon(0.0, 1, 1e-5) == math.inf


@pytest.mark.slow
def test_flower_is_not_loaded_to_clip():
    def imports(is_asked):
        for name in [name for name in sys.modules if name.partition(".")[0] in ("flwr", "multiseg")]:
            del sys.modules[name]
        importlib.import_module("multiseg.federation.privacy")
        importlib.import_module("multiseg.federation.pairwise_masks")
        return b"loaded" if "flwr" in sys.modules else b"not loaded"

    child = Forked(imports)
    assert child.wait(60)
    assert child.result() == b"not loaded"


def test_payload():
    tensors = {"w": torch.tensor([1.0, 1e-3]), "count": torch.tensor(70000)}
    halves = to_payload(tensors, "float16")
    assert (halves["w"].dtype, halves["count"].dtype) == (torch.float16, torch.int64)
    back = from_payload(halves)
    assert back["w"].dtype == torch.float32
    torch.testing.assert_close(back["w"], tensors["w"], rtol=2**-11, atol=0)
    assert back["count"].item() == 70000
    assert torch.equal(to_payload(tensors, "float32")["w"], tensors["w"])


def test_what_float16_cannot_hold_is_refused():
    with pytest.raises(FederationError, match=r"'var' holds values up to 7e\+04, but float16 ends at 65504"):
        to_payload({"var": torch.tensor([1.0, -7e4, float("inf")])}, "float16")
    assert to_payload({"var": torch.tensor([1.0, float("inf")])}, "float16")["var"].isinf().any()
    assert to_payload({"var": torch.tensor([7e4])}, "float32")["var"].item() == 7e4
