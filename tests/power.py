"""A model disk that loses power: what was renamed, removed and flushed is recorded, and every moment of it replayed.

Three disks are modelled. Each loses the contents that were not flushed, which are empty afterwards. The first keeps
every name at once; the second loses each name that was given, changed or taken away in a folder since that was flushed;
the third loses some of these, which are drawn by chance.
"""

import os
import random
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest


@dataclass(eq=False)
class File:
    """A file's content when it got its name; `flushed` is None as long as nobody flushed it."""

    content: bytes = b""
    flushed: bytes | None = None


@dataclass
class Recorder:
    """What happens to the files below a folder, in order. `moments` are the places in `events` after a name changed."""

    folder: str
    events: list[tuple[Any, ...]] = field(default_factory=list)
    before: dict[str, bytes] = field(default_factory=dict)
    _live: dict[str, File] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    def note(self, *event: Any) -> None:
        """Something of the test's own, such as that a case was reported as written."""
        with self._lock:
            self.events.append(event)

    def moments(self) -> list[int]:
        return [
            at + 1 for at, event in enumerate(self.events) if event[0] in ("rename", "link", "remove", "mkdir", "rmdir")
        ]

    def on_audit(self, name: str, arguments: tuple[Any, ...]) -> None:
        if name == "os.rename":
            source, target, source_folder, target_folder = arguments
            self._rename(_path(source, source_folder), _path(target, target_folder))
        elif name == "os.link":
            source, target, source_folder, target_folder = arguments
            self._link(_path(source, source_folder), _path(target, target_folder))
        elif name in ("os.remove", "os.rmdir", "os.mkdir"):
            path = _path(arguments[0], arguments[-1])
            if self._is_inside(path) and os.path.lexists(path) == (name != "os.mkdir"):
                with self._lock:
                    self._live.pop(path, None)
                    self.events.append((name.removeprefix("os."), path))

    def _rename(self, source: str, target: str) -> None:
        if not self._is_inside(target):
            return
        with self._lock:
            file = self._live.pop(source, None) or File()
            for path in [path for path in self._live if path.startswith(source + "/")]:
                self._live[target + path.removeprefix(source)] = self._live.pop(path)
            if Path(source).is_file():
                file.content = Path(source).read_bytes()
            self._live[target] = file
            self.events.append(("rename", source, target, file, Path(source).is_dir()))

    def _link(self, source: str, target: str) -> None:
        if not self._is_inside(target):
            return
        with self._lock:
            if source in self._live:
                self._live[target] = self._live[source]
            self.events.append(("link", source, target))

    def on_fsync(self, handle: int) -> None:
        path = str(Path(f"/proc/self/fd/{handle}").readlink())
        if not self._is_inside(path):
            return
        with self._lock:
            if Path(path).is_dir():
                self.events.append(("flush folder", path))
                return
            file = self._live.setdefault(path, File())
            file.flushed = Path(path).read_bytes()
            self.events.append(("flush", path, file, file.flushed))

    def _is_inside(self, path: str) -> bool:
        return path == self.folder or path.startswith(self.folder + "/")

    def after(  # noqa: PLR0912 (one branch an event)
        self, moment: int, names_lost: float
    ) -> dict[str, bytes]:
        """The files, by path below the folder, when the power was lost after so many events.

        Args:
            names_lost: the share of the names that were not flushed and are lost.
        """
        names: dict[str, File] = {path: File(content, content) for path, content in self.before.items()}
        kept = dict(names)
        flushed: dict[File, bytes] = {}
        moved: dict[str, str] = {}
        for event in self.events[:moment]:
            if event[0] == "rename":
                _, source, target, file, is_folder = event
                if is_folder:
                    _move(names, source, target)
                    moved[target] = source
                else:
                    names.pop(source, None)
                    names[target] = file
            elif event[0] == "link":
                names[event[2]] = names[event[1]]
            elif event[0] == "remove":
                names.pop(event[1], None)
            elif event[0] == "flush":
                flushed[event[2]] = event[3]
            elif event[0] == "flush folder":
                for target in [target for target in moved if _folder(target) == event[1]]:
                    _move(kept, moved.pop(target), target)
                own = [path for path in {*names, *kept} if _folder(path) == event[1]]
                for path in own:
                    kept.pop(path, None)
                    if path in names:
                        kept[path] = names[path]
        chance = random.Random(moment)
        for target, source in moved.items():  # a folder has its former name, or the new one, with all that is in it
            if chance.random() < names_lost:
                _move(names, target, source)
            else:
                _move(kept, source, target)
        left = {
            path: one[path]
            for path in sorted({*names, *kept})
            if path
            in (one := kept if names.get(path) is not kept.get(path) and chance.random() < names_lost else names)
        }
        held = {path: flushed.get(file, file.flushed if path in self.before else b"") for path, file in left.items()}
        return {path.removeprefix(self.folder + "/"): content or b"" for path, content in held.items()}

    def lost(self, moment: int, place: Path, names_lost: float) -> Path:
        """The same, as files in a folder of their own."""
        shutil.rmtree(place, ignore_errors=True)
        for path, content in self.after(moment, names_lost).items():
            (place / path).parent.mkdir(parents=True, exist_ok=True)
            (place / path).write_bytes(content)
        return place


def _move(names: dict[str, File], source: str, target: str) -> None:
    """Give a folder another name."""
    for path in [path for path in names if path.startswith(source + "/")]:
        names[target + path.removeprefix(source)] = names.pop(path)


def _folder(path: str) -> str:
    """A path's folder, of which each replay asks many thousands: a `Path` would take most of its time."""
    return path.rpartition("/")[0]


def _path(path: Any, folder: Any = None) -> str:
    one = Path(os.fsdecode(path))
    above = Path(f"/proc/self/fd/{folder}").readlink() if isinstance(folder, int) and folder >= 0 else Path.cwd()
    return str(above / one)


_now: list[Recorder] = []
_is_hooked: list[bool] = []


def _hook(name: str, arguments: tuple[Any, ...]) -> None:
    if _now and name in ("os.rename", "os.link", "os.remove", "os.rmdir", "os.mkdir"):
        _now[-1].on_audit(name, arguments)


@contextmanager
def recorded(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Recorder]:
    """Record what this process does to the files below a folder."""
    if not _is_hooked:
        sys.addaudithook(_hook)
        _is_hooked.append(True)
    recorder = Recorder(str(folder))
    recorder.before = {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    fsync: Callable[[int], None] = os.fsync

    def noted(handle: int) -> None:
        fsync(handle)
        recorder.on_fsync(handle)

    _now.append(recorder)
    try:
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", noted)
            yield recorder
    finally:
        _now.pop()
