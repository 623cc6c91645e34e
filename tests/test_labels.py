"""Codes and what they mean: nothing unknown passes, nothing nobody looked for becomes background."""

import subprocess
import sys

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from multiseg.errors import LabelError
from multiseg.labels import IGNORE, LESION, LabelSchema, LabelSpace, SpaceLabel, Structure

GLIOMA = LabelSchema.parse("1=necrosis,2=oedema,4=enhancing,3=ignore", "lesion")
TISSUE = LabelSchema.parse("1=CSF,2=grey matter,3=white matter", "tissue")


def codes(*annotations: list[int]) -> np.ndarray:
    """Stored codes of a case of len(row) x 1 x 1 voxels."""
    return np.array(annotations, dtype=np.uint8)[:, :, None, None]


def test_parse() -> None:
    schema = LabelSchema.parse(" 1=core, 2 = oedema,4=core,3=ignore,9=background", "lesion")
    assert schema.structures == (Structure("core", "lesion", (1, 4)), Structure("oedema", "lesion", (2,)))
    assert (schema.background_codes, schema.ignore_codes) == ((0, 9), (3,))


def test_parse_leaves_0_alone_when_it_has_a_meaning() -> None:
    assert LabelSchema.parse("0=grey matter,1=ignore", "tissue").background_codes == ()


@pytest.mark.parametrize("text", ["", "lesion", "1:lesion", "1=", "1=a,,2=b", "x=a", "1.5=a"])
def test_parse_refuses_what_it_cannot_read(text: str) -> None:
    with pytest.raises(LabelError, match=r"invalid .* in the label codes"):
        LabelSchema.parse(text, "lesion")


@pytest.mark.parametrize(
    ("text", "kind", "says"),
    [
        ("1=a,1=b", "lesion", r"label codes \[1\] have two meanings"),
        ("1=a,1=ignore", "lesion", r"label codes \[1\]"),
        ("1=a", "bone", r"unknown kinds of structure \['bone'\]"),
        ("1=ignore", "lesion", "have no structure"),
        (",".join(f"{n}=s{n}" for n in range(1, 256)), "tissue", "255 structures are too many"),
    ],
)
def test_schemas_that_cannot_be(text: str, kind: str, says: str) -> None:
    with pytest.raises(LabelError, match=says):
        LabelSchema.parse(text, kind)


def test_254_structures_are_room_enough() -> None:
    schema = LabelSchema.parse(",".join(f"{1000 + n}=s{n}" for n in range(254)), "tissue")
    assert schema.encode(np.array([1253, 0, 1000])).tolist() == [254, 0, 1]


def test_encode_by_hand() -> None:
    assert GLIOMA.encode(np.array([[0, 1, 2], [3, 4, 0]])).tolist() == [[0, 1, 2], [IGNORE, 3, 0]]


def test_encode_takes_what_rounding_left() -> None:
    assert GLIOMA.encode(np.array([0.9999, 4.005, -0.003], dtype=np.float32)).tolist() == [1, 3, 0]


@pytest.mark.parametrize("wrong", [0.5, 1.02, np.nan, np.inf])
def test_encode_refuses_values_between_codes(wrong: float) -> None:
    with pytest.raises(LabelError, match=r"values that are not whole numbers: \[.*probability map"):
        GLIOMA.encode(np.array([0.0, 1.0, wrong]))


def test_encode_names_unknown_codes_and_counts_all_their_voxels() -> None:
    with pytest.raises(LabelError, match=r"unknown codes: 7 \(3 voxels\), 9 \(1 voxels\); known are 0=background") as e:
        GLIOMA.encode(np.array([0, 7, 7, 7.001, 9, 1]))
    assert "7=NAME,9=NAME" in str(e.value)


@pytest.mark.slow
@given(hnp.arrays(np.int16, hnp.array_shapes(max_dims=3, max_side=5), elements=st.sampled_from([0, 2, 17, 2035, 9])))
def test_encode_is_voxel_for_voxel(values: np.ndarray) -> None:
    schema = LabelSchema.parse("2=a,17=b,2035=c,9=ignore", "tissue")
    compact = {0: 0, 2: 1, 17: 2, 2035: 3, 9: IGNORE}
    encoded = schema.encode(values)
    assert encoded.shape == values.shape
    assert encoded.ravel().tolist() == [compact[v] for v in values.ravel().tolist()]


@given(st.lists(st.integers(-5, 3000), min_size=1, max_size=20, unique=True), st.sampled_from(["lesion", "tissue"]))
def test_schemas_survive_json(numbers: list[int], kind: str) -> None:
    schema = LabelSchema.parse(",".join(f"{n}=s{n % 7}" for n in numbers), kind)
    assert LabelSchema.from_json(schema.to_json()) == schema


def test_the_default_space_merges_lesions_and_leaves_tissue() -> None:
    view = LabelSpace().view({"seg": GLIOMA, "tissue": TISSUE}, [True, True])
    assert view.annotated.tolist() == [True]
    assert view.target(codes([0, 1, 2, 3, IGNORE], [1, 2, 3, 0, 1])).ravel().tolist() == [0, 1, 1, 1, IGNORE]


def test_lesions_lie_over_tissue_whatever_the_order() -> None:
    space = LabelSpace((SpaceLabel("white matter", "tissue"), LESION))
    lesion = LabelSchema.parse("1=lesion", "lesion")
    for schemas, stored in (
        ({"lesion": lesion, "tissue": TISSUE}, codes([1, 0, 1], [3, 3, 0])),
        ({"tissue": TISSUE, "lesion": lesion}, codes([3, 3, 0], [1, 0, 1])),
    ):
        view = space.view(schemas, [True, True])
        assert view.target(stored).ravel().tolist() == [2, 1, 2]
        assert view.annotated.tolist() == [True, True]


def test_a_second_rater_never_overrides_the_first() -> None:
    lesion = LabelSchema.parse("1=lesion,2=ignore", "lesion")
    both = {"lesion": lesion, "rater2": lesion}
    stored = codes([1, 0, 0], [0, 1, IGNORE])
    assert LabelSpace().view(both, [True, True]).target(stored).ravel().tolist() == [1, 0, 0]
    assert LabelSpace().view(both, [False, True]).target(stored).ravel().tolist() == [0, 1, IGNORE]


def test_where_two_annotations_differ_the_first_counts() -> None:
    space = LabelSpace((SpaceLabel("core", "lesion"), SpaceLabel("rim", "lesion")))
    schemas = {"one": LabelSchema.parse("1=core", "lesion"), "two": LabelSchema.parse("1=rim", "lesion")}
    assert space.view(schemas, [True, True]).target(codes([1, 1, 0], [0, 1, 1])).ravel().tolist() == [1, 1, 2]


def test_what_nobody_looked_for_is_unknown() -> None:
    space = LabelSpace((SpaceLabel("enhancing", "lesion"), SpaceLabel("CSF", "tissue")))
    view = space.view({"seg": GLIOMA, "tissue": TISSUE}, [True, False])
    assert view.annotated.tolist() == [True, False]
    # Tissue codes of a case without tissue annotation are filling, not data.
    assert view.target(codes([3, 1, 0], [1, 1, 1])).ravel().tolist() == [1, 0, 0]
    assert space.view({"seg": GLIOMA, "tissue": TISSUE}, [False, False]).annotated.tolist() == [False, False]


def test_a_tissue_called_lesion_is_no_lesion() -> None:
    assert LabelSpace().index_of(Structure("lesion", "tissue", (1,))) is None
    assert LabelSpace().index_of(Structure("oedema", "lesion", (1,))) == 1
    assert (LabelSpace().num_logits, LabelSpace((LESION, SpaceLabel("CSF", "tissue"))).num_logits) == (1, 3)


@pytest.mark.parametrize("labels", [(), (LESION, LESION), (SpaceLabel("background", "tissue"),)])
def test_spaces_that_cannot_be(labels: tuple[SpaceLabel, ...]) -> None:
    with pytest.raises(LabelError, match="distinct names other than 'background'"):
        LabelSpace(labels)


def test_a_space_of_names() -> None:
    space = LabelSpace.of(["lesion:core", "tissue:CSF"], "ignore")
    assert space == LabelSpace((SpaceLabel("core", "lesion"), SpaceLabel("CSF", "tissue")), "ignore")
    assert LabelSpace.of("lesion") == LabelSpace()


def test_names_in_the_place_of_labels_are_refused() -> None:
    # In another process: here the types of all arguments are checked first.
    code = "import multiseg; multiseg.LabelSpace(('oedema', 'CSF'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, encoding="utf-8")
    assert "takes SpaceLabels, not ('oedema', 'CSF'). From names: LabelSpace.of(...)" in done.stderr


def test_codes_go_back_to_the_sources_numbers() -> None:
    schema = LabelSchema.parse("2035=insula,1035=insula,-2=unsure,9=ignore", "tissue")
    source = np.array([[0, 2035, 1035], [-2, 9, 0]])
    decoded = schema.decode(schema.encode(source))
    assert decoded.tolist() == [[0, 2035, 2035], [-2, 9, 0]]  # of two numbers with one meaning, the first
    assert decoded.dtype == np.int16
    np.testing.assert_array_equal(schema.encode(decoded), schema.encode(source))
    assert LabelSchema.parse("1=lesion", "lesion").decode(np.array([0, 1], dtype=np.uint8)).dtype == np.uint8
    assert LabelSchema.parse("70000=lesion", "lesion").decode(np.array([1], dtype=np.uint8)).tolist() == [70000]


def test_what_the_source_has_no_number_for_gets_one_that_is_free() -> None:
    schema = LabelSchema.parse("0=ignore,1=lesion,255=other", "lesion")
    assert schema.decode(np.array([0, 1, 2, 255], dtype=np.uint8)).tolist() == [2, 1, 255, 0]
    assert LabelSchema.parse("1=lesion,255=other", "lesion").decode(np.array([255], dtype=np.uint8)).tolist() == [256]
    with pytest.raises(LabelError, match="code 3 is not one of 2 structures: lesion, other"):
        schema.decode(np.array([3], dtype=np.uint8))
