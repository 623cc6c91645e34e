"""Stores on an S3 server (moto's) and behind a plain web server: written by one, read by all, errors in words."""

import functools
import http.client
import http.server
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Collection, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import obstore
import pytest
import xarray as xr
import zarr
from commands import Command
from json_documents import checked
from servers import Line, PlainFiles, far_from, free_port, serving, wait_until
from zarr.core.sync import sync

from multiseg import lease
from multiseg.cli.app import run
from multiseg.errors import ResourceError, StoreError
from multiseg.labels import LabelSpace
from multiseg.lease import Holder
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.store import schema
from multiseg.store.columns import coordinate_names, read_arrays
from multiseg.store.coordinate_chunks import open_arrays
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.reader import open_store
from multiseg.store.remote import writer_lease as holding
from multiseg.store.remote import zarr_store as remote
from multiseg.store.remote.connection import connect
from multiseg.store.remote.writer_lease import KEY, hold, holder_of
from multiseg.store.root import locked
from multiseg.store.sources.manifest import find_manifest

OPTIONS = IngestOptions(spacing_mm=(10.0, 10.0, 10.0))


def ingest_command(hospitals: Path, url: str) -> list[str]:
    return ["ingest", str(hospitals / "manifest.toml"), "--store", url, "--spacing", "10"]


def keys(url: str) -> list[str]:
    return sorted(meta["path"] for batch in obstore.list(connect(url)) for meta in batch)


def rows(url: str) -> dict[tuple[str, str], dict[str, np.ndarray]]:
    """Every array's part of every committed case."""
    held: dict[tuple[str, str], dict[str, np.ndarray]] = {}
    for name, database in open_store(url).databases.items():
        names = [*coordinate_names(database.group), "image", "label"]
        arrays = open_arrays(database.group, names)
        by_case = {array for array, value in arrays.items() if is_by_case(value)}
        for array, values in read_arrays(arrays, names).items():
            for case in database.cases:
                held.setdefault((name, case.name), {})[array] = values[case.row] if array in by_case else values
    return held


def is_by_case(array: zarr.Array) -> bool:
    return array.metadata.dimension_names[0] == "case"


def assert_same(a: str, b: str, but: Collection[str] = ()) -> None:
    ours, theirs = rows(a), rows(b)
    assert ours.keys() == theirs.keys()
    for case in ours:
        assert ours[case].keys() == theirs[case].keys()
        for name in ours[case].keys() - set(but):
            np.testing.assert_array_equal(ours[case][name], theirs[case][name], err_msg=f"{case} {name}")


@pytest.mark.slow
def test_s3_holds_what_a_folder_holds(
    bucket: str, few_hospitals: Path, few_url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    url = f"{bucket}/some folder/brain.zarr"
    assert run(ingest_command(few_hospitals, url)) == 0
    assert_same(url, few_url)
    assert not [key for key in keys(url) if KEY in key]
    before = keys(url)
    capsys.readouterr()
    assert run([*ingest_command(few_hospitals, url), "--json"]) == 0
    assert [len(one["skipped"]) for one in checked(capsys.readouterr().out, "ingest")] == [3, 3]
    assert keys(url) == before
    said = []
    for place in (url, few_url):
        assert run(["info", place, "--json"]) == 0
        said.append(checked(capsys.readouterr().out, "info")["databases"])
    assert [one | {"bytes": None} for one in said[1]] == said[0]


@pytest.fixture
def asked() -> list[tuple[str, str]]:
    return []


@pytest.fixture
def web(few_url: str, asked: list[tuple[str, str]]) -> Iterator[str]:
    """The shared store behind a plain web server."""
    folder = Path(few_url)
    with serving(functools.partial(PlainFiles, directory=str(folder.parent), asked=asked)) as url:
        yield f"{url}/{folder.name}"


@pytest.mark.slow
def test_a_plain_web_server_is_enough(
    web: str, few_url: str, asked: list[tuple[str, str]], capsys: pytest.CaptureFixture[str]
) -> None:
    assert_same(web, few_url)
    assert run(["info", web, "--case", "alder/A002"]) == 0
    assert "label:tissue" in capsys.readouterr().out
    for name in open_store(few_url):
        local, far = open_store(few_url).dataset(name), open_store(web).dataset(name)
        assert far.image.chunks is not None
        xr.testing.assert_identical(far.compute(), local.compute())
        with xr.open_zarr(f"{few_url}/{name}", consolidated=False) as whole:
            xr.testing.assert_equal(local.compute(), whole.drop_vars(schema.BOOKKEEPING).compute())
            assert all(local[array].attrs == whole[array].attrs for array in local.variables)
    assert {method for method, _ in asked} <= {"GET", "HEAD"}
    assert not [path for _, path in asked if path.endswith("/")]


@pytest.mark.slow
def test_a_server_without_ranges_gives_a_case_once(web: str, few_url: str, asked: list[tuple[str, str]]) -> None:
    near, far = open_store(few_url)["alder"], open_store(web)["alder"]
    case = far.cases[0]
    far.image(case, (0, 0, 0), (4, 4, 4))
    asked.clear()
    np.testing.assert_array_equal(far.whole(case)[0], near.whole(near.cases[0])[0])
    np.testing.assert_array_equal(
        far.image(case, (3, 9, 2), (9, 9, 9)), near.image(near.cases[0], (3, 9, 2), (9, 9, 9))
    )
    assert not [path for _, path in asked if "/image/" in path]


@pytest.mark.slow
def test_other_processes_read_a_web_server(web: str, few_url: str) -> None:
    def patches(url: str, workers: int) -> list[np.ndarray]:
        options = StreamOptions(DrawOptions(patch=(16, 16, 16)), batch_size=2, workers=workers)
        stream = PatchStream(open_store(url), ModalityAxis(("FLAIR", "T1")), LabelSpace(), options)
        return [batch.images.numpy() for batch in stream.batches(0, 3)]

    for here, there in zip(patches(few_url, 0), patches(web, 1), strict=True):
        np.testing.assert_array_equal(here, there)


def test_a_database_that_is_not_named_is_not_there_yet(few_url: str, tmp_path: Path) -> None:
    url = str(shutil.copytree(few_url, tmp_path / "brain.zarr"))
    root = zarr.open_group(url, mode="r+")
    root.create_group("birch", attributes=root["alder"].attrs.asdict())
    assert root.attrs["multiseg"]["databases"] == ["alder", "dogwood"]
    assert list(open_store(url)) == ["alder", "dogwood"]
    root["birch"].attrs.update({"pathology": "glioma"})


def test_a_dataset_has_the_committed_cases_alone(few_url: str, tmp_path: Path) -> None:
    url = str(shutil.copytree(few_url, tmp_path / "brain.zarr"))
    zarr.open_group(url, mode="r+")["alder/status"][[0, 2]] = [schema.SUPERSEDED, schema.PENDING]
    dataset = open_store(url).dataset("alder")
    assert dataset.case.values.tolist() == ["A002"]
    np.testing.assert_array_equal(dataset.image[0].values, zarr.open_group(url, mode="r")["alder/image"][1])


def test_a_database_that_is_named_and_gone_is_damage(few_url: str, tmp_path: Path) -> None:
    url = str(shutil.copytree(few_url, tmp_path / "brain.zarr"))
    (tmp_path / "brain.zarr/alder/label/zarr.json").unlink()
    with pytest.raises(
        StoreError, match=r"database 'alder' of .* is damaged: alder/label/zarr.json: the array 'label' is missing"
    ):
        open_store(url)["alder"]


def test_a_store_of_format_1_says_what_to_do(few_url: str, tmp_path: Path) -> None:
    head = {"format": 1, "grid_mm": [1.0, 1.0, 1.0]}
    zarr.create_group(tmp_path / "old.zarr", zarr_format=3, attributes={"multiseg": head})
    with pytest.raises(
        StoreError, match=r"made by an older multiseg: it has store format 1, .* Ingest the scans again"
    ):
        open_store(str(tmp_path / "old.zarr"))


@pytest.mark.slow
def test_an_ingest_takes_few_requests_and_commits_last(
    bucket: str, server: str, few_hospitals: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (files, *_), line = find_manifest(few_hospitals / "manifest.toml"), Line()
    with far_from(server, line) as far:
        monkeypatch.setenv("AWS_ENDPOINT_URL", far)
        ingest([replace(files, cases=files.cases[:2])], bucket, OPTIONS)
        assert len(line.asked) <= 160
        assert len(open_store(bucket).cases) == 2
    ends = ("/status/c/0", f"{bucket.removeprefix('s3://')}/zarr.json")
    put = [path for method, path, _ in line.asked if method == "PUT"]
    stages = [next((n for n, end in enumerate(ends) if path.endswith(end)), 2) for path in put]
    assert stages.count(0) == 2, "the states are there before the root names the database; both cases come at once"
    assert stages[-1] == 0, "and they come last"
    assert stages.index(0) < len(stages) - 1 - stages[::-1].index(1), "the root names what is there"


def another(**changes: object) -> bytes:
    """What another computer's hold looks like."""
    holder = Holder("workstation7", 4711, "another boot/1", "2031-02-03T04:05:06+00:00", "", "token")
    return json.dumps(asdict(replace(holder, **changes))).encode()  # type: ignore[arg-type]


def test_a_second_writer_is_told_who_writes(
    bucket: str, few_hospitals: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    objects = connect(bucket)
    obstore.put(objects, KEY, another())
    assert run(ingest_command(few_hospitals, bucket)) == 5
    said = capsys.readouterr().err
    assert "process 4711 on workstation7, started at 2031-02-03T04:05:06+00:00, last seen" in said
    assert keys(bucket) == [KEY]
    assert obstore.get(objects, KEY).bytes() == another()


@pytest.mark.slow
def test_a_hold_that_is_not_refreshed_is_taken_over(
    bucket: str, few_hospitals: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    obstore.put(connect(bucket), KEY, another())
    monkeypatch.setattr(lease, "STALE_SECONDS", 0)
    assert run(ingest_command(few_hospitals, bucket)) == 0
    assert "took over the lock of process 4711 on workstation7" in caplog.text
    assert len(open_store(bucket).cases) == 6
    assert KEY not in keys(bucket)


def test_the_hold_of_a_dead_process_of_this_computer_is_taken_over(
    bucket: str, caplog: pytest.LogCaptureFixture
) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    obstore.put(connect(bucket), KEY, another(pid=dead.pid, machine=lease.this_machine()))
    with hold(bucket):
        assert f"took over the lock of process {dead.pid}" in caplog.text
    obstore.put(connect(bucket), KEY, another(pid=os.getppid(), machine=lease.this_machine()))
    with pytest.raises(ResourceError, match=f"process {os.getppid()} on workstation7"), hold(bucket):
        pass


def test_of_two_that_take_over_at_once_one_gets_it(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    objects = connect(bucket)
    obstore.put(objects, KEY, another())
    monkeypatch.setattr(lease, "STALE_SECONDS", 0)
    look = holding.Bucket.now

    def meanwhile(place: holding.Bucket) -> object:
        obstore.put(objects, KEY, another(host="faster"))
        return look(place)

    monkeypatch.setattr(holding.Bucket, "now", meanwhile)
    with pytest.raises(ResourceError, match=r"has just started writing to .*: process 4711 on faster"), hold(bucket):
        pass
    held = holder_of(bucket)
    assert held is not None
    assert held.host == "faster"


def test_a_hold_is_refreshed_and_ends_with_an_error_or_ctrl_c(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(lease, "REFRESH_SECONDS", 0.01)
    for end in (ResourceError("full"), KeyboardInterrupt()):
        with pytest.raises(type(end)), locked(bucket):
            see_refreshed_and_end(bucket, end)
        assert keys(bucket) == []


def see_refreshed_and_end(url: str, end: BaseException) -> None:
    first = holder_of(url)
    assert first is not None
    assert first.is_me()
    wait_until(lambda: holder_of(url) != first)
    with pytest.raises(ResourceError, match="another process is writing"), locked(url):
        pass
    raise end


def test_a_writer_that_lost_its_hold_deletes_nothing(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def lost() -> None:
        raise ResourceError("lost")

    obstore.put(connect(bucket), "a", b"data")
    monkeypatch.setattr(remote, "FENCE_SECONDS", 0)
    store = remote.RemoteStore(bucket, False, lost)
    for _ in range(2):  # at once, and from the buffer of small objects
        with pytest.raises(ResourceError, match="lost"):
            sync(store.delete("a"))
        store.gather()
    assert keys(bucket) == ["a"]


@pytest.mark.slow
def test_a_writer_that_lost_its_hold_stops(bucket: str, few_hospitals: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "FENCE_SECONDS", 0)
    monkeypatch.setattr(remote, "STATES_AT_ONCE", 1)
    written = []

    def lose(database: str, case: str, outcome: str) -> None:
        written.append(case)
        obstore.put(connect(bucket), KEY, another())

    with pytest.raises(
        ResourceError, match=r"this process has lost its lock of .*, which process 4711 on workstation7"
    ):
        ingest(find_manifest(few_hospitals / "manifest.toml")[:1], bucket, OPTIONS, lose)
    assert [case.name for case in open_store(bucket).cases] == written[:1]
    held = holder_of(bucket)
    assert held is not None
    assert held.host == "workstation7"


@dataclass
class AfterCommit:
    """The troubles of a line on which, some requests after a writer's second states of rows, no answer comes."""

    line: Line
    more: int

    def __iter__(self) -> "AfterCommit":
        return self

    def __next__(self) -> str:
        asked = list(self.line.asked)
        states = [at for at, (method, path, _) in enumerate(asked) if method == "PUT" and "/status/c/" in path]
        return "reset" if len(states) > 1 and len(asked) > states[1] + 1 + self.more else ""


@pytest.mark.slow
def test_a_killed_writer_leaves_whole_cases_and_the_next_one_goes_on(
    bucket: str, server: str, few_hospitals: Path, few_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    done = 0
    for more in (0, 7):
        line = Line()
        line.troubles = AfterCommit(line, more)
        with far_from(server, line) as far:
            with monkeypatch.context() as patch:
                patch.setenv("AWS_ENDPOINT_URL", far)
                process = Command(
                    ingest_command(few_hospitals, bucket),
                    constants={"multiseg.store.remote.zarr_store:STATES_AT_ONCE": 2},
                )
            wait_until(lambda: num_cases(bucket) > done or process.poll() is not None)  # noqa: B023
            process.send_signal(signal.SIGKILL)
            assert process.wait() == -signal.SIGKILL
        assert KEY in keys(bucket)
        ended = rows(bucket)
        assert done < len(ended) < 6
        done = len(ended)
    assert run(ingest_command(few_hospitals, bucket)) == 0
    assert_same(bucket, few_url, but=["revision", "record"])  # those of later writers are greater


def num_cases(url: str) -> int:
    with suppress(StoreError):
        return len(open_store(url).cases)
    return 0


@pytest.mark.slow
def test_what_is_wrong_with_a_bucket_is_said_in_words(
    bucket: str, server: str, few_hospitals: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    nobody = f"http://127.0.0.1:{free_port()}"
    cases: list[tuple[dict[str, str], str, int, str]] = [
        ({}, "s3://no-such-bucket/brain.zarr", 3, f"there is no such bucket at {server}. Make it, or check its name"),
        ({"AWS_ENDPOINT_URL": nobody}, bucket, 5, f"nothing answers at {nobody}. Check AWS_ENDPOINT_URL"),
        ({"AWS_ENDPOINT_URL": "http://nobody.invalid"}, bucket, 5, "the name of http://nobody.invalid is unknown"),
        ({"AWS_ENDPOINT_URL": server.replace("http:", "https:")}, bucket, 5, "does not speak https"),
        ({"AWS_ENDPOINT_URL": "127.0.0.1:9000"}, bucket, 2, "URL is '127.0.0.1:9000'. It must begin with http"),
        ({"AWS_ALLOW_HTTP": ""}, bucket, 2, f"{server} is not encrypted. Use https://, or set AWS_ALLOW_HTTP=true"),
        ({"AWS_ACCESS_KEY_ID": "", "AWS_SECRET_ACCESS_KEY": "", "AWS_METADATA_ENDPOINT": nobody}, bucket, 5,
         "there are no credentials. Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY (profiles"),
        ({}, "s3:///brain.zarr", 2, "s3:///brain.zarr is not a valid URL of a store"),
        ({}, "ftp://host/brain.zarr", 2, "ftp://host/brain.zarr is not a valid URL of a store"),
    ]  # fmt: skip
    for changes, url, code, words in cases:
        with monkeypatch.context() as patch:
            for name, value in changes.items():
                patch.setenv(name, value) if value else patch.delenv(name)
            for command in (["info", url], ingest_command(few_hospitals, url)):
                assert run(command) == code, (changes, url)
                assert words in capsys.readouterr().err


def test_a_bucket_without_a_store_says_how_to_make_one(bucket: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["info", f"{bucket}/brain.zarr"]) == 3
    assert f"there is no store at {bucket}/brain.zarr. Make one with: multiseg ingest DATA" in capsys.readouterr().err


class Refusing(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = b"<Error><Code>SignatureDoesNotMatch</Code><Message>The signature is another</Message></Error>"
        self.send_response(403)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        pass


def test_refused_and_silent_servers(
    bucket: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with serving(Refusing) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        assert run(["info", bucket]) == 5
        assert (
            "does not accept the credentials (SignatureDoesNotMatch: The signature is another)"
            in capsys.readouterr().err
        )
        assert run(["info", f"{url}/brain.zarr"]) == 5
        assert f"{url} does not accept the credentials" in capsys.readouterr().err
    with socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))
        silent.listen()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("AWS_TIMEOUT", "200ms")
        assert run(["info", bucket]) == 5
        assert re.search(r"cannot reach http\S+\. Check AWS_ENDPOINT_URL and the network", capsys.readouterr().err)


def test_a_web_server_is_only_read(web: str, few_hospitals: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(ingest_command(few_hospitals, web)) == 5
    assert f"{web} is read-only: it is on a web server. Name the folder or bucket" in capsys.readouterr().err
    assert run(["info", web + "2"]) == 3
    assert f"there is no store at {web}2" in capsys.readouterr().err
    with (
        pytest.raises(zarr.errors.ReadOnlyError, match="read-only")
        if hasattr(zarr.errors, "ReadOnlyError")
        else (pytest.raises(ValueError, match="read-only"))
    ):
        open_store(web).root.attrs["multiseg"] = {}


@pytest.fixture
def as_nobody() -> Iterator[None]:
    """Without the rights of root, where tests run as root."""
    if os.geteuid() != 0:
        yield
        return
    os.seteuid(65534)
    try:
        yield
    finally:
        os.seteuid(0)


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """A folder that everybody may enter, which `tmp_path` is not."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


@pytest.mark.slow
@pytest.mark.parametrize("mode", [0o555, 0o000])
def test_folders_that_may_not_be_written_or_read(
    mode: int,
    open_folder: Path,
    few_hospitals: Path,
    capsys: pytest.CaptureFixture[str],
    request: pytest.FixtureRequest,
) -> None:  # fmt: skip
    url = str(open_folder / "brain.zarr")
    shutil.copytree(few_hospitals, open_folder / "hospitals")
    files = find_manifest(open_folder / "hospitals/manifest.toml")[:1]
    ingest([replace(files[0], cases=files[0].cases[:1])], url, OPTIONS)
    assert run(["info", url]) == 0  # what it imports, nobody may not be allowed to read
    change_mode(open_folder, 0o555, 0o444)
    change_mode(Path(url), mode, mode & 0o444)
    try:
        request.getfixturevalue("as_nobody")
        if mode:
            assert run(["info", url]) == 0
        else:
            assert run(["info", url]) == 5
            assert f"cannot read {url}" in capsys.readouterr().err
        with pytest.raises(ResourceError, match=r"Permission denied"):
            ingest(files, url, OPTIONS)
        with pytest.raises(ResourceError, match=r"cannot write into .*Permission denied"):
            ingest(files, str(open_folder / "new.zarr"), OPTIONS)
    finally:
        if os.getuid() == 0:
            os.seteuid(0)
        change_mode(open_folder, 0o755, 0o644)


def change_mode(folder: Path, folders: int, files: int) -> None:
    for path in [*folder.rglob("*"), folder]:
        path.chmod(folders if path.is_dir() else files)
