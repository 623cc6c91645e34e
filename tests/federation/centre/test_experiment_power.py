"""Power that is lost at any moment of a run leaves the experiment after the last round that was told, or later."""

from pathlib import Path

import pytest
from power import recorded
from test_experiment_folder import OPTIONS, SITES, FakeLink

from multiseg.federation.centre.earlier import kept_rounds
from multiseg.federation.centre.experiment_folder import opened
from multiseg.federation.centre.rounds import run
from multiseg.federation.centre.run_events import Event, RoundDone

DISKS = (0.0, 1.0, 0.5)
"""Shares of the names that were not flushed and are lost."""
MOMENTS = 12
"""Of each disk, evenly spaced."""


@pytest.mark.slow
def test_power_lost_at_any_moment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder, after = tmp_path / "run", {}
    folder.mkdir()
    with recorded(folder, monkeypatch) as disk:

        def tell(event: Event) -> None:
            if isinstance(event, RoundDone):
                disk.note("done", event.round)
                after[event.round] = (folder / "last.safetensors").read_bytes()

        link = FakeLink(*SITES)
        assert run(OPTIONS, link, folder, tell, clock=link.clock).finished
    assert after.keys() == {1, 2}
    moments = [moment for moment in disk.moments() if moment > [event[0] for event in disk.events].index("done")]
    for names_lost in DISKS:
        for moment in moments[:: max(1, len(moments) // MOMENTS)]:
            told = max(event[1] for event in disk.events[:moment] if event[0] == "done")
            lost = disk.lost(moment, tmp_path / "lost", names_lost)
            state = opened(lost)
            assert state is not None
            assert told <= state.round <= 2, (moment, disk.events[moment - 1])
            if not state.final:
                assert (lost / "last.safetensors").read_bytes() == after[state.round], (moment, disk.events[moment - 1])
            assert set(kept_rounds(lost)) <= {1, 2}
            for number in kept_rounds(lost):
                kept = opened(lost / "earlier" / f"{number:06d}")
                assert kept is not None
                assert kept.round == number
