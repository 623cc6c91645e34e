"""One colour per structure, the same in pictures, label tables and files for other programs."""

from __future__ import annotations

import colorsys

TRUTH_COLOUR = "#19d3f3"
PREDICTION_COLOUR = "#ff7a1a"
PALETTE = (
    "#4daf4a",
    "#e7b416",
    "#5b8ff9",
    "#e8507b",
    "#9b5de5",
    "#00b4a0",
    "#f48c42",
    "#a8e10c",
    "#7fd7ff",
    "#b5651d",
)
_TURN = 0.618034
"""The golden section of the colour circle, which keeps each hue far from those before it."""


def colour_of(index: int) -> str:
    """The colour of a structure as #rrggbb; `index` counts from 0.

    >>> colour_of(0), colour_of(10)
    ('#4daf4a', '#f2694e')
    """
    if index < len(PALETTE):
        return PALETTE[index]
    turned = index - len(PALETTE)
    saturation, value = ((0.68, 0.95), (0.45, 0.8), (0.85, 0.72))[turned % 3]
    red, green, blue = colorsys.hsv_to_rgb((0.028 + _TURN * turned) % 1, saturation, value)
    return f"#{round(255 * red):02x}{round(255 * green):02x}{round(255 * blue):02x}"
