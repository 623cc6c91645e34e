"""A server of a folder's files that lets every request wait, as a distant one does.

It answers as a plain web server and, by path, as an S3 server without signatures: GET and HEAD of whole objects and of
ranges. Run it alone: python -m benchmarks.remote FOLDER --latency-ms 20
"""

from __future__ import annotations

import argparse
import asyncio
import multiprocessing
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from email.utils import formatdate
from multiprocessing.connection import Connection
from pathlib import Path
from urllib.parse import unquote, urlsplit

_RANGE = re.compile(r"bytes=(\d*)-(\d*)$")
S3_ENVIRONMENT = {
    "AWS_ALLOW_HTTP": "true",
    "AWS_ACCESS_KEY_ID": "somebody",
    "AWS_SECRET_ACCESS_KEY": "secret",
    "AWS_REGION": "us-east-1",
}


class _Files:
    """What is below a folder, by path; `requests` counts them."""

    def __init__(self, folder: Path, latency_s: float) -> None:
        self.folder = folder
        self.latency_s = latency_s
        self.requests = 0

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """Answer a connection's requests one after the other, until it closes."""
        with suppress(ConnectionError, asyncio.IncompleteReadError):
            while line := await reader.readline():
                method, target, _ = line.decode("latin-1").split(" ", 2)
                headers = {}
                while (text := (await reader.readline()).decode("latin-1").strip()) != "":
                    name, _, value = text.partition(":")
                    headers[name.lower()] = value.strip()
                await reader.readexactly(int(headers.get("content-length", 0)))
                self.requests += 1
                await asyncio.sleep(self.latency_s)
                head, body = self._answer(method, target, headers)
                writer.write(head)
                writer.write(body)
                await writer.drain()
        writer.close()

    def _answer(self, method: str, target: str, headers: Mapping[str, str]) -> tuple[bytes, bytes]:
        path = self.folder / unquote(urlsplit(target).path).lstrip("/")
        if method not in ("GET", "HEAD") or ".." in path.parts:
            return _head("405 Method Not Allowed", 0), b""
        if not path.is_file():
            body = b"<Error><Code>NoSuchKey</Code><Message>no such key</Message></Error>"
            return _head("404 Not Found", len(body)), b"" if method == "HEAD" else body
        size = path.stat().st_size
        start, stop = _part(headers.get("range", ""), size)
        if start >= stop and size:
            return _head("416 Range Not Satisfiable", 0, f"Content-Range: bytes */{size}\r\n"), b""
        changed = formatdate(path.stat().st_mtime, usegmt=True)
        more = f'Accept-Ranges: bytes\r\nETag: "{size}"\r\nLast-Modified: {changed}\r\n'
        status = "200 OK"
        if "range" in headers:
            status = "206 Partial Content"
            more += f"Content-Range: bytes {start}-{stop - 1}/{size}\r\n"
        body = b""
        if method == "GET":
            with path.open("rb") as file:
                file.seek(start)
                body = file.read(stop - start)
        return _head(status, stop - start, more), body


def _head(status: str, length: int, more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {length}\r\n{more}\r\n".encode("latin-1")


def _part(asked: str, size: int) -> tuple[int, int]:
    """First byte, and the one after the last, of a range header; all of the object without one."""
    found = _RANGE.match(asked)
    if not found or found[1] == found[2] == "":
        return 0, size
    if not found[1]:
        return max(0, size - int(found[2])), size
    return int(found[1]), min(size, int(found[2]) + 1) if found[2] else size


def _run(folder: Path, latency_s: float, pipe: Connection | None, port: int = 0) -> None:
    async def main() -> None:
        server = await asyncio.start_server(_Files(folder, latency_s).serve, "127.0.0.1", port, backlog=512)
        bound = server.sockets[0].getsockname()[1]
        if pipe is None:
            print(f"http://127.0.0.1:{bound}", flush=True)
        else:
            pipe.send(bound)
        await server.serve_forever()

    asyncio.run(main())


@contextmanager
def served(folder: Path, latency_s: float) -> Iterator[str]:
    """The URL of a server of a folder, in a process of its own."""
    receiver, sender = multiprocessing.get_context("forkserver").Pipe(duplex=False)
    process = multiprocessing.get_context("forkserver").Process(
        target=_run, args=(folder, latency_s, sender), daemon=True
    )
    process.start()
    try:
        yield f"http://127.0.0.1:{receiver.recv()}"
    finally:
        process.terminate()
        process.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=20)
    parser.add_argument("--port", type=int, default=0)
    given = parser.parse_args()
    _run(given.folder, given.latency_ms / 1000, None, given.port)
