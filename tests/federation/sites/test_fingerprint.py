from dataclasses import replace

import numpy as np
import pytest

from multiseg.federation.sites.describing import fingerprint
from multiseg.federation.sites.policy import Leaves
from multiseg.federation.sites.site import Site
from multiseg.store.catalogue import select
from multiseg.store.reader import open_store


@pytest.fixture(scope="module")
def store(site_stores):
    return open_store(site_stores["dogwood"])


@pytest.fixture
def site(site_stores, tmp_path):
    return Site("dogwood", site_stores["dogwood"], tmp_path, leaves=Leaves(least=1))


def test_statistics_of_the_training_cases(store, site):
    found = fingerprint(store, site, 1)["dogwood"]
    cases = select(store, ["dogwood"], split="train")
    assert len(cases) == 2 == found["num_cases"]
    assert found["modalities"].keys() == {"T1", "FLAIR"}
    mean = np.mean([case.intensity["T1"][0] for case in cases])
    assert found["modalities"]["T1"]["mean"] == pytest.approx(mean, rel=5e-2)
    (lesion,) = found["lesions"].values()
    volumes = [case.foreground_count.sum() * 0.125 for case in cases]  # voxels of 5 mm, in ml
    assert lesion["volume_ml"] == pytest.approx([min(volumes), np.mean(volumes), max(volumes)], rel=5e-2)
    low, middle, high = found["extent_mm"][0]
    assert low <= middle <= high
    assert 5 < middle < 400


def test_what_few_cases_tell_is_left_out(store, site):
    assert fingerprint(store, site, 3) == {}
    rounded = fingerprint(store, site, 2)["dogwood"]
    assert rounded["num_cases"] == 2


def test_a_site_that_tells_no_counts_tells_none_here(store, site):
    found = fingerprint(store, replace(site, leaves=Leaves(least=1, counts=False)), 1)["dogwood"]
    told = [found, *found["modalities"].values(), *found["lesions"].values()]
    assert len(told) == 4
    assert {about["num_cases"] for about in told} == {1}  # of 2


def test_numbers_are_short(store, site):
    def numbers(tree):
        for value in tree.values() if isinstance(tree, dict) else tree:
            yield from numbers(value) if isinstance(value, (dict, list)) else [value]

    for number in numbers(fingerprint(store, site, 1)):
        assert float(f"{number:.2g}") == number
