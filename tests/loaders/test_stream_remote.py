"""The stream from a bucket that is far away, against the stream from the folder it was copied from."""

import hashlib
from collections.abc import Iterator
from pathlib import Path

import obstore
import pytest
from servers import Line, far_from, reach_bucket

from multiseg.errors import UsageError
from multiseg.labels import LabelSpace
from multiseg.loaders.batches import Batch, PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.store.reader import open_store
from multiseg.store.remote.connection import connect

AXIS = ModalityAxis(("PD", "FLAIR", "T1", "T1c", "T2", "DWI", "ADC"))


@pytest.fixture(scope="module")
def far(server: str, store_url: str) -> Iterator[str]:
    """The shared store in a bucket, each of whose answers takes 20 ms. Only for reading."""
    with pytest.MonkeyPatch.context() as patched, far_from(server, Line(latency_s=0.02)) as endpoint:
        bucket = reach_bucket(server, "stream-from-afar", patched)
        objects = connect(bucket)
        for path in Path(store_url).rglob("*"):
            if path.is_file():
                obstore.put(objects, str(path.relative_to(store_url)), path.read_bytes())
        patched.setenv("AWS_ENDPOINT_URL", endpoint)
        yield bucket


def stream_of(url: str, **options: object) -> PatchStream:
    draw = DrawOptions(patch=(16, 12, 20))
    return PatchStream(open_store(url), AXIS, LabelSpace(), StreamOptions(draw, 3, **options))


def digest(batches: Iterator[Batch]) -> str:
    found = hashlib.sha256()
    for batch in batches:
        for tensor in (batch.images, batch.present, batch.target, batch.annotated, batch.corner, batch.draws):
            found.update(tensor.numpy().tobytes())
        found.update(str((batch.database, batch.case)).encode())
    return found.hexdigest()


@pytest.mark.slow
def test_the_stream_from_afar_is_the_stream(far: str, store_url: str, tmp_path: Path) -> None:
    expected = digest(stream_of(store_url, workers=0).batches(0, 5))
    ways: list[dict[str, object]] = [
        {"workers": 0},
        {"workers": 2, "start": "thread"},
        {"workers": 2, "start": "forkserver"},
        {"workers": 1, "start": "spawn", "disk_cache": str(tmp_path / "copies")},
        {"workers": 1, "start": "thread", "disk_cache": str(tmp_path / "copies")},
    ]
    for way in ways:
        assert digest(stream_of(far, **way).batches(0, 5)) == expected, way
    assert digest(stream_of(far, workers=2).batches(3, 5)) == digest(stream_of(store_url).batches(3, 5))
    assert list((tmp_path / "copies" / "objects").iterdir())


@pytest.mark.slow
def test_forked_workers_cannot_read_from_afar(far: str) -> None:
    with pytest.raises(UsageError, match='give start = "forkserver", "spawn" or "thread"'):
        next(stream_of(far, workers=1, start="fork").batches(0, 1))


@pytest.mark.slow
def test_a_copy_that_rotted_on_the_local_disk_is_read_from_the_server(far: str, store_url: str, tmp_path: Path) -> None:
    expected = digest(stream_of(store_url).batches(0, 4))
    copies = tmp_path / "copies"
    assert digest(stream_of(far, workers=0, disk_cache=str(copies)).batches(0, 4)) == expected
    for path in (copies / "objects").iterdir():
        rotten = bytearray(path.read_bytes())
        rotten[len(rotten) // 8] ^= 1
        path.write_bytes(rotten)
    assert digest(stream_of(far, workers=0, disk_cache=str(copies)).batches(0, 4)) == expected
