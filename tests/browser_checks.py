"""What the tests of pages in a headless Chromium share."""

from importlib.resources import files
from typing import Any

import pytest

from benchmarks.browser import Browser, missing_programs

needs_browser = pytest.mark.skipif(
    bool(missing_programs()), reason=f"no {missing_programs()}: apt-get install chromium chromium-driver"
)


def severe_messages(page: Browser) -> list[str]:
    """The errors in the console, refusals of the security policy among them."""
    return [message for message in page.messages() if message.startswith("SEVERE")]


def serious_faults(page: Browser) -> list[tuple[str, str]]:
    """The serious and critical faults that axe-core finds: its rule, and the first element."""
    page.run((files("axe_core_python") / "axe.min.js").read_text(encoding="utf-8"))
    found: list[dict[str, Any]] = page.run("return axe.run().then((result) => result.violations)")
    return [(one["id"], one["nodes"][0]["html"]) for one in found if one["impact"] in ("serious", "critical")]
