from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from multiseg.errors import FederationError
from multiseg.federation.aggregate import aggregated, refused
from multiseg.federation.pairwise_masks import (
    RESOLUTION,
    Circle,
    digest_of,
    masked,
    members_by_part,
    new_private_key,
    public_key,
    relative,
    unmasked,
)
from multiseg.federation.plan import AggregateOptions
from multiseg.federation.privacy import noise_generator, noise_std, noised
from multiseg.models.network_parts import Part

SITES = ("alder", "birch", "cedar", "dogwood")
PRIVATE = {site: bytes([at + 1]) * 32 for at, site in enumerate(SITES)}
KEYS = {site: public_key(private) for site, private in PRIVATE.items()}
TRUNK = Part("trunk", "trunk", None, 0, 0, "", (2, 3))
T1 = Part("stem[T1]", "stem", 1, 0, 1, "T1", (4,))
MEMBERS = members_by_part((TRUNK, T1), {"": SITES[::-1], "T1": SITES[:3]})
CIRCLE = Circle("run", 3, "digest", KEYS, MEMBERS)


def update_of(site, seed=0):
    generator = torch.Generator().manual_seed(seed + SITES.index(site))
    own = {"trunk": torch.randn(2, 3, generator=generator)}
    return own | ({"stem[T1]": torch.randn(4, generator=generator)} if site in SITES[:3] else {})


def sent_by(site, update=None, weight=1.0, circle=CIRCLE):
    return masked(update_of(site) if update is None else update, weight, site, PRIVATE[site], circle)


def plain_mean(updates, weights):
    return aggregated(updates, {s: {"": w} for s, w in weights.items()}, (TRUNK, T1), AggregateOptions())


@settings(deadline=None, max_examples=40)
@given(
    st.lists(st.floats(0.01, 1), min_size=4, max_size=4),
    st.lists(st.floats(-30, 30, width=32), min_size=4, max_size=4),
    st.integers(0, 1000),
)
def test_the_sum_of_what_is_masked_is_the_weighted_mean(weights, values, seed):
    weights = relative(dict(zip(SITES, weights, strict=True)))
    updates = {site: update_of(site, seed) for site in SITES}
    for site, value in zip(SITES, values, strict=True):
        updates[site]["trunk"][0, 0] = value
    answers = {site: sent_by(site, updates[site], weights[site]) for site in SITES}
    assert all(not refused(sent, {"trunk": (2, 3), "stem[T1]": (4,)}, masked=True) for sent in answers.values())
    found, expected = unmasked(answers, weights, MEMBERS), plain_mean(updates, weights)
    for name, sites in MEMBERS.items():
        rounding = len(sites) * RESOLUTION / (2 * sum(weights[site] for site in sites))
        single = 30 * 2.0**-23  # that of float32 itself
        assert (found.update[name] - expected.update[name]).abs().max() <= rounding + single
    assert found.contributors == expected.contributors


def test_what_is_encoded_by_hand():
    """Masks aside, three steps and a half at a weight of a half are 1.75 steps, which rounds to two."""
    update = {"trunk": torch.full((2, 3), 3.5 * RESOLUTION)}
    circle = replace(CIRCLE, members={"trunk": SITES[:3]})
    weights = {"alder": 0.5, "birch": 1.0, "cedar": 1.0}
    zero = {"trunk": torch.zeros(2, 3)}
    answers = {site: sent_by(site, update if site == "alder" else zero, weights[site], circle) for site in SITES[:3]}
    total = sum(answers[site]["trunk"].long() for site in answers) % 2**32
    assert total.tolist() == [[2] * 3] * 2
    assert unmasked(answers, weights, circle.members).update["trunk"][0, 0] == torch.tensor(2 * RESOLUTION / 2.5)


def test_negative_sums_and_the_whole_range():
    circle = replace(CIRCLE, members={"trunk": SITES[:3]})
    most = (2**31 - 1) // 3 * RESOLUTION
    assert 42 < most < 43
    for value in (-42.0, 42.0):
        answers = {s: sent_by(s, {"trunk": torch.full((2, 3), value)}, 1.0, circle) for s in SITES[:3]}
        assert bool((unmasked(answers, dict.fromkeys(SITES, 1.0), circle.members).update["trunk"] == value).all())
    with pytest.raises(
        FederationError, match=r"'trunk' has changed by 43, .* masked sum over 3 sites .* at most 42\.7"
    ):
        sent_by("alder", {"trunk": torch.full((2, 3), -43.0)}, 1.0, circle)
    with pytest.raises(FederationError, match="'trunk' has changed by nan"):
        sent_by("alder", {"trunk": torch.full((2, 3), float("nan"))}, 1.0, circle)


def chi_square(values):
    """Of the bytes against all being as frequent; 255 degrees of freedom: 330 is passed once in a thousand."""
    counts = np.bincount(np.frombuffer(values.numpy().tobytes(), np.uint8), minlength=256)
    expected = counts.sum() / 256
    return float(((counts - expected) ** 2 / expected).sum())


def test_one_masked_update_looks_like_chance():
    many = torch.randn(50_000, generator=torch.Generator().manual_seed(0)) * 1e-3
    circle = replace(CIRCLE, members={"trunk": SITES[:3]})
    sent = {site: sent_by(site, {"trunk": many}, 1.0, circle)["trunk"] for site in SITES[:3]}
    for masked_update in sent.values():
        assert chi_square(masked_update) < 330
    assert chi_square(sent["alder"] + sent["birch"]) < 330  # the third one's masks are still on
    # What it hides is far from chance, and so is the sum of all, so the test can fail.
    assert chi_square((many / RESOLUTION).round().int()) > 10_000
    assert chi_square(sent["alder"] + sent["birch"] + sent["cedar"]) > 10_000


def test_masks_are_the_same_again_and_others_elsewhere():
    first = sent_by("alder")["trunk"]
    assert torch.equal(first, sent_by("alder")["trunk"])
    for other in (
        replace(CIRCLE, round=4),
        replace(CIRCLE, experiment="run2"),
        replace(CIRCLE, digest="other"),
        replace(CIRCLE, keys=KEYS | {"birch": public_key(b"x" * 32)}),
    ):
        assert not torch.equal(first, sent_by("alder", circle=other)["trunk"])
    both = replace(CIRCLE, members={"trunk": SITES[:3], "branch": SITES[:3]})
    sent = sent_by("alder", {"trunk": torch.zeros(2, 3), "branch": torch.zeros(2, 3)}, circle=both)
    assert not torch.equal(sent["trunk"], sent["branch"])


def test_what_a_site_refuses_to_mask():
    with pytest.raises(FederationError, match=r"'stem\[T1\]' of alder would be summed over alder, birch: a sum hides"):
        sent_by("alder", circle=replace(CIRCLE, members=MEMBERS | {"stem[T1]": ("alder", "birch")}))
    with pytest.raises(FederationError, match=r"'trunk' of alder would be summed over birch, cedar, dogwood"):
        sent_by("alder", circle=replace(CIRCLE, members=MEMBERS | {"trunk": SITES[1:]}))
    with pytest.raises(FederationError, match="would be summed over alder, alder, birch, cedar"):
        sent_by("alder", circle=replace(CIRCLE, members=MEMBERS | {"trunk": ("alder", *SITES[:3])}))
    with pytest.raises(FederationError, match="would be summed over nobody"):
        sent_by("alder", circle=replace(CIRCLE, members={}))
    for weight in (0.0, 1.5, float("nan")):
        with pytest.raises(FederationError, match=f"alder has the weight {weight}"):
            sent_by("alder", weight=weight)


def test_keys_that_cannot_be():
    with pytest.raises(FederationError, match="a wrong public key for alder"):
        sent_by("alder", circle=replace(CIRCLE, keys=KEYS | {"alder": KEYS["birch"]}))
    for key in ("", "no hex", "00" * 31, "00" * 32):  # the last one makes every secret 0
        with pytest.raises(FederationError, match=f"cedar has no usable public key: '{key}'"):
            sent_by("alder", circle=replace(CIRCLE, keys=KEYS | {"cedar": key}))
    with pytest.raises(FederationError, match="cedar has no usable public key: None"):
        sent_by("alder", circle=replace(CIRCLE, keys={s: k for s, k in KEYS.items() if s != "cedar"}))


def test_masks_that_would_not_cancel():
    answers = {site: sent_by(site) for site in SITES}
    weights = dict.fromkeys(SITES, 1.0)
    without = {site: sent for site, sent in answers.items() if site != "cedar"}
    with pytest.raises(FederationError, match=r"'trunk' cancel over .*, but it came from alder, birch, dogwood: wait"):
        unmasked(without, weights, MEMBERS)
    with pytest.raises(FederationError, match=r"'stem\[T1\]' was sent, but no sites share it"):
        unmasked(answers, weights, {"trunk": SITES})
    with pytest.raises(FederationError, match="3 sites or more, but it came from alder, birch"):
        unmasked({s: {"trunk": answers[s]["trunk"]} for s in SITES[:2]}, weights, {"trunk": SITES[:2]})
    for odd in (torch.zeros(6), torch.zeros(6, dtype=torch.int32)):
        with pytest.raises(FederationError, match="'trunk' came in different forms"):
            unmasked(answers | {"alder": answers["alder"] | {"trunk": odd}}, weights, MEMBERS)


def test_who_shares_what():
    assert members_by_part((TRUNK, T1), {"": SITES[::-1]}) == {"trunk": SITES, "stem[T1]": ()}
    assert relative({"alder": 20.0, "birch": 40.0}) == {"alder": 0.5, "birch": 1.0}
    for weights in ({"alder": 0.0}, {}):
        with pytest.raises(FederationError, match="a mean needs at least one above 0"):
            relative(weights)


def test_the_noise_that_sites_share_adds_up_behind_their_masks():
    circle = replace(CIRCLE, members={"trunk": SITES[:3]})
    weights = {"alder": 0.25, "birch": 1.0, "cedar": 0.5}
    answers = {}
    for site, weight in weights.items():
        generator = noise_generator(PRIVATE[site], "run", 3, "task")
        noisy = noised({"trunk": torch.zeros(100_000)}, noise_std(2.0, 0.1, 3, weight), generator)
        answers[site] = sent_by(site, noisy, weight, circle)
    total = unmasked(answers, weights, circle.members).update["trunk"] * sum(weights.values())
    assert total.std().item() == pytest.approx(2.0 * 0.1, rel=0.01)


def test_a_digest_tells_tensors_apart():
    tensors = {"a": torch.ones(2, 3), "n": torch.tensor(4)}
    first = digest_of(tensors, "options")
    assert len(first) == 64
    assert first == digest_of(dict(reversed(tensors.items())), "options")
    others = [
        digest_of(tensors),
        digest_of(tensors | {"a": torch.ones(3, 2)}, "options"),
        digest_of(tensors | {"a": torch.ones(2, 3).half()}, "options"),
        digest_of(tensors | {"n": torch.tensor(5)}, "options"),
        digest_of({"b": tensors["a"], "n": tensors["n"]}, "options"),
    ]
    assert len({first, *others}) == 6
    strided = torch.arange(6.0).reshape(2, 3).t()
    assert digest_of({"a": strided}) == digest_of({"a": strided.contiguous()})


def test_keys_are_fresh():
    one, two = new_private_key(), new_private_key()
    assert one != two
    assert len(one) == 32
    assert len(bytes.fromhex(public_key(one))) == 32
    # RFC 7748, section 6.1: Bob's keys.
    bob = bytes.fromhex("5dab087e624a8a4b79e17f8b83800ee66f3bb1292618b6fd1c2f8b27ff88e0eb")
    assert public_key(bob) == "de9edb7d7b7dc1b4d35b61c2ece435373f8343c85b78674dadfc7e146f882b4f"
