"""What a site hides takes no part, and what it does not annotate is neither scored nor trained against."""

from dataclasses import asdict, replace

import pytest
import torch
from asked import OPTIONS, described, first_state, joint_info, round_task, site_of

from multiseg.federation.messages import DESCRIBE, FINGERPRINT, SiteTask
from multiseg.federation.sites import evaluating
from multiseg.federation.sites.answering import answer
from multiseg.federation.sites.evaluating import EvaluationRequest, choose_cases, evaluate_model
from multiseg.federation.sites.learning import network_of
from multiseg.federation.sites.site import Order, store_of
from multiseg.loaders.batches import Batch
from multiseg.training import fit as fit_module
from multiseg.training.validate import Judged

SAID = replace(OPTIONS, labels=("tissue:CSF", "tissue:grey matter", "lesion"), sites=("alder", "dogwood"))


@pytest.fixture(scope="module")
def stores(site_stores):
    """Alder annotates tissues and lesions, dogwood lesions."""
    return {name: site_stores[name] for name in SAID.sites}


@pytest.fixture(scope="module")
def info(stores, tmp_path_factory):
    return joint_info(described(stores, tmp_path_factory.mktemp("described"), SAID), SAID)


class Says(torch.nn.Module):
    """A network that says the same of any images."""

    def __init__(self, logits):
        super().__init__()
        self.logits = logits

    def forward(self, images, present):
        return self.logits


def about(site, kind=DESCRIBE, **body):
    return answer(SiteTask(kind, "trial", body={"options": asdict(SAID), **body}), site).body["databases"]["alder"]


def test_what_is_hidden_is_told_nowhere(stores, tmp_path):
    site = site_of("alder", stores, tmp_path)
    assert {label["kind"] for label in about(site)["labels"]} == {"tissue", "lesion"}
    hidden = replace(site, hide=("alder/tissue", "alder/PD"))
    assert {label["kind"] for label in about(hidden)["labels"]} == {"lesion"}
    assert "PD" not in about(hidden)["modalities"]
    shown = about(site, FINGERPRINT)
    assert (len(shown["lesions"]), "PD" in shown["modalities"]) == (1, True)
    assert "PD" not in about(hidden, FINGERPRINT)["modalities"]
    assert about(replace(site, hide=("alder/lesion",)), FINGERPRINT)["lesions"] == {}


@pytest.mark.slow
def test_no_head_of_a_hidden_label_is_trained(stores, tmp_path, info):
    found = answer(round_task(info, options=SAID), site_of("alder", stores, tmp_path, hide=("alder/tissue",)))
    assert found.error == ""
    labels = {name.partition("[")[2] for name in found.tensors if "[label:" in name}
    assert labels == {"label:lesion]"}
    exposure = found.body["exposure"]
    assert exposure["label:lesion"] == exposure[""] > 0
    assert (exposure["label:CSF"], exposure["label:grey matter"]) == (0, 0)


def test_the_server_reads_no_names_of_what_could_have_been_hidden(stores, tmp_path):
    site = site_of("alder", stores, tmp_path, hide=("alder/tisue",))
    error = answer(SiteTask(DESCRIBE, "trial", body={"options": asdict(SAID)}), site).error
    assert "setting hide names an annotation" in error
    assert "alder/" not in error
    assert "FLAIR" not in error


@pytest.mark.slow
def test_a_site_without_tissues_does_not_say_that_there_are_none(stores, tmp_path, info, monkeypatch):
    """Its loss is the same whether the model says background or a tissue where no lesion is, within the brain."""
    losses, objective_named = [], fit_module.objective_named

    def spied(*arguments, **others):
        objective = objective_named(*arguments, **others)

        def both(network: torch.nn.Module, batch: Batch, step: int):
            inside = replace(batch, images=torch.ones_like(batch.images))
            logits = network(batch.images, batch.present).detach()
            answers = (Says(logits), Says(logits[:, [1, 0, 2, 3]]))
            losses.append(tuple(float(objective(model, inside, step)[0]) for model in answers))
            return objective(network, batch, step)

        return both

    monkeypatch.setattr(fit_module, "objective_named", spied)
    state = first_state(info)
    assert answer(round_task(info, options=SAID, state=state), site_of("dogwood", stores, tmp_path)).error == ""
    assert losses
    assert all(loss == pytest.approx(swapped, rel=1e-5) for loss, swapped in losses)
    losses.clear()
    assert answer(round_task(info, options=SAID, state=state), site_of("alder", stores, tmp_path)).error == ""
    assert max(abs(loss - swapped) for loss, swapped in losses) > 1e-3


def test_lesions_and_tissues_are_scored_apart(stores, tmp_path, info, monkeypatch):
    """As by the trainer: in one mean, tissues would hide a lesion that is never found."""
    judged = [Judged(0.9, kind="tissue"), Judged(0.7, kind="tissue"), Judged(0.2)]
    monkeypatch.setattr(evaluating, "judged_by_subset", lambda model, store, case, subsets: {"": judged})
    site = site_of("alder", stores, tmp_path)
    order, store, request = Order(info, SAID, first_state(info)), store_of(site), EvaluationRequest("val")
    network = network_of(info, order.state, torch.device("cpu"))
    cases, _ = choose_cases(order, store, site, request)
    scores = evaluate_model(network, order, store, site, cases, request)
    assert (scores["alder"].dice, scores["alder"].score) == pytest.approx((0.5, 0.5))
    assert scores["alder"].num_cases == 1
