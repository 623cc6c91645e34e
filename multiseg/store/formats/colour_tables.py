"""Names and colours of a label file's numbers, in the files that other programs read.

- ITK-SNAP: NAME.itksnap.txt, "Import Label Descriptions".
- FSLeyes: NAME.lut, a lookup table; colours from 0 to 1, and no row for 0, which it never shows.
- FreeSurfer: NAME.freesurfer.txt, as in FreeSurferColorLUT.txt: `freeview -v SEG:colormap=lut:lut=FILE`.
- 3D Slicer: NAME.ctbl, a colour table node.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TypeAlias

Colour: TypeAlias = tuple[int, int, int]
"""Red, green and blue from 0 to 255."""


@dataclass(frozen=True)
class LabelRow:
    """The meaning of one number.

    Attributes:
        kind: "lesion" or "tissue"; "" for what is not a structure (background, ignored voxels).
        stands_for: the source's own numbers, if several became one.
    """

    number: int
    name: str
    kind: str
    colour: str
    stands_for: tuple[int, ...] = ()


@dataclass(frozen=True)
class ColourTable:
    """How a program wants its table.

    Attributes:
        ending: what is added to the name of the label file without .nii.gz.
        head: the lines before the first row.
        line: a row, from its number, its name, its colour and whether it is visible.
        is_spaced: whether names may contain spaces; otherwise they become underscores.
        has_background: whether rows that are no structure are written.
    """

    ending: str
    head: str
    line: Callable[[int, str, Colour, bool], str]
    is_spaced: bool = True
    has_background: bool = True


def _itksnap(number: int, name: str, colour: Colour, shown: bool) -> str:
    red, green, blue = colour
    return f'{number:5d} {red:5d} {green:4d} {blue:4d} {shown:8d} {shown:2d} {shown:2d}    "{name}"'


def _fsleyes(number: int, name: str, colour: Colour, shown: bool) -> str:
    red, green, blue = (part / 255 for part in colour)
    return f"{number} {red:.5f} {green:.5f} {blue:.5f} {name}"


def _freesurfer(number: int, name: str, colour: Colour, shown: bool) -> str:
    red, green, blue = colour
    return f"{number:<5d} {name:<40} {red:3d} {green:3d} {blue:3d} 0"


def _slicer(number: int, name: str, colour: Colour, shown: bool) -> str:
    red, green, blue = colour
    return f"{number} {name} {red} {green} {blue} {255 * shown}"


PROGRAMS: dict[str, ColourTable] = {
    "itksnap": ColourTable(
        ".itksnap.txt", "# ITK-SnAP Label Description File\n# IDX   -R-  -G-  -B-  -A--  VIS MSH  LABEL\n", _itksnap
    ),
    "fsleyes": ColourTable(".lut", "", _fsleyes, has_background=False),
    # The fourth number is transparency: 0 in the tables of FreeSurfer.
    "freesurfer": ColourTable(".freesurfer.txt", "#No.  Label Name: R G B A\n", _freesurfer, is_spaced=False),
    "slicer": ColourTable(".ctbl", "# Color table file\n# index name R G B A\n", _slicer, is_spaced=False),
}


def colour_table(program: str, rows: Sequence[LabelRow]) -> str:
    """The text of the table of one of `PROGRAMS`. Background and ignored voxels are invisible, where it has them."""
    table = PROGRAMS[program]
    lines = []
    for row in rows:
        if row.kind or table.has_background:
            name = " ".join(row.name.replace('"', "'").split())
            name = name if table.is_spaced else name.replace(" ", "_")
            red, green, blue = bytes.fromhex(row.colour[1:])
            lines.append(table.line(row.number, name, (red, green, blue), bool(row.kind)) + "\n")
    return table.head + "".join(lines)
