"""The server of the page: it listens on the loopback interface only, and answers the browser that has its cookie."""

from __future__ import annotations

import json
import sys
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from threading import Lock
from typing import Any
from urllib.parse import parse_qs, urlsplit

from multiseg.errors import MultisegError, ResourceError, UsageError
from multiseg.viewer.case_view import Answering, Cases, CaseView, window_bytes
from multiseg.viewer.page_access import HEADERS, LOOPBACK, PageAccess

TYPES = {
    ".css": "text/css; charset=utf-8",
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
JSON, BYTES, TEXT = "application/json", "application/octet-stream", TYPES[".txt"]
MOST_SLICES = 64
"""Axial slices that one request may read."""
MOST_OPEN = 3
"""Cases that stay open; those of files hold all of their voxels."""
NO_COOKIE = (
    "This page is private. Open the address that multiseg view printed; it is good for one browser, once. "
    "If it was used already, stop the command with Ctrl-C and start it again."
)
Query = Mapping[str, str]


@dataclass(frozen=True)
class Answer:
    """What is sent back."""

    body: bytes
    content_type: str = JSON
    status: HTTPStatus = HTTPStatus.OK


class Page:
    """What the page asks for, by path."""

    def __init__(self, cases: Cases) -> None:
        self.cases = cases
        self.static = page_files()
        self.names = {case.name: case for case in cases.listed}
        self.open: OrderedDict[str, CaseView] = OrderedDict()
        self.lock = Lock()
        self.paths: dict[str, Callable[[Query], Answer]] = {
            "/api/cases": self._list,
            "/api/case": lambda query: _json(self._view(query).to_json()),
            "/api/window": self._window,
            "/api/findings": self._findings,
            "/api/answer": self._answer,
        }

    def answer(self, path: str, query: Query) -> Answer:
        """The answer to a path; errors have a status and a sentence."""
        if path in self.static:
            return self.static[path]
        if path not in self.paths:
            return _error(HTTPStatus.NOT_FOUND, f"there is no {path[:100]!r} here.")
        try:
            return self.paths[path](query)
        except UsageError as error:
            return _error(HTTPStatus.BAD_REQUEST, str(error))
        except (MultisegError, OSError, MemoryError) as error:
            return _error(HTTPStatus.UNPROCESSABLE_ENTITY, str(error) or type(error).__name__)

    def _list(self, query: Query) -> Answer:
        cases = self.cases
        about = {"title": cases.title, "dice_word": cases.dice_word, "can_answer": isinstance(cases, Answering)}
        return _json({**about, "cases": [vars(case) for case in cases.listed]})

    def _view(self, query: Query) -> CaseView:
        name = query.get("case", "")
        if name not in self.names:
            raise UsageError(f"there is no case {name[:100]!r} here.")
        with self.lock:  # one case is opened at a time: the memory of two may be too much
            if name not in self.open:
                self.open[name] = self.cases.view(name)
                while len(self.open) > MOST_OPEN:
                    self.open.popitem(last=False)
            self.open.move_to_end(name)
            return self.open[name]

    def _window(self, query: Query) -> Answer:
        view = self._view(query)
        try:
            first, last = int(query["first"]), int(query["last"])
        except (KeyError, ValueError):
            raise UsageError("a window has two whole numbers, first and last.") from None
        if not 0 <= first < last <= view.grid.shape[2] or last - first > MOST_SLICES:
            raise UsageError(f"{first} to {last} are no window of {view.grid.shape[2]} slices, at most {MOST_SLICES}.")
        return Answer(window_bytes(view.planes(first, last)), BYTES)

    def _answer(self, query: Query) -> Answer:
        name, cases = self._view(query).name, self.cases
        if not isinstance(cases, Answering):
            raise UsageError(f"{cases.title} has no model that could segment {name}.")
        with self.lock:
            cases.answer(name)
            self.open.pop(name, None)
        return _json({"case": name})

    def _findings(self, query: Query) -> Answer:
        view = self._view(query)
        findings, lesions = self.cases.findings(view.name)
        return _json({"findings": [one.to_json() for one in findings], "lesions": [vars(one) for one in lesions]})


def page_files() -> dict[str, Answer]:
    """Every file of the page by its path. They are read once, so that no request ever names a file."""
    folder = files("multiseg.viewer") / "page"
    found = {
        f"/{file.name}": Answer(file.read_bytes(), TYPES[suffix])
        for file in folder.iterdir()
        if (suffix := file.name[file.name.rfind(".") :]) in TYPES
    }
    return {**found, "/": found["/index.html"]}


class PageServer(ThreadingHTTPServer):
    """Serves a page on the loopback interface until it is closed.

    Raises:
        ResourceError: the port is in use.
    """

    daemon_threads = True

    def __init__(self, cases: Cases, port: int = 0) -> None:
        self.page = Page(cases)
        try:
            super().__init__((LOOPBACK, port), _Handler)
        except OSError as error:
            raise ResourceError(
                f"port {port} cannot be used ({error.strerror}). Choose another one: --port."
            ) from error
        self.access = PageAccess(self.server_address[1])

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A browser that closes its window in the middle of an answer is no error."""
        if not isinstance(sys.exception(), ConnectionError | TimeoutError):
            super().handle_error(request, client_address)


class _Handler(BaseHTTPRequestHandler):
    server: PageServer
    protocol_version = "HTTP/1.1"
    server_version, sys_version = "multiseg", ""
    timeout = 60

    def do_GET(self) -> None:
        access, address = self.server.access, urlsplit(self.path)
        query = {name: values[-1] for name, values in parse_qs(address.query).items()}
        if reason := access.why_foreign(self.headers):
            self._send(_error(HTTPStatus.FORBIDDEN, reason))
        elif address.path == "/" and "ticket" in query:
            if access.redeem(query["ticket"]) or access.has_cookie(self.headers):
                self._send(Answer(b"", TEXT, HTTPStatus.SEE_OTHER), {"Location": "/", "Set-Cookie": access.cookie})
            else:
                self._send(Answer(NO_COOKIE.encode(), TEXT, HTTPStatus.FORBIDDEN))
        elif not access.has_cookie(self.headers):
            self._send(Answer(NO_COOKIE.encode(), TEXT, HTTPStatus.FORBIDDEN))
        else:
            self._send(self._answer(address.path, query))

    def _answer(self, path: str, query: Query) -> Answer:
        try:
            return self.server.page.answer(path, query)
        except Exception:  # noqa: BLE001 (the border of one request: the page goes on)
            traceback.print_exc()
            return _error(HTTPStatus.INTERNAL_SERVER_ERROR, "this is a bug in multiseg; the terminal shows where.")

    def _send(self, answer: Answer, extra: Mapping[str, str] | None = None) -> None:
        self.send_response(answer.status)
        for name, value in {**HEADERS, **(extra or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Type", answer.content_type)
        self.send_header("Content-Length", str(len(answer.body)))
        self.end_headers()
        self.wfile.write(answer.body)

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a log would hold names of patients, and the ticket."""


def _json(content: Any) -> Answer:
    return Answer(json.dumps(content, allow_nan=False).encode())


def _error(status: HTTPStatus, message: str) -> Answer:
    return Answer(json.dumps({"message": message}).encode(), JSON, status)
