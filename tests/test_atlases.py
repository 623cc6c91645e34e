"""Codes of anatomical tools, and the seven tissues that they become."""

from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from multiseg.atlases import ATLASES, TISSUES, fitting_atlas, schema_of
from multiseg.errors import LabelError
from multiseg.labels import IGNORE, LabelSpace, SpaceLabel
from multiseg.store.sources.annotations import schema_for

PUBLISHED = {
    "background": [0, 1, 24, 6, 40, 45, 15],
    "cortical grey matter": [3, 42, 80, 85, 1001, 1035, 2001, 2035, 11101, 12175],
    "basal ganglia": [9, 10, 11, 12, 13, 17, 18, 26, 48, 49, 50, 51, 52, 53, 54, 58],
    "white matter": [2, 41, 251, 252, 253, 254, 255, 30, 62, 77],
    "lesion": [25, 57],
    "ventricles": [4, 5, 14, 43, 44, 72, 31, 63],
    "cerebellum": [7, 8, 46, 47],
    "brainstem": [16, 28, 60],
}
"""FreeSurfer's numbers by tissue, typed from the appendix; of "everything else" some examples."""


def tissue_of(atlas: str, code: int) -> str:
    compact = int(schema_of(atlas, "tissue").encode(np.array([code]))[0])
    return {0: "background", IGNORE: "ignore"}.get(compact) or TISSUES[compact - 1]


@pytest.mark.parametrize(("tissue", "code"), [(tissue, code) for tissue, codes in PUBLISHED.items() for code in codes])
def test_freesurfer_is_the_published_map(tissue: str, code: int) -> None:
    assert tissue_of("freesurfer", code) == tissue


def test_white_matter_regions_of_wmparc_are_white_matter() -> None:
    assert {tissue_of("freesurfer", code) for code in (3001, 3035, 4001, 4035, 5001, 5002)} == {"white matter"}


@pytest.mark.parametrize("atlas", ["neuromorphometrics", "dlmuse"])
@pytest.mark.parametrize(
    ("code", "tissue"),
    [
        (4, "ventricles"), (11, "background"), (15, "ventricles"), (23, "basal ganglia"), (35, "brainstem"),
        (38, "cerebellum"), (41, "cerebellum"), (45, "white matter"), (46, "background"), (47, "basal ganglia"),
        (52, "ventricles"), (60, "basal ganglia"), (61, "brainstem"), (73, "cerebellum"),
        (100, "cortical grey matter"), (207, "cortical grey matter"), (53, "lesion"),
    ],
)  # fmt: skip
def test_two_atlases_of_one_numbering(atlas: str, code: int, tissue: str) -> None:
    assert tissue_of(atlas, code) == tissue


def test_where_the_two_differ() -> None:
    assert [tissue_of("dlmuse", code) for code in (1, 81, 88, 90, 94, 95)] == ["background"] + 5 * ["white matter"]
    assert [tissue_of("neuromorphometrics", code) for code in (74, 126)] == ["ignore", "ignore"]


@pytest.mark.parametrize(("atlas", "code"), [("freesurfer", 999), ("neuromorphometrics", 81), ("dlmuse", 110)])
def test_unknown_codes_are_an_error(atlas: str, code: int) -> None:
    with pytest.raises(LabelError, match=rf"unknown codes: {code} \(1 voxels\); known are \d+ others"):
        schema_of(atlas, "tissue").encode(np.array([0, code]))


@pytest.mark.parametrize("atlas", ATLASES)
def test_every_atlas_has_the_seven_tissues(atlas: str) -> None:
    schema = schema_for("tissue", atlas)
    assert schema.names == TISSUES
    assert {structure.kind for structure in schema.structures} == {"tissue"}
    assert 0 in schema.background_codes


def test_an_atlas_never_says_that_there_is_no_lesion() -> None:
    schemas = {"tissue": schema_for("tissue", "freesurfer")}
    assert LabelSpace().view(schemas, [True]).annotated.tolist() == [False]


@pytest.mark.parametrize("order", [("tissue", "lesion"), ("lesion", "tissue")])
def test_a_lesion_label_beside_an_atlas_counts(order: tuple[str, str]) -> None:
    """The atlas has a "lesion", too; it must not stand in for the one that was drawn."""
    codes = {"tissue": 1, "lesion": 1}
    schemas = {name: schema_for(name, "freesurfer" if name == "tissue" else "") for name in order}
    space = LabelSpace((SpaceLabel("lesion", "lesion"), SpaceLabel("cortical grey matter", "tissue")))
    view = space.view(schemas, [True, True])
    assert view.annotated.tolist() == [True, True]
    stored = np.array([codes[name] for name in order], dtype=np.uint8).reshape(2, 1, 1, 1)
    assert view.target(stored).item() == 1


def test_codes_of_ones_own_change_an_atlas() -> None:
    schema = schema_of("freesurfer, 77=ignore, 99=lesion,165=background,801=hypothalamus", "tissue")
    assert schema.names == (*TISSUES, "hypothalamus")
    assert schema.encode(np.array([77, 99, 25, 165, 801, 2])).tolist() == [255, 4, 4, 0, 8, 3]


def test_no_atlas_of_that_name() -> None:
    with pytest.raises(
        LabelError, match=r"'dlmus' is neither codes with meanings.*freesurfer, neuromorphometrics, dlm"
    ):
        schema_for("tissue", "dlmus")


@pytest.mark.parametrize(
    ("codes", "atlas"),
    [
        ({2, 3, 4, 41, 42, 43}, "freesurfer"),
        ({4, 23, 35, 44, 45, 100, 207}, "neuromorphometrics"),
        ({1, 4, 23, 35, 81, 82, 100, 207}, "dlmuse"),
        ({4, 11}, ""),  # 11 is the caudate in one, the fourth ventricle in the other
        ({5, 12, 24, 33, 101, 208}, ""),  # GIF: as Neuromorphometrics, and one more
        ({1, 2, 3, 4, 5, 34, 101, 196}, ""),
        (set(), ""),
    ],
)
def test_which_atlas_fits(codes: set[int], atlas: str) -> None:
    assert fitting_atlas(codes) == atlas


@pytest.mark.parametrize(
    ("file", "atlas"),
    [
        ("anatomy/1002/parcellation.nii.gz", "neuromorphometrics"),
        ("wmh/Subj01/tissue_dlmuse_on_T1.nii.gz", "dlmuse"),
        ("freesurfer/bert/aseg.mgz", "freesurfer"),
        ("freesurfer/bert/aparc_aseg.mgz", "freesurfer"),
        ("template/template/parcellation.nii.gz", ""),
    ],
)
def test_which_atlas_fits_real_labels(data: Path, file: str, atlas: str) -> None:
    codes = np.unique(np.asanyarray(nib.load(data / file).dataobj))
    assert fitting_atlas({int(code) for code in codes} - {0}) == atlas
