"""A picture of many cases: an axial slice of every sequence with outlines, and structures in colour."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from einops import rearrange
from jaxtyping import Float, Shaped
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.textpath import text_to_path
from scipy import ndimage

from multiseg.colours import PREDICTION_COLOUR, TRUTH_COLOUR, colour_of
from multiseg.errors import UsageError
from multiseg.evaluation.case_panel import PNG, CasePanel, Image, Parcels
from multiseg.files import check_files, write_atomically
from multiseg.modalities import in_canonical_order

Plane: TypeAlias = Shaped[np.ndarray, "row column"]

_PAGE, _CELL, _EMPTY_CELL = "#121418", "#000000", "#1a1d23"
_BRIGHT, _SOFT, _FAINT = "#f2f4f8", "#b4bac6", "#737c8c"
_CONVENTION = (
    "Axial slices in radiological convention: front is up and the patient's left (L) is on the right of "
    "the image. Grey window: 1st to 99.5th percentile."
)
_MOST_ENTRIES = 60
"""The most structures in the legend; if there are more, the last entry says how many."""
_LINE_INCHES = 0.16
_DOTS_PER_INCH = 150
_MARGIN_VOXELS = 3
_ENTRY_INCHES = 1.75
_POINTS_PER_INCH = 72


@dataclass(frozen=True)
class _View:
    """The part of a volume that is shown: the axial slice k, and the box of its in-plane voxels."""

    i: slice
    j: slice
    k: int


@dataclass(frozen=True)
class _Page:
    """The layout of the page, in inches from the lower left corner."""

    num_rows: int
    num_columns: int
    cell_width: float
    header: float
    num_entries: int = 0
    label: float = 1.85
    edge: float = 0.2
    gap: float = 0.08

    @property
    def cell_height(self) -> float:
        return 1.18 * self.cell_width  # a head is longer than it is wide

    @property
    def width(self) -> float:
        return 2 * self.edge + self.label + self.num_columns * (self.cell_width + self.gap) - self.gap

    @property
    def legend_columns(self) -> int:
        return max(1, min(self.num_entries, int((self.width - 2 * self.edge) / _ENTRY_INCHES)))

    @property
    def footer(self) -> float:
        """Height of the legend and the text below it."""
        return 0.65 + 0.2 * max(1, -(-self.num_entries // self.legend_columns))

    @property
    def height(self) -> float:
        return self.header + self.num_rows * (self.cell_height + self.gap) - self.gap + self.footer

    def corner(self, row: int, column: int) -> tuple[float, float]:
        """The lower left corner of a cell."""
        left = self.edge + self.label + column * (self.cell_width + self.gap)
        top = self.height - self.header - row * (self.cell_height + self.gap)
        return left, top - self.cell_height


def save_montage(path: Path, panels: Sequence[CasePanel], title: str = "", overwrite: bool = False) -> None:
    """Write a PNG with one row for each case and one column for each sequence that any case has.

    A row shows the axial slice on which truth and prediction together are largest; for several structures the one
    with the largest sum of their areas, relative to their maxima; without any structure the middle of the brain.
    The file is written atomically.

    Raises:
        UsageError: no panel has an image, the name does not end in .png, or the file exists and `overwrite` is False.
    """
    check_files([path], overwrite=overwrite, kinds=PNG)
    columns = in_canonical_order(name for panel in panels for name in panel.images)
    parcels = tuple(dict.fromkeys(name for panel in panels for name in panel.parcels))
    if not columns:
        raise UsageError(f"there is no image in {len(panels)} cases, so there is nothing to draw. Give at least one.")
    columns += parcels
    colours = _colours(panels)
    entries = _legend_entries(panels, colours)
    cell_width = float(np.clip(min(12 / len(columns), 15 / len(panels)), 2.0, 3.2))
    headings = [_fit(name, cell_width, FontProperties(size=10, weight="bold"), 2) for name in columns]
    page = _Page(
        num_rows=len(panels),
        num_columns=len(columns),
        cell_width=cell_width,
        header=(0.85 if title else 0.45) + 0.17 * max(heading.count("\n") for heading in headings),
        num_entries=len(entries),
    )
    figure = Figure(figsize=(page.width, page.height), dpi=_DOTS_PER_INCH, facecolor=_PAGE)
    FigureCanvasAgg(figure)  # registers itself with the figure, so that pyplot is not needed
    _draw_frame(figure, page, headings, title)
    _draw_legend(figure, page, entries)
    for row, panel in enumerate(panels):
        _draw_row(figure, page, row, panel, columns, colours)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH)
    write_atomically(path, buffer.getvalue())


def _draw_frame(figure: Figure, page: _Page, headings: Sequence[str], title: str) -> None:
    """The title, the names of the columns and the footer."""
    if title:
        shown = _fit(title, page.width - 2 * page.edge, FontProperties(size=12, weight="bold"), 2)
        _write(figure, page, page.edge, page.height - 0.29, shown, size=12, weight="bold", va="center")
    for column, heading in enumerate(headings):
        left, _ = page.corner(0, column)
        middle = left + page.cell_width / 2
        y = page.height - page.header + 0.09
        _write(figure, page, middle, y, heading, size=10, weight="bold", ha="center", va="bottom")
    convention = _fit(_CONVENTION, page.width - 2 * page.edge, FontProperties(size=7), 3)
    _write(figure, page, page.edge, 0.44, convention, size=7, color=_SOFT, va="top")


def _colours(panels: Sequence[CasePanel]) -> dict[str, str]:
    """A colour for every structure that occurs in a case; a name has the same colour everywhere.

    The first name has the first colour, as in the label table of a model's prediction.
    """
    all_parcels = [parcels for panel in panels for parcels in panel.parcels.values()]
    names = dict.fromkeys(name for parcels in all_parcels for name in parcels.names)
    present = {parcels.names[code - 1] for parcels in all_parcels for code in np.unique(parcels.codes) if code}
    return {name: colour_of(index) for index, name in enumerate(names) if name in present}


def _legend_entries(panels: Sequence[CasePanel], colours: Mapping[str, str]) -> list[Artist]:
    """The outlines and the structures that occur in any case."""
    entries: list[Artist] = []
    if any(panel.truth is not None for panel in panels):
        entries.append(Line2D([], [], color=TRUTH_COLOUR, linewidth=2.2, label="truth"))
    if any(panel.predicted is not None for panel in panels):
        entries.append(Line2D([], [], color=PREDICTION_COLOUR, linewidth=1.1, label="prediction"))
    patches = [Patch(color=colour, label=name) for name, colour in colours.items()]
    if len(patches) > _MOST_ENTRIES:
        more = len(patches) - _MOST_ENTRIES + 1
        patches = [*patches[: _MOST_ENTRIES - 1], Patch(color=_PAGE, label=f"and {more} more")]
    return entries + patches


def _draw_legend(figure: Figure, page: _Page, entries: Sequence[Artist]) -> None:
    if entries:
        figure.legend(
            handles=entries,
            loc="upper left",
            bbox_to_anchor=(page.edge / page.width, (page.footer - 0.14) / page.height),
            ncols=page.legend_columns,
            frameon=False,
            fontsize=8.5,
            labelcolor=_BRIGHT,
            borderpad=0,
            borderaxespad=0,
        )


def _draw_row(
    figure: Figure, page: _Page, row: int, panel: CasePanel, columns: Sequence[str], colours: Mapping[str, str]
) -> None:
    view = _choose_view(panel) if panel.images else None
    _draw_label(figure, page, row, panel, view, colours)
    for column, name in enumerate(columns):
        left, bottom = page.corner(row, column)
        width, height = page.width, page.height
        axes = figure.add_axes((left / width, bottom / height, page.cell_width / width, page.cell_height / height))
        axes.set(xticks=[], yticks=[], facecolor=_CELL)
        axes.spines[:].set_visible(False)
        if view is not None and name in panel.images:
            _draw_slice(axes, panel, panel.images[name], view)
        elif view is not None and name in panel.parcels:
            _draw_parcels(axes, panel, name, view, colours)
        else:
            axes.set_facecolor(_EMPTY_CELL)
            axes.text(0.5, 0.5, name, color=_FAINT, size=10, ha="center", va="center", parse_math=False)


def _draw_label(
    figure: Figure, page: _Page, row: int, panel: CasePanel, view: _View | None, colours: Mapping[str, str]
) -> None:
    left, bottom = page.corner(row, 0)
    x, y, width = page.edge, bottom + page.cell_height - 0.08, left - page.edge - 0.12
    name = _fit(panel.name, width, FontProperties(size=9.5, weight="bold"), 3)
    _write(figure, page, x, y, name, size=9.5, weight="bold", va="top")
    y -= 0.08 + 0.165 * (1 + name.count("\n"))
    lines = [_fit(line, width, FontProperties(size=8.5), 3) for line in panel.caption.splitlines() if line.strip()]
    below = [(line, "", _SOFT) for line in "\n".join(lines).splitlines()]
    below += [(structure, value, colours.get(structure, _FAINT)) for structure, value in panel.values.items()]
    room = int((y - bottom - 0.25) / _LINE_INCHES)
    if len(below) > room:
        below = [*below[: room - 1], (f"and {len(below) - room + 1} more", "", _FAINT)]
    for index, (text, value, colour) in enumerate(below):
        _draw_value(figure, page, (x, y - index * _LINE_INCHES, width), text, value, colour)
    if view is not None:
        _write(figure, page, x, bottom + 0.08, f"slice k = {view.k}", size=7, color=_FAINT, va="bottom")


def _draw_value(
    figure: Figure, page: _Page, place: tuple[float, float, float], text: str, value: str, colour: str
) -> None:
    """Draw a line of a row's label: a text, and its value at the right end; `place` is left, top and width."""
    x, y, width = place
    if value:
        font = FontProperties(size=8.5)
        points, _, _ = text_to_path.get_text_width_height_descent(value, font, ismath=False)
        text = _cut(text, width - points / _POINTS_PER_INCH - 0.08, font)
        _write(figure, page, x + width, y, value, size=8.5, color=_BRIGHT, va="top", ha="right")
    _write(figure, page, x, y, text, size=8.5, color=colour, va="top")


def _draw_slice(axes: Axes, panel: CasePanel, image: Image, view: _View) -> None:
    grey = _as_seen(grey_window(image)[:, :, view.k], view)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="bicubic")
    # The prediction is thinner and on top, so that both colours are visible when the outlines agree.
    for mask, colour, points in ((panel.truth, TRUTH_COLOUR, 2.2), (panel.predicted, PREDICTION_COLOUR, 1.1)):
        if mask is not None and mask[:, :, view.k].any():
            outline = _as_seen(mask[:, :, view.k], view).astype(np.float32)
            axes.contour(outline, levels=[0.5], colors=[colour], linewidths=points)
    _finish(axes, panel)


def _finish(axes: Axes, panel: CasePanel) -> None:
    """Show voxels in their true proportions, and mark the patient's sides."""
    axes.set_aspect(panel.spacing_mm[1] / panel.spacing_mm[0], adjustable="datalim")
    for x, side, letter in ((0.03, "left", "R"), (0.97, "right", "L")):
        axes.text(x, 0.03, letter, color=_SOFT, size=7.5, ha=side, transform=axes.transAxes)


def _draw_parcels(axes: Axes, panel: CasePanel, name: str, view: _View, colours: Mapping[str, str]) -> None:
    """Draw the structures of an annotation in colour over the first sequence."""
    grey = _as_seen(grey_window(next(iter(panel.images.values())))[:, :, view.k], view)
    axes.imshow(grey, cmap="gray", vmin=0, vmax=1, origin="lower", interpolation="bicubic")
    parcels = panel.parcels[name]
    table = np.zeros((256, 4))
    for code, structure in enumerate(parcels.names, start=1):
        table[code] = to_rgba(colours[structure], 0.6) if structure in colours else 0
    axes.imshow(table[_as_seen(parcels.codes[:, :, view.k], view)], origin="lower", interpolation="nearest")
    _finish(axes, panel)


def _choose_view(panel: CasePanel) -> _View:
    brain = np.any([image != 0 for image in panel.images.values()], axis=0)
    lesion = np.zeros_like(brain)
    for mask in (panel.truth, panel.predicted):
        if mask is not None:
            lesion |= mask
    area = lesion.sum(axis=(0, 1)).astype(float)
    if not area.any():
        area += sum(_shares(parcels) for parcels in panel.parcels.values())
    shown = brain | lesion
    ((along_i, along_j, along_k),) = ndimage.find_objects((shown if shown.any() else ~shown).view(np.uint8))
    k = int(area.argmax()) if area.any() else (along_k.start + along_k.stop) // 2
    return _View(along_i, along_j, k)


def _shares(parcels: Parcels) -> Float[np.ndarray, " k"]:
    """For every slice, the sum over structures of their area as a share of their largest area in any slice."""
    total = np.zeros(parcels.codes.shape[2])
    for code in np.unique(parcels.codes):
        if code:
            area = (parcels.codes == code).sum(axis=(0, 1))
            total += area / area.max()
    return total


def _as_seen(plane: Shaped[np.ndarray, "i j"], view: _View) -> Plane:
    """Crop to the view with a margin and rotate: rows run to the front, columns to the patient's left."""
    padded = np.pad(plane, _MARGIN_VOXELS)
    wider = 2 * _MARGIN_VOXELS
    cut = padded[view.i.start : view.i.stop + wider, view.j.start : view.j.stop + wider]
    seen: Plane = rearrange(cut[::-1], "i j -> j i")
    return seen


def grey_window(image: Image) -> Image:
    """Grey values from 0 to 1. Zeros are background and stay black, also in images with negative values."""
    values = image.astype(np.float32)
    inside = np.isfinite(values) & (values != 0)
    if not inside.any():
        return np.zeros_like(values)
    low, high = np.percentile(values[inside], (1, 99.5))
    scale = max(float(high - low), float(np.finfo(np.float32).tiny))
    grey: Image = np.clip((np.where(inside, values, low) - low) / scale, 0, 1).astype(np.float32)
    return grey


def _fit(text: str, width: float, font: FontProperties, max_lines: int) -> str:
    """Wrap a text to `width` inches, and end it with … if it needs more than `max_lines`."""
    if not text.strip():
        return ""
    points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    # A line may have wider letters than the average, hence a little less than the width.
    num_characters = max(int(0.93 * width * _POINTS_PER_INCH * len(text) / points), 1)
    return textwrap.fill(text, num_characters, max_lines=max_lines, placeholder="…")


def _cut(text: str, width: float, font: FontProperties) -> str:
    """Cut off the end of a text that is wider than `width` inches."""
    points, _, _ = text_to_path.get_text_width_height_descent(text, font, ismath=False)
    if points <= width * _POINTS_PER_INCH:
        return text
    num_characters = max(int(0.93 * width * _POINTS_PER_INCH * len(text) / points), 2)
    return f"{text[: num_characters - 1]}…"


def _write(figure: Figure, page: _Page, x: float, y: float, text: str, **style: Any) -> None:
    """Draw a text at x, y in inches; a $ in it does not start a formula."""
    figure.text(x / page.width, y / page.height, text, **{"color": _BRIGHT, "parse_math": False, **style})
