"""One self-contained HTML page: sections of tables, drawings, heat maps, and volumes with a slider."""

from __future__ import annotations

import base64
import hashlib
import io
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TypeAlias

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#444444", "#8c6d31")
"""Safe for colour-blind readers (Okabe and Ito)."""
TEMPLATE = Path(__file__).with_name("page.html.jinja")
GENERATOR = "multiseg report"
Points: TypeAlias = Sequence[tuple[float, float]]

SCRIPT = """
for (const figure of document.querySelectorAll("figure.volume")) {
  const slices = JSON.parse(figure.querySelector("script").textContent);
  const image = figure.querySelector("img"), output = figure.querySelector("output");
  figure.querySelector("input").addEventListener("input", (event) => {
    image.src = slices[event.target.value - 1];
    output.textContent = event.target.value;
  });
}
"""
"""The slider of a volume. Its digest is in the page's security policy, so that no other script runs."""
_DIGEST = base64.b64encode(hashlib.sha256(SCRIPT.encode()).digest()).decode()
POLICY = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{_DIGEST}'"
_LIGHT_INK, _DARK_INK = "#ffffff", "#000000"
_TURN = 0.179
"""The relative luminance on which white and black have the same contrast, 4.58."""
_SCALE = (
    (0.0, (68, 1, 84)),
    (0.25, (59, 82, 139)),
    (0.5, (33, 145, 140)),
    (0.75, (94, 201, 98)),
    (1.0, (253, 231, 37)),
)
"""Anchors of a scale from dark to light, whose order is also visible in grey (viridis)."""


@dataclass(frozen=True)
class Table:
    """A table; `numbers` are the columns that are aligned to the right, `long` those that may take several lines."""

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    numbers: Sequence[str] = ()
    long: Sequence[str] = ()
    heading: str = ""
    kind = "table"
    width = ""

    @property
    def classes(self) -> list[str]:
        return ["number" if name in self.numbers else "long" if name in self.long else "" for name in self.columns]


@dataclass(frozen=True)
class Drawing:
    """A plot as SVG."""

    svg: Markup
    heading: str = ""
    kind = "drawing"
    width = "half"


@dataclass(frozen=True)
class Text:
    """Lines as they are, such as a command."""

    text: str
    heading: str = ""
    kind = "text"
    width = ""


@dataclass(frozen=True)
class HeatCell:
    """One value of a heat map: its text, and the colours of the cell and of the text."""

    text: str
    colour: str
    ink: str

    @classmethod
    def of(cls, value: float) -> HeatCell:
        """The cell of a share from 0 to 1; NaN is an empty cell."""
        if math.isnan(value):
            return cls("", "#f0f0f0", _DARK_INK)
        colour = shade(value)
        ink = _DARK_INK if _luminance(colour) > _TURN else _LIGHT_INK
        return cls(f"{value:.2f}", "#" + bytes(colour).hex(), ink)


@dataclass(frozen=True)
class HeatMap:
    """Shares from 0 to 1 by row and column, coloured."""

    corner: str
    columns: Sequence[str]
    rows: Sequence[tuple[str, Sequence[HeatCell]]]
    heading: str = ""
    kind = "heat"
    width = "half"


@dataclass(frozen=True)
class Volume:
    """A volume that is looked through by slice.

    Attributes:
        alt: what the pictures show, for those who cannot see them.
        slices: data URIs of the pictures.
        first: the slice that is shown at first, from 0.
    """

    caption: str
    alt: str
    slices: Sequence[str]
    first: int


@dataclass(frozen=True)
class Volumes:
    """Volumes side by side."""

    volumes: Sequence[Volume]
    heading: str = ""
    kind = "volumes"

    @property
    def width(self) -> str:
        return "third" if len(self.volumes) == 1 else ""


# The width of a part says how much of the page it takes, at most: all of it (""), a half or a third.
Part: TypeAlias = Table | Drawing | Text | HeatMap | Volumes


@dataclass(frozen=True)
class Section:
    """A heading, perhaps a sentence, and what follows."""

    title: str
    parts: Sequence[Part]
    note: str = ""


def render(title: str, intro: str, sections: Sequence[Section]) -> str:
    """The page. Texts are escaped: what scans and hospitals are called stands in it as text."""
    templates = Environment(loader=FileSystemLoader(TEMPLATE.parent), autoescape=True, undefined=StrictUndefined)
    has_volumes = any(isinstance(part, Volumes) for section in sections for part in section.parts)
    values = {"title": title, "intro": intro, "sections": sections, "generator": GENERATOR, "has_volumes": has_volumes}
    script = Markup(SCRIPT)  # noqa: S704 (our own)
    page: str = templates.get_template(TEMPLATE.name).render(**values, policy=POLICY, script=script)
    return page + "\n"


def drawn(draw: Callable[[Figure], None], heading: str = "", height: float = 3.0) -> Drawing:
    """A plot: `draw` is called with a figure of 6.2 inches by `height`, of which two fit side by side."""
    figure = Figure(figsize=(6.2, height), layout="constrained")
    draw(figure)
    text = io.StringIO()
    figure.savefig(text, format="svg", metadata={"Date": None})
    svg = text.getvalue()[text.getvalue().index("<svg") :]
    return Drawing(Markup(svg), heading)  # noqa: S704 (matplotlib escapes names itself)


def draw_lines(axes: Axes, curves: Mapping[str, Points], label: str, x_label: str, marker: str = "o") -> None:
    """One line for each name; integers on the horizontal axis."""
    for index, (name, points) in enumerate(curves.items()):
        colour = COLOURS[index % len(COLOURS)]
        axes.plot(*zip(*points, strict=True), marker=marker, ms=3, color=colour, label=name)
    axes.set_ylabel(label)
    axes.set_xlabel(x_label)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.grid(alpha=0.3)
    axes.spines[["top", "right"]].set_visible(False)


def shade(value: float) -> tuple[int, int, int]:
    """The colour of a share from 0 (dark) to 1 (light), as red, green and blue from 0 to 255."""
    value = min(max(value, 0.0), 1.0)
    for (low, dark), (high, light) in pairwise(_SCALE):
        if value <= high:
            part = (value - low) / (high - low)
            red, green, blue = (round(one + part * (other - one)) for one, other in zip(dark, light, strict=True))
            return red, green, blue
    raise AssertionError(value)


def _luminance(colour: tuple[int, int, int]) -> float:
    """The relative luminance of a colour of sRGB (WCAG 2.2), from 0 to 1."""
    shares = (part / 255 for part in colour)
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in shares)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def is_page(path: Path) -> bool:
    """Whether a file is a page that `render` has made."""
    if not path.is_file():
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return f'name="generator" content="{GENERATOR}"' in file.read(1000)
