"""Brain extraction by another program: it gets the reference image and leaves a mask, out of this process."""

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
from multiseg.store.formats.reading import read_volume
from multiseg.store.formats.volumes import Volume, to_ras, voxel_size_mm
from multiseg.types import Mask

TIMEOUT_S = 3600.0
TAIL_CHARACTERS = 600
SMALLEST_ML, LARGEST_ML = 50.0, 8000.0
"""Less is no brain, more is no head."""


def run_extraction(template: str, reference: Volume, source: Path, timeout_s: float = TIMEOUT_S) -> tuple[Mask, str]:
    """The mask that a program makes of an image, and the command for the provenance.

    No shell is involved: the template is split into words, {image} and {mask} become file names in a
    folder of its own, which is gone afterwards.

    Args:
        source: the file that the image comes from, for the messages.

    Raises:
        UsageError: there is no such program.
        SourceError: it fails, takes longer, or leaves no mask of the image.
        ResourceError: there is no room for temporary files.
    """
    by_hand = template.replace("{image}", shlex.quote(str(source))).replace("{mask}", "mask.nii.gz")
    with _temporary_folder() as folder:
        image, mask, log = (folder / name for name in ("image.nii.gz", "mask.nii.gz", "log.txt"))
        write_nifti(image, reference.voxels, reference.affine)
        words = [
            word.replace("{image}", str(image)).replace("{mask}", str(mask)) for word in _words(template)
        ]  # fmt: skip
        failed = _run(words, log, timeout_s)
        if failed or not mask.is_file():
            tail = log.read_text(errors="replace")[-TAIL_CHARACTERS:].strip()
            raise SourceError(
                f"brain extraction of {source} {failed or 'left no mask'}: {words[0]} said {tail or 'nothing'!r}. "
                f"Try it by hand: {by_hand}",
                code="BRAIN_COMMAND",
                file=str(source),
            )
        made = read_volume(mask)
    return _checked(made, reference, source, by_hand), repr(template)


@contextmanager
def _temporary_folder() -> Iterator[Path]:
    """A folder that is gone afterwards.

    Raises:
        ResourceError: it cannot be made, or not be written to.
    """
    try:
        with tempfile.TemporaryDirectory(prefix="multiseg-", ignore_cleanup_errors=True) as folder:
            yield Path(folder)
    except OSError as error:
        parent = tempfile.tempdir or "any folder"
        raise ResourceError(
            f"the files for brain extraction cannot be written below {parent}, the folder for temporary files: {error}."
            f" {remedy(error, '')} Another folder can be named: TMPDIR=FOLDER."
        ) from error


def _words(template: str) -> list[str]:
    try:
        words = shlex.split(template)
    except ValueError as error:
        raise UsageError(f"the brain mask's command {template!r} cannot be split into words: {error}.") from error
    if not words:
        raise UsageError("the brain mask's command is empty.")
    return words


def _run(words: list[str], log: Path, timeout_s: float) -> str:
    """How the program failed; "" when it did not."""
    # A file, not a pipe: a child that outlives its parent would hold a pipe open for ever.
    with log.open("wb") as output:
        try:
            done = subprocess.run(  # noqa: S603 (the user's own command, without a shell)
                words, stdin=subprocess.DEVNULL, stdout=output, stderr=subprocess.STDOUT, timeout=timeout_s, check=False
            )
        except subprocess.TimeoutExpired:
            return f"did not end within {timeout_s:g} s"
        except OSError as error:
            message = f"the brain mask's program {words[0]!r} cannot be run: {error.strerror}. Is it installed?"
            raise UsageError(message) from error
    return f"ended with exit code {done.returncode}" if done.returncode else ""


def _checked(made: Volume, reference: Volume, source: Path, by_hand: str) -> Mask:
    """The mask in the voxels of the image that it was made from."""
    turned = to_ras(made)
    inside = turned.voxels > 0.5
    ml = np.count_nonzero(inside) * float(np.prod(voxel_size_mm(made.affine))) / 1000
    fault = ""
    if turned.shape != reference.shape:
        fault = f"has the shape {turned.shape} where the image has {reference.shape}"
    elif not SMALLEST_ML <= ml <= LARGEST_ML:
        fault = f"holds {ml:.0f} ml, which is no brain"
    if fault:
        raise SourceError(
            f"the mask that brain extraction made of {source} {fault}. Try it by hand: {by_hand}",
            code="BRAIN_COMMAND",
            file=str(source),
        )
    return inside
