"""Power that is lost at any moment of an enrolment leaves keys, certificates and sites that the next command ends."""

from collections.abc import Callable
from pathlib import Path

import pytest
from power import Recorder, recorded
from test_authority import HOST, connects, kept, trusting

from multiseg.federation.identity import authority
from multiseg.federation.identity.enrol import enrol_server, enrol_site, revoke_site, sites
from multiseg.federation.identity.home import read_home

DISKS = {"keeps names": 0.0, "loses names": 1.0, "loses some names": 0.5}


def lost_folders(disk: Recorder, place: Path) -> list[tuple[str, Path]]:
    """The folder as it is found after a loss of power at each moment, on each disk."""
    return [
        (f"{name}, after {disk.events[moment - 1]}", disk.lost(moment, place / f"{name}-{moment}", share))
        for name, share in DISKS.items()
        for moment in disk.moments()
    ]


@pytest.fixture
def centre(tmp_path: Path) -> Path:
    folder = tmp_path / "centre"
    enrol_server(folder, [HOST], {})
    enrol_site(folder, "alder", tmp_path / "alder-kit")
    return folder


def watched(folder: Path, patch: pytest.MonkeyPatch, work: Callable[[], object]) -> Recorder:
    with recorded(folder, patch) as disk:
        work()
    return disk


def test_a_first_enrolment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "centre"
    folder.mkdir()
    disk = watched(folder, monkeypatch, lambda: enrol_server(folder, [HOST], {}))
    for told, lost in lost_folders(disk, tmp_path / "lost"):
        enrol_server(lost, [HOST], {})
        assert connects(lost, trusting(lost / "ca.crt")), told
        assert len((lost / "superexec.secret").read_bytes()) == 96, told
    whole = disk.after(len(disk.events), 1.0)
    assert {"ca.crt", "ca.key", "server.crt", "server.key", "link.crt", "link.key", "home.toml"} <= whole.keys()


@pytest.mark.slow
@pytest.mark.parametrize("now", [False, True])
def test_a_new_authority(centre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, now: bool) -> None:
    """Without `now` a site that has the former ca.crt goes on connecting, before the next command, too."""
    made, old = read_home(centre), kept(centre, "old")
    former = (centre / "ca.key").read_bytes()
    disk = watched(centre, monkeypatch, lambda: authority.change(made, now))
    for told, lost in lost_folders(disk, tmp_path / "lost"):
        if not now:
            assert connects(lost, trusting(old)), told
        enrol_server(lost, [], {})
        assert connects(lost, trusting(lost / "ca.crt")), told
        if not now:
            assert connects(lost, trusting(old)), told
        assert sites(lost) == ["alder"], told
    assert disk.after(len(disk.events), 1.0)["ca.key"] == (centre / "ca.key").read_bytes() != former


def test_a_kit_and_a_revocation(centre: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The sites are those of before or of after, the kit is there whole or not at all."""
    disk = watched(tmp_path, monkeypatch, lambda: enrol_site(centre, "birch", tmp_path / "birch-kit"))
    for share in DISKS.values():
        for moment in disk.moments():
            lost = disk.lost(moment, tmp_path / "lost", share)
            assert sites(lost / "centre") in (["alder"], ["alder", "birch"])
            kit = {path.name: path.read_bytes() for path in (lost / "birch-kit").glob("*")}
            assert all(content == (tmp_path / "birch-kit" / name).read_bytes() for name, content in kit.items())
    found = disk.after(len(disk.events), 1.0)
    for name in ("birch-kit/site.key", "birch-kit/site.toml", "birch-kit.tar.gz", "centre/sites.json"):
        assert found[name] == (tmp_path / name).read_bytes() != b"", name
    disk = watched(centre, monkeypatch, lambda: revoke_site(centre, "birch"))
    assert sites(disk.lost(len(disk.events), tmp_path / "lost", 1.0)) == ["alder"]
