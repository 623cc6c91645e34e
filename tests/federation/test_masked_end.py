"""Under masks a site's own parts belong to the model that it is judged by and keeps in the end."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from multiseg.federation.centre.experiment_folder import read_history
from multiseg.federation.plan import FederationOptions, LocalOptions, PrivacyOptions, ScheduleOptions
from multiseg.federation.simulation import SimulationMachine, simulate
from multiseg.loaders.augment import AugmentOptions
from multiseg.loaders.batches import StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.models.network_parts import parts
from multiseg.models.saved import read_info
from multiseg.training.fit import FitOptions
from multiseg.training.run_folder import ModelOptions

OPTIONS = FederationOptions(
    experiment="hidden",
    sites=("alder", "birch", "dogwood"),
    model=ModelOptions(widths=(8, 16)),
    stream=StreamOptions(draw=DrawOptions(patch=(16, 16, 16)), batch_size=2, workers=0),
    augment=AugmentOptions(preset="none"),
    fit=FitOptions(amp="off", learning_rate=1e-2),
    local=LocalOptions(steps=4),
    privacy=PrivacyOptions(masked=True),
    schedule=ScheduleOptions(rounds=1, validation_cases=1),
)


@pytest.mark.slow
def test_a_site_keeps_what_it_learnt_for_itself(site_stores: dict[str, str], tmp_path: Path) -> None:
    assert simulate(OPTIONS, site_stores, tmp_path / "run", machine=SimulationMachine(device="cpu", least=1)).finished
    joint = load_file(tmp_path / "run" / "model.safetensors")
    kept = tmp_path / "run" / "sites" / "alder" / "experiments" / "hidden" / "model.safetensors"
    (at,) = [n for n, name in enumerate(read_info(kept).axis) if name == "PD"]  # alder's alone
    first = next(part.tensor for part in parts(read_info(kept)) if part.group == "PD")
    assert not torch.equal(load_file(kept)[first][:, at], joint[first][:, at])


@pytest.mark.slow
def test_the_last_model_is_judged_with_it(site_stores: dict[str, str], tmp_path: Path) -> None:
    """A second round without a step's worth of change begins with the model that the first one ended with."""
    run = tmp_path / "run"
    one = replace(OPTIONS, fit=replace(OPTIONS.fit, schedule="constant"))
    two = replace(one, schedule=ScheduleOptions(rounds=2, validation_cases=1))
    simulate(one, site_stores, run, machine=SimulationMachine(device="cpu", least=1))
    ended = read_history(run)["final"]["validation"]
    simulate(two, site_stores, run, machine=SimulationMachine(device="cpu", least=1))
    began = {site: told["validation"] for site, told in read_history(run)["history"][1]["sites"].items()}
    assert ended == began
