import json
import shutil
import stat
from dataclasses import replace

import pytest
import torch
from asked import OPTIONS, first_state, site_of, with_local

from multiseg.errors import DataError, FederationError, StoppedError, StoreError
from multiseg.federation.sites import training as module
from multiseg.federation.sites.describing import describe
from multiseg.federation.sites.drawing import stream_options
from multiseg.federation.sites.evaluating import EvaluationRequest, choose_cases, evaluate_model
from multiseg.federation.sites.learning import estimate_norms, network_of, personal_norms
from multiseg.federation.sites.personal import PersonalState
from multiseg.federation.sites.policy import Leaves
from multiseg.federation.sites.site import Order, Site, private_key
from multiseg.federation.sites.training import own_network, train_round
from multiseg.labels import LabelSpace
from multiseg.models.network_parts import parts
from multiseg.models.two_unets import numbers_from
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.sources.manifest import find_manifest
from multiseg.training.fit import Hooks
from multiseg.training.run_folder import ModelOptions
from multiseg.training.validate import validate, validation_cases

CPU = torch.device("cpu")


@pytest.fixture
def site(site_stores, tmp_path):
    return site_of("dogwood", site_stores, tmp_path)


@pytest.fixture(scope="module")
def store(site_stores):
    return open_store(site_stores["dogwood"])


def order_of(info, options=OPTIONS, **others):
    return Order(info, options, first_state(info), round=1, **others)


def evaluated(network, order, store, site, asked=None):
    asked = asked or EvaluationRequest("val", num_cases=1)
    return evaluate_model(network, order, store, site, choose_cases(order, store, site, asked)[0], asked)


def test_the_private_key_is_made_once_and_for_its_user_alone(site):
    first = private_key(site)
    assert len(first) == 32
    assert private_key(site) == first
    assert stat.S_IMODE((site.state / "masks.key").stat().st_mode) == 0o600
    assert private_key(replace(site, state=site.state / "other")) != first


def test_a_description_follows_the_site(store, site):
    one = replace(OPTIONS, privacy=replace(OPTIONS.privacy, least=1))
    told = describe(store, replace(site, leaves=Leaves(least=2)), one)
    assert told["databases"]["dogwood"]["num_cases"] == {"train": 2, "val": 0, "test": 0}  # 2, 1 and 1 in truth
    few = describe(store, site, replace(OPTIONS, privacy=replace(OPTIONS.privacy, least=7)))
    assert few["databases"]["dogwood"]["num_cases"] == {"train": 7, "val": 7, "test": 7}
    with pytest.raises(StoreError, match="elm"):
        describe(store, replace(site, databases=("elm",)), OPTIONS)
    unknown = describe(store, site, replace(OPTIONS, labels=("tissue:bone",)))
    assert unknown["can_train"] is False
    assert unknown["databases"]["dogwood"]["num_cases"]["train"] == 0


def test_a_command_of_the_site_is_not_told(store, site, monkeypatch):
    secret = replace(store["dogwood"].recipe, brain_mask="command /opt/own/bet {image} {mask}")
    monkeypatch.setattr(store["dogwood"], "recipe", secret)
    told = describe(store, site, OPTIONS)["databases"]["dogwood"]["recipe"]
    assert told["brain_mask"] == "command PROGRAM {image} {mask}"
    assert type(secret).from_json(told)


def test_the_machine_is_the_sites_and_the_draws_are_its_own(store, site):
    asked = replace(OPTIONS, stream=replace(OPTIONS.stream, workers=7, cache="9GiB", disk_cache="/elsewhere"))
    own = stream_options(site, store, asked)
    assert (own.workers, own.cache, own.disk_cache) == (0, "0", "")
    assert own.batch_size == 2
    assert own.draw.seed != stream_options(replace(site, name="elm"), store, asked).draw.seed


def test_databases_of_other_sites_have_no_weight_here(store, site):
    draw = replace(OPTIONS.stream.draw, weights={"alder": 2.0, "dogwood": 1.0})
    asked = replace(OPTIONS, stream=replace(OPTIONS.stream, draw=draw))
    assert stream_options(site, store, asked).draw.weights == {"dogwood": 1.0}


@pytest.mark.slow
def test_a_received_model_is_evaluated_as_in_training(store, site, info):
    network = network_of(info, first_state(info), CPU)
    found = evaluated(network, order_of(info), store, site)
    cases = validation_cases(store, info, ["dogwood"], 1)
    expected = validate(network, info, store, cases)
    assert {name: score.dice for name, score in found.items()} == expected.dice
    assert found["dogwood"].score == expected.score
    trained = train_round(store, site, order_of(info))
    assert trained.validation == {name: score.score for name, score in found.items()}
    assert evaluated(network, order_of(info), store, site, EvaluationRequest("test", "all")).keys() == {
        "dogwood/" + "+".join(name for name in info.axis if name in subset)
        for subset in ({"T1"}, {"FLAIR"}, {"T1", "FLAIR"})
    }
    with pytest.raises(StoppedError):
        evaluate_model(network, order_of(info), store, site, cases, EvaluationRequest(), lambda: True)


@pytest.mark.slow
def test_a_site_trains_no_branch_of_what_it_does_not_annotate(store, site, info):
    options = replace(
        with_local(keep_optimiser=True),
        labels=("tissue:CSF", "lesion"),
        model=ModelOptions("two_unets", (6, 8)),
        schedule=replace(OPTIONS.schedule, validation_cases=0),
    )
    space = LabelSpace.of(options.labels)
    numbers = {"widths": (6, 8), "norm": "instance", **numbers_from(info.axis, space)}
    branched = replace(info, builder="two_unets", numbers=numbers, space=space)
    trained = train_round(store, site, order_of(branched, options))  # dogwood has lesions alone
    assert {name.partition(".")[0] for name in trained.update} == {"lesion"}
    assert {name.partition(".")[0] for name in trained.own.moments} == {"lesion"}
    groups = {part.name: part.group for part in parts(branched)}
    assert trained.exposure["kind:tissue"] == 0
    assert trained.exposure["kind:lesion/FLAIR"] > 0
    assert {groups[name] for name, change in trained.update.items() if change.any()} == {
        "kind:lesion", "kind:lesion/FLAIR", "kind:lesion/T1", "label:lesion",
    }  # fmt: skip


@pytest.mark.slow
def test_a_round_lists_the_parts_of_the_network_once(store, site, info, monkeypatch):
    listed = []
    monkeypatch.setattr("multiseg.federation.sites.site.parts", lambda info: listed.append(info) or parts(info))
    train_round(store, site, order_of(info))
    assert len(listed) == 1


def test_a_store_of_other_voxels_is_refused(store, site, info):
    with pytest.raises(DataError, match=r"\[1.0, 1.0, 1.0\] mm"):
        train_round(store, site, order_of(replace(info, spacing_mm=(1.0, 1.0, 1.0))))


def test_weights_that_do_not_fit_are_refused(store, site, info):
    state = first_state(info)
    state.popitem()
    with pytest.raises(FederationError, match="do not fit a multi_unet"):
        train_round(store, site, Order(info, OPTIONS, state))


def test_what_is_personal_is_laid_in(store, site, info):
    order = order_of(info, with_local(personal=("*second.conv*",)), personal_parts=("decoder.0.reduce.bias",))
    mine = {part.name: torch.full(part.shape, 0.5) for part in parts(info)}
    network, events = own_network(store, site, order, PersonalState(mine), CPU)
    state, received = network.state_dict(), first_state(info)
    assert (state["encoder.0.second.conv.weight"] == 0.5).all()
    assert (state["decoder.0.reduce.bias"] == 0.5).all()
    assert torch.equal(state["encoder.0.first.conv.weight"], received["encoder.0.first.conv.weight"])
    assert events == ()
    odd = {"encoder.0.second.conv.weight": torch.zeros(3)}  # of a smaller network
    state = own_network(store, site, order, PersonalState(odd), CPU)[0].state_dict()
    assert torch.equal(state["encoder.0.second.conv.weight"], received["encoder.0.second.conv.weight"])
    trained = train_round(store, site, order)
    assert "decoder.0.reduce.bias" not in trained.update
    assert "decoder.0.reduce.bias" in trained.own.parts
    assert not trained.update.keys() & trained.own.parts.keys()


def test_running_statistics_are_averages_over_the_batches():
    network = torch.nn.Sequential(torch.nn.BatchNorm3d(2), torch.nn.Dropout(0.9))

    class Two(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = network[0]

        def forward(self, images, present):
            return self.norm(images)

    two = Two()
    assert personal_norms(two, ("*norm*",)) == [two.norm]
    assert personal_norms(two, ("*conv*",)) == []

    class Shown:
        def __init__(self, value):
            self.images, self.present = torch.full((1, 2, 2, 2, 2), value), torch.ones(1, 2, dtype=torch.bool)

        def to(self, device):
            return self

    two.norm.num_batches_tracked += 4
    estimate_norms(two, [two.norm], [Shown(1.0), Shown(4.0)])
    assert two.norm.running_mean.tolist() == [2.5, 2.5]
    assert two.norm.running_var.tolist() == [0.0, 0.0]
    assert two.norm.num_batches_tracked == 4
    assert two.norm.momentum == 0.1


@pytest.mark.slow
def test_a_database_of_weight_0_trains_nothing_for_the_others(site_stores, tmp_path, info):
    """Its sequences are not told as trained, neither before a round nor in it."""
    url = str(tmp_path / "both.zarr")
    for name in ("alder", "dogwood"):
        shutil.copytree(site_stores[name], url, dirs_exist_ok=True)
    root = tmp_path / "both.zarr" / "zarr.json"
    about = json.loads(root.read_text())
    about["attributes"]["multiseg"]["databases"] = ["alder", "dogwood"]
    about.pop("consolidated_metadata", None)
    root.write_text(json.dumps(about))
    both, site = open_store(url), Site("both", url, tmp_path, device="cpu", workers=0, leaves=Leaves(least=1))
    draw = replace(OPTIONS.stream.draw, weights={"alder": 0.0, "dogwood": 1.0})
    options = replace(OPTIONS, stream=replace(OPTIONS.stream, draw=draw))
    told = describe(both, site, options)["databases"]
    assert {name: about["num_cases"]["train"] for name, about in told.items()} == {"alder": 0, "dogwood": 5}
    trained = train_round(both, site, order_of(info, options))
    assert not any("PD" in name for name in trained.update)
    assert len(trained.drawn) == 2
    assert any("PD" in name for name in train_round(both, site, order_of(info)).update)


@pytest.fixture(scope="module")
def held_out(hospitals, tmp_path_factory):
    """A store of dogwood in which every case is for tests."""
    (found,) = [files for files in find_manifest(hospitals / "manifest.toml") if files.name == "dogwood"]
    url = str(tmp_path_factory.mktemp("held_out") / "dogwood.zarr")
    ingest([found], url, IngestOptions(spacing_mm=(5.0, 5.0, 5.0), split={"test": 1.0}))
    return url


@pytest.mark.slow
def test_a_site_without_training_cases_describes_and_evaluates(held_out, site, info):
    store, there = open_store(held_out), replace(site, store=held_out)
    told = describe(store, there, OPTIONS)
    assert told["can_train"] is False
    assert told["databases"]["dogwood"]["num_cases"] == {"train": 0, "val": 0, "test": 5}
    assert told["databases"]["dogwood"]["modalities"]
    order = order_of(info, with_local(personal=("*norm*",)))
    network, (event,) = own_network(store, there, order, None, CPU)
    assert "of the test cases" in event
    assert not torch.equal(network.state_dict()["encoder.0.first.norm.running_mean"], torch.zeros(8))
    assert evaluated(network, order, store, there) == {}
    assert evaluated(network, order, store, there, EvaluationRequest("test")).keys() == {"dogwood"}
    with pytest.raises(DataError, match="no train case"):
        train_round(store, there, order)


@pytest.mark.slow
def test_where_its_lesions_are_shapes_no_statistics_of_a_site_that_only_evaluates(store, site, info, monkeypatch):
    seen = []

    class Stream(module.PatchStream):
        def __init__(self, store, axis, space, options, split, databases):
            seen.append(options.draw.lesion_share)
            super().__init__(store, axis, space, options, split, databases)

    monkeypatch.setattr(module, "PatchStream", Stream)
    personal = with_local(personal=("*norm*",))
    own_network(store, site, order_of(info, personal), None, CPU)
    own_network(store, replace(site, trains=False), order_of(info, personal), None, CPU)
    own_network(store, site, order_of(info, replace(personal, held_out=("dogwood",))), None, CPU)
    assert seen == [0.5, 0.0, 0.0]


def test_landmarks_leave_as_statistics_do(store, site, monkeypatch):
    scale = {"T1": (0.0, 1.0)}
    monkeypatch.setattr(store["dogwood"], "recipe", replace(store["dogwood"].recipe, landmarks=scale))
    few = replace(OPTIONS, privacy=replace(OPTIONS.privacy, least=1))

    def told(leaves, options=few):
        return describe(store, replace(site, leaves=leaves), options)["databases"]["dogwood"]["recipe"]

    assert told(Leaves(least=2))["landmarks"] == {"T1": [0.0, 1.0]}
    assert "landmarks" not in told(Leaves(least=2, fingerprint=False))
    assert "landmarks" not in told(Leaves(least=3))  # of 2 cases
    assert "landmarks" not in told(Leaves(least=2), OPTIONS)  # the run's own number
    assert told(Leaves())["brain_mask"] == store["dogwood"].recipe.brain_mask


def test_a_stop_ends_a_round_between_steps(store, site, info):
    heard = []
    with pytest.raises(StoppedError, match="starts again when the site is back"):
        train_round(store, site, order_of(info), hooks=Hooks(on_event=heard.append, should_stop=lambda: bool(heard)))
    assert len(heard) == 1
