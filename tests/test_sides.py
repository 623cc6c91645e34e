"""Left and right in the names of structures."""

import pytest

from multiseg.labels import LabelSpace, SpaceLabel
from multiseg.sides import UNPAIRED, mirrored, side_of, unpaired


def space_of(*names: str, kind: str = "tissue") -> LabelSpace:
    return LabelSpace(tuple(SpaceLabel(name, kind) for name in names))


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("left hippocampus", "right hippocampus"),
        ("Left-Hippocampus", "Right-Hippocampus"),
        ("L hippocampus", "R hippocampus"),
        ("hippocampus_left", "hippocampus_right"),
        ("Hippocampus (Left)", "Hippocampus (Right)"),
        ("lh-hippocampus", "rh-hippocampus"),
        ("ctx-lh-cuneus", "ctx-rh-cuneus"),
        ("lh.V1", "rh.V1"),
        ("Frontal_Sup_L", "Frontal_Sup_R"),
        ("LeftCerebralWhiteMatter", "RightCerebralWhiteMatter"),
        ("LHippocampus", "RHippocampus"),
        ("HippocampusL", "HippocampusR"),
        ("HIPPOCAMPUS_LH", "HIPPOCAMPUS_RH"),
        ("left1", "right1"),
        ("Hippocampus links", "Hippocampus rechts"),
        ("lthalamus", "rthalamus"),
        ("thalamusl", "thalamusr"),
        ("left hippocampus", "hippocampus, R"),
    ],
)
def test_both_sides_of_a_structure_change_places(left: str, right: str) -> None:
    assert mirrored(space_of(left, "brain stem", right)) == (0, 3, 2, 1)
    assert mirrored(space_of(right, left)) == (0, 2, 1)


@pytest.mark.parametrize(
    "name", ["lesion", "lateral ventricle", "L1", "T2", "left and right thalamus", "upright", "gm"]
)
def test_what_names_no_one_side_stays(name: str) -> None:
    assert side_of(name) == ""
    assert mirrored(space_of(name)) == (0, 1)


def test_a_side_without_its_counterpart_is_told() -> None:
    space = space_of("left hippocampus", "right amygdala", "white matter")
    assert mirrored(space) == (0, UNPAIRED, UNPAIRED, 3)
    assert unpaired(space) == ("left hippocampus", "right amygdala")
    ambiguous = space_of("left hippocampus", "L hippocampus", "right hippocampus")
    assert unpaired(ambiguous) == ambiguous.names


def test_a_tissue_is_no_counterpart_of_a_lesion_nor_one_number_of_another() -> None:
    labels = (SpaceLabel("left temporal", "lesion"), SpaceLabel("right temporal", "tissue"))
    assert unpaired(LabelSpace(labels)) == ("left temporal", "right temporal")
    assert unpaired(space_of("left CA1", "right CA3")) == ("left CA1", "right CA3")
    assert mirrored(space_of("left CA1", "left CA3", "right CA3", "right CA1")) == (0, 4, 3, 2, 1)
