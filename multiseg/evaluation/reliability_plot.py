"""The reliability plot: how often voxels of a probability are true."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, PercentFormatter

from multiseg.colours import colour_of
from multiseg.evaluation.reliability import LEAST, ece_of_table
from multiseg.files import write_atomically

_INK, _GREY, _FAINT = "#1d2129", "#8a919e", "#d9dde3"
_COLUMN_INCHES, _HEIGHT_INCHES, _TOP_INCHES = 4.6, 6.1, 0.9
_DOTS_PER_INCH = 150
_MOST_STRUCTURES, _MOST_DATABASES = 6, 8


def save_reliability(path: Path, table: pd.DataFrame, title_of: Callable[[str], str]) -> None:
    """Draw a column for each structure: above, the share of true voxels over the mean probability of each bin, for
    every database and for all together; below, how many voxels each bin has.

    Only one kind of cases is drawn: held-out ones if there are any.

    Args:
        table: see `reliability.reliability_table`.
        title_of: the title of the cases that the model used in a way.

    Raises:
        ResourceError: the file cannot be written.
    """
    learnt = sorted(table["learnt"].unique())[0]  # "", the held-out cases, comes first
    shown = table[table["learnt"] == learnt]
    labels = list(shown["label"].unique())
    drawn = labels[:_MOST_STRUCTURES]
    figure = Figure((_COLUMN_INCHES * len(drawn), _HEIGHT_INCHES), facecolor="white")
    FigureCanvasAgg(figure)
    grid = figure.add_gridspec(
        2, len(drawn), height_ratios=(4, 1), hspace=0.08, wspace=0.28, left=0.72 / (_COLUMN_INCHES * len(drawn)),
        right=1 - 0.2 / (_COLUMN_INCHES * len(drawn)), bottom=0.085, top=1 - _TOP_INCHES / _HEIGHT_INCHES,
    )  # fmt: skip
    for column, label in enumerate(drawn):
        upper = figure.add_subplot(grid[0, column])
        lower = figure.add_subplot(grid[1, column], sharex=upper)
        _draw_structure(upper, lower, shown[shown["label"] == label], str(label))
    more = f" {len(labels) - len(drawn)} more structures are in reliability.csv." if len(labels) > len(drawn) else ""
    figure.text(
        0.16 / figure.get_figwidth(), 1 - 0.27 / _HEIGHT_INCHES, "Reliability", size=14, weight="bold", color=_INK
    )
    figure.text(
        0.16 / figure.get_figwidth(), 1 - 0.5 / _HEIGHT_INCHES,
        f"{title_of(str(learnt))}. Voxels of the brain with p > {LEAST:g}.{more}", size=8, color=_GREY,
    )  # fmt: skip
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=_DOTS_PER_INCH, pil_kwargs={"compress_level": 3})
    write_atomically(path, buffer.getvalue())


def _draw_structure(upper: Axes, lower: Axes, rows: pd.DataFrame, label: str) -> None:
    upper.plot([0, 1], [0, 1], color=_FAINT, linewidth=1.2, zorder=1)
    for text, side in (("too unsure", "bottom"), ("too sure", "top")):
        upper.text(0.84, 0.84, text, size=7.5, color=_GREY, ha="center", va=side, rotation=45,
                   rotation_mode="anchor", transform_rotates_text=True)  # fmt: skip
    is_calibrated = rows["probabilities"] == "calibrated"
    made, raw = rows[is_calibrated], rows[~is_calibrated]
    databases = list(made["database"].unique())
    for index, database in enumerate(databases[:_MOST_DATABASES] if len(databases) > 1 else []):
        curve = made[made["database"] == database]
        style: dict[str, Any] = {"color": colour_of(index), "linewidth": 1.2, "marker": "o", "markersize": 2.5}
        upper.plot(*_curve(curve), **style, label=f"{database}: {ece_of_table(curve):.3f}", zorder=3)
    if ece_of_table(raw) != ece_of_table(made):
        style = {"color": _GREY, "linewidth": 1.6, "linestyle": (0, (4, 2))}
        upper.plot(*_curve(raw), **style, label=f"not calibrated: {ece_of_table(raw):.3f}", zorder=4)
    style = {"color": _INK, "linewidth": 2.2, "marker": "o", "markersize": 4}
    name = "all databases" if len(databases) > 1 else str(databases[0])
    upper.plot(*_curve(made), **style, label=f"{name}: {ece_of_table(made):.3f}", zorder=5)
    counts = made.groupby("from")["num_voxels"].sum()
    width = float((made["to"] - made["from"]).iloc[0])
    lower.bar(counts.index + width / 2, counts, width=width * 0.86, color=_INK, alpha=0.75)
    upper.set(xlim=(0, 1), ylim=(0, 1.02))  # markers at 1 are whole
    upper.set_ylabel("share of true voxels", size=8.5, color=_INK)
    upper.set_title(label, size=11, color=_INK, loc="left", pad=6, y=1)  # with a place, its neighbours are not measured
    upper.tick_params(labelbottom=False)
    lower.set_yscale("log", subs=())  # no small ticks: there are dozens of them
    lower.set_xlabel("probability", size=8.5, color=_INK)
    lower.set_ylabel("voxels", size=8.5, color=_INK)
    lower.set_ylim(bottom=0.7)
    for axes in (upper, lower):
        axes.xaxis.set_major_formatter(PercentFormatter(1))
        axes.grid(color=_FAINT, linewidth=0.5)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(labelsize=8, colors=_INK)
    upper.yaxis.set_major_formatter(PercentFormatter(1))
    lower.yaxis.set_major_formatter(EngFormatter())
    upper.legend(title="calibration error (ECE)", fontsize=7.5, title_fontsize=7.5, loc="upper left",
                 frameon=False, alignment="left", borderpad=0.2)  # fmt: skip


def _curve(rows: pd.DataFrame) -> tuple[list[float], list[float]]:
    """The mean probability and the share of true voxels of each bin, over all rows of it together."""
    num = rows["num_voxels"]
    weighed = pd.DataFrame({
        "from": rows["from"], "num": num, "p": num * rows["mean_probability"], "true": num * rows["share_true"]
    }).groupby("from").sum()  # fmt: skip
    return (weighed["p"] / weighed["num"]).tolist(), (weighed["true"] / weighed["num"]).tolist()
