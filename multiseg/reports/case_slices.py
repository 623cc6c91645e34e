"""A case with its truth and an answer as pictures of its axial slices, for a page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from einops import rearrange
from jaxtyping import Bool, Float, UInt8
from PIL import Image
from scipy import ndimage

from multiseg.colours import PREDICTION_COLOUR, TRUTH_COLOUR, colour_of
from multiseg.evaluation.slice_panel import grey_window
from multiseg.labels import IGNORE
from multiseg.pages.page import Volume

LEAST_PIXELS = 240
"""Smaller slices are enlarged to about this."""
MARGIN_VOXELS = 2
OPACITY = 0.55
QUALITY = 80
"""Of WebP: a slice of 300 x 240 pixels takes about 10 kB."""


def case_volume(
    caption: str,
    image: Float[np.ndarray, "i j k"],
    truth: UInt8[np.ndarray, "i j k"],
    answer: UInt8[np.ndarray, "i j k"],
    num_structures: int,
    spacing_mm: tuple[float, float, float],
    most_slices: int,
) -> Volume:
    """The slices of a case, as seen from below: plain on the left, and with truth and answer on the right.

    A single structure is outlined, truth under answer; several are coloured, truth on the left and answer on the right.

    Args:
        truth, answer: codes; IGNORE in the truth marks voxels that are not shown in either.
        most_slices: of more slices only every second, third ... is shown. The one with most of the lesion always is.
    """
    ignored = truth == IGNORE
    truth, answer = np.where(ignored, 0, truth), np.where(ignored, 0, answer)
    marked = (truth > 0) | (answer > 0)
    ((along_i, along_j, along_k),) = ndimage.find_objects(((image != 0) | marked).astype(np.uint8)) or [
        tuple(slice(0, n) for n in image.shape)
    ]
    area = (marked if num_structures == 1 else truth == num_structures).sum(axis=(0, 1))
    largest = int(area.argmax()) if area.any() else (along_k.start + along_k.stop) // 2
    step = max(1, -(-(along_k.stop - along_k.start) // most_slices))
    chosen = list(range(along_k.start + (largest - along_k.start) % step, along_k.stop, step))
    grey = grey_window(image)
    box = tuple(slice(max(part.start - MARGIN_VOXELS, 0), part.stop + MARGIN_VOXELS) for part in (along_i, along_j))
    pictures = [
        _picture(grey[..., k][box], truth[..., k][box], answer[..., k][box], num_structures, spacing_mm) for k in chosen
    ]
    what = "outlined" if num_structures == 1 else "coloured"
    alt = f"An axial slice of the case, with the truth and the answer {what}."
    return Volume(caption, alt, pictures, chosen.index(largest))


def _picture(
    grey: Float[np.ndarray, "i j"],
    truth: UInt8[np.ndarray, "i j"],
    answer: UInt8[np.ndarray, "i j"],
    num_structures: int,
    spacing_mm: tuple[float, float, float],
) -> str:
    """One slice, twice side by side, as a data URI."""
    width_mm, height_mm = grey.shape[0] * spacing_mm[0], grey.shape[1] * spacing_mm[1]
    enlarged = max(LEAST_PIXELS / max(width_mm, height_mm), 1 / min(spacing_mm[:2]))
    size = (max(1, round(width_mm * enlarged)), max(1, round(height_mm * enlarged)))
    base = np.asarray(_seen(np.round(grey * 255).astype(np.uint8), size, Image.Resampling.BICUBIC))
    plain = np.repeat(base[..., None], 3, axis=2).astype(np.float32)
    codes = [np.asarray(_seen(part.astype(np.uint8), size, Image.Resampling.NEAREST)) for part in (truth, answer)]
    if num_structures == 1:
        drawn = plain.copy()
        for part, colour in zip(codes, (TRUTH_COLOUR, PREDICTION_COLOUR), strict=True):
            drawn[_edge(part > 0)] = _rgb(colour)
        sides = [plain, drawn]
    else:
        sides = [_coloured(plain, part) for part in codes]
    buffer = io.BytesIO()
    Image.fromarray(np.concatenate(sides, axis=1).astype(np.uint8)).save(buffer, "WEBP", quality=QUALITY)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _seen(plane: UInt8[np.ndarray, "i j"], size: tuple[int, int], resampling: Image.Resampling) -> Image.Image:
    """Radiological convention: front is up, and the patient's left is on the right of the picture."""
    turned = rearrange(plane[::-1, ::-1], "i j -> j i")
    return Image.fromarray(np.ascontiguousarray(turned)).resize(size, resampling)


def _edge(mask: Bool[np.ndarray, "row column"]) -> Bool[np.ndarray, "row column"]:
    """The border of a mask, two pixels wide: the page draws slices smaller than they are."""
    edge: Bool[np.ndarray, "row column"] = mask & ~ndimage.binary_erosion(mask, iterations=2)
    return edge


def _coloured(
    plain: Float[np.ndarray, "row column colour"], codes: UInt8[np.ndarray, "row column"]
) -> Float[np.ndarray, "row column colour"]:
    table = np.array([(0, 0, 0), *(_rgb(colour_of(index)) for index in range(255))], np.float32)
    share = OPACITY * (codes > 0)[..., None]
    mixed: Float[np.ndarray, "row column colour"] = (1 - share) * plain + share * table[codes]
    return mixed


def _rgb(colour: str) -> Sequence[int]:
    return tuple(bytes.fromhex(colour.removeprefix("#")))
