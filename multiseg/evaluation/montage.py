"""A picture of many cases: an axial slice of every sequence with outlines, and structures in colour."""

import io
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from einops import rearrange
from jaxtyping import Shaped
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.patches import Patch, PathPatch, Rectangle
from matplotlib.path import Path as MatplotlibPath
from matplotlib.textpath import text_to_path
from matplotlib.transforms import Affine2D

from multiseg.colours import PREDICTION_COLOUR, TRUTH_COLOUR, colour_of
from multiseg.errors import UsageError
from multiseg.evaluation.case_panel import PNG, CasePanel
from multiseg.evaluation.slice_panel import Plane, SlicePanel, View, slice_of
from multiseg.files import check_files, write_atomically
from multiseg.modalities import in_canonical_order

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
_Place: TypeAlias = tuple[float, float, float, float]
"""Left, right, bottom and top, in inches from the lower left corner of the page."""


@dataclass(frozen=True)
class _Outline:
    """An outline in parts of a slice's width and height, with its colour and its width in points."""

    path: MatplotlibPath
    colour: str
    points: float


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


def save_montage(
    path: Path, panels: Sequence[CasePanel | SlicePanel], title: str = "", overwrite: bool = False
) -> None:
    """Write a PNG with one row for each case and one column for each sequence that any case has.

    A row shows one axial slice, see `choose_view`. The file is written atomically.

    Raises:
        UsageError: no panel has an image, the name does not end in .png, or the file exists and `overwrite` is False.
    """
    check_files([path], overwrite=overwrite, kinds=PNG)
    slices = [panel if isinstance(panel, SlicePanel) else slice_of(panel) for panel in panels]
    columns = in_canonical_order(name for one in slices for name in one.greys)
    parcels = tuple(dict.fromkeys(name for one in slices for name in one.parcels))
    if not columns:
        raise UsageError(f"there is no image in {len(panels)} cases, so there is nothing to draw. Give at least one.")
    columns += parcels
    colours = _colours(slices)
    entries = _legend_entries(slices, colours)
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
    # One for all slices, in inches: axes take far longer than an image in them.
    axes = figure.add_axes((0, 0, 1, 1), xlim=(0, page.width), ylim=(0, page.height))
    axes.set_axis_off()
    for row, panel in enumerate(slices):
        _draw_row(axes, page, row, panel, columns, colours)
    buffer = io.BytesIO()
    # In one trial half the time of the usual 6, for a fifth more bytes.
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, pil_kwargs={"compress_level": 3})
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


def _colours(panels: Sequence[SlicePanel]) -> dict[str, str]:
    """A colour for every structure that occurs in a case; a name has the same colour everywhere.

    The first name has the first colour, as in the label table of a model's prediction.
    """
    all_parcels = [parcels for panel in panels for parcels in panel.parcels.values()]
    names = dict.fromkeys(name for parcels in all_parcels for name in parcels.names)
    present = {name for parcels in all_parcels for name in parcels.present}
    return {name: colour_of(index) for index, name in enumerate(names) if name in present}


def _legend_entries(panels: Sequence[SlicePanel], colours: Mapping[str, str]) -> list[Artist]:
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
    axes: Axes, page: _Page, row: int, panel: SlicePanel, columns: Sequence[str], colours: Mapping[str, str]
) -> None:
    figure = axes.get_figure(root=True)
    assert figure is not None
    _draw_label(figure, page, row, panel, colours)
    outlines = _outlines(axes, panel)
    for column, name in enumerate(columns):
        corner = left, bottom = page.corner(row, column)
        is_empty = panel.view is None or (name not in panel.greys and name not in panel.parcels)
        colour = _EMPTY_CELL if is_empty else _CELL
        axes.add_artist(Rectangle(corner, page.cell_width, page.cell_height, facecolor=colour, linewidth=0, zorder=-1))
        if panel.view is None or is_empty:
            middle = left + page.cell_width / 2, bottom + page.cell_height / 2
            _write(figure, page, *middle, name, color=_FAINT, size=10, ha="center", va="center")
            continue
        if name in panel.greys:
            place = _draw_grey(axes, page, corner, panel, name)
            for outline in outlines:
                _draw_outline(axes, place, outline)
        else:
            _draw_parcels(axes, page, corner, panel, name, colours)
        for share, side, letter in ((0.03, "left", "R"), (0.97, "right", "L")):
            x, y = left + share * page.cell_width, bottom + 0.03 * page.cell_height
            _write(figure, page, x, y, letter, color=_SOFT, size=7.5, ha=side)


def _draw_label(figure: Figure, page: _Page, row: int, panel: SlicePanel, colours: Mapping[str, str]) -> None:
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
    if panel.view is not None:
        _write(figure, page, x, bottom + 0.08, f"slice k = {panel.view.k}", size=7, color=_FAINT, va="bottom")


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


def _outlines(axes: Axes, panel: SlicePanel) -> list[_Outline]:
    """The outlines of the masks of a case: found once, since that takes longer than drawing one in every cell."""
    found = []
    # The prediction is thinner and on top, so that both colours are visible when the outlines agree.
    for mask, colour, points in ((panel.truth, TRUTH_COLOUR, 2.2), (panel.predicted, PREDICTION_COLOUR, 1.1)):
        if panel.view is not None and mask is not None and mask.any():
            seen = _as_seen(mask, panel.view).astype(np.float32)
            contour = axes.contour(seen, levels=[0.5], extent=(0, 1, 0, 1), origin="lower")
            found.append(_Outline(contour.get_paths()[0], colour, points))
            contour.remove()
    return found


def _draw_outline(axes: Axes, place: _Place, outline: _Outline) -> None:
    left, right, bottom, top = place
    in_cell = Affine2D().scale(right - left, top - bottom).translate(left, bottom)
    style: dict[str, Any] = {"edgecolor": outline.colour, "linewidth": outline.points, "joinstyle": "round"}
    axes.add_artist(PathPatch(outline.path, fill=False, transform=in_cell + axes.transData, **style))


def _draw_grey(axes: Axes, page: _Page, corner: tuple[float, float], panel: SlicePanel, name: str) -> _Place:
    assert panel.view is not None
    seen = _as_seen(panel.greys[name], panel.view)
    place = _place_in_cell(page, corner, seen.shape, panel.spacing_mm)
    style: dict[str, Any] = {"cmap": "gray", "vmin": 0, "vmax": 1, "interpolation": "bicubic"}
    axes.imshow(seen, extent=place, origin="lower", aspect="auto", **style)
    return place


def _place_in_cell(
    page: _Page, corner: tuple[float, float], shape: tuple[int, ...], spacing_mm: tuple[float, float, float]
) -> _Place:
    """Where a slice of this shape lies in the middle of its cell, as large as it can be with voxels of their true
    proportions.
    """
    height, width = shape[0] * spacing_mm[1], shape[1] * spacing_mm[0]
    inches_per_mm = min(page.cell_width / width, page.cell_height / height)
    x, y = corner[0] + page.cell_width / 2, corner[1] + page.cell_height / 2
    half_width, half_height = inches_per_mm * width / 2, inches_per_mm * height / 2
    return x - half_width, x + half_width, y - half_height, y + half_height


def _draw_parcels(
    axes: Axes, page: _Page, corner: tuple[float, float], panel: SlicePanel, name: str, colours: Mapping[str, str]
) -> None:
    """Draw the structures of an annotation in colour over the first sequence."""
    assert panel.view is not None
    place = _draw_grey(axes, page, corner, panel, next(iter(panel.greys)))
    parcels = panel.parcels[name]
    table = np.zeros((256, 4))
    for code, structure in enumerate(parcels.names, start=1):
        table[code] = to_rgba(colours[structure], 0.6) if structure in colours else 0
    codes = _as_seen(parcels.codes, panel.view)
    axes.imshow(table[codes], extent=place, origin="lower", aspect="auto", interpolation="nearest")


def _as_seen(plane: Plane, view: View) -> Shaped[np.ndarray, "row column"]:
    """Crop to the view with a margin and rotate: rows run to the front, columns to the patient's left."""
    padded = np.pad(plane, _MARGIN_VOXELS)
    wider = 2 * _MARGIN_VOXELS
    cut = padded[view.i.start : view.i.stop + wider, view.j.start : view.j.stop + wider]
    seen: np.ndarray = rearrange(cut[::-1], "i j -> j i")
    return seen


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
