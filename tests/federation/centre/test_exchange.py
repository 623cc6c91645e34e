"""What becomes of tasks that come to nothing for good: a person has to do something first."""

from collections.abc import Callable
from pathlib import Path

import pytest
from fake_link import FakeLink, FakeSite, options

from multiseg.errors import FederationError
from multiseg.federation.centre.exchange import Desk, ExchangeOutcome, Failure, exchange
from multiseg.federation.centre.run_events import Event, Held, Refused, Resent
from multiseg.federation.messages import DESCRIBE, Answer, SiteTask

ASH, ELM = FakeSite("ash"), FakeSite("elm")
REMEDY = "Update one of them."


@pytest.fixture
def asked(tmp_path: Path) -> Callable[..., ExchangeOutcome]:
    def ask(link: FakeLink, events: list[Event], quorum: int = 0, minutes: float = 1.0) -> ExchangeOutcome:
        said = options("ash", "elm", schedule={"quorum": quorum, "deadline_minutes": minutes})
        desk = Desk(said, tmp_path, link, events.append, lambda: False, link.clock)
        return exchange(desk, {site: SiteTask(DESCRIBE, "fake") for site in ("ash", "elm")}, desk.terms())

    return ask


def refusing(task: SiteTask) -> Failure:
    return Failure("it refuses the server", REMEDY)


def test_what_a_person_has_to_mend_ends_the_exchange_at_once(asked: Callable[..., ExchangeOutcome]) -> None:
    link, events = FakeLink(ASH, ELM), []
    link.replies["elm", DESCRIBE, 0] = [refusing]
    text = r"elm: it refuses the server\. All finished rounds are saved\. Update one of them\. Then start the same run"
    with pytest.raises(FederationError, match=text) as caught:
        asked(link, events)
    assert "quorum" not in str(caught.value)
    assert link.now < 5, "it is not tried again"
    assert [site for site, *_ in link.sent] == ["ash", "elm"]
    refused = [event for event in events if isinstance(event, Refused)]
    assert refused == [Refused(0, "elm", f"it refuses the server. {REMEDY}")]


def test_a_quorum_goes_on_without_it(asked: Callable[..., ExchangeOutcome]) -> None:
    link = FakeLink(ASH, ELM)
    link.replies["elm", DESCRIBE, 0] = [refusing]
    outcome = asked(link, [], quorum=1)
    assert (list(outcome.answers), outcome.failed) == (["ash"], {"elm": "it refuses the server"})


def test_what_was_mended_since_is_old_news(asked: Callable[..., ExchangeOutcome]) -> None:
    """elm refuses, is updated and asked again before its refusal has come."""
    link = FakeLink(ASH, ELM)
    link.delay["elm"] = 9.0
    link.replies["elm", DESCRIBE, 0] = [refusing]
    link.away["elm"] = [(3.0, 6.0)]
    assert list(asked(link, []).answers) == ["ash", "elm"]
    assert [at for site, *_, at in link.sent if site == "elm"] == [0.0, 6.0]


def test_a_site_that_waits_for_an_approval_is_asked_until_it_has_it(asked: Callable[..., ExchangeOutcome]) -> None:
    """As long as that takes: it is no failure, and is told once."""
    link, events = FakeLink(ASH, ELM), []
    text = "waits for its approval of this run (settings 0123456789ab)"

    def waits(task: SiteTask) -> Answer:
        return Answer(DESCRIBE, "elm", error=text, passing=True, body={"waits": True})

    link.replies["elm", DESCRIBE, 0] = [waits] * 9
    outcome = asked(link, events, minutes=60.0)
    assert list(outcome.answers) == ["ash", "elm"]
    assert len([site for site, *_ in link.sent if site == "elm"]) == 10
    assert [event for event in events if isinstance(event, Held) and event.site == "elm"] == [Held(0, "elm", text)]
    assert not [event for event in events if isinstance(event, Resent | Refused)]


def test_a_site_that_is_long_in_telling_of_itself_is_told(asked: Callable[..., ExchangeOutcome]) -> None:
    link, events = FakeLink(ASH, ELM), []
    link.delay["elm"] = 50.0
    assert list(asked(link, events).answers) == ["ash", "elm"]
    (held,) = [event for event in events if isinstance(event, Held)]
    assert (held.site, held.reason) == ("elm", "has not answered yet (describe): it is busy")
