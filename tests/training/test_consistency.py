"""Answers with all sequences and with fewer: the metric between them, the term of the loss, and its settings."""

import json
from dataclasses import replace
from itertools import product
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from multiseg.config import defaults, merged, to_options
from multiseg.errors import FederationError, UsageError
from multiseg.federation.plan import FederationOptions, LocalOptions, ScheduleOptions
from multiseg.federation.sites.learning import learn
from multiseg.federation.sites.limits import Limits, check_options
from multiseg.loaders.batches import Batch, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.losses import jaccard_distance, squared_jaccard_distance
from multiseg.models.saved import load_weights
from multiseg.training.consistency import Consistency, with_partners
from multiseg.training.fit import FitOptions, check_fit
from multiseg.training.objectives import OBJECTIVES, objective_named
from multiseg.training.run import train
from multiseg.training.run_folder import ModelOptions, TrainOptions
from multiseg.training.trial import split_own

SEQUENCES = ("FLAIR", "T1", "T2")
PRESENT = torch.tensor([[True, True, True], [False, True, False], [True, False, True]])


class Weighted(nn.Module):
    """Logits are a weighted sum of the sequences, each of which pushes one class up."""

    def __init__(self, num_logits: int = 3) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.linspace(-1, 1, 3 * num_logits).reshape(3, num_logits))
        self.calls = 0

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        self.calls += 1
        return torch.einsum("bmijk,ml->blijk", images * present[:, :, None, None, None], self.weights)


def batch_of(present: Tensor = PRESENT, tissues: tuple[int, ...] = (1,), num_labels: int = 2) -> Batch:
    num, generator = len(present), torch.Generator().manual_seed(4)
    images = torch.rand(num, 3, 4, 4, 4, generator=generator) * present[:, :, None, None, None]
    return Batch(
        images=images, present=present, annotated=torch.ones(num, num_labels, dtype=torch.bool),
        target=torch.randint(num_labels + 1, (num, 4, 4, 4), generator=generator).to(torch.uint8),
        database=("wmh",) * num, case=("P1",) * num, corner=torch.zeros(num, 3, dtype=torch.int64),
        draws=torch.tensor([[0, n] for n in range(num)]), tissues=tissues, sequences=SEQUENCES,
    )  # fmt: skip


def soft_triples(num: int) -> Tensor:
    """Soft maps of eight voxels, from nearly binary to nearly uniform ones."""
    generator = torch.Generator().manual_seed(0)
    sharpness = 10 ** (2 * torch.rand(3, num, 1, generator=generator) - 1)
    return torch.sigmoid(sharpness * torch.randn(3, num, 8, generator=generator)).reshape(3, num, 1, 8, 1, 1)


@pytest.mark.parametrize(("distance", "holds"), [(jaccard_distance, True), (squared_jaccard_distance, False)])
def test_the_triangle_inequality_on_soft_maps(distance, holds: bool) -> None:
    a, b, c = soft_triples(20_000).double()
    excess = distance(a, c) - distance(a, b) - distance(b, c)
    assert bool((excess <= 1e-12).all()) == holds


def test_between_binary_maps_both_are_the_jaccard_distance() -> None:
    pairs = torch.tensor(list(product([0.0, 1.0], repeat=6))).reshape(64, 2, 1, 3, 1, 1)
    p, q = pairs[:, 0], pairs[:, 1]
    both, either = (p * q).sum((1, 2, 3, 4)), torch.maximum(p, q).sum((1, 2, 3, 4))
    expected = torch.where(either > 0, 1 - both / either.clamp(min=1), 0.0)
    for distance in (jaccard_distance, squared_jaccard_distance):
        torch.testing.assert_close(distance(p, q)[:, 0], expected, atol=2e-5, rtol=0)


def test_the_distance_by_hand() -> None:
    """|0.9 - 0.4| + |0.2 - 0.3| = 0.6 and 0.9 + 0.2 + 0.4 + 0.3 = 1.8, so 1.2 / 2.4."""
    p, q = (torch.tensor(values).reshape(1, 1, 2, 1, 1) for values in ([0.9, 0.2], [0.4, 0.3]))
    assert jaccard_distance(p, q).item() == pytest.approx(0.5, abs=1e-4)
    assert squared_jaccard_distance(p, q).item() == pytest.approx(1 - 0.42 / (0.85 + 0.25 - 0.42), abs=1e-4)


def test_the_partner_is_the_named_sequence_alone() -> None:
    found = Consistency(1.0).partners(batch_of(), 0)
    assert found is not None
    assert found.rows.tolist() == [0]  # the second patch has T1 alone, the third has no T1
    assert found.present.tolist() == [[False, True, False]]


def test_a_random_partner_is_any_proper_part_and_follows_from_seed_and_draw() -> None:
    batch = batch_of(PRESENT[:1].expand(400, -1))
    found = Consistency(1.0, partner="random", seed=3).partners(batch, 0)
    assert found is not None
    sets = [tuple(flags) for flags in found.present.tolist()]
    counts = [sets.count(one) for one in set(sets)]
    assert len(counts) == 6
    assert min(counts) > 40
    later = Consistency(1.0, partner="random", seed=3).partners(replace(batch, draws=batch.draws.flip(0)), 9)
    assert later is not None
    assert torch.equal(later.present.flip(0), found.present)
    other = Consistency(1.0, partner="random", seed=4).partners(batch, 0)
    assert other is not None
    assert not torch.equal(other.present, found.present)


def test_a_partner_has_only_sequences_that_the_patch_has() -> None:
    batch = batch_of(PRESENT.repeat(50, 1))
    found = Consistency(1.0, partner="random").partners(batch, 0)
    assert found is not None
    assert len(found.rows) == 100
    have, left = batch.present[found.rows], found.present
    assert not (left & ~have).any()
    assert left.any(1).all()
    assert (left.sum(1) < have.sum(1)).all()


@pytest.mark.parametrize("partner", ["T1", "random"])
def test_a_patch_with_one_sequence_has_no_term(partner: str) -> None:
    objective = objective_named("joint_jaccard", consistency=Consistency(1.0, partner=partner))
    network = Weighted()
    loss, scalars = objective(network, batch_of(PRESENT[1:2]), 0)
    assert scalars["consistency"] == 0
    assert loss > 0


def test_it_begins_at_its_step_with_one_pass_and_the_same_names() -> None:
    objective, network = objective_named("ace", consistency=Consistency(1.0, first_step=5)), Weighted()
    before, after = (objective(network, batch_of(), step)[1] for step in (4, 5))
    assert list(before) == list(after) == ["cross_entropy", "consistency"]
    assert before["consistency"] == 0 < after["consistency"]
    assert before["cross_entropy"] == after["cross_entropy"]
    assert network.calls == 2


def test_the_term_is_the_weighted_distance_over_the_tissues() -> None:
    batch, network = batch_of(), Weighted()
    batch.target[0, 0] = 255
    loss, scalars = OBJECTIVES["dice"](network, batch, 0, consistency=Consistency(3.0))
    images = batch.images[:1].clone()
    images[:, [0, 2]] = 0
    p, q = (network(one, batch.present[:1]).softmax(1)[:, 2:, 1:] for one in (batch.images[:1], images))
    assert scalars["consistency"].item() == pytest.approx(3 * 0.5 * jaccard_distance(p, q).item())
    assert loss.item() == pytest.approx(sum(value.item() for value in scalars.values()))


@pytest.mark.parametrize(("tissues", "share"), [((), 1.0), ((0, 1), 1.0)])
def test_of_one_kind_alone_the_term_is_over_all_structures(tissues: tuple[int, ...], share: float) -> None:
    batch, network = batch_of(tissues=tissues), Weighted()
    _, scalars = OBJECTIVES["ace"](network, batch, 0, consistency=Consistency(1.0))
    images, present = with_partners(batch, Consistency(1.0).partners(batch, 0))
    p, q = (network(images[[n]], present[[n]]).softmax(1)[:, 1:] for n in (0, 3))
    assert scalars["consistency"].item() == pytest.approx(share * jaccard_distance(p, q).mean().item())


@pytest.mark.parametrize("stop_gradient", [False, True])
def test_the_gradient_goes_to_both_answers_or_to_the_smaller_set_alone(stop_gradient: bool) -> None:
    batch = batch_of(PRESENT[:1])
    term = Consistency(1.0, stop_gradient=stop_gradient)
    log_p = torch.randn(2, 3, 4, 4, 4, generator=torch.Generator().manual_seed(0)).log_softmax(1).requires_grad_()
    term.term(log_p, batch, term.partners(batch, 0)).backward()
    assert log_p.grad is not None
    assert bool(log_p.grad[1].any())
    assert bool(log_p.grad[0].any()) != stop_gradient


class Scales(Weighted):
    """The same logits at two scales."""

    num_scales = 2

    def forward(self, images: Tensor, present: Tensor, deep: bool = False) -> Tensor:
        logits = super().forward(images, present)
        return [logits, logits[:, :, ::2, ::2, ::2]] if deep else logits


def test_with_deep_supervision_the_finest_scale_alone_is_compared() -> None:
    batch = batch_of()
    single, deep = (
        OBJECTIVES["ace"](network, batch, 0, consistency=Consistency(1.0))[1] for network in (Weighted(), Scales())
    )
    assert deep["consistency"] == single["consistency"]
    without = OBJECTIVES["ace"](Scales(), batch, 0)[1]
    assert deep["cross_entropy"] == without["cross_entropy"]


def test_a_sequence_that_is_not_there_is_refused_from_the_first_step_on() -> None:
    with pytest.raises(
        UsageError, match=r"consistency_partner is 'T1c', but the sequences are FLAIR, T1, T2: give one"
    ):
        Consistency(1.0, first_step=9, partner="T1c").partners(batch_of(), 0)


def own_objective(network: nn.Module, batch: Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    return network(batch.images, batch.present).square().mean(), {}


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"consistency": -1.0}, "fit.consistency is -1.0"),
        ({"consistency": float("nan")}, "fit.consistency is nan"),
        ({"consistency_from": 1.0}, "consistency_from 1.0: give a weight of 0 or more, and a share"),
    ],
)
def test_numbers_that_cannot_be(options: dict[str, float], said: str) -> None:
    with pytest.raises(UsageError, match=said):
        check_fit(FitOptions(**options))


def test_an_objective_of_the_users_own_is_refused() -> None:
    options, own = split_own(TrainOptions("x.zarr", fit=FitOptions(consistency=1.0)), None, own_objective, None, None)
    with pytest.raises(UsageError, match=r"own_objective is an objective of your own, .*set fit.consistency to 0"):
        own.check(options)
    named = f"{__name__}:own_objective"
    with pytest.raises(UsageError, match=r"own_objective is an objective of your own"):
        objective_named(named, consistency=Consistency(1.0))


def test_a_run_file_that_names_joint_jaccard_has_the_term() -> None:
    for given, expected in (
        ({}, 0),
        ({"objective": "joint_jaccard"}, 1),
        ({"objective": "joint_jaccard_squared"}, 1),
        ({"objective": "joint_jaccard", "consistency": 0.0}, 0),
        ({"objective": "ace", "consistency": 0.5}, 0.5),
    ):
        settings = {"store": "x.zarr", "fit": given}
        assert to_options(merged(defaults(False, settings), settings)).fit.consistency == expected


def test_a_site_of_a_federation_learns_with_the_term() -> None:
    class Stream:
        def batches(self, start: int, stop: int):
            return (batch_of() for _ in range(start, stop))

    options = FederationOptions(
        experiment="x", sites=("a",), local=LocalOptions(steps=2), schedule=ScheduleOptions(rounds=5),
        fit=FitOptions(consistency=1.0, consistency_from=0.3),
    )  # fmt: skip
    trained = {}
    for steps_done, weight in ((0, 1.0), (4, 1.0), (4, 0.0)):
        network = Weighted()
        learn(network, Stream(), replace(options, fit=replace(options.fit, consistency=weight)), steps_done)
        trained[steps_done, weight] = network.weights.detach()
    assert not torch.equal(trained[4, 1.0], trained[4, 0.0])


def test_a_sites_limit_of_memory_counts_the_second_showing() -> None:
    """A patch of 64^3 voxels is 1 MiB a channel: three patches ahead, and 16 first features once or twice."""
    options = FederationOptions(
        experiment="x", sites=("a",), stream=StreamOptions(DrawOptions(patch=(64, 64, 64)), batch_size=1)
    )
    check_options(options, Limits(memory_mib=20.0))
    with pytest.raises(FederationError, match=r"asks for 35 MiB for patches and first features"):
        check_options(replace(options, fit=FitOptions(consistency=1.0)), Limits(memory_mib=20.0))


@pytest.mark.slow
def test_a_training_with_random_partners_resumes_to_the_same_bits(store_url: str, tmp_path: Path) -> None:
    options = TrainOptions(
        store=store_url, labels=("lesion", "tissue:CSF"), device="cpu", seed=3,
        model=ModelOptions("highres3d_hetero", widths=(2, 4), dropout=0.1, norm="instance_affine"),
        stream=StreamOptions(DrawOptions(patch=(8, 8, 8)), batch_size=2, workers=0),
        fit=FitOptions(
            num_steps=6, validate_every=3, validation_cases=1, objective="joint_jaccard", consistency=1.0,
            consistency_partner="random",
        ),
    )  # fmt: skip
    train(options, tmp_path / "whole")
    events = []

    def interrupt(event) -> None:
        events.append(event)
        if getattr(event, "step", 0) == 4:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(options, tmp_path / "broken", on_event=interrupt)
    train(options, tmp_path / "broken")
    one, two = (load_weights(tmp_path / name / "last.safetensors") for name in ("whole", "broken"))
    assert all(torch.equal(one[name], two[name]) for name in one)
    lines = map(json.loads, (tmp_path / "broken" / "log.jsonl").read_text(encoding="utf-8").splitlines())
    steps = [line for line in lines if line["event"] == "StepDone"]
    terms = [step["scalars"]["consistency"] for step in steps]
    assert terms[:2] == [0, 0]
    assert any(terms[2:])
