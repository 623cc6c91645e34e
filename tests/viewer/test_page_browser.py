"""The page in a headless Chromium: it draws under its own policy, by keyboard alone, and axe-core finds nothing."""

import io
from collections.abc import Iterator

import numpy as np
import pytest
from browser_checks import needs_browser, serious_faults, severe_messages
from matplotlib.image import imread

from benchmarks.browser import Browser, chromium
from benchmarks.screenshots import IS_DONE, open_case, served
from multiseg.store.reader import open_store
from multiseg.viewer.page_server import PageServer
from multiseg.viewer.stored_cases import StoredCases

pytestmark = [pytest.mark.slow(seconds=7), needs_browser]
FOCUS = "const at = document.activeElement; return at.id || at.dataset.name || at.name || at.tagName"


@pytest.fixture(scope="module")
def server(store_url: str) -> Iterator[PageServer]:
    store = open_store(store_url)
    with served(StoredCases(store, sorted(store.cases, key=lambda case: (case.database, case.name)))) as serving:
        yield serving


@pytest.fixture(scope="module")
def browser(server: PageServer) -> Iterator[Browser]:
    """A browser that has used the ticket."""
    with chromium((1280, 720)) as window:
        window.resize(1280, 720)
        window.go(server.access.address)
        window.wait_for(IS_DONE, seconds=120)
        yield window


@pytest.fixture
def page(browser: Browser) -> Browser:
    """The first case, in the axial plane, with nothing filtered."""
    browser.run(
        "for (const field of document.querySelectorAll('#search, #filters select'))"
        " { field.value = ''; field.dispatchEvent(new Event('input')); field.dispatchEvent(new Event('change')); }"
        " document.getElementById('panes').focus();"
    )
    open_case(browser, "alder/A001")
    browser.press("Escape", "1")
    browser.messages()
    return browser


def text(page: Browser, element: str) -> str:
    return str(page.run(f"return document.getElementById('{element}').textContent"))


def shown(page: Browser) -> np.ndarray:
    return np.asarray(imread(io.BytesIO(page.screenshot())))


def test_it_draws_under_its_policy_and_asks_nobody_else(page: Browser, server: PageServer) -> None:
    page.go(f"http://127.0.0.1:{server.access.port}/")
    page.wait_for(IS_DONE, seconds=120)
    assert severe_messages(page) == []
    requests = page.run("return performance.getEntriesByType('resource').map((entry) => new URL(entry.name).host)")
    assert set(requests) == {f"127.0.0.1:{server.access.port}"}
    assert page.run("return document.cookie") == ""  # scripts cannot read it
    assert "ticket" not in str(page.run("return location.href"))
    image = shown(page)[100:680, 290:990, :3]
    assert (image.max(axis=2) > 0.3).mean() > 0.1  # brains
    cyan = (image[..., 2] - image[..., 0] > 0.3) & (image[..., 1] > 0.5)
    assert cyan.sum() > 30  # the lesion


def test_every_action_by_keyboard(page: Browser) -> None:
    page.press("n")
    page.wait_for("return document.getElementById('case-name').textContent === 'alder/A002'")
    page.wait_for(IS_DONE, seconds=120)
    page.press("p")
    page.wait_for("return document.getElementById('case-name').textContent === 'alder/A001'")
    page.wait_for(IS_DONE, seconds=120)
    before = text(page, "place")
    page.press("ArrowUp")
    assert text(page, "place") != before
    page.press("ArrowDown")
    assert text(page, "place") == before
    page.press("l")
    assert "lesion: lesion" in text(page, "place")
    assert page.run("return document.querySelector('#lesions [aria-current=true]').dataset.index") == "0"
    page.press("o")
    assert "lesion: lesion" not in text(page, "place")
    without = shown(page)
    page.press("o")
    assert (shown(page) != without).any()
    page.press("3")
    assert page.run("return document.querySelector('#planes [aria-pressed=true]').textContent") == "Sagittal"
    page.press("?")
    assert page.run("return document.getElementById('help').open")
    page.press("n", "Escape")
    assert not page.run("return document.getElementById('help').open")
    assert text(page, "case-name") == "alder/A001"


def test_search_and_list_by_keyboard(page: Browser) -> None:
    page.press("/", *"cedar dwi")
    assert page.run(FOCUS) == "search"
    assert "of 16 cases" in text(page, "count")
    names = page.run("return [...document.querySelectorAll('#list .name')].map((name) => name.textContent)")
    assert names
    assert all(name.startswith("cedar/") for name in names)
    page.press("Escape")
    assert page.run(FOCUS) == "panes"
    page.run("document.querySelector('#list [tabindex=\"0\"]').focus()")
    page.press("ArrowDown")
    assert page.run(FOCUS) == names[1]
    page.press("Enter")
    page.wait_for(f"return document.getElementById('case-name').textContent === '{names[1]}'")


def test_the_tabulator_reaches_everything(page: Browser) -> None:
    page.run("document.activeElement.blur(); document.querySelector('.skip').focus()")
    stops = []
    for _ in range(40):
        page.press("Tab")
        stops.append(str(page.run(FOCUS)))
    assert {"search", "database", "alder/A001", "next", "help-button"} <= set(stops)
    assert stops.count("alder/A001") <= 2  # the list is one stop


def test_crosshairs_are_linked(page: Browser) -> None:
    place = text(page, "place")
    page.run(
        "const canvas = document.querySelector('.pane:not([hidden]) .gl'); const box = canvas.getBoundingClientRect();"
        "for (const type of ['mousedown', 'mouseup']) canvas.dispatchEvent(new MouseEvent(type, {bubbles: true, "
        "button: 0, clientX: box.left + box.width / 2 + 20, clientY: box.top + box.height / 2 + 15}));"
    )
    assert text(page, "place") != place


@pytest.mark.parametrize("dialogue", [False, True])
def test_axe_finds_nothing_serious(page: Browser, dialogue: bool) -> None:
    if dialogue:
        page.press("?")
    faults = serious_faults(page)
    page.press("Escape")
    assert faults == []
