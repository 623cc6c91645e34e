"""A federation in one process, over the stores of three hospitals."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multiseg.errors import FederationError, StoreError, UsageError
from multiseg.federation.centre.earlier import go_back
from multiseg.federation.centre.experiment_folder import read_history
from multiseg.federation.centre.handshake import fresh
from multiseg.federation.centre.run_events import Event, Finished, RoundDone
from multiseg.federation.centre.run_report import cross_table, page, summary
from multiseg.federation.plan import FederationOptions, LocalOptions, PrivacyOptions, ScheduleOptions
from multiseg.federation.simulation import SimulationMachine, simulate
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.network_parts import parts
from multiseg.models.saved import load_model, load_weights, read_info
from multiseg.training.fit import FitOptions
from multiseg.training.run_folder import ModelOptions

CPU = SimulationMachine(device="cpu", least=1)
OPTIONS = FederationOptions(
    experiment="small",
    sites=("alder", "birch", "dogwood"),
    model=ModelOptions(widths=(8, 8)),
    stream=StreamOptions(draw=DrawOptions(patch=(16, 16, 16)), batch_size=1, workers=0),
    augment=AugmentOptions(preset="none"),
    fit=FitOptions(amp="off"),
    local=LocalOptions(steps=2),
    schedule=ScheduleOptions(rounds=2, validation_cases=1),
)


ONE = replace(
    OPTIONS,
    fit=FitOptions(amp="off", learning_rate=1e-2, schedule="constant"),
    local=LocalOptions(steps=4),
    schedule=ScheduleOptions(rounds=1, validation_cases=1),
)
"""A single round, to which others can be added."""
MASKED = replace(ONE, privacy=PrivacyOptions(masked=True))


@pytest.fixture(scope="module")
def plain(site_stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run of one round without masks, in which each site's model was tested everywhere."""
    out = tmp_path_factory.mktemp("plain") / "run"
    options = replace(ONE, schedule=replace(ONE.schedule, cross_site=True))
    assert simulate(options, site_stores, out, machine=CPU).finished
    return out


@pytest.fixture(scope="module")
def masked(site_stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the same run with masks, and without these tests."""
    out = tmp_path_factory.mktemp("masked") / "run"
    assert simulate(MASKED, site_stores, out, machine=CPU).finished
    return out


@pytest.fixture(scope="module")
def undisturbed(site_stores: dict[str, str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that nothing happened to."""
    out = tmp_path_factory.mktemp("undisturbed") / "run"
    result = simulate(OPTIONS, site_stores, out, machine=CPU)
    assert result.finished
    assert result.round == 2
    return out


@pytest.mark.slow
def test_the_joint_model_reads_every_sites_sequences(undisturbed: Path) -> None:
    model = load_model(undisturbed)
    assert tuple(model.info.axis) == ("PD", "FLAIR", "T1", "T1c", "T2")
    assert model.info.trained_on["PD"] == ("alder/alder",)
    assert model.info.trained_on["FLAIR"] == ("alder/alder", "birch/birch", "dogwood/dogwood")
    assert model.info.databases["birch/birch"]["num_cases"] == 5  # two, rounded up
    assert model(torch.zeros(1, 5, 16, 16, 16), torch.ones(1, 5, dtype=torch.bool)).shape == (1, 1, 16, 16, 16)


@pytest.mark.slow
def test_history_log_and_metrics_tell_of_every_site(undisturbed: Path) -> None:
    history = read_history(undisturbed)["history"]
    assert [entry["round"] for entry in history] == [1, 2]
    assert all(set(entry["sites"]) == set(OPTIONS.sites) and not entry["failed"] for entry in history)
    assert any("PD" in name for name in history[0]["single"])
    events = [json.loads(line)["event"] for line in (undisturbed / "log.jsonl").read_text().splitlines()]
    assert events.count("RoundDone") == 2
    assert events[-1] == "Finished"
    text = (undisturbed / "metrics.prom").read_text()
    assert 'multiseg_federation_round{experiment="small"} 2' in text
    assert 'multiseg_federation_site_present{experiment="small",site="birch"} 1' in text
    assert len((undisturbed / "rounds.csv").read_text().splitlines()) == 1 + 2 * 3


@pytest.mark.slow
def test_sites_keep_the_best_model(undisturbed: Path) -> None:
    best = read_info(undisturbed / "model.safetensors").step
    for site in OPTIONS.sites:
        held = undisturbed / "sites" / site / "experiments" / "small" / "model.safetensors"
        assert read_info(held).step == best
        assert load_model(held).info.axis == load_model(undisturbed).info.axis


@pytest.mark.slow
def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    undisturbed: Path, site_stores: dict[str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from contextlib import contextmanager

    from multiseg.federation import simulation

    steps = []

    @contextmanager
    def stops_in_the_second_round():
        yield lambda: len(steps) == 2 * 3 + 3  # a step of birch

    with monkeypatch.context() as patched:
        patched.setattr(simulation, "stop_on_signals", stops_in_the_second_round)
        result = simulate(OPTIONS, site_stores, tmp_path, on_step=lambda site, e: steps.append(site), machine=CPU)
    assert (result.finished, result.round) == (False, 1)
    assert steps[-1] == "birch"
    again = []
    result = simulate(OPTIONS, site_stores, tmp_path, on_step=lambda site, e: again.append(site), machine=CPU)
    assert result.finished
    assert again == ["birch", "birch", "dogwood", "dogwood"]  # alder's answer was there
    for name in ("last.safetensors", "model.safetensors"):
        assert (tmp_path / name).read_bytes() == (undisturbed / name).read_bytes()


@pytest.mark.slow
def test_a_finished_run_is_not_run_again(undisturbed: Path, site_stores: dict[str, str]) -> None:
    events: list[Event] = []
    result = simulate(OPTIONS, site_stores, undisturbed, events.append, machine=CPU)
    assert result.finished
    assert not [event for event in events if isinstance(event, RoundDone | Finished)]


@pytest.mark.slow
def test_each_sites_model_is_tested_at_every_site(plain: Path) -> None:
    """After one round the mean of the sites' models by their rounded cases is the joint one."""
    saved = read_history(plain)
    cross = saved["final"]["cross"]
    assert {whose: set(scores) for whose, scores in cross.items()} == {
        name: set(OPTIONS.sites) for name in OPTIONS.sites
    }
    assert all(0 <= scores["birch"]["birch"] <= 1 for scores in cross.values())
    weights = {site: told["num_cases"] for site, told in saved["history"][0]["sites"].items()}
    models = {
        site: load_weights(plain / f"site-{site}.safetensors")["decoder.0.reduce.weight"] for site in OPTIONS.sites
    }
    mean = sum(weights[site] * model for site, model in models.items()) / sum(weights.values())
    torch.testing.assert_close(mean, load_weights(plain / "last.safetensors")["decoder.0.reduce.weight"])
    assert not torch.equal(models["alder"], models["birch"])
    table = cross_table(saved["final"])
    assert table.columns == ["model of", "at alder", "at birch", "at dogwood"]
    assert [row[0] for row in table.rows] == [*OPTIONS.sites, "all (best joint model)"]
    assert "From site to site" in page(summary(plain))


@pytest.mark.slow
def test_a_sites_model_is_tested_with_what_is_the_testers_own(site_stores: dict[str, str], tmp_path: Path) -> None:
    options = replace(
        two_sites(OPTIONS),
        local=replace(OPTIONS.local, personal=("decoder*",)),
        schedule=replace(OPTIONS.schedule, rounds=1, cross_site=True),
    )
    stores = {site: site_stores[site] for site in options.sites}
    cross = simulate(options, stores, tmp_path, machine=CPU).final["cross"]
    assert cross.keys() == set(options.sites)
    assert all(set(scores[site]) == {site} for scores in cross.values() for site in options.sites)


def two_sites(options: FederationOptions) -> FederationOptions:
    return replace(options, sites=OPTIONS.sites[:2])


@pytest.mark.slow
def test_masks_change_the_sum_by_rounding_only(plain: Path, masked: Path) -> None:
    """And only what three hospitals share: PD, T1c and T2 stay at home."""
    without, with_masks = (load_file(folder / "last.safetensors") for folder in (plain, masked))
    for name in without:
        shared = [1, 2] if name == "encoder.0.first.conv.weight" else slice(None)
        a, b = (state[name][:, shared] if isinstance(shared, list) else state[name] for state in (without, with_masks))
        assert torch.allclose(a.float(), b.float(), atol=1e-6), name
    first = "encoder.0.first.conv.weight"
    assert not torch.allclose(without[first][:, 0], with_masks[first][:, 0], atol=1e-6)
    known = {site: read_info(masked / "sites" / site / "experiments/small/model.safetensors") for site in OPTIONS.sites}
    assert read_info(masked / "model.safetensors").usable(("PD", "FLAIR", "T1", "T1c", "T2")) == ("FLAIR", "T1")
    assert known["alder"].usable(("PD", "FLAIR", "T1", "T1c", "T2")) == ("PD", "FLAIR", "T1", "T2")
    assert known["dogwood"].usable(("PD", "FLAIR", "T1", "T1c", "T2")) == ("FLAIR", "T1")


@pytest.mark.slow
def test_under_masks_a_site_keeps_what_it_learnt_for_itself(masked: Path) -> None:
    """Its own parts belong to the model that it is judged by and keeps in the end."""
    joint = load_file(masked / "model.safetensors")
    kept = masked / "sites" / "alder" / "experiments" / OPTIONS.experiment / "model.safetensors"
    (at,) = [n for n, name in enumerate(read_info(kept).axis) if name == "PD"]  # alder's alone
    first = next(part.tensor for part in parts(read_info(kept)) if part.group == "PD")
    assert not torch.equal(load_file(kept)[first][:, at], joint[first][:, at])


@pytest.mark.slow
def test_the_last_model_is_judged_with_it(masked: Path, site_stores: dict[str, str], tmp_path: Path) -> None:
    """A second round begins with the model that the first one ended with."""
    run = Path(shutil.copytree(masked, tmp_path / "run"))
    ended = read_history(run)["final"]["validation"]
    simulate(replace(MASKED, schedule=replace(ONE.schedule, rounds=2)), site_stores, run, machine=CPU)
    began = {site: told["validation"] for site, told in read_history(run)["history"][1]["sites"].items()}
    assert ended == began


@pytest.mark.slow
def test_noise_tells_its_epsilon(site_stores: dict[str, str], tmp_path: Path) -> None:
    events: list[Event] = []
    noisy = replace(two_sites(OPTIONS), privacy=PrivacyOptions(clip=0.1, noise=1.0, payload="float16"))
    stores = {site: site_stores[site] for site in noisy.sites}
    simulate(noisy, stores, tmp_path, events.append, machine=CPU)
    told = [event.epsilon for event in events if isinstance(event, RoundDone)]
    assert 0 < told[0] < told[1] < 20


@pytest.mark.slow
def test_personal_layers_stay_in_step_when_the_server_forgets_a_round(
    site_stores: dict[str, str], tmp_path: Path
) -> None:
    """It is put back to where it was after round 1, while the sites have done two; the third site only looks on."""
    own = replace(
        OPTIONS,
        sites=("alder", "birch"),
        held_out=("dogwood",),
        model=replace(OPTIONS.model, norm="batch"),
        local=LocalOptions(steps=2, personal=("*.norm*",), keep_optimiser=True),
        privacy=PrivacyOptions(fingerprint=True),
    )
    out = tmp_path / "run"
    before: list[Path] = []

    def keep_a_copy(event: Event) -> None:
        if isinstance(event, RoundDone) and event.round == 1:
            before.append(Path(shutil.copytree(out, tmp_path / "before", ignore=shutil.ignore_patterns("sites"))))

    result = simulate(own, site_stores, out, keep_a_copy, machine=CPU)
    assert set(result.test) == {"alder", "birch", "dogwood"}
    assert set(json.loads((out / "fingerprint.json").read_text())) == {"alder", "birch"}
    names = ("last.safetensors", "model.safetensors", "sites/alder/experiments/small/model.safetensors")
    whole = {name: (out / name).read_bytes() for name in names}
    shutil.rmtree(out / "tensorboard")
    for name in ("state.safetensors", "last.safetensors", "model.safetensors", "worst.safetensors"):
        (out / name).unlink(missing_ok=True)
    shutil.copytree(before[0], out, dirs_exist_ok=True)
    assert simulate(own, site_stores, out, machine=CPU).finished
    assert {name: (out / name).read_bytes() for name in names} == whole
    go_back(out, own.experiment, 1)
    steps: list[str] = []
    assert simulate(own, site_stores, out, on_step=lambda site, event: steps.append(site), machine=CPU).finished
    assert steps == ["alder", "alder", "birch", "birch"], "stored answers of a round that was forgotten are none"
    assert {name: (out / name).read_bytes() for name in names} == whole
    alder, birch = (
        load_file(out / "sites" / site / "experiments" / "small" / "model.safetensors") for site in own.sites
    )
    told_apart = {name for name in alder if not torch.equal(alder[name], birch[name])}
    assert told_apart
    assert all("norm" in name for name in told_apart)


def test_a_site_hides_what_it_has(site_stores: dict[str, str], tmp_path: Path) -> None:
    def hiding(**hide: tuple[str, ...]) -> None:
        simulate(OPTIONS, site_stores, tmp_path, machine=replace(CPU, hide=hide))

    with pytest.raises(UsageError, match="hide is for 'elm', but the run has the sites alder"):
        hiding(elm=("elm/tissue",))
    with pytest.raises(UsageError, match=r"hide has 'alder/tisue', but the annotations of .* are alder/lesion, alder/"):
        hiding(alder=("alder/tisue",))
    with pytest.raises(FederationError, match="alder: it has no annotation of lesion"):
        hiding(alder=("alder/lesion",))


@pytest.mark.slow
def test_a_branch_is_that_of_the_site_that_annotates_what_it_segments(
    site_stores: dict[str, str], tmp_path: Path
) -> None:
    options = replace(
        ONE,
        sites=("alder", "dogwood"),
        labels=("tissue:CSF", "tissue:grey matter", "tissue:white matter", "lesion"),
        model=ModelOptions(builder="two_unets", widths=(4, 8)),
    )
    machine = replace(CPU, hide={"alder": ("alder/lesion",)})
    stores = {name: site_stores[name] for name in options.sites}
    assert simulate(options, stores, tmp_path, machine=machine).finished
    info = read_info(tmp_path / "last.safetensors")
    assert (info.numbers["anatomy_channels"], info.numbers["lesion_logits"]) == ([2], [4])
    (entry,) = read_history(tmp_path)["history"]
    heard = {part.name for part in parts(info)} - {
        f"lesion.encoder.0.first.conv.weight[{name}]"
        for name in ("PD", "T2")  # dogwood has neither
    }
    assert set(entry["single"]) == heard
    weights, start = load_weights(tmp_path / "last.safetensors"), fresh(info, options.seed)
    moved = {name for name in weights if not torch.equal(weights[name], start[name])}
    assert {"anatomy.encoder.0.first.conv.weight", "lesion.encoder.0.first.conv.weight"} <= moved
    first = "lesion.encoder.0.first.conv.weight"
    assert torch.equal(weights[first][:, [0, 3]], start[first][:, [0, 3]])


def test_every_site_needs_a_store(site_stores: dict[str, str], tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="stores for alder: give"):
        simulate(OPTIONS, {"alder": site_stores["alder"]}, tmp_path, machine=CPU)
    with pytest.raises(StoreError, match=re.escape(str(tmp_path / "nowhere.zarr"))):
        simulate(OPTIONS, {**site_stores, "birch": str(tmp_path / "nowhere.zarr")}, tmp_path, machine=CPU)
