"""Heat maps: every number can be read on its colour."""

from multiseg.pages.page import HeatCell


def luminance(colour: str) -> float:
    """WCAG 2.2, relative luminance of #rrggbb."""
    parts = [part / 255 for part in bytes.fromhex(colour.removeprefix("#"))]
    red, green, blue = (part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


def test_every_number_is_readable_on_its_colour() -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 or more."""
    low = {}
    for value in [*(step / 200 for step in range(201)), float("nan")]:
        cell = HeatCell.of(value)
        dark, light = sorted((luminance(cell.colour), luminance(cell.ink)))
        if (contrast := (light + 0.05) / (dark + 0.05)) < 4.5:
            low[value] = contrast
    assert low == {}
