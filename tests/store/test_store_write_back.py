"""Small objects of a remote store are kept and sent together, in an order that a reader and a kill can live with."""

import asyncio

import pytest
from zarr.core.buffer import Buffer, default_buffer_prototype

from multiseg.store.remote.write_back import SMALL_BYTES, WriteBack


def value(text: str) -> Buffer:
    return default_buffer_prototype().buffer.from_bytes(text.encode())


class Server:
    def __init__(self, dies_at: str = "") -> None:
        self.dies_at = dies_at
        self.sent: list[tuple[str, str]] = []

    async def send(self, key: str, given: Buffer | None) -> None:
        if key == self.dies_at:
            raise OSError("gone")
        self.sent.append((key, "gone" if given is None else given.to_bytes().decode()))


def new_database() -> WriteBack:
    back = WriteBack()
    back.write("db/status/c/0", value("pending"))
    back.write("zarr.json", value("db"))
    back.write("db/zarr.json", value("attributes"))
    back.write("db/status/c/0", value("committed"))
    back.write("db/case/c/0", value("old"))
    back.write("db/case/c/0", value("P1"))
    back.write("db/case/zarr.json", value("array"))
    return back


def test_a_database_is_named_when_it_is_there_and_its_cases_are_committed_last() -> None:
    back, server = new_database(), Server()
    asyncio.run(back.send(server.send))
    assert sorted(server.sent[:2]) == [("db/case/c/0", "P1"), ("db/case/zarr.json", "array")]
    assert server.sent[2:] == [
        ("db/zarr.json", "attributes"),
        ("db/status/c/0", "pending"),
        ("zarr.json", "db"),
        ("db/status/c/0", "committed"),
    ]
    server.sent.clear()
    back.write("db/status/c/0", value("two"))
    asyncio.run(back.send(server.send))
    assert server.sent == [("db/status/c/0", "two")]


@pytest.mark.parametrize("dies_at", ["db/case/c/0", "db/zarr.json", "zarr.json"])
def test_nothing_that_follows_is_sent_after_a_failure(dies_at: str) -> None:
    back, server = new_database(), Server(dies_at)
    with pytest.raises(OSError, match="gone"):
        asyncio.run(back.send(server.send))
    assert ("db/status/c/0", "committed") not in server.sent
    again = Server()
    asyncio.run(back.send(again.send))
    assert again.sent[-1] == ("db/status/c/0", "committed")
    assert dies_at in dict(again.sent)


def test_what_was_read_or_written_is_known() -> None:
    back = WriteBack()
    assert "db/a" not in back
    back.keep("db/a", value("read"))
    back.keep("db/none", None)
    back.keep("db/large", value("x" * (SMALL_BYTES + 1)))
    assert ("db/a" in back, "db/none" in back, "db/large" in back) == (True, True, False)
    back.write("db/a", value("written"))
    back.keep("db/a", value("what the server still has"))
    assert back.get("db/a") == value("written")
    back.write("db/a", None)
    assert back.get("db/a") is None
    back.keep_empty("new/")
    assert "new/anything" in back
    back.forget("new/large")  # sent past it
    assert "new/large" not in back
    assert back.below("new/") == ["new/large"]
