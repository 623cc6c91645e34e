"""The pictures of docs/view.md: the page that `multiseg view` serves, in a headless Chromium.

multiseg phantoms hospitals --cases 3 --coarseness 1.5
multiseg ingest hospitals/manifest.toml --store tour.zarr --spacing 2
multiseg train tour.zarr --out runs/tour --steps 80 --patch 32
multiseg predict runs/tour tour.zarr -o predicted
python -m benchmarks.screenshots tour.zarr predicted
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Thread

from benchmarks.browser import Browser, chromium, missing_programs
from multiseg.store.reader import open_store
from multiseg.viewer.case_view import Cases
from multiseg.viewer.page_server import PageServer
from multiseg.viewer.predicted_cases import PredictedCases, ScansOfStore
from multiseg.viewer.stored_cases import StoredCases

DESKTOP, LAPTOP = (1440, 900), (1280, 720)
IS_DONE = "return document.getElementById('panes').getAttribute('aria-busy') === 'false'"


@contextmanager
def served(cases: Cases) -> Iterator[PageServer]:
    """A page, served by a thread until the end of the block."""
    with PageServer(cases) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield server
        finally:
            server.shutdown()
            thread.join()


def open_case(browser: Browser, name: str) -> None:
    """Open a case by a click in the list, and wait until all of it is shown."""
    browser.wait_for(f"const line = document.querySelector('[data-name=\"{name}\"]'); line?.click(); return line")
    browser.wait_for(f"return document.getElementById('case-name').textContent === '{name}'")
    browser.wait_for(IS_DONE, seconds=300)
    time.sleep(0.5)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store")
    parser.add_argument("predicted", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/view"))
    flags = parser.parse_args()
    if missing := missing_programs():
        parser.exit(1, f"There is no {missing}: apt-get install chromium chromium-driver.\n")
    flags.out.mkdir(parents=True, exist_ok=True)
    store = open_store(flags.store)
    stored = StoredCases(store, sorted(store.cases, key=lambda case: (case.database, case.name)))
    predicted = PredictedCases(flags.predicted, ScansOfStore(stored))
    with chromium(DESKTOP) as browser:
        with served(stored) as server:
            browser.resize(*DESKTOP)
            browser.go(server.access.address)
            open_case(browser, "birch/B001")
            browser.screenshot(flags.out / "store.png")
            browser.press("?")
            browser.screenshot(flags.out / "keys.png")
        with served(predicted) as server:
            browser.resize(*LAPTOP)
            browser.go(server.access.address)
            open_case(browser, "cedar/C001")
            browser.press("c", "4", "l")
            time.sleep(1)
            browser.screenshot(flags.out / "predicted.png")
    print("\n".join(str(file) for file in sorted(flags.out.iterdir())))


if __name__ == "__main__":
    main()
