"""The names of a label file's numbers, read back from the file itself and from the tables beside it."""

import csv
import json
from pathlib import Path
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
import pytest
import SimpleITK

from multiseg.colours import colour_of
from multiseg.labels import LabelSchema, LabelSpace, SpaceLabel
from multiseg.store.formats.label_table import rows_of_schema, rows_of_space, table_files
from multiseg.store.formats.nifti import new_header, write_like, write_nifti
from multiseg.store.formats.read_volume import read_volume

SPACE = LabelSpace((SpaceLabel("oedema", "lesion"), SpaceLabel('grey & <white> "matter"', "tissue")))
CODES = np.arange(3 * 4 * 5, dtype=np.uint8).reshape(3, 4, 5) % 3


def names_in(path: Path) -> dict[int, str]:
    comment, caret = nib.load(path).header.extensions
    assert (comment.get_code(), caret.get_code()) == (6, 30)
    said = {int(one["index"]): one["name"] for one in json.loads(comment.get_content().rstrip(b"\0"))["labels"]}
    tree = ElementTree.fromstring(caret.content.rstrip(b"\0"))  # as other programs parse it
    names = {int(one.attrib["Key"]): one.text or "" for one in tree.iter("Label")}
    assert names == said
    assert tree.findtext("VolumeInformation/VolumeType") == "Label"
    return names


@pytest.mark.parametrize("name", ["lesions.nii.gz", "lesions.nii"])
def test_the_file_says_its_own_names(name: str, tmp_path: Path) -> None:
    path = tmp_path / name
    header = new_header((3, 4, 5), np.diag([1.0, 2.0, 3.0, 1.0]), np.dtype(np.float32))
    write_like(path, CODES, header, rows_of_space(SPACE))
    assert names_in(path) == {0: "background", 1: "oedema", 2: 'grey & <white> "matter"'}
    image = nib.load(path)
    assert image.header.get_intent()[0] == "label"
    np.testing.assert_array_equal(np.asarray(image.dataobj), CODES)
    np.testing.assert_array_equal(read_volume(path).voxels, CODES)
    np.testing.assert_array_equal(SimpleITK.GetArrayFromImage(SimpleITK.ReadImage(str(path))).T, CODES)
    write_nifti(tmp_path / "new.nii.gz", CODES, np.eye(4), rows_of_space(SPACE))
    assert names_in(tmp_path / "new.nii.gz") == names_in(path)


def test_a_header_that_had_extensions_takes_ours(tmp_path: Path) -> None:
    """Its offset to the voxels is that of its own file, and may be too small for what we add."""
    for offset in (352, 400, 4096):
        header = nib.Nifti1Header(new_header((3, 4, 5), np.eye(4), np.dtype(np.uint8)))
        header["vox_offset"] = offset
        write_like(tmp_path / "a.nii.gz", CODES, bytes(header.binaryblock), rows_of_space(SPACE))
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "a.nii.gz").dataobj), CODES)
        write_like(tmp_path / "b.nii.gz", CODES, bytes(header.binaryblock))
        np.testing.assert_array_equal(np.asarray(nib.load(tmp_path / "b.nii.gz").dataobj), CODES)


def test_the_tables_beside_it(tmp_path: Path) -> None:
    write_nifti(tmp_path / "lesions.nii.gz", CODES, np.eye(4), rows_of_space(SPACE))
    assert {path.name for path in tmp_path.iterdir()} == {"lesions.nii.gz", "lesions.tsv", "lesions.itksnap.txt"}
    with (tmp_path / "lesions.tsv").open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t", quoting=csv.QUOTE_NONE))
    assert rows == [
        {"index": "0", "name": "background", "kind": "n/a", "color": "#000000"},
        {"index": "1", "name": "oedema", "kind": "lesion", "color": "#4daf4a"},
        {"index": "2", "name": 'grey & <white> "matter"', "kind": "tissue", "color": "#e7b416"},
    ]
    lines = (tmp_path / "lesions.itksnap.txt").read_text().splitlines()
    assert [line for line in lines if not line.startswith("#")] == [
        '    0     0    0    0        0  0  0    "background"',
        '    1    77  175   74        1  1  1    "oedema"',
        "    2   231  180   22        1  1  1    \"grey & <white> 'matter'\"",
    ]


def test_one_structure_needs_no_table_for_viewers(tmp_path: Path) -> None:
    files = table_files(tmp_path / "a.nii", rows_of_space(LabelSpace()))
    assert [path.name for path in files] == ["a.tsv"]


def test_a_schemas_own_numbers() -> None:
    schema = LabelSchema.parse("2035=insula,1035=insula,-2=tissue:CSF,9=ignore", "lesion")
    found = [(row.number, row.name, row.kind, row.stands_for) for row in rows_of_schema(schema)]
    assert found == [
        (0, "background", "", (0,)),
        (2035, "insula", "lesion", (2035, 1035)),
        (-2, "CSF", "tissue", (-2,)),
        (9, "ignore", "", (9,)),
    ]


def test_a_hundred_structures_have_a_hundred_colours() -> None:
    colours = [colour_of(index) for index in range(100)]
    assert len(set(colours)) == 100
    assert all(len(colour) == 7 and int(colour[1:], 16) > 0 for colour in colours)
