# ---
# jupyter:
#   kernelspec:
#     display_name: Python 3
#     name: python3
# ---

# %% [markdown]
# # Your own network, objective, source and metric
#
# Each is a plain Python class or function: nothing is registered, and nothing is derived from a class of multiseg.
# They stand in a module, so that a model file can name its network. `%%writefile` writes that module here; it would
# be a file of your project.

# %%
# %%writefile mine.py
import math
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional

import multiseg


class Small(nn.Module):
    """Two convolutions. A sequence that is absent counts as 0."""

    def __init__(self, num_modalities: int, num_logits: int, width: int = 8) -> None:
        super().__init__()
        self.first = nn.Conv3d(num_modalities, width, 3, padding=1)
        self.norm = nn.InstanceNorm3d(width, affine=True)
        self.head = nn.Conv3d(width, num_logits, 1)

    def forward(self, images: Tensor, present: Tensor) -> Tensor:
        return self.head(functional.relu(self.norm(self.first(images * present[:, :, None, None, None]))))


def tversky(network: nn.Module, batch: multiseg.Batch, step: int) -> tuple[Tensor, dict[str, Tensor]]:
    """1 - Tversky index (Salehi et al. 2017, arXiv:1706.05721): a missed voxel weighs 0.7, a false one 0.3."""
    shown = batch.target != 255
    p = torch.sigmoid(network(batch.images, batch.present)[:, 0].float()) * shown
    truth = (batch.target == 1).float()
    both = (p * truth).sum()
    index = (both + 1) / (both + 0.7 * ((1 - p) * truth).sum() + 0.3 * (p * (1 - truth)).sum() + 1)
    return 1 - index, {"tversky": index}


def flair_only(root: Path, options: multiseg.SourceOptions) -> multiseg.DatabaseFiles:
    """The FLAIR scans of a folder, each with its labels."""
    cases = [
        multiseg.CaseFiles(
            case=label.name.removesuffix(".nii.gz"),
            images={"FLAIR": Path(root) / "images" / label.name.replace(".nii.gz", "_FLAIR.nii.gz")},
            labels={"wmh": label},
        )
        for label in sorted((Path(root) / "labels").glob("*.nii.gz"))
    ]
    codes = {"wmh": multiseg.LabelSchema.parse("1=lesion", "lesion")}
    return multiseg.DatabaseFiles("flair_only", "white matter hyperintensities", tuple(cases), codes, brain_mask="otsu")


def volume_error_ml(predicted, truth, spacing_mm) -> float:
    """How far the volume is off, in ml. NaN, which means undefined, without a lesion."""
    if not truth.any():
        return math.nan
    return abs(int(predicted.sum()) - int(truth.sum())) * math.prod(spacing_mm) / 1000


# %% [markdown]
# ## The source
#
# A function from a folder to its cases. All that follows, such as the checks of headers and codes, is as for any
# source.

# %%
import sys
from pathlib import Path

sys.path.insert(0, ".")
import mine

import multiseg
from multiseg.phantoms.hospitals import write_hospitals

write_hospitals(Path("hospitals"), num_cases=6, coarseness=4, names=["dogwood"])
found = mine.flair_only("hospitals/dogwood", multiseg.SourceOptions())
split = {"train": 0.5, "val": 0.17, "test": 0.33}
multiseg.ingest([found], "own.zarr", multiseg.IngestOptions(spacing_mm=(6, 6, 6), split=split))
multiseg.open_store("own.zarr")

# %% [markdown]
# ## The network and the objective
#
# Both are tried on made-up patches before the first step: a wrong shape is an error at once.

# %%
options = multiseg.TrainOptions(
    "own.zarr",
    device="cpu",
    model=multiseg.ModelOptions(numbers={"width": 6}),
    stream=multiseg.StreamOptions(multiseg.DrawOptions(patch=(16, 16, 16)), batch_size=4, workers=0),
    fit=multiseg.FitOptions(num_steps=100, learning_rate=0.02, validate_every=50),
)
multiseg.train(options, "runs/own", network=mine.Small, objective=mine.tversky)
multiseg.load_model("runs/own").info.builder

# %% [markdown]
# ## The metric
#
# Called for each case with two masks and the voxel size. Its mean and the number of cases that it is defined for
# stand beside the others.

# %%
result = multiseg.evaluate("runs/own", "own.zarr", multiseg.EvaluateOptions(), metrics=[mine.volume_error_ml])
result.summary[["database", "modalities", "dice", "volume_error_ml", "num_volume_error_ml"]].round(2)
