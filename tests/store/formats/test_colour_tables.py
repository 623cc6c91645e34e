"""Colour tables of other programs, read as these read them."""

from pathlib import Path

import numpy as np
import pytest

from multiseg.labels import LabelSpace
from multiseg.store.formats.colour_tables import PROGRAMS, colour_table
from multiseg.store.formats.label_table import colour_files, rows_of_space

ROWS = rows_of_space(LabelSpace.of(["lesion", "tissue:grey matter"]))


def lines(program: str) -> list[list[str]]:
    return [line.split() for line in colour_table(program, ROWS).splitlines() if not line.startswith("#")]


def test_fsleyes_has_colours_from_0_to_1_and_no_background() -> None:
    values, names = [line[:4] for line in lines("fsleyes")], [" ".join(line[4:]) for line in lines("fsleyes")]
    assert names == ["lesion", "grey matter"]
    expected = [[1, 77 / 255, 175 / 255, 74 / 255], [2, 231 / 255, 180 / 255, 22 / 255]]
    np.testing.assert_allclose(np.array(values, dtype=float), expected, atol=1e-5)


def test_freesurfer_has_five_numbers_and_names_in_one_word() -> None:
    assert lines("freesurfer") == [
        ["0", "background", "0", "0", "0", "0"],
        ["1", "lesion", "77", "175", "74", "0"],
        ["2", "grey_matter", "231", "180", "22", "0"],
    ]


def test_slicer_has_an_invisible_background() -> None:
    assert lines("slicer") == [
        ["0", "background", "0", "0", "0", "0"],
        ["1", "lesion", "77", "175", "74", "255"],
        ["2", "grey_matter", "231", "180", "22", "255"],
    ]


@pytest.mark.parametrize("program", PROGRAMS)
def test_every_program_has_a_file_of_its_own(program: str) -> None:
    files = colour_files(Path("labels"), ROWS)
    assert len(files) == len(PROGRAMS)
    assert files[Path("labels" + PROGRAMS[program].ending)] == colour_table(program, ROWS)
