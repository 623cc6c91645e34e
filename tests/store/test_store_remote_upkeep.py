"""Repair, remove and compact on an S3 server (moto's); over a plain web server they are refused in words."""

import functools
from pathlib import Path

import obstore
import pytest
from json_documents import checked
from servers import PlainFiles, serving
from stores import contents, make_store

from multiseg.cli.app import run
from multiseg.store.checks.verification import verify_store
from multiseg.store.findings import Severity
from multiseg.store.reader import open_store
from multiseg.store.remote.connection import connect


@pytest.fixture(scope="module")
def local(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two databases; of one case there is a replaced version. Not to be changed."""
    return make_store(tmp_path_factory.mktemp("local"))


@pytest.fixture
def url(local: Path, bucket: str) -> str:
    """The same in a bucket."""
    url = f"{bucket}/brain.zarr"
    for path in (path for path in local.rglob("*") if path.is_file()):
        obstore.put(connect(url), str(path.relative_to(local)), path.read_bytes())
    return url


def objects(url: str) -> dict[str, bytes]:
    held = connect(url)
    names = [meta["path"] for batch in obstore.list(held) for meta in batch]
    return {name: bytes(obstore.get(held, name).bytes()) for name in names}


def errors(url: str) -> list[str]:
    return [f"{one.code} {one.file}" for one in verify_store(url) if one.severity is Severity.ERROR]


@pytest.mark.slow
def test_a_store_in_a_bucket_is_repaired(url: str, local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    held = connect(url)
    whole = objects(url)
    damages = {
        "zarr.json": b"{",
        "alpha/zarr.json": b"",
        "alpha/image/zarr.json": None,
        "alpha/age/c/0": b"x",
        "alpha/status/c/0": None,
        "alpha/foreground/c/1/0/0/0/0": b"y",
        "beta/record/c/0": None,
    }
    for name, data in damages.items():
        if data is None:
            obstore.delete(held, name)
        else:
            obstore.put(held, name, data)
    assert run(["repair", url, "--json"]) == 0
    told = checked(capsys.readouterr().out, "repair")
    assert {one["file"] for one in told["repaired"]} == damages.keys()
    assert errors(url) == []
    assert contents(url) == contents(local)
    now = objects(url)
    assert now.keys() == whole.keys()  # the hold is gone, too
    assert now["alpha/foreground/c/1/0/0/0/0"] == whole["alpha/foreground/c/1/0/0/0/0"]
    kept = {name.split("/", 1)[1]: data for name, data in objects(f"{url}.multiseg-damaged").items()}
    assert kept == {name: data for name, data in damages.items() if data}


@pytest.mark.slow
def test_a_case_in_a_bucket_is_removed(url: str) -> None:
    obstore.put(connect(f"{url}.multiseg-damaged"), "then/alpha/subject/c/0", b"P1")
    case = open_store(url)["alpha"]["P1"]
    (digest,) = {case.content["T1"]}
    assert run(["remove", url, "alpha/P1", "--yes"]) == 0
    held = objects(url)
    assert not [name for name in held if name.startswith(("alpha/image/c/2", "alpha/image/c/0", "alpha/label/c/0"))]
    group = open_store(url)["alpha"].group
    for name, word in (("subject", "S1"), ("site", "north"), ("case", "P1")):
        assert word not in group[name][:].tolist()
    assert [bool(record) for record in group["record"][:]] == [False, True, False]
    assert objects(f"{url}.multiseg-damaged") == {}
    store = open_store(url)
    assert [case.name for case in store["alpha"].cases] == ["P2"]
    assert digest in store.removed
    assert errors(url) == []


@pytest.mark.slow
def test_a_store_in_a_bucket_is_compacted(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    row = next(row for row in (0, 1, 2) if row not in [case.row for case in open_store(url)["alpha"].cases])
    prefixes = tuple(f"alpha/{array}/c/{row}/" for array in ("image", "label", "foreground"))
    of_row = [data for name, data in objects(url).items() if name.startswith(prefixes)]
    before = contents(url)
    for options in (["--dry-run"], []):
        assert run(["compact", url, "--json", *options]) == 0
        assert checked(capsys.readouterr().out, "compact")["bytes"] == {"alpha": sum(map(len, of_row)), "beta": 0}
    assert not [name for name in objects(url) if name.startswith(prefixes)]
    assert errors(url) == []
    assert contents(url) == before
    assert run(["compact", url, "--json"]) == 0
    assert checked(capsys.readouterr().out, "compact")["bytes"] == {"alpha": 0, "beta": 0}


@pytest.mark.parametrize("how", [[], ["--dry-run"]])
@pytest.mark.parametrize("verb", ["repair", "remove", "compact"])
def test_a_web_server_is_only_read(verb: str, how: list[str], local: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(functools.partial(PlainFiles, directory=str(local.parent), asked=[])) as address:
        own = ["alpha/P1", *(() if how else ["--yes"])] if verb == "remove" else []
        code = run([verb, f"{address}/{local.name}", *own, *how])
    said = " ".join(capsys.readouterr().err.split())
    assert code == 5
    assert "is read-only: it is on a web server" in said
