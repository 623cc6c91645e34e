"""When a node that is there is started again: its calls are not answered any more, and the server answers."""

import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from multiseg.federation.flower import liveness as module
from multiseg.federation.flower.liveness import Pulse
from multiseg.federation.supervise import Child, Ending, supervise


class Asked:
    """A question to the server, answered at the next look."""

    def __init__(self, answer: bytes | None) -> None:
        self.answer, self.looks, self.ended = answer, 0, False

    def wait(self, seconds: float) -> bool:
        self.looks += 1
        return self.looks > 1 or self.ended

    def result(self) -> bytes | None:
        return self.answer

    def stop(self, number: int = signal.SIGTERM) -> None:
        self.ended = True


class Watch:
    """A pulse with a clock of its own that is looked at every half second, and a server that says `answer`."""

    def __init__(self, folder: Path) -> None:
        self.now, self.answer, self.said = 5000.0, b"", list[str]()
        self.asked: list[Asked] = []
        self.file = folder / "beat"
        self.file.touch()
        self.began = self.now
        self.pulse = Pulse(self.file, str, self.said.append, lambda: self.now, self.ask)

    def ask(self, ask: object) -> Asked:
        self.asked.append(Asked(self.answer))
        return self.asked[-1]

    def beat(self) -> None:
        os.utime(self.file, ns=(int(self.now * 1e9), int(self.now * 1e9)))

    def lost_after(self, seconds: float, beats_every: float = 0.0) -> float:
        """How long after now the node is found lost; 0 where it is not within these seconds."""
        start = last = self.now
        while self.now < start + seconds:
            self.now += 0.5
            if beats_every and self.now - last >= beats_every:
                self.beat()
                last = self.now
            if self.pulse.is_lost(self.now - self.began):
                return self.now - start
        return 0.0


@pytest.fixture
def watch(tmp_path: Path) -> Watch:
    return Watch(tmp_path)


def test_a_node_that_is_heard_is_left_alone_and_nobody_is_asked(watch: Watch) -> None:
    assert watch.lost_after(900, beats_every=60) == 0
    assert (watch.asked, watch.said) == ([], [])


def test_a_silent_node_is_lost_where_the_server_answers(watch: Watch) -> None:
    watch.beat()
    assert module.SILENT_S <= watch.lost_after(300) <= module.SILENT_S + 5
    assert watch.said == [
        f"The node has had no answer for {module.SILENT_S + 1:.0f} s, though the server answers: restarting it."
    ]


def test_a_node_that_never_had_an_answer_is_lost_too(watch: Watch) -> None:
    assert watch.lost_after(300) >= module.SILENT_S


def test_a_silent_node_is_kept_while_the_server_is_silent_and_a_person_hears_it_once(watch: Watch) -> None:
    watch.answer = b"nothing listens at fed.example.org"
    assert watch.lost_after(600) == 0
    assert len(watch.said) == 1
    assert watch.said[0].endswith("nothing listens at fed.example.org")
    assert 600 / module.PROBE_EVERY_S - 10 < len(watch.asked) <= 600 / module.PROBE_EVERY_S
    watch.answer = b""
    assert 0 < watch.lost_after(60) <= module.PROBE_EVERY_S + 1


def test_a_question_that_finds_nothing_out_decides_nothing(watch: Watch) -> None:
    watch.answer = None  # type: ignore[assignment]
    assert watch.lost_after(600) == 0


def test_after_a_sleep_of_the_whole_machine_the_node_gets_its_time(watch: Watch) -> None:
    watch.beat()
    watch.now += 7200
    assert watch.lost_after(module.SILENT_S - 1) == 0
    watch.beat()
    assert watch.lost_after(module.SILENT_S - 1) == 0


def test_a_beat_from_before_the_machine_was_started_is_none(watch: Watch) -> None:
    watch.now += 1e6
    watch.beat()
    watch.now -= 1e6
    assert watch.lost_after(300) >= module.SILENT_S


def test_a_new_node_does_not_inherit_the_silence_of_the_last(watch: Watch) -> None:
    assert watch.lost_after(300)
    watch.began = watch.now
    assert watch.lost_after(module.SILENT_S - 1) == 0


def test_an_answer_in_between_ends_the_question(watch: Watch) -> None:
    watch.answer = b"away"
    watch.lost_after(module.SILENT_S)
    watch.lost_after(module.PROBE_EVERY_S)
    watch.asked[-1].looks = -1000
    watch.now += module.PROBE_EVERY_S
    watch.beat()
    assert watch.lost_after(1) == 0
    assert watch.asked[-1].ended


def test_the_question_is_asked_in_a_process_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SILENT_S", 0.0)
    monkeypatch.setattr(module, "PROBE_EVERY_S", 0.0)
    said: list[str] = []
    own = os.getpid()
    pulse = Pulse(tmp_path / "beat", lambda: "the same" if os.getpid() == own else "another", said.append)
    for _ in range(500):
        pulse.is_lost(1.0)
        if said:
            break
        time.sleep(0.02)
    pulse.forget()
    assert said
    assert said[0].endswith("another")


def test_a_process_that_is_lost_is_killed_and_started_again(tmp_path: Path) -> None:
    endings: list[Ending] = []

    def after(ending: Ending) -> float:
        endings.append(ending)
        if len(endings) == 2:
            os.kill(os.getpid(), signal.SIGTERM)
        return 0.0

    code = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('here', flush=True); time.sleep(600)"
    )
    heard = threading.Event()
    child = Child(
        "node", [sys.executable, "-c", code], tmp_path / "log", after=after, is_lost=lambda seconds: heard.is_set()
    )

    supervise([child], lambda name, line: heard.set())
    assert [ending.code for ending in endings] == [-signal.SIGKILL] * 2
