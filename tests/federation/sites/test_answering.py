import json
import shutil
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
from asked import KEEPING, OPTIONS, described, first_state, groups_of, round_task, site_of, with_local

from multiseg.errors import StoppedError
from multiseg.federation.messages import DESCRIBE, EVALUATE, FINGERPRINT, FINISH, ROUND, SiteTask, to_bytes
from multiseg.federation.pairwise_masks import unmasked
from multiseg.federation.plan import PrivacyOptions, ScheduleOptions
from multiseg.federation.sites import audit_log, task_work
from multiseg.federation.sites.answering import answer
from multiseg.federation.sites.policy import Leaves
from multiseg.models.network_parts import parts, trained_parts
from multiseg.models.saved import load_model
from multiseg.store.reader import open_store


@pytest.fixture(scope="module")
def first(site_stores, tmp_path_factory, info):
    """What birch and dogwood answer to the first round."""
    state = tmp_path_factory.mktemp("first")
    return {name: answer(round_task(info), site_of(name, site_stores, state)) for name in ("birch", "dogwood")}


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.slow
def test_a_site_describes_what_a_roster_is_made_of(infos, info):
    assert infos["dogwood"].databases["dogwood"]["num_cases"] == {"train": 5, "val": 5, "test": 5}  # 2, 1, 1 in truth
    assert set(infos["dogwood"].databases["dogwood"]["modalities"]) == {"T1", "FLAIR"}
    assert infos["alder"].can_train
    assert set(info.axis) == {"T1", "T2", "FLAIR", "PD", "T1c"}


@pytest.mark.slow
def test_a_round_sends_exactly_the_parts_that_the_site_trains(first, info):
    sent = first["dogwood"]
    assert not sent.error
    expected = trained_parts(parts(info), {"", "T1", "FLAIR", "label:lesion"})
    assert sent.tensors.keys() == {part.name for part in expected}
    assert "encoder.0.first.conv.weight[T1]" in sent.tensors
    assert not any("T1c" in name or "PD" in name for name in sent.tensors)
    assert all(tensor.dtype == torch.float32 for tensor in sent.tensors.values())
    assert any(tensor.abs().max() > 0 for tensor in sent.tensors.values())


@pytest.mark.slow
def test_what_a_round_tells(first):
    told = first["dogwood"].body
    assert told["num_cases"] == 5
    assert told["exposure"][""] == told["exposure"]["T1"] == 5  # at most 4 in truth
    assert told["exposure"]["PD"] == 0
    assert told["metrics"].keys() == {"validation", "loss", "bad_steps", "update_norm"}
    assert 0 <= told["metrics"]["validation"]["dogwood"] <= 1
    assert told["seconds"].keys() == {"evaluate", "train", "total"}
    assert told["events"] == []


@pytest.mark.slow
def test_a_round_is_the_same_bits_wherever_it_is_repeated(site_stores, tmp_path, info, first):
    one = first["birch"]
    task = round_task(info)
    torch.manual_seed(99)
    before = torch.get_rng_state()
    other = answer(task, site_of("birch", site_stores, tmp_path / "other"))
    assert same(one.tensors, other.tensors)
    assert torch.equal(before, torch.get_rng_state())  # and it leaves others' random numbers alone
    second = answer(round_task(info, number=2, kept=0), site_of("birch", site_stores, tmp_path / "other"))
    assert not same(one.tensors, second.tensors)


@pytest.mark.slow
def test_sites_draw_differently(site_stores, tmp_path, info, first):
    elm = replace(site_of("birch", site_stores, tmp_path), name="elm")
    assert not same(first["birch"].tensors, answer(round_task(info), elm).tensors)


@pytest.mark.slow
def test_a_repeated_task_gets_the_stored_answer(site_stores, tmp_path, info):
    site = site_of("birch", site_stores, tmp_path)
    first = answer(round_task(info), site)
    steps = []
    again = answer(round_task(info, kept=0, hold=[0]), site, on_event=steps.append)
    assert to_bytes(again) == to_bytes(first)
    assert steps == []
    other = answer(round_task(info, state=first_state(info, seed=4)), site, on_event=steps.append)
    assert len(steps) == 2
    assert not same(other.tensors, first.tensors)


@pytest.mark.slow
def test_after_a_lost_round_the_site_goes_on_from_the_one_that_was_kept(site_stores, tmp_path, info, smooth):
    site = site_of("alder", site_stores, tmp_path / "rough")
    smooth.after(1, tmp_path / "rough")
    # Round 2 from other weights, which the server then lost with its disk.
    answer(round_task(info, 2, options=KEEPING, state=first_state(info, seed=9)), site)
    second = answer(round_task(info, 2, options=KEEPING), site)
    third = answer(round_task(info, 3, options=KEEPING), site)
    assert same(second.tensors, smooth.answers[1].tensors)
    assert same(third.tensors, smooth.answers[2].tensors)
    assert third.body["metrics"] == smooth.answers[2].body["metrics"]
    # An update that the server did not take: round 4 begins from round 2.
    smooth.after(3, tmp_path / "smooth")
    here = site_of("alder", site_stores, tmp_path / "smooth")
    from_third = answer(round_task(info, 4, options=KEEPING), here)
    shutil.copytree(tmp_path / "rough", tmp_path / "copy")
    for left in (tmp_path / "rough" / "alder" / "experiments" / "trial").glob("000002-*"):
        left.unlink()
    lost = answer(round_task(info, 4, kept=2, options=KEEPING), site)
    assert "continued from the received model" in lost.body["events"][0]
    held = answer(round_task(info, 4, kept=2, options=KEEPING), site_of("alder", site_stores, tmp_path / "copy"))
    assert held.body["events"] == []
    assert not same(from_third.tensors, held.tensors)
    assert not same(lost.tensors, held.tensors)


@pytest.mark.slow
def test_personal_norm_layers_never_leave_and_stay_in_step(site_stores, tmp_path, info, smooth):
    site = site_of("alder", site_stores, tmp_path)
    smooth.after(3, tmp_path)
    first, *_ = answers = smooth.answers
    assert not any("norm" in name for sent in answers for name in sent.tensors)
    assert "statistics were estimated" in first.body["events"][0]
    assert answers[1].body["events"] == []
    done = answer(finish_task(info, KEEPING, number=3), site)
    assert not done.error
    assert done.body["events"] == []
    model = load_model(tmp_path / "alder" / "experiments" / "trial" / "model.safetensors")
    state = model.network.state_dict()
    counters = {int(value) for name, value in state.items() if name.endswith("num_batches_tracked")}
    assert counters == {6}  # three rounds of two steps, however often they were asked for
    assert not torch.equal(state["encoder.0.first.norm.weight"], torch.ones(8))
    assert torch.equal(state["encoder.0.first.conv.weight"], first_state(info)["encoder.0.first.conv.weight"])


def finish_task(info, options=OPTIONS, kind=FINISH, number=0, **others):
    body = {"info": info.to_json(), "options": asdict(options), "split": "test", "subsets": "full"}
    return SiteTask(kind, options.experiment, number, body | others, first_state(info))


@pytest.mark.slow
def test_a_model_is_finished_with_what_was_personal_in_its_round(site_stores, tmp_path, info, smooth):
    site = site_of("alder", site_stores, tmp_path)
    smooth.after(2, tmp_path)
    assert not answer(round_task(info, 3, options=KEEPING, hold=[2]), site).error

    def finished(number, **others):
        events = answer(finish_task(info, KEEPING, number=number, **others), site).body["events"]
        state = load_model(tmp_path / "alder" / "experiments" / "trial" / "model.safetensors").network.state_dict()
        return int(state["encoder.0.first.norm.num_batches_tracked"]), events

    assert finished(2) == (4, [])
    assert finished(3) == (6, [])
    counted, (event,) = finished(1, kept=3)  # nobody asked to hold that one
    assert counted == 6
    assert "of the model of round 3" in event


@pytest.mark.slow
def test_a_site_evaluates_every_subset(site_stores, tmp_path, info):
    site = site_of("dogwood", site_stores, tmp_path)
    options = replace(OPTIONS, schedule=replace(OPTIONS.schedule, evaluate_subsets="all"))
    told = answer(finish_task(info, options, kind=EVALUATE, subsets="all"), site).body["metrics"]
    names = {"+".join(name for name in info.axis if name in subset) for subset in ({"T1"}, {"FLAIR"}, {"T1", "FLAIR"})}
    assert told.keys() == {f"dogwood/{name}" for name in names}
    assert all(0 <= score["dice"] <= 1 and score["num_cases"] == 5 for score in told.values())
    assert "of the run's settings" in answer(finish_task(info, kind=EVALUATE, subsets="all"), site).error
    assert answer(round_task(info, options=options), site).body["metrics"]["validation"].keys() == told.keys()


@pytest.mark.slow
def test_a_site_that_only_evaluates_estimates_its_statistics(site_stores, tmp_path, info):
    site = site_of("dogwood", site_stores, tmp_path, trains=False)
    task = finish_task(info, with_local(personal=("*norm*",)), kind=EVALUATE)
    assert "statistics were estimated on 20 batches of the train cases" in answer(task, site).body["events"][0]
    assert answer(finish_task(info, kind=EVALUATE), site).body["events"] == []
    assert "does not let others train" in answer(round_task(info), site).error
    body = answer(SiteTask(DESCRIBE, "trial", body={"options": asdict(OPTIONS)}), site).body
    assert body["can_train"] is False


@pytest.mark.slow
def test_a_stopped_round_is_no_answer(site_stores, tmp_path, info, first):
    site = site_of("birch", site_stores, tmp_path)
    steps = []
    with pytest.raises(StoppedError):
        answer(round_task(info), site, lambda: bool(steps), steps.append)
    assert len(steps) == 1
    rested = answer(round_task(info), site)
    assert same(rested.tensors, first["birch"].tensors)


@pytest.mark.slow
def test_a_round_that_left_no_finite_weights_is_an_error_and_is_not_kept(site_stores, tmp_path, info):
    state = first_state(info)
    state["encoder.1.first.conv.bias"][0] = float("nan")
    found = answer(round_task(info, state=state), site_of("alder", site_stores, tmp_path))
    assert not found.tensors
    assert "not finite" in found.error
    assert not list((tmp_path / "alder" / "experiments" / OPTIONS.experiment).glob("*.pt"))


@pytest.mark.slow
def test_noise_is_the_same_for_a_repeated_task_and_hides_what_it_does_not_cover(site_stores, tmp_path, info, first):
    options = replace(OPTIONS, privacy=PrivacyOptions(clip=0.1, noise=0.5))
    site = site_of("birch", site_stores, tmp_path)
    noisy, plain = answer(round_task(info, options=options), site), first["birch"]
    assert noisy.body["metrics"].keys() == {"validation", "bad_steps"}
    assert not same(noisy.tensors, plain.tensors)
    forget(site)
    again = answer(round_task(info, options=options), site)
    assert same(again.tensors, noisy.tensors)
    assert (noisy.body["releases"], again.body["releases"]) == (1, 1)
    assert "releases" not in plain.body


def forget(site):
    """The answers that the site stored."""
    for file in site.state.rglob("*.pt"):
        file.unlink()


@pytest.fixture
def turned_round(monkeypatch):
    """A switch: from then on the same task comes to minus its update, as if the data had changed."""
    train = task_work.train_round

    def turned(*arguments):
        found = train(*arguments)
        return replace(found, update={name: -tensor for name, tensor in found.update.items()})

    return lambda: monkeypatch.setattr(task_work, "train_round", turned)


@pytest.mark.slow
def test_another_update_of_the_same_task_gets_noise_of_its_own(site_stores, tmp_path, info, turned_round):
    clipping = replace(OPTIONS, privacy=PrivacyOptions(clip=0.1))
    noising = replace(OPTIONS, privacy=PrivacyOptions(clip=0.1, noise=0.5))
    site = site_of("birch", site_stores, tmp_path)
    plain, one = answer(round_task(info, options=clipping), site), answer(round_task(info, options=noising), site)
    forget(site)
    turned_round()
    other = answer(round_task(info, options=noising), site)
    for name, tensor in plain.tensors.items():
        if tensor.numel() > 1 and tensor.abs().max() > 1e-4:  # a single number may be near by chance
            assert not torch.allclose(one.tensors[name] - other.tensors[name], 2 * tensor, atol=1e-3), name
    assert other.body["releases"] == 2


@pytest.mark.slow
def test_a_round_under_other_terms_is_no_release_if_it_sends_the_same(site_stores, tmp_path, info):
    site = site_of("birch", site_stores, tmp_path)
    noising = replace(OPTIONS, privacy=PrivacyOptions(clip=0.1, noise=0.5))
    patient = replace(noising, schedule=replace(OPTIONS.schedule, deadline_minutes=7.0))
    first, again = (answer(round_task(info, options=options), site) for options in (noising, patient))
    assert same(first.tensors, again.tensors)
    assert again.body["releases"] == 1
    louder = replace(noising, privacy=PrivacyOptions(clip=0.1, noise=0.6))
    assert answer(round_task(info, options=louder), replace(site)).body["releases"] == 2


@pytest.mark.slow
def test_clipping_and_half_precision(site_stores, tmp_path, info):
    options = replace(OPTIONS, privacy=PrivacyOptions(clip=1e-3, payload="float16"))
    sent = answer(round_task(info, options=options), site_of("birch", site_stores, tmp_path))
    assert {tensor.dtype for tensor in sent.tensors.values()} == {torch.float16}
    assert sent.body["metrics"]["update_norm"] == pytest.approx(1e-3)


@pytest.mark.slow
def test_masked_updates_sum_to_the_plain_ones(site_stores, tmp_path, info, turned_round):
    masking = replace(OPTIONS, privacy=PrivacyOptions(masked=True))
    states = tmp_path / "masked"
    known = described(site_stores, states, masking)
    groups = groups_of(known, info)
    alone = [part.name for part in parts(info) if len(groups[part.group]) < 3]
    common = {"keys": {n: i.public_key for n, i in known.items()}, "holders": groups, "personal_parts": alone}
    weights = {"alder": 1.0, "birch": 0.5, "dogwood": 0.5}
    sent, plain = {}, {}
    for name in site_stores:
        task = round_task(info, options=masking, weight=weights[name], **common)
        sent[name] = answer(task, site_of(name, site_stores, states))
        plain[name] = answer(round_task(info, personal_parts=alone), site_of(name, site_stores, tmp_path / "plain"))
        assert not sent[name].error
    members = {name: tuple(sorted(site_stores)) for name in sent["alder"].tensors}
    mean = unmasked({name: found.tensors for name, found in sent.items()}, weights, members)
    for part in members:
        expected = sum(weights[name] * plain[name].tensors[part] for name in site_stores) / 2
        assert torch.allclose(mean.update[part], expected, atol=1e-6)
    site = site_of("birch", site_stores, states)
    assert "the same masks" in answer(round_task(info, options=masking, weight=0.25, **common), site).error
    task = round_task(info, options=masking, weight=0.5, **common)
    forget(site)
    assert same(answer(task, site).tensors, sent["birch"].tensors)
    shutil.rmtree(next(site.state.rglob("circles")))  # as if it had been killed before it noted
    assert same(answer(task, site).tensors, sent["birch"].tensors)
    forget(site)
    turned_round()
    assert "the same masks" in answer(task, site).error
    assert not list(site.state.rglob("*.pt"))  # what is refused is not stored


@pytest.mark.slow
def test_no_case_and_no_path_is_in_any_answer(site_stores, tmp_path, info):
    site = site_of("alder", site_stores, tmp_path)
    tasks = [
        SiteTask(DESCRIBE, "trial", body={"options": asdict(OPTIONS)}),
        SiteTask(FINGERPRINT, "trial", body={"least": 1, "options": asdict(OPTIONS)}),
        round_task(info),
        finish_task(info),
        finish_task(info, kind=EVALUATE, subsets="all"),
        round_task(replace(info, spacing_mm=(1.0, 1.0, 1.0)), 2),
        SiteTask("dance", "trial"),
    ]
    secrets = [site.store, str(tmp_path), "/tmp", *(case.name for case in open_store(site.store).cases)]
    secrets += [case.subject for case in open_store(site.store).cases]
    for task in tasks:
        data = to_bytes(answer(task, site))
        assert [text for text in secrets if text.encode() in data] == [], task.kind


@pytest.fixture
def damaged(site_stores, tmp_path):
    """The store of birch, the bytes of all whose images are no shards any more."""
    copy = tmp_path / "damaged store"
    shutil.copytree(site_stores["birch"], copy)
    for file in (copy / "birch" / "image" / "c").rglob("*"):
        if file.is_file():
            file.write_bytes(b"x" * 40)
    return {"birch": str(copy)}


@pytest.mark.slow
def test_a_damaged_case_is_told_without_its_name(damaged, tmp_path, info):
    site = site_of("birch", damaged, tmp_path)
    sent = answer(round_task(info), site)
    names = [case.name for case in open_store(site.store).cases]
    assert sent.error
    assert not sent.tensors
    assert not sent.body
    assert not any(name in sent.error for name in names)
    assert "damaged store" not in sent.error
    assert "more of this site's cases are damaged than it allows (max_damaged" in sent.error
    options = replace(OPTIONS, schedule=ScheduleOptions(validation_cases=0))
    told = answer(round_task(info, options=options), replace(site, max_damaged=1.0)).error
    assert told
    assert not any(name in told for name in names)


@pytest.mark.slow
def test_an_error_of_others_is_told_by_its_kind_alone(site_stores, tmp_path, info, caplog):
    site = site_of("birch", site_stores, tmp_path)

    def fail(event):
        raise RuntimeError(f"in {site.store}, patient Smith")

    found = answer(round_task(info), site, on_event=fail)
    assert found.error == "RuntimeError: see the site's log."
    assert found.passing
    assert "Smith" in caplog.text


@pytest.mark.slow
@pytest.mark.parametrize("name", ["node", "logs", "masks.key", "audit.jsonl", "experiments"])
def test_an_experiment_may_have_the_name_of_a_file_of_the_site(name, site_stores, tmp_path, info):
    masking = PrivacyOptions(clip=1.0, noise=0.1)  # which needs a key
    options = replace(OPTIONS, experiment=name, privacy=masking)
    assert not answer(round_task(info, options=options), site_of("birch", site_stores, tmp_path)).error


@pytest.mark.parametrize("name", ["../elsewhere", "a/b", "", ".hidden"])
def test_an_experiment_is_no_path(name, site_stores, tmp_path, info):
    task = round_task(info)
    found = answer(SiteTask(ROUND, name, 1, task.body, task.tensors), site_of("birch", site_stores, tmp_path))
    assert "name" in found.error
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
def test_a_server_of_another_kind_is_told_so(site_stores, tmp_path, info):
    site = site_of("birch", site_stores, tmp_path)
    task = round_task(info)
    without = SiteTask(ROUND, "trial", 1, {"info": task.body["info"]}, task.tensors)
    assert "without 'options'" in answer(without, site).error
    odd = SiteTask(ROUND, "trial", 1, task.body | {"info": {"axis": 1}}, task.tensors)
    assert "is invalid" in answer(odd, site).error
    less = dict(list(task.tensors.items())[1:])
    assert "do not fit" in answer(SiteTask(ROUND, "trial", 1, task.body, less), site).error


@pytest.mark.slow
def test_the_policy_of_a_site_holds(site_stores, tmp_path, info):
    tight = Leaves(least=1, tensors=("encoder.*",), metrics=("validation/*",), counts=False, fingerprint=False)
    site = site_of("birch", site_stores, tmp_path, leaves=tight)
    steps = []
    assert "lets only encoder.* leave" in answer(round_task(info), site, on_event=steps.append).error
    sparse = replace(site, leaves=replace(tight, tensors=("*",)))
    exposed = replace(OPTIONS, aggregate=replace(OPTIONS.aggregate, weights="exposure"))
    for least in (Leaves(least=1, counts=False), Leaves(least=1, metrics=("loss",))):
        asked = answer(round_task(info, options=exposed), replace(site, leaves=least), on_event=steps.append)
        assert "numbers of patches" in asked.error
    assert steps == []  # all of that is known before
    assert not answer(round_task(info, options=exposed), replace(site, leaves=Leaves(least=1), name="elm")).error
    body = answer(round_task(info), sparse).body
    assert body["metrics"].keys() == {"validation"}
    assert body["seconds"] == {}
    assert body["exposure"] == {}
    assert body["num_cases"] == 5
    assert (
        answer(SiteTask(FINGERPRINT, "trial", body={"least": 1, "options": asdict(OPTIONS)}), sparse).body["databases"]
        == {}
    )
    log = tmp_path / "birch" / "audit.jsonl"
    assert audit_log.verify(log) == []
    last = [row for row in audit_log.rows(log) if row["kind"] == "round"][-1]
    assert last["direction"] == "out"
    assert "left out: loss" in last["notes"]
    assert last["tensors"] > 10
    error, *_ = [row for row in audit_log.rows(log) if "error" in row["notes"]]
    assert "lets only encoder.* leave" in error["notes"]


PROTECTED = PrivacyOptions(clip=0.5, noise=1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("floor", "refused", "passed", "said"),
    [
        ({"masked": True}, PROTECTED, None, "privacy.masked = true"),
        ({"noise": 1.0}, replace(PROTECTED, noise=0.9), PROTECTED, "noise of 1 or more, but the run has 0.9"),
        ({"clip": 0.5}, replace(PROTECTED, clip=0.6), PROTECTED, "up to 0.5, but the run has 0.6"),
        ({"clip": 0.5}, PrivacyOptions(), None, "up to 0.5, but the run has 0"),
        ({"cases": 3}, PrivacyOptions(), None, "on 3 cases or more"),
        ({"cases": 2}, None, PrivacyOptions(), ""),
    ],
)
def test_a_run_that_protects_too_little_is_refused_before_it_trains(
    site_stores, tmp_path, info, floor, refused, passed, said
):
    site = site_of("birch", site_stores, tmp_path, leaves=Leaves(least=1, **floor))
    steps = []
    if refused is not None:
        found = answer(round_task(info, options=replace(OPTIONS, privacy=refused)), site, on_event=steps.append)
        assert said in found.error
        assert not found.passing
        assert steps == []
    if passed is not None:
        assert not answer(round_task(info, options=replace(OPTIONS, privacy=passed)), site).error


@pytest.mark.slow
def test_a_site_says_whether_others_may_see_its_model(site_stores, tmp_path, info):
    options = replace(OPTIONS, schedule=replace(OPTIONS.schedule, cross_site=True))
    found = answer(round_task(info, options=options), site_of("birch", site_stores, tmp_path))
    assert "does not allow (to_sites)" in found.error
    willing = site_of("birch", site_stores, tmp_path / "willing", leaves=Leaves(least=1, to_sites=True))
    assert not answer(round_task(info, options=options), willing).error
    asked = next(json.loads(line)["told"] for line in (willing.state / audit_log.LOG).read_text().splitlines())
    assert asked["cross_site"] is True


@pytest.mark.slow
def test_the_audit_log_holds_what_was_asked(site_stores, tmp_path, info):
    options = replace(with_local(proximal=0.5), privacy=PROTECTED)
    site = site_of("birch", site_stores, tmp_path)
    answer(round_task(info, options=options), site)
    answer(SiteTask(ROUND, "trial", 1, {"options": [1]}), site)
    came, _, odd, _ = audit_log.rows(site.state / audit_log.LOG)
    asked = json.loads(came["told"])
    assert asked["privacy"]["noise"] == 1.0
    assert asked["local"]["proximal"] == 0.5
    assert asked["draw"]["patch"] == [16, 16, 16]
    assert odd["told"] == "{}"


@pytest.mark.slow
def test_the_audit_log_holds_what_was_sent(site_stores, tmp_path, info):
    import hashlib

    sent = to_bytes(answer(round_task(info), site_of("birch", site_stores, tmp_path)))
    came, left = [json.loads(line) for line in (tmp_path / "birch" / "audit.jsonl").read_text().splitlines()]
    assert (came["direction"], left["direction"]) == ("in", "out")
    assert left["num_bytes"] == len(sent)
    assert left["sha256"] == hashlib.sha256(sent).hexdigest()
    assert left["tensors"]["encoder.0.first.conv.weight[T1]"] == "float32 [8, 1, 3, 3, 3]"
    assert left["metrics"]["validation/birch"] >= 0
    assert left["metrics"]["exposure/T1"] == 5
    assert left["metrics"]["seconds/train"] > 0
    assert left["told"].keys() == {"num_cases", "events"}
    assert Path(tmp_path / "birch" / "masks.key").exists() is False


NAMES = {
    "network": {"model": replace(OPTIONS.model, builder="evil:Net")},
    "objective": {"fit": replace(OPTIONS.fit, objective="evil:loss")},
    "augmentation": {"augment": replace(OPTIONS.augment, own="evil:turn")},
}


@pytest.mark.parametrize("changed", [*NAMES.values(), {}], ids=[*NAMES, "description"])
@pytest.mark.parametrize("kind", [ROUND, EVALUATE, FINISH])
def test_a_site_imports_nothing_that_a_task_names(site_stores, tmp_path, info, monkeypatch, changed, kind):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')")
    monkeypatch.syspath_prepend(tmp_path)
    task = round_task(info, options=replace(OPTIONS, **changed), state=first_state(info))
    if not changed:
        task = replace(task, body=dict(task.body) | {"info": info.to_json() | {"builder": "evil:Net"}})
    sent = answer(replace(task, kind=kind), site_of("dogwood", site_stores, tmp_path))
    assert "a federation runs only multiseg's own code" in sent.error
    assert not sent.tensors
    assert not (tmp_path / "ran").exists()
