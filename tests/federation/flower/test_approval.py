"""Which server a site answers."""

import pytest

from multiseg.federation.flower.approval import Approval, why_refused

OLD, NEW = "0a" * 32, "1b" * 32


def test_the_installed_app_is_answered_if_it_is_approved() -> None:
    assert why_refused(NEW, Approval((OLD, NEW), NEW, "2.0")) is None


@pytest.mark.parametrize(
    ("asked", "approved", "to_server", "to_person"),
    [
        (NEW, (OLD,), "it runs the same (multiseg 2.0 with the app 1b1b1b1b1b1b)", "does not hold. It is the app of"),
        (OLD, (NEW,), "multiseg 2.0 with the app 1b1b1b1b1b1b, but the server's app is 0a0a0a0a0a0a", "not hold it."),
        (OLD, (OLD, NEW), "multiseg 2.0 with the app 1b1b1b1b1b1b, but the server's app is 0a0a", "holds it, but"),
        (OLD, (), "multiseg 2.0 with the app 1b1b1b1b1b1b, but the server's app is 0a0a0a0a0a0a", "not hold it."),
    ],
)
def test_every_other_is_refused(asked: str, approved: tuple[str, ...], to_server: str, to_person: str) -> None:
    refusal = why_refused(asked, Approval(approved, NEW, "2.0"))
    assert refusal is not None
    assert to_server in refusal.to_server
    assert to_person in refusal.to_person
    assert f"the server runs the app {asked}" in refusal.to_person
    assert "write it into `approved`" in refusal.to_person
