"""The pictures of the pages: the report, the viewer and the documentation site, in a headless Chromium.

    python -m benchmarks.screenshots FOLDER
    python -m benchmarks.screenshots FOLDER --only report --out /tmp/pictures

FOLDER gets what the pictures show: synthetic hospitals, a store, a small model, its evaluation and its predictions,
made by the commands of `TOUR`. What is there already is kept, so a second call only takes the pictures.
"""

from __future__ import annotations

import argparse
import io
import math
import os
import shlex
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import chdir, contextmanager
from functools import partial
from http.server import HTTPServer, SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread

from PIL import Image

from benchmarks.browser import Browser, chromium, missing_programs
from multiseg.store.reader import open_store
from multiseg.viewer.case_view import Cases
from multiseg.viewer.page_server import PageServer
from multiseg.viewer.predicted_cases import PredictedCases, ScansOfStore
from multiseg.viewer.stored_cases import StoredCases

ROOT = Path(__file__).parents[1]
SIZES = {"desktop": (1920, 1080), "laptop": (1280, 800)}
COLOURS = 256
"""Of a picture: most of it is grey, and a file with its own table of colours takes a third of the room."""
IS_DONE = "return document.getElementById('panes').getAttribute('aria-busy') === 'false'"
TOUR = (
    "multiseg phantoms hospitals --cases 5 --coarseness 1.5",
    "multiseg ingest hospitals/manifest.toml --store tour.zarr --spacing 2",
    "multiseg train tour.zarr --out runs/tour --steps 300 --patch 24",
    "multiseg calibrate runs/tour",
    "multiseg evaluate runs/tour",
    "multiseg predict runs/tour tour.zarr -o predicted",
    "multiseg report runs/tour",
)
"""What makes all that the pictures show: minutes of a processor."""


def make_tour(folder: Path) -> None:
    """Run the commands of the tour that have not been run in the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    done = folder / "done.txt"
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for command in TOUR:
        if done.exists() and command in done.read_text(encoding="utf-8").splitlines():
            continue
        print(command, flush=True)
        words = shlex.split(command)[1:]
        subprocess.run([sys.executable, "-m", "multiseg", *words], cwd=folder, env=environment, check=True)
        with done.open("a", encoding="utf-8") as file:
            file.write(f"{command}\n")


@contextmanager
def serving(server: HTTPServer) -> Iterator[None]:
    """Let a thread serve until the end of the block."""
    thread = Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()


@contextmanager
def served(cases: Cases) -> Iterator[PageServer]:
    """The page of some cases, served until the end of the block."""
    with PageServer(cases) as server, serving(server):
        yield server


class Files(SimpleHTTPRequestHandler):
    """Serves files without a line for each."""

    def log_message(self, *_: object) -> None:
        pass


def open_case(browser: Browser, name: str) -> None:
    """Open a case by a click in the list, and wait until all of it is shown."""
    browser.wait_for(f"const line = document.querySelector('[data-name=\"{name}\"]'); line?.click(); return line")
    browser.wait_for(f"return document.getElementById('case-name').textContent === '{name}'")
    browser.wait_for(IS_DONE, seconds=300)
    time.sleep(0.5)


def save_picture(browser: Browser, path: Path, height: float = math.inf) -> None:
    """The window, or its upper part of a height in pixels, as a PNG with a table of colours."""
    path.parent.mkdir(parents=True, exist_ok=True)
    window = Image.open(io.BytesIO(browser.screenshot())).convert("RGB")
    window = window.crop((0, 0, window.width, int(min(height, window.height))))
    window.quantize(COLOURS, Image.Quantize.MAXCOVERAGE, kmeans=2, dither=Image.Dither.NONE).save(path, optimize=True)
    print(f"{path} ({path.stat().st_size / 1e3:.0f} kB)", flush=True)


SECTION = """
const all = [...document.querySelectorAll("h2")], heading = all.find((one) => one.textContent === arguments[0]);
scrollTo(0, heading.getBoundingClientRect().top + scrollY - 16);
return all[all.indexOf(heading) + 1].getBoundingClientRect().top - 16;
"""
"""Scrolls to a section of the report, and says where in the window the next one begins."""


def picture_report(browser: Browser, out: Path) -> None:
    """The head of the report, its evaluation, and its cases: not what names paths of this computer."""
    sections = {"training": "In short", "evaluation": "Evaluation", "cases": "Worst, median and best case"}
    for size, pixels in SIZES.items():
        browser.resize(*pixels)
        browser.go(Path("runs/tour/report.html").resolve().as_uri())
        for name, title in sections.items():
            end = browser.run(SECTION, title) if name != "training" else math.inf
            save_picture(browser, out / f"{name}-{size}.png", end)


def picture_view(browser: Browser, out: Path) -> None:
    """A case of the store, and a prediction beside its annotation."""
    store = open_store("tour.zarr")
    stored = StoredCases(store, sorted(store.cases, key=lambda case: (case.database, case.name)))
    predicted = PredictedCases(Path("predicted"), ScansOfStore(stored))
    for size, pixels in SIZES.items():
        browser.resize(*pixels)
        with served(stored) as server:
            browser.go(server.access.address)
            open_case(browser, "birch/B001")
            save_picture(browser, out / f"store-{size}.png")
        with served(predicted) as server:
            browser.go(server.access.address)
            open_case(browser, "cedar/C002")
            browser.press("c", "4", "l")
            time.sleep(1)
            save_picture(browser, out / f"predicted-{size}.png")


def picture_site(browser: Browser, out: Path) -> None:
    """The site's first page and a page of the reference."""
    site = Path("site").resolve()
    command = [sys.executable, "-m", "mkdocs", "build", "--quiet", "--strict", "--site-dir", str(site)]
    subprocess.run(command, cwd=ROOT, env=os.environ | {"NO_MKDOCS_2_WARNING": "1"}, check=True)
    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Files, directory=str(site))) as server, serving(server):
        for size, pixels in SIZES.items():
            browser.resize(*pixels)
            for name, page in {"home": "index.html", "command": "reference/commands/ingest.html"}.items():
                browser.go(f"http://127.0.0.1:{server.server_port}/{page}")
                time.sleep(1)
                save_picture(browser, out / f"{name}-{size}.png")


PAGES: dict[str, Callable[[Browser, Path], None]] = {
    "report": picture_report,
    "view": picture_view,
    "site": picture_site,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--only", choices=PAGES, nargs="+", default=[*PAGES])
    parser.add_argument("--out", type=Path, default=ROOT / "docs", help="gets a folder for each page")
    flags = parser.parse_args()
    if missing := missing_programs():
        parser.exit(1, f"There is no {missing}: apt-get install chromium chromium-driver.\n")
    make_tour(flags.folder)
    out = flags.out.resolve()
    with chdir(flags.folder), chromium() as browser:  # so that the pages name short paths
        for name in flags.only:
            PAGES[name](browser, out / name)


if __name__ == "__main__":
    main()
