"""MSseg08: NRRD with detached headers, two hospitals, a second rater for some."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
from looking import look


def write_nhdr(head, path: Path, array: np.ndarray | None = None) -> None:
    """A detached NRRD header, and beside it the voxels, the first axis fastest."""
    array = head.image() if array is None else array
    path.parent.mkdir(parents=True, exist_ok=True)
    i, j, k = array.shape
    mm = head.affine[0, 0]
    lps = -head.affine[:2, 3]
    lines = [
        "NRRD0004", f"type: {'float' if array.dtype == np.float32 else 'uchar'}", "dimension: 3",
        "space: left-posterior-superior", f"sizes: {i} {j} {k}",
        f"space directions: (-{mm},0,0) (0,-{mm},0) (0,0,{mm})", "kinds: domain domain domain", "endian: little",
        "encoding: raw", f"space origin: ({lps[0]},{lps[1]},{head.affine[2, 3]})", f"data file: {path.stem}.raw", "",
    ]  # fmt: skip
    path.write_text("\n".join(lines))
    path.with_suffix(".raw").write_bytes(array.tobytes(order="F"))


def write_case(head, folder: Path, case: str, *labels: str) -> None:
    for name in ("FLAIR", "T1", "T2"):
        write_nhdr(head, folder / case / f"{case}_{name}.nhdr")
    for name in labels:
        write_nhdr(head, folder / case / f"{case}_{name}.nhdr", head.codes(1))


def test_challenge(head, tmp_path: Path, ingested: Callable) -> None:
    write_case(head, tmp_path / "msseg", "CHB_train_Case01", "lesion")
    write_case(head, tmp_path / "msseg", "UNC_train_Case01", "lesion", "lesion_byCHB")
    write_case(head, tmp_path / "msseg", "UNC_test1_Case03")
    done = ingested(tmp_path / "msseg")
    assert done.code == 0
    assert "(msseg2008): 3 folders such as CHB_train_Case01" in done.said
    assert "also be" not in done.said
    database = done.store["msseg"]
    assert database.modalities == ("FLAIR", "T1", "T2")
    assert tuple(database.schemas) == ("lesion",)
    assert {case.name: case.site for case in database.cases} == {
        "CHB_train_Case01": "CHB", "UNC_test1_Case03": "UNC", "UNC_train_Case01": "UNC",
    }  # fmt: skip
    assert database["UNC_test1_Case03"].split == "test"
    assert database["CHB_train_Case01"].foreground_count[0][0] == 8


def test_two_raters(head, tmp_path: Path) -> None:
    write_case(head, tmp_path / "msseg", "UNC_train_Case01", "lesion", "lesion_byCHB")
    assert look(tmp_path / "msseg").annotations == {"UNC_train_Case01": ["lesion"]}
    both = look(tmp_path / "msseg", raters="all")
    assert both.schemas == {"lesion": ("lesion",), "raterCHB": ("lesion",)}
    assert both.names("UNC_train_Case01")["label:raterCHB"] == "UNC_train_Case01_lesion_byCHB.nhdr"


def test_no_label(head, tmp_path: Path) -> None:
    write_case(head, tmp_path / "msseg", "CHB_train_Case01", "lesion")
    write_case(head, tmp_path / "msseg", "CHB_train_Case02")
    assert look(tmp_path / "msseg").errors == [("MISSING_FILE", "CHB_train_Case02")]
