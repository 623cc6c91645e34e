"""What of a two_branch model answers: one branch, both pasted, or the fusion, which must have learnt."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace
from multiseg.modalities import ModalityAxis
from multiseg.models.branch_models import branch_info, branch_model, check_learnt
from multiseg.models.builders import build
from multiseg.models.saved import Model, ModelInfo, read_info, save_model

SPACE = LabelSpace.of(["tissue:GM", "lesion", "tissue:WM"])
NUMBERS = {"widths": [2, 4], "dropout": 0.0, "anatomy_channels": [1], "lesion_logits": [2]}


def model_of(parts: tuple[str, ...] = ()) -> Model:
    torch.manual_seed(0)
    info = ModelInfo(
        "two_branch", NUMBERS, ModalityAxis(("FLAIR", "T1")), SPACE, (2.0, 2.0, 2.0), (8, 8, 8),
        {"FLAIR": ("a",), "T1": ("a",)}, {}, parts=parts,
    )  # fmt: skip
    return Model(build("two_branch", 2, SPACE.num_logits, **NUMBERS), info).eval()


def answer_of(model: Model) -> torch.Tensor:
    images = torch.randn(1, 2, 8, 8, 8, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        return model(images, torch.tensor([[True, True]])).softmax(dim=1)


def test_a_branch_answers_with_its_own_structures() -> None:
    model = model_of()
    assert branch_model(model, "anatomy").info.space.names == ("GM", "WM")
    assert branch_model(model, "lesion").info.space.names == ("lesion",)
    assert branch_model(model, "pasted").info.space == SPACE
    assert branch_model(model, "") is model
    assert answer_of(branch_model(model, "anatomy")).shape[1] == 3


def test_a_pasted_lesion_takes_the_place_of_the_tissue() -> None:
    """The lesions' probabilities are the lesion branch's; those of tissues and background are the rest's share."""
    model = model_of()
    tissue, lesion = (answer_of(branch_model(model, branch)) for branch in ("anatomy", "lesion"))
    pasted = answer_of(branch_model(model, "pasted"))
    torch.testing.assert_close(pasted[:, 2], lesion[:, 1])
    for index, of_tissue in ((0, 0), (1, 1), (3, 2)):
        torch.testing.assert_close(pasted[:, index], tissue[:, of_tissue] * lesion[:, 0])


def test_what_has_not_learnt_does_not_answer() -> None:
    info = model_of(("anatomy", "lesion")).info
    with pytest.raises(
        UsageError, match=r"only anatomy, lesion has .* needs attention, head, too.* lesion or pasted\."
    ):
        check_learnt(info)
    assert branch_info(info, "pasted").space == SPACE
    with pytest.raises(UsageError, match=r"only anatomy has learnt .* needs lesion, too.* --branch anatomy\."):
        branch_info(replace(info, parts=("anatomy",)), "pasted")
    check_learnt(replace(info, parts=()))
    with pytest.raises(UsageError, match="needs lesion, too"):  # the fusion reads both branches
        check_learnt(replace(info, parts=("anatomy", "attention", "head")))
    assert repr(info) == repr(replace(info, parts=()))  # calibrations that are kept name it by its text
    with pytest.raises(UsageError, match="no branch 'tissue': give one of anatomy, lesion, pasted"):
        branch_info(info, "tissue")
    with pytest.raises(
        UsageError, match="only a two_branch or a two_unets model has branches, but this is a multi_unet"
    ):
        branch_info(replace(info, builder="multi_unet"), "anatomy")


def test_the_file_says_what_has_learnt(tmp_path: Path) -> None:
    for name, parts in (("some", ("anatomy",)), ("all", ())):
        model = model_of(parts)
        save_model(tmp_path / name, model.network, model.info)
        assert read_info(tmp_path / name).parts == parts
    assert "parts" not in model_of().info.to_json()  # an older multiseg reads the file
