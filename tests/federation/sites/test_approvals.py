"""Runs that a person approves by their settings, at the site and as the centre sees it."""

import json
from dataclasses import asdict, replace

import pytest
from asked import OPTIONS, site_of

from multiseg.errors import UsageError
from multiseg.federation.messages import DESCRIBE, SiteTask
from multiseg.federation.sites import approvals, audit_log
from multiseg.federation.sites.answering import answer


def ask(options=OPTIONS):
    return SiteTask(DESCRIBE, options.experiment, body={"options": asdict(options)})


@pytest.fixture
def site(site_stores, tmp_path):
    return site_of("birch", site_stores, tmp_path, approve_runs=True)


def test_a_run_waits_until_a_person_approves_its_settings(site):
    digest = approvals.digest_of(OPTIONS)
    for _ in range(3):
        found = answer(ask(), site)
        assert found.error == f"waits for its approval of this run (settings {digest[:12]})"
        assert found.passing
        assert found.body == {"waits": True}
    (waiting,) = approvals.asked(site.state)
    assert (waiting.digest, waiting.experiment, waiting.answer) == (digest, "trial", "waits")
    assert "validation_cases = 1" in waiting.settings
    assert len(audit_log.rows(site.state / audit_log.LOG)) == 2  # asking again is no news
    with pytest.raises(UsageError, match="not the hash of one run"):
        approvals.decide(site.state, digest[:4], approves=True)
    approvals.decide(site.state, digest[:12], approves=True)
    assert not answer(ask(), site).error


def test_other_settings_wait_again_and_a_refusal_is_one(site):
    approvals.note_waiting(site.state, OPTIONS)
    approvals.decide(site.state, approvals.digest_of(OPTIONS), approves=True)
    for changed in (
        replace(OPTIONS, local=replace(OPTIONS.local, steps=3)),
        replace(OPTIONS, schedule=replace(OPTIONS.schedule, rounds=5)),
        replace(OPTIONS, sites=("alder", "birch")),
        replace(OPTIONS, experiment="other"),
    ):
        assert answer(ask(changed), site).body == {"waits": True}
    assert not answer(ask(), site).error
    approvals.decide(site.state, approvals.digest_of(OPTIONS), approves=False)
    found = answer(ask(), site)
    assert "has refused the run" in found.error
    assert not found.passing
    assert not found.body
    audit_log.record_decision(site.state / audit_log.LOG, "trial", "ab" * 32, "refused")
    *_, last = audit_log.rows(site.state / audit_log.LOG)
    assert (last["kind"], last["notes"]) == ("approval", f"refused here: settings {'ab' * 32}")
    assert audit_log.verify(site.state / audit_log.LOG) == []


def test_an_approval_that_cannot_be_read_is_none(site):
    approvals.note_waiting(site.state, OPTIONS)
    file = site.state / approvals.FOLDER / f"{approvals.digest_of(OPTIONS)}.json"
    for text in ("{", "[]", json.dumps({"answer": "yes"})):
        file.write_text(text)
        assert approvals.answer_to(site.state, OPTIONS) == "waits"
