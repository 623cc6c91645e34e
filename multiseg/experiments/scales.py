"""How large an experiment is: the numbers of its data, networks, trainings and tests."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from multiseg.models.builders import PLUS_WIDTHS, PUBLISHED_WIDTHS
from multiseg.types import Index3


@dataclass(frozen=True)
class Scale:
    """The numbers that all arms of all experiments share; the defaults are those of the scale "small".

    Attributes:
        spacing_mm: edge of a voxel of the synthetic store.
        num_cases: of each synthetic hospital; `split` gives the fractions of the splits.
        coarseness: of the synthetic scans before they are resampled.
        plus_widths: of `multi_unet_plus`, from the full resolution down; `widths` are those of the other networks.
        num_patches: from each training database in a step, as published: a joint model is trained on as many patches
            of each database as the model of that database alone.
        finetune_steps: of every arm of the experiment on fine-tuning, training from scratch included; and of the stages
            after the first ones.
        few: training cases where labels are few.
        num_finetuned: databases that are fine-tuned on.
    """

    name: str
    spacing_mm: float = 4.0
    num_cases: int = 40
    coarseness: float = 1.0
    widths: tuple[int, ...] = (8, 16, 32)
    plus_widths: tuple[int, ...] = (8, 16, 32, 64)
    dropout: float = 0.1
    patch: Index3 = (24, 24, 24)
    steps: int = 300
    finetune_steps: int = 150
    few: int = 4
    num_finetuned: int = 3
    num_patches: int = 2
    learning_rate: float = 2e-3
    objective: str = "dice+bce"
    augment: str = "none"
    validate_every: int = 150
    validation_cases: int = 4
    overlap: float = 0.25
    split: Mapping[str, float] = field(default_factory=lambda: {"train": 0.5, "val": 0.1, "test": 0.4}, hash=False)

    def settings(self, num_databases: int) -> dict[str, Any]:
        """The nested settings of a training on this number of databases."""
        return {
            "model": {"widths": self.widths, "dropout": self.dropout},
            "stream": {
                "batch_size": self.num_patches * num_databases,
                "draw": {"patch": self.patch, "databases": "each", "drop": "uniform"},
            },
            "augment": {"preset": self.augment},
            "fit": {
                "num_steps": self.steps,
                "learning_rate": self.learning_rate,
                "objective": self.objective,
                "validate_every": self.validate_every,
                "validation_cases": self.validation_cases,
            },
        }

    def __str__(self) -> str:
        patch = " x ".join(map(str, self.patch))
        return (
            f"scale {self.name}: widths {list(self.widths)} (multi_unet_plus: {list(self.plus_widths)}), dropout "
            f"{self.dropout}, patches of {patch} voxels, {self.num_patches} from each database a step, half of them "
            f"centred on a labelled structure, {self.steps} steps (fine-tuning: {self.finetune_steps}), Adam from "
            f"{self.learning_rate} to 0 by a cosine, loss {self.objective} unless the arm names another, augmentation "
            f"{self.augment}, the best of the validations every {self.validate_every} steps on up to "
            f"{self.validation_cases} cases a database, windows overlapping by {self.overlap}"
        )


TINY = Scale(
    name="tiny",
    spacing_mm=6.0,
    num_cases=4,
    coarseness=2.5,
    widths=(8, 8),
    plus_widths=(4, 4, 8),
    dropout=0.0,
    patch=(8, 8, 8),
    steps=2,
    finetune_steps=2,
    few=1,
    num_finetuned=1,
    num_patches=1,
    learning_rate=1e-3,
    validate_every=2,
    validation_cases=1,
    overlap=0.0,
)
SMALL = Scale("small")
FULL = Scale(
    name="full",
    spacing_mm=1.0,
    num_cases=60,
    widths=PUBLISHED_WIDTHS,
    plus_widths=PLUS_WIDTHS,
    dropout=0.2,
    patch=(128, 128, 128),
    steps=25_000,
    finetune_steps=12_500,
    few=20,
    num_finetuned=5,
    learning_rate=1e-3,
    augment="published",
    validate_every=1000,
    validation_cases=8,
)
ANATOMY = Scale(
    name="anatomy",
    spacing_mm=3.0,
    num_cases=20,
    widths=(8, 16, 32, 64),
    patch=(32, 32, 32),
    steps=160,
    finetune_steps=80,
    objective="ace",
    validate_every=80,
)
HETERO = replace(
    ANATOMY,
    name="hetero",
    widths=(8, 16, 32),
    steps=200,
    finetune_steps=100,
    num_patches=1,
    learning_rate=5e-3,
    objective="joint_jaccard",
    validate_every=100,
)
"""As published: one patch of each database a step, and this learning rate."""
TWO_BRANCH = Scale(
    name="two-branch",
    num_cases=12,
    coarseness=1.5,
    dropout=0.0,
    steps=600,
    finetune_steps=250,
    validate_every=125,
)
SCALES = {scale.name: scale for scale in (TINY, SMALL, ANATOMY, HETERO, TWO_BRANCH, FULL)}
"""tiny only checks that everything runs; small, and anatomy, hetero and two-branch (tissues with lesions), are for two
CPU cores; full is for a GPU, with the published sizes."""
