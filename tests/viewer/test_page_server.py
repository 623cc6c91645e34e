"""The server of the page: who may read it, what it answers, and that nothing else can be read through it."""

import hashlib
import http.client
import json
import socket
from collections.abc import Iterator
from email.message import Message
from importlib.resources import files
from threading import Thread

import numpy as np
import pytest

from multiseg.errors import ResourceError
from multiseg.store.reader import Store, open_store
from multiseg.viewer.case_view import OUTSIDE
from multiseg.viewer.page_access import PageAccess
from multiseg.viewer.page_server import MOST_OPEN, PageServer
from multiseg.viewer.stored_cases import StoredCases

PAGE = files("multiseg.viewer") / "page"


@pytest.fixture(scope="module")
def store(store_url: str) -> Store:
    return open_store(store_url)


@pytest.fixture(scope="module")
def server(store: Store) -> Iterator[PageServer]:
    cases = StoredCases(store, sorted(store.cases, key=lambda case: (case.database, case.name)))
    with PageServer(cases) as serving:
        thread = Thread(target=serving.serve_forever, args=(0.01,))
        thread.start()
        yield serving
        serving.shutdown()
        thread.join()


Answer = tuple[int, dict[str, str], bytes]


def get(server: PageServer, path: str, **headers: str) -> Answer:
    """What the server answers; by default with its cookie and its own Host."""
    given = {"Host": f"127.0.0.1:{server.access.port}", "Cookie": server.access.cookie.partition(";")[0]}
    given |= {name.replace("_", "-"): value for name, value in headers.items()}
    connection = http.client.HTTPConnection("127.0.0.1", server.access.port, timeout=10)
    try:
        connection.putrequest("GET", path, skip_host=True)
        for name, value in given.items():
            connection.putheader(name, value)
        connection.endheaders()
        answer = connection.getresponse()
        return answer.status, dict(answer.getheaders()), answer.read()
    finally:
        connection.close()


def get_json(server: PageServer, path: str) -> dict[str, object]:
    status, _, body = get(server, path)
    assert status == 200, body
    found: dict[str, object] = json.loads(body)
    return found


def test_it_listens_on_loopback_only(server: PageServer) -> None:
    assert server.server_address[0] == "127.0.0.1"
    assert server.access.address.startswith(f"http://127.0.0.1:{server.access.port}/?ticket=")


@pytest.mark.parametrize("path", ["/", "/page.js", "/niivue.umd.js", "/api/cases", "/api/window?case=alder/A001"])
@pytest.mark.parametrize("cookie", ["", "multiseg-view-1=x", "multiseg-view-{port}=x", "multiseg-view-{port}", ";;="])
def test_without_the_cookie_nothing_is_told(server: PageServer, path: str, cookie: str) -> None:
    status, _, body = get(server, path, Cookie=cookie.format(port=server.access.port))
    assert status == 403
    assert b"alder" not in body


@pytest.mark.parametrize(
    "headers",
    [
        {"Host": "evil.example:{port}"},
        {"Host": "127.0.0.1"},
        {"Host": "127.0.0.1:1"},
        {"Host": ""},
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://localhost:1"},
        {"Sec_Fetch_Site": "cross-site"},
        {"Sec_Fetch_Site": "same-site"},
    ],
)
def test_other_pages_and_other_names_are_refused(server: PageServer, headers: dict[str, str]) -> None:
    given = {name: value.format(port=server.access.port) for name, value in headers.items()}
    assert get(server, "/api/cases", **given)[0] == 403


def test_localhost_is_its_name_too(server: PageServer) -> None:
    name = f"localhost:{server.access.port}"
    assert get(server, "/api/cases", Host=name, Origin=f"http://{name}", Sec_Fetch_Site="same-origin")[0] == 200


def test_the_ticket_is_good_once() -> None:
    access = PageAccess(1)
    ticket = access.ticket
    assert not access.redeem("")
    assert not access.redeem("ä")
    assert access.redeem(ticket)
    assert not access.redeem(ticket)
    assert not access.redeem("")
    assert ticket not in repr(PageAccess(1, ticket=ticket))


def test_the_ticket_becomes_a_cookie_that_scripts_cannot_read(store: Store) -> None:
    with PageServer(StoredCases(store, store["alder"].cases[:1])) as server:
        thread = Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            path = server.access.address.partition(str(server.access.port))[2]
            assert get(server, "/?ticket=wrong", Cookie="")[0] == 403
            status, headers, _ = get(server, path, Cookie="")
            assert (status, headers["Location"]) == (303, "/")
            cookie, *attributes = headers["Set-Cookie"].split("; ")
            assert {"HttpOnly", "SameSite=Strict", "Path=/"} == set(attributes)
            assert get(server, "/", Cookie=cookie)[0] == 200
            assert get(server, path, Cookie="")[0] == 403  # somebody else who has read the address
            assert get(server, path, Cookie=cookie)[0] == 303  # the browser itself, reloading
        finally:
            server.shutdown()
            thread.join()


def test_every_answer_has_the_strict_headers(server: PageServer) -> None:
    for path in ("/", "/api/cases", "/nothing", "/?ticket=wrong"):
        _, headers, _ = get(server, path, **({"Cookie": ""} if "ticket" in path else {}))
        policy = headers["Content-Security-Policy"]
        assert policy.startswith("default-src 'none'; script-src 'self';")
        assert "unsafe" not in policy
        assert "http" not in policy
        assert "frame-ancestors 'none'" in policy
        assert headers["Referrer-Policy"] == "no-referrer"
        assert headers["Cache-Control"] == "no-store"
        assert headers["X-Content-Type-Options"] == "nosniff"
        assert "Python" not in headers.get("Server", "")


@pytest.mark.parametrize("path", ["/../page_server.py", "/%2e%2e/page_server.py", "//etc/passwd", "/niivue.json", "/x"])
def test_only_its_own_files_are_served(server: PageServer, path: str) -> None:
    assert get(server, path)[0] == 404


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS"])
def test_it_only_reads(server: PageServer, method: str) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", server.access.port, timeout=10)
    connection.request(method, "/api/cases")
    assert connection.getresponse().status == 501
    connection.close()


def test_the_list_has_every_case(server: PageServer, store: Store) -> None:
    answer = get_json(server, "/api/cases")
    cases = {case["name"]: case for case in answer["cases"]}  # type: ignore[attr-defined, index]
    assert len(cases) == len(store.cases) == 16
    assert cases["cedar/C001"]["pathology"] == "ischaemic stroke"
    assert set(cases["cedar/C001"]["sequences"]) <= {"FLAIR", "DWI", "ADC"}
    assert answer["can_answer"] is False


def test_windows_hold_the_store(server: PageServer, store: Store) -> None:
    case, database = store["alder"]["A001"], store["alder"]
    view = get_json(server, "/api/case?case=alder/A001")
    i, j, k = case.extent
    images, codes = database.whole(case)
    assert view["shape"] == [i, j, k]
    first, last = 2, 5
    status, _, body = get(server, f"/api/window?case=alder/A001&first={first}&last={last}")
    assert status == 200
    num = i * j * (last - first)
    sequences, overlays = view["sequences"], view["overlays"]
    assert len(body) == num * (2 * len(sequences) + len(overlays))  # type: ignore[arg-type]
    for index, one in enumerate(sequences):  # type: ignore[arg-type, var-annotated]
        numbers = np.frombuffer(body, "<i2", num, 2 * num * index).reshape(last - first, j, i).T
        stored = images[database.modalities.index(one["name"])][..., first:last].astype(np.float64)
        mean, std = case.intensity[one["name"]]
        assert np.array_equal(numbers == OUTSIDE, stored == 0)
        inside = stored != 0
        shown = numbers * one["slope"] + one["intercept"]
        assert np.abs(shown - (stored * std + mean))[inside].max() <= std / 512 + 1e-9
    offset = 2 * num * len(sequences)  # type: ignore[arg-type]
    label = np.frombuffer(body, np.uint8, num, offset).reshape(last - first, j, i).T
    assert np.array_equal(label, codes[0][..., first:last])


@pytest.mark.parametrize(
    "window", ["", "&first=0", "&first=a&last=2", "&first=-1&last=2", "&first=3&last=3", "&first=0&last=9999"]
)
def test_windows_that_are_none_are_refused(server: PageServer, window: str) -> None:
    status, _, body = get(server, f"/api/window?case=alder/A001{window}")
    assert status == 400
    assert b"message" in body


def test_an_unknown_case_is_refused(server: PageServer) -> None:
    status, _, body = get(server, "/api/case?case=../secret")
    assert (status, json.loads(body)["message"]) == (400, "there is no case '../secret' here.")


def test_findings_and_lesions_add_up(server: PageServer, store: Store) -> None:
    answer = get_json(server, "/api/findings?case=cedar/C001")
    view = get_json(server, "/api/case?case=cedar/C001")
    counted = sum(part["ml"] for overlay in view["overlays"] for part in overlay["structures"])  # type: ignore[attr-defined]
    lesions = answer["lesions"]
    assert sum(lesion["ml"] for lesion in lesions) == pytest.approx(counted)  # type: ignore[attr-defined]
    codes = store["cedar"].whole(store["cedar"]["C001"])[1][0]
    assert all(codes[tuple(lesion["voxel"])] for lesion in lesions)  # type: ignore[attr-defined]
    assert codes[tuple(view["start"])]  # type: ignore[arg-type]


def test_few_cases_stay_open(server: PageServer, store: Store) -> None:
    for case in store["birch"].cases:
        get_json(server, f"/api/case?case=birch/{case.name}")
    assert len(server.page.open) <= MOST_OPEN


def test_a_store_has_no_model(server: PageServer) -> None:
    assert get(server, "/api/answer?case=alder/A001")[0] == 400


def test_a_port_in_use_is_an_error(server: PageServer) -> None:
    with pytest.raises(ResourceError, match=f"port {server.access.port} cannot be used"):
        PageServer(server.page.cases, server.access.port)


def test_a_browser_that_leaves_early_is_no_error(server: PageServer, capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_connection(("127.0.0.1", server.access.port)) as connection:
        connection.sendall(b"GET / HTTP/1.1\r\n")
    assert get(server, "/")[0] == 200
    assert "Traceback" not in capsys.readouterr().err


def test_a_cookie_is_found_among_others() -> None:
    access, headers = PageAccess(5), Message()
    own = f"{access.cookie_name}={access.secret}"
    for others in (
        "other=1; {}; more=2",
        'theme={{"a":1}}; {}',
        "x[y]=1; {}",
        "path=/foo; {}",
        "a=b c; {}",
        "lang=ä; {}",
    ):
        del headers["Cookie"]
        headers["Cookie"] = others.format(own)
        assert access.has_cookie(headers), others
    for wrong in (own + "x", own[:-1], f"x{own}", access.secret, ""):
        del headers["Cookie"]
        headers["Cookie"] = wrong
        assert not access.has_cookie(headers), wrong


def test_niivue_is_the_recorded_file() -> None:
    record = json.loads((PAGE / "niivue.json").read_text(encoding="utf-8"))
    assert hashlib.sha256((PAGE / "niivue.umd.js").read_bytes()).hexdigest() == record["sha256"]
    licences = (PAGE / "niivue.LICENSE.txt").read_text(encoding="utf-8")
    assert f"{record['package']} {record['version']} (BSD-2-Clause)" in licences


def test_the_page_asks_nobody_else() -> None:
    for file in PAGE.iterdir():
        if file.name.endswith((".html", ".css", ".js")) and not file.name.startswith("niivue"):
            text = file.read_text(encoding="utf-8")
            assert "http:" not in text.replace("http://www.w3.org/2000/svg", ""), file.name
            assert "https:" not in text, file.name
            assert "innerHTML" not in text, file.name
            assert "style=" not in text, file.name
