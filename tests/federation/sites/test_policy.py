import pytest
from hypothesis import given
from hypothesis import strategies as st

from multiseg.errors import FederationError, StoreError
from multiseg.federation.messages import ROUND, Answer
from multiseg.federation.sites.policy import Leaves, Names, check_tensors, cleaned, flat_metrics, released, rounded

NAMES = Names(
    places=("/data/my patients/store.zarr", "/state"),
    cases=(("ms", "p1"), ("ms", "p12"), ("wmh", "Miller_J"), ("wmh", "Doe, Jane (1)")),
    subjects=("p1", "Miller"),
)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("/data/my patients/store.zarr/ms is damaged", "(path) is damaged"),
        ("case 'p12' of ms has no label", "case '(case)' of ms has no label"),
        ("drew on ms/p1, wmh/Miller_J.", "drew on a case of ms, a case of wmh."),
        ("see '/srv/dr who/scan 1.nii'.", "see (path)."),
        ("see C:\\scans\\p1 now", "see (path) now"),
        ("bucket s3://clinic/store is away", "bucket (path) is away"),
        ("ms/image/c/0/0: truncated", "a file of ms: truncated"),
        ("all/ms/image/c is truncated", "(path) is truncated"),
        ("FLAIR_Miller.nii.gz is empty", "(file) is empty"),
        ("allow it in its site.toml, [limits].", "allow it in its settings file, [limits]."),
        ("`clip` of site.toml: too long", "`clip` of its settings file: too long"),
        ("/etc/multiseg/site.toml is no TOML", "(path) is no TOML"),
        ("my-site.toml and site.toml.bak are gone", "(file) and (file).bak are gone"),
        ("4 patches, 3 labels: FLAIR p12p", "4 patches, 3 labels: FLAIR p12p"),
        ("1e-3 of Miller's", "1e-3 of (subject)'s"),
        ("case P12, MS/p1 and MILLER_J", "case (case), a case of ms and (case)"),
        ("/state/Doe, Jane (1) is full", "(path) is full"),
        ("/DATA/my patients/store.zarr is damaged", "(path) is damaged"),
        ("\U000f0000 p1", " (case)"),
    ],
)
def test_error_texts_are_cleaned(text, told):
    assert cleaned(StoreError(text), NAMES) == told


def test_errors_of_others_lose_their_words():
    assert cleaned(KeyError("Miller"), NAMES) == "KeyError: see the site's log."


@given(st.text("abp12/\\ '\"._-", max_size=40))
def test_no_case_gets_through(text):
    told = cleaned(StoreError(f"{text} p12 {text}"), NAMES)
    assert "p12" not in told.replace("-", " ").replace("_", " ").replace(".", " ").split()


def test_tensors_that_may_not_leave_are_refused():
    check_tensors(["encoder.weight[T1]", "head.bias"], Leaves())
    with pytest.raises(FederationError, match=r"lets only encoder\.\* leave.*'head.bias' and 1 more"):
        check_tensors(["encoder.weight[T1]", "head.bias", "head.weight"], Leaves(tensors=("encoder.*",)))


def test_metrics_that_may_not_leave_are_left_out():
    metrics = {"loss": 0.5, "validation": {"ms": 0.25, "wmh": 0.75}, "bad_steps": 0}
    body = {"metrics": metrics, "exposure": {"": 5, "T1": 5}, "seconds": {"total": 9.5}, "num_cases": 5}
    found = Answer(ROUND, "here", 1, body)
    kept, left_out = released(found, Leaves(metrics=("loss", "validation/ms")))
    some = {"loss": 0.5, "validation": {"ms": 0.25}}
    assert kept.body == {"metrics": some, "exposure": {}, "seconds": {}, "num_cases": 5}
    assert left_out == ("validation/wmh", "bad_steps", "exposure/", "exposure/T1", "seconds/total")
    assert released(found, Leaves(metrics=("exposure/*",)))[0].body["exposure"] == {"": 5, "T1": 5}
    assert released(found, Leaves())[0].body == body
    without, _ = released(found, Leaves(metrics=()))
    assert without.body["metrics"] == {}


def test_names_of_metrics():
    body = {"split": "test", "metrics": {"ms/FLAIR": {"dice": 0.5, "num_cases": 5}}}
    found = Answer("evaluate", "here", 0, body)
    assert flat_metrics(found) == {"test/ms/FLAIR/dice": 0.5, "test/ms/FLAIR/num_cases": 5}
    assert released(found, Leaves(metrics=("test/*/dice",)))[0].body["metrics"] == {"ms/FLAIR": {"dice": 0.5}}


@given(st.integers(0, 1000), st.integers(1, 20))
def test_counts_are_rounded_up(count, least):
    told = rounded(count, least)
    assert told % least == 0
    assert count <= told < count + least


def test_counts_by_hand():
    assert [rounded(count, 5) for count in (0, 1, 5, 6)] == [0, 5, 5, 10]
