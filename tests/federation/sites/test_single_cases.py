"""A centre that is after one patient: what it asks is refused, or the numbers that it gets are of five cases."""

from dataclasses import asdict, replace

import numpy as np
import pytest
from asked import OPTIONS, joint_info, round_task
from asked import first_state as weights_of

from multiseg.federation.centre.site_info import site_info
from multiseg.federation.messages import DESCRIBE, EVALUATE, FINGERPRINT, SiteTask
from multiseg.federation.sites import evaluating, task_work
from multiseg.federation.sites.answering import answer
from multiseg.federation.sites.drawing import training_cases
from multiseg.federation.sites.limits import Limits
from multiseg.federation.sites.policy import Leaves
from multiseg.federation.sites.site import Site
from multiseg.labels import LabelSpace
from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import Database, open_store
from multiseg.store.sources.manifest import find_manifest
from multiseg.training.validate import Judged

ALONE = replace(OPTIONS, sites=("dogwood",), local=replace(OPTIONS.local, steps=6))
"""Six steps of two patches."""


@pytest.fixture(scope="module")
def url(tmp_path_factory):
    """A store of one hospital: 8 training and 12 validation cases."""
    folder = tmp_path_factory.mktemp("hospital")
    manifest = write_hospitals(folder, num_cases=20, coarseness=4.0, names=["dogwood"])
    files = find_manifest(manifest)
    path = str(folder / "dogwood.zarr")
    ingest(files, path, IngestOptions(spacing_mm=(10.0, 10.0, 10.0), split={"train": 0.4, "val": 0.6}))
    splits = [case.split for case in open_store(path).cases]
    assert (splits.count("train"), splits.count("val")) == (8, 12)
    return path


@pytest.fixture
def site(url, tmp_path):
    """By its defaults: `least` is 5."""
    return Site("dogwood", url, tmp_path / "state", device="cpu", workers=0)


@pytest.fixture(scope="module")
def info(url, tmp_path_factory):
    task = SiteTask(DESCRIBE, "trial", body={"options": asdict(ALONE)})
    told = answer(task, Site("dogwood", url, tmp_path_factory.mktemp("described"), device="cpu", workers=0))
    return joint_info({"dogwood": site_info(told)}, ALONE)


def options_of(experiment="trial", validation_cases=5, **others):
    schedule = replace(ALONE.schedule, validation_cases=validation_cases)
    return replace(ALONE, experiment=experiment, schedule=schedule, **others)


def evaluate(info, options, split="val", subsets=None):
    body = {"info": info.to_json(), "options": asdict(options), "split": split}
    body |= {"subsets": subsets} if subsets else {}
    return SiteTask(EVALUATE, options.experiment, 1, body, weights_of(info))


@pytest.fixture
def oracle(monkeypatch):
    """Each case has a Dice of its own, as a network made for the purpose would give it; by case what was asked."""
    dice, seen = {}, []

    def judged(model, store, case, subsets="full", overlap=0.25):
        seen.append(case.name)
        value = dice.setdefault(case.name, 2.0 ** -(len(dice) + 1))
        return {"+".join(case.modalities): [Judged(value)]}

    monkeypatch.setattr(evaluating, "judged_by_subset", judged)
    return dice, seen


def hide(monkeypatch, names, **changed):
    """The cases of these names are otherwise, in a store that has changed."""
    read = Database._case

    def now(*arguments):
        case = read(*arguments)
        return replace(case, **changed) if case.name in names else case

    monkeypatch.setattr(Database, "_case", now)


@pytest.mark.slow
def test_one_validation_case_is_not_told(site, info, oracle):
    """The attack that told one lesion's volume to the voxel, while the site reported five cases."""
    dice, seen = oracle
    told = answer(evaluate(info, options_of(validation_cases=1)), site).body["metrics"]["dogwood"]
    assert told["num_cases"] == 5 == len(set(seen))
    assert told["dice"] == round(np.mean(list(dice.values())), 2)
    assert told["dice"] not in {round(value, 2) for value in dice.values()}


@pytest.mark.slow
def test_many_questions_tell_of_no_fewer_than_five(site, info, oracle):
    """Every number of cases, under other experiments' names: all means are of two sets, of 5 and of all 12."""
    _, seen = oracle
    means = set()
    for num in range(1, 14):
        seen.clear()
        told = answer(evaluate(info, options_of(f"trial{num}", num)), site).body["metrics"]["dogwood"]
        means.add((told["dice"], len(seen)))
    assert {num for _, num in means} == {5, 12}
    assert len(means) == 2


@pytest.mark.slow
def test_a_case_that_comes_or_goes_is_not_told_by_the_difference(site, info, oracle, monkeypatch):
    dice, _ = oracle
    names = [case.name for case in open_store(site.store).cases if case.split == "val"]
    hide(monkeypatch, names[:1], split="train")
    before = answer(evaluate(info, options_of(validation_cases=12)), site).body["metrics"]["dogwood"]["dice"]
    assert before == round(np.mean([dice[name] for name in names[1:]]), 2)
    monkeypatch.undo()
    seen = set()

    def judged(model, store, case, subsets="full", overlap=0.25):
        seen.add(case.name)
        return {"": [Judged(dice.setdefault(case.name, 1.0))]}

    monkeypatch.setattr(evaluating, "judged_by_subset", judged)
    after = answer(evaluate(info, options_of("other", 12)), site).body["metrics"]["dogwood"]["dice"]
    assert (after, seen) == (before, set(names[1:]))  # the twelfth waits for four more
    seen.clear()
    hide(monkeypatch, names[1:2], split="train")
    fewer = answer(evaluate(info, options_of("third", 12)), site).body["metrics"]["dogwood"]["dice"]
    assert len(seen) == 6  # four others stay out with the one that went
    assert seen < set(names[2:])
    assert fewer == round(np.mean([dice[name] for name in seen]), 2)


def test_too_few_cases_have_no_dice(site, info, oracle):
    few = replace(site, leaves=Leaves(least=13))
    body = answer(evaluate(info, options_of(validation_cases=100)), few).body
    assert body["metrics"] == {}
    assert "13 or more cases" in body["events"][0]


@pytest.mark.slow
def test_a_structure_that_few_cases_have_does_not_count(site, info, monkeypatch):
    names = sorted(case.name for case in open_store(site.store).cases if case.split == "val")
    rare = set(names[:4])

    def judged(model, store, case, subsets="full", overlap=0.25):
        return {"": [Judged(0.8 if case.name in rare else float("nan"), is_false_alarm=case.name not in rare)]}

    monkeypatch.setattr(evaluating, "judged_by_subset", judged)
    assert answer(evaluate(info, options_of(validation_cases=12)), site).body["metrics"] == {}
    rare.add(names[4])
    told = answer(evaluate(info, options_of("other", 12)), site).body["metrics"]["dogwood"]
    assert told == {"dice": round(5 * 0.8 / 12, 2), "num_cases": 5}


@pytest.mark.slow
def test_training_cases_and_other_subsets_are_not_evaluated(site, info):
    assert "val or test cases" in answer(evaluate(info, options_of(), split="train"), site).error
    assert "subsets of the run's settings" in answer(evaluate(info, options_of(), subsets="T1"), site).error


@pytest.mark.slow
def test_a_sequence_that_few_cases_have_stays_at_home(site, info, monkeypatch):
    """It is not on the roster, and its part of the network is in no update: one case alone would have made it."""
    names = [case.name for case in open_store(site.store).cases if case.split == "train"]
    hide(monkeypatch, names[:4], modalities=("T1",))
    told = answer(SiteTask(DESCRIBE, "trial", body={"options": asdict(ALONE)}), site).body["databases"]["dogwood"]
    assert told["modalities"] == ["T1"]
    sent = answer(round_task(info, options=ALONE), site)
    assert not sent.error
    assert "encoder.0.first.conv.weight[T1]" in sent.tensors
    assert not any("FLAIR" in name for name in sent.tensors)
    assert sent.body["exposure"]["FLAIR"] == 0
    monkeypatch.undo()
    assert any("FLAIR" in name for name in answer(round_task(info, 2, options=ALONE), site).tensors)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("local", "stream", "said"),
    [
        ({"steps": 1}, {"batch_size": 1}, "shows fewer than 5 cases"),
        ({"steps": 2}, {"batch_size": 2}, "shows fewer than 5 cases"),
        ({"steps": 5}, {"batch_size": 1}, "learnt from fewer than 5 cases"),
    ],
)
def test_a_round_on_few_cases_is_refused(site, info, local, stream, said):
    options = replace(ALONE, local=replace(ALONE.local, **local), stream=replace(ALONE.stream, **stream))
    found = answer(round_task(info, options=options), site)
    assert said in found.error
    assert not found.tensors
    assert not list(site.state.rglob("*.pt"))


@pytest.mark.slow
def test_few_training_cases_train_nothing_by_default(site, info):
    few = replace(site, leaves=Leaves(least=9))
    body = answer(SiteTask(DESCRIBE, "trial", body={"options": asdict(ALONE)}), few).body
    assert (body["can_train"], body["databases"]["dogwood"]["num_cases"]["train"]) == (False, 0)
    steps = []
    assert "on 9 cases or more" in answer(round_task(info, options=ALONE), few, on_event=steps.append).error
    assert steps == []
    store = open_store(site.store)
    assert len(training_cases(store, site, ALONE, LabelSpace())) == 8
    drawn = replace(ALONE, stream=replace(ALONE.stream, draw=replace(ALONE.stream.draw, num_cases=1)))
    assert len(training_cases(store, site, drawn, LabelSpace())) == 5


@pytest.mark.slow
def test_steps_that_are_skipped_do_not_count(site, info, monkeypatch):
    """A network that is not finite on all cases but one would else learn from that one alone."""
    from multiseg.federation.sites.training import Counted

    stepped = Counted.stepped
    number = iter(range(100))
    monkeypatch.setattr(Counted, "stepped", lambda counted, num, has_learnt: stepped(counted, num, next(number) < 1))
    assert "learnt from fewer than 5 cases" in answer(round_task(info, options=ALONE), site).error


@pytest.mark.slow
def test_statistics_hold_no_case(site, info, url, monkeypatch):
    task = SiteTask(FINGERPRINT, "trial", body={"options": asdict(ALONE), "least": 1})
    told = answer(task, site).body["databases"]["dogwood"]
    cases = [case for case in open_store(url).cases if case.split == "train"]
    volumes = [float(case.foreground_count.sum() * np.prod(case.grid.spacing_mm) / 1000) for case in cases]
    having = [volume for volume in volumes if volume]
    (lesion,) = told["lesions"].values()
    assert lesion["volume_ml"] == [float(f"{np.mean(having):.2g}")]  # no halves: they would be of four cases
    assert all(len(edge) == 1 for edge in told["extent_mm"])
    hide(monkeypatch, [cases[0].name], split="val")
    again = answer(task, site).body["databases"].get("dogwood")
    assert again is None or len(again["extent_mm"]) == 1
    assert again is None  # seven of eight would tell the eighth, and without five there are too few


@pytest.mark.slow
def test_a_model_is_the_one_of_the_settings(site, info):
    """Settings are what a site agrees to: a description beside them may not say otherwise."""
    other = replace(info, numbers={**info.numbers, "widths": [8, 8, 8]})
    assert "the model's network is" in answer(round_task(other, options=ALONE), site).error
    assert "the model's patch is" in answer(round_task(replace(info, patch=(8, 8, 8)), options=ALONE), site).error
    odd = replace(info, space=LabelSpace.of(("tissue:bone",), ""))
    assert "the model's labels is" in answer(round_task(odd, options=ALONE), site).error
    assert "starts after 7 steps" in answer(round_task(info, options=ALONE, steps_done=7), site).error
    assert "round 9 in a run of 4" in answer(round_task(info, 9, options=ALONE), site).error


@pytest.mark.slow
def test_answers_with_a_dice_are_counted(site, info, oracle):
    busy = replace(site, limits=Limits(scores_a_day=2))
    for name in ("one", "two"):
        assert not answer(evaluate(info, options_of(name)), busy).error
    assert "limits.scores_a_day" in answer(evaluate(info, options_of("three")), busy).error


@pytest.mark.parametrize(
    ("limits", "changed", "said"),
    [
        (
            Limits(),
            {"local": {"steps": 20_000}},
            "20000 optimiser steps a round (local.steps), but this site allows 10000",
        ),
        (Limits(patches=11), {}, "12 patches a round"),
        (Limits(rounds=3), {}, "4 rounds"),
        (Limits(memory_mib=0.1), {}, "MiB for patches"),
        (Limits(), {"stream": {"ahead": 9000, "batch_size": 200}}, "(its limits.memory_mib)"),
        (Limits(model_mib=0.01), {}, "MiB of weights"),
        (Limits(evaluations=4), {}, "5 evaluations"),
        (Limits(), {"model": {"widths": (8, 9000)}}, "a site takes up to 12 of up to 8192"),
        (Limits(), {"augment": {"blur_sigma_voxels": (0.5, 999.0)}}, "goes to 999"),
        (Limits(minutes=1e-9), {}, "minutes that this site allows"),
    ],
)
def test_a_run_that_costs_too_much_is_refused_with_the_limit(site, info, limits, changed, said):
    options = options_of()
    for table, values in changed.items():
        options = replace(options, **{table: replace(getattr(options, table), **values)})
    steps = []
    found = answer(round_task(info, options=options), replace(site, limits=limits), on_event=steps.append)
    assert said in found.error
    assert not found.passing
    assert steps == []


def test_limits_of_a_run_are_told_before_it_begins(site):
    task = SiteTask(DESCRIBE, "trial", body={"options": asdict(ALONE)})
    assert "limits.rounds" in answer(task, replace(site, limits=Limits(rounds=1))).error
    assert task_work.VAL == "val"
