"""Brain extraction by another program, which reads the reference image and writes a mask."""

from __future__ import annotations

import shlex
import subprocess
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from multiseg.errors import ResourceError, SourceError, UsageError
from multiseg.faults import remedy
from multiseg.store.formats.nifti import write_nifti
from multiseg.store.formats.read_volume import read_volume
from multiseg.store.formats.volumes import Volume, to_ras, voxel_size_mm
from multiseg.types import Mask

TIMEOUT_S = 3600.0
TAIL_CHARACTERS = 600
SMALLEST_ML, LARGEST_ML = 50.0, 8000.0
"""The volumes that a mask of a brain or head may have."""


def run_extraction(template: str, reference: Volume, source: Path, timeout_s: float = TIMEOUT_S) -> tuple[Mask, str]:
    """Run a program on an image; returns its mask, and the command for the provenance.

    No shell is involved: the template is split into words, and {image} and {mask} become files in a temporary folder.

    Args:
        source: the file of the image, for messages.

    Raises:
        UsageError: the program cannot be run.
        SourceError: it fails, times out, or writes no valid mask of the image.
        ResourceError: temporary files cannot be written.
    """
    by_hand = template.replace("{image}", shlex.quote(str(source))).replace("{mask}", "mask.nii.gz")
    with _temporary_folder() as folder:
        image, mask, log = (folder / name for name in ("image.nii.gz", "mask.nii.gz", "log.txt"))
        write_nifti(image, reference.voxels, reference.affine)
        words = [word.replace("{image}", str(image)).replace("{mask}", str(mask)) for word in _words(template)]
        failure = _run(words, log, timeout_s)
        if failure or not mask.is_file():
            tail = log.read_text(errors="replace")[-TAIL_CHARACTERS:].strip()
            message = (
                f"brain extraction of {source} {failure or 'wrote no mask'}. Output of {words[0]}: {tail or 'none'!r}. "
                f"Run it by hand to see why: {by_hand}"
            )
            raise SourceError(message, code="BRAIN_COMMAND", file=str(source))
        extracted = read_volume(mask)
    return _checked_mask(extracted, reference, source, by_hand), repr(template)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A temporary folder.

    Raises:
        ResourceError: it cannot be created or written to.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="multiseg-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        parent = tempfile.tempdir or "any folder"
        raise ResourceError(
            f"cannot write the files for brain extraction into the folder for temporary files, {parent}: {error}. "
            f"{remedy(error, '')} Or choose another folder: TMPDIR=FOLDER."
        ) from error


def _words(template: str) -> list[str]:
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise UsageError(f"invalid command for brain masks, {template!r}: {error}.") from error
    if not words:
        raise UsageError("the command for brain masks is empty.")
    return words


def _run(words: list[str], log: Path, timeout_s: float) -> str:
    """Run the program; returns how it failed, or ""."""
    # The output goes to a file: a child that outlives the program would keep a pipe open forever.
    with log.open("wb") as output:
        try:
            process = subprocess.run(  # noqa: S603 (the user's own command, without a shell)
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return f"did not finish within {timeout_s:g} s"
        except OSError as error:
            message = f"cannot run the program {words[0]!r} for brain masks: {error.strerror}. Is it installed?"
            raise UsageError(message) from error
    return f"failed with exit code {process.returncode}" if process.returncode else ""


def _checked_mask(extracted: Volume, reference: Volume, source: Path, by_hand: str) -> Mask:
    """The mask in the voxels of the image, in RAS+."""
    mask = to_ras(extracted)
    inside = mask.voxels > 0.5
    ml = np.count_nonzero(inside) * float(np.prod(voxel_size_mm(extracted.affine))) / 1000
    fault = ""
    if mask.shape != reference.shape:
        fault = f"has the shape {mask.shape}, but the image has {reference.shape}"
    elif not SMALLEST_ML <= ml <= LARGEST_ML:
        fault = f"has {ml:.0f} ml, which is not a brain"
    if fault:
        message = f"the mask from brain extraction of {source} {fault}. Run it by hand to see why: {by_hand}"
        raise SourceError(message, code="BRAIN_COMMAND", file=str(source))
    return inside
