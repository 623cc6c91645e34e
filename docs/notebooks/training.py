# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # One model for two hospitals, and how good it is
#
# Two synthetic hospitals with different diseases and sequences train one model. It is then evaluated on patients that
# it has never seen, for every subset of their sequences. So short a training on so few phantoms shows how it is done,
# not how good a method is.

# %%
from pathlib import Path

import multiseg
from multiseg.phantoms.hospitals import write_hospitals

hospitals = write_hospitals(Path("hospitals"), num_cases=6, coarseness=4, names=["birch", "dogwood"])
split = {"train": 0.5, "val": 0.17, "test": 0.33}
multiseg.ingest(
    multiseg.find_manifest(hospitals), "brain.zarr", multiseg.IngestOptions(spacing_mm=(6, 6, 6), split=split)
)
store = multiseg.open_store("brain.zarr")
store

# %% [markdown]
# ## What the network sees
#
# The stream draws patches from both databases. Channels are the union of the sequences; what a case lacks, or what
# the draw leaves out so that the model learns to do without it, is not `present`. With `databases="each"` both give
# equally many patches.

# %%
axis = multiseg.ModalityAxis.union(database.modalities for database in store.databases.values())
draw = multiseg.DrawOptions(patch=(16, 16, 16), databases="each")
stream = multiseg.PatchStream(store, axis, multiseg.LabelSpace(), multiseg.StreamOptions(draw, batch_size=4))
(batch,) = stream.batches(0, 1)
for database, present in zip(batch.database, batch.present, strict=True):
    print(database, [name for name, is_present in zip(axis, present, strict=True) if is_present])

# %% [markdown]
# ## Training
#
# The settings are those of a run file. `train` leaves a run folder; if it is interrupted, the same call resumes it.

# %%
options = multiseg.TrainOptions(
    "brain.zarr",
    device="cpu",
    model=multiseg.ModelOptions(widths=(8, 16)),
    stream=multiseg.StreamOptions(draw, batch_size=4, workers=1),
    fit=multiseg.FitOptions(num_steps=50, learning_rate=0.01, validate_every=50),
)
multiseg.train(options, "runs/joint")
model = multiseg.load_model("runs/joint")
model.info.trained_on

# %% [markdown]
# ## Evaluation
#
# Every subset of the sequences that a test case has, for each database. `summary` has a row for each, `cases` one for
# each case. `num_missed` and `num_false_alarms` say what a mean Dice hides.

# %%
result = multiseg.evaluate("runs/joint", "brain.zarr", multiseg.EvaluateOptions())
columns = ["database", "modalities", "dice", "sensitivity", "precision", "num_with_lesion", "num_missed"]
result.summary[columns].round(2)

# %% [markdown]
# ## One patient, in the space of the scan
#
# `predict` takes files, in any orientation and with any subset of the sequences, and writes its answer on the grid of
# one of them.

# %%
flair = "hospitals/dogwood/images/D001_FLAIR.nii.gz"
answer = multiseg.predict("runs/joint", {"FLAIR": flair}, "lesions.nii.gz", multiseg.PredictOptions(device="cpu"))
answer
