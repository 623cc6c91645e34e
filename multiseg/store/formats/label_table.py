"""Write what the numbers of a label file mean: in the file itself, and in tables next to it.

- In the NIfTI file: the intent code "label" (1002), and two extensions of its header. Code 6 (a comment) is the
  table as JSON, which nibabel (`header.extensions`) and `nifti_tool -disp_exts` show. Code 30 is the XML in which
  Connectome Workbench keeps the names and colours of a label volume.
- In NAME.tsv: index, name, kind and colour, in the form of BIDS tables of segmentations (dseg.tsv); kind is "lesion",
  "tissue" or "n/a".
- In NAME.itksnap.txt, if there are several structures: ITK-SNAP reads it with "Import Label Descriptions".
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any
from xml.sax.saxutils import escape

import nibabel as nib

from multiseg.colours import colour_of
from multiseg.files import write_atomically
from multiseg.labels import BACKGROUND, IGNORE, LabelSchema, LabelSpace
from multiseg.store.formats.colour_tables import PROGRAMS, LabelRow, colour_table

COMMENT, CARET, INTENT = "comment", "caret", "label"
_CLEAR = "#000000"


def rows_of_space(space: LabelSpace) -> tuple[LabelRow, ...]:
    """The rows for a model's predictions."""
    rows = [LabelRow(0, BACKGROUND, "", _CLEAR)]
    rows += [LabelRow(index + 1, label.name, label.kind, colour_of(index)) for index, label in enumerate(space.labels)]
    return tuple(rows)


def rows_of_schema(schema: LabelSchema) -> tuple[LabelRow, ...]:
    """The rows for an annotation that is written in the codes of its source."""
    rows = [LabelRow(schema.source_number(0), BACKGROUND, "", _CLEAR, schema.background_codes)]
    for index, structure in enumerate(schema.structures):
        number, codes = schema.source_number(index + 1), structure.source_codes
        rows.append(LabelRow(number, structure.name, structure.kind, colour_of(index), codes))
    if schema.ignore_codes:
        rows.append(LabelRow(schema.source_number(IGNORE), "ignore", "", _CLEAR, schema.ignore_codes))
    return tuple(rows)


def table_files(path: Path, rows: Sequence[LabelRow]) -> dict[Path, str]:
    """The text of the tables of a label file, by their paths."""
    stem = path.name.removesuffix(".gz").removesuffix(".nii")
    files = {path.with_name(f"{stem}.tsv"): _tsv(rows)}
    if sum(bool(row.kind) for row in rows) > 1:
        files |= colour_files(path.with_name(stem), rows, ["itksnap"])
    return files


def colour_files(path: Path, rows: Sequence[LabelRow], programs: Iterable[str] = PROGRAMS) -> dict[Path, str]:
    """The text of the colour tables of some programs, by their paths: `path` with the ending of each."""
    return {path.with_name(path.name + PROGRAMS[name].ending): colour_table(name, rows) for name in programs}


def write_tables(path: Path, rows: Sequence[LabelRow]) -> None:
    """Write the tables of a label file. Call it before writing that file, so that it never exists without them."""
    for file, text in table_files(path, rows).items():
        write_atomically(file, text.encode())


def label_extensions(rows: Sequence[LabelRow]) -> list[Any]:
    """The table as extensions of a NIfTI header: as JSON, and as the XML of Connectome Workbench."""
    columns, *lines = _table(rows)
    text = json.dumps({"labels": [dict(zip(columns, line, strict=True)) for line in lines]}, ensure_ascii=False)
    comment = nib.nifti1.Nifti1Extension(COMMENT, text.encode())
    return [comment, nib.nifti1.Nifti1Extension(CARET, _caret(rows).encode())]


def _caret(rows: Sequence[LabelRow]) -> str:
    labels = "".join(
        f'<Label Key="{row.number}" Red="{red}" Green="{green}" Blue="{blue}" Alpha="{int(bool(row.kind))}">'
        f"{escape(row.name)}</Label>\n"
        for row in rows
        for red, green, blue in [[f"{part / 255:.4f}" for part in bytes.fromhex(row.colour[1:])]]
    )
    return (
        '<?xml version="1.0" encoding="UTF-8"?>\n<CaretExtension>\n<VolumeInformation Index="0">\n'
        f"<LabelTable>\n{labels}</LabelTable>\n<VolumeType>Label</VolumeType>\n"
        "</VolumeInformation>\n</CaretExtension>\n"
    )


def _table(rows: Sequence[LabelRow]) -> list[list[str]]:
    """The lines of the table, its heading first."""
    merged = any(row.stands_for for row in rows)
    lines = [["index", "name", "kind", "color", *(["stands_for"] if merged else [])]]
    for row in rows:
        codes = [",".join(map(str, row.stands_for))] if merged else []
        lines.append([str(row.number), " ".join(row.name.split()), row.kind or "n/a", row.colour, *codes])
    return lines


def _tsv(rows: Sequence[LabelRow]) -> str:
    return "".join("\t".join(line) + "\n" for line in _table(rows))
