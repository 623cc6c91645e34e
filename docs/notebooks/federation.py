# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # A federation, simulated
#
# Two hospitals train one model; no scan leaves its store. The simulation runs the same rounds and sends the same
# messages as a deployed federation, but one site after the other, in this process. On the command line it is
# `multiseg fed simulate`.

# %%
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import multiseg
from multiseg.federation.plan import FederationOptions, LocalOptions, ScheduleOptions
from multiseg.federation.simulation import SimulationMachine, simulate
from multiseg.phantoms.hospitals import write_hospitals

SITES = ("alder", "birch")
databases = multiseg.find_manifest(write_hospitals(Path("hospitals"), num_cases=4, coarseness=4, names=SITES))
split = {"train": 0.5, "val": 0.25, "test": 0.25}
for database in databases:  # a store for each site
    multiseg.ingest([database], f"{database.name}.zarr", multiseg.IngestOptions(spacing_mm=(6, 6, 6), split=split))
stores = {site: f"{site}.zarr" for site in SITES}
{site: multiseg.open_store(url)[site].modalities for site, url in stores.items()}

# %% [markdown]
# ## The rounds
#
# In each round every site trains the model of the centre for some steps on its own patients and sends what changed.
# What belongs to one sequence, such as its channel of the first layer, is averaged over the sites that have it.
#
# A site tells nothing that fewer than `least` of its cases made; by default that is five. These phantoms are fewer,
# so `least` is 1 here: with real patients leave it as it is.

# %%
options = FederationOptions(
    experiment="notebook",
    sites=SITES,
    model=multiseg.ModelOptions(widths=(8, 16)),
    stream=multiseg.StreamOptions(multiseg.DrawOptions(patch=(16, 16, 16)), batch_size=4),
    fit=multiseg.FitOptions(learning_rate=0.01),
    local=LocalOptions(steps=10),
    schedule=ScheduleOptions(rounds=3),
)
result = simulate(options, stores, Path("runs/federation"), machine=SimulationMachine("cpu", least=1))
print(f"finished: {result.finished}; the best model is that of round {result.best_round}")

# %% [markdown]
# ## What the sites told
#
# Dice on each site's validation patients, of the model at the start of each round. The run folder holds more:
# `multiseg fed report runs/federation -o report.html` makes a page of it.

# %%
dice = pd.DataFrame(
    {entry["round"]: {site: told["dice"] for site, told in entry["sites"].items()} for entry in result.history}
).T
axes = dice.plot(marker="o", figsize=(6, 3), ylim=(0, 1), xlabel="round", ylabel="validation Dice")
axes.set_xticks(dice.index)
plt.show()
dice.round(2)

# %% [markdown]
# ## The best model on each site's test patients
#
# The model file is an ordinary one: it opens alone, and knows on which sequences it was trained, and where.

# %%
model = multiseg.load_model("runs/federation")
print(model.info.trained_on)
pd.DataFrame(result.test).round(2)
