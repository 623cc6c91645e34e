"""What licences ask for together; an unknown one stays unknown."""

import pytest

from multiseg.export.licences import LICENCES, licence_of, together


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("CC BY-SA 4.0", "CC-BY-SA-4.0"),
        ("cc_by_nc_4.0", "CC-BY-NC-4.0"),
        (" CC0 ", "CC0-1.0"),
        ("ODC-By", "ODC-By-1.0"),
    ],
)
def test_spellings_of_known_licences(text: str, name: str) -> None:
    found = licence_of(text)
    assert found is not None
    assert found.name == name


@pytest.mark.parametrize("text", ["", "CC-BY", "CC-BY-SA", "free for research", "see website", "MIT"])
def test_what_is_not_known_is_not_guessed(text: str) -> None:
    assert licence_of(text) is None


def test_the_hub_names_every_licence_in_small_letters() -> None:
    assert all(licence.hub == licence.hub.lower() for licence in LICENCES.values())


def test_the_strictest_asks_for_all_that_the_others_ask() -> None:
    terms = together({"a": "CC0", "b": "CC-BY-4.0", "c": "CC BY-NC-SA 4.0"})
    assert terms.strictest is not None
    assert terms.strictest.name == "CC-BY-NC-SA-4.0"
    assert terms.conditions == ("attribution", "share alike", "non-commercial use only")


@pytest.mark.parametrize(
    ("texts", "unknown"),
    [
        (["CC-BY-SA-4.0", "CC-BY-NC-4.0"], ()),  # neither asks for both
        (["CC-BY-SA-4.0", "CC-BY-NC-SA-4.0"], ()),  # two share-alike licences
        (["CC-BY-4.0", "ask us"], ("1",)),
        ([], ()),
    ],
)
def test_where_no_licence_covers_the_others_none_is_named(texts: list[str], unknown: tuple[str, ...]) -> None:
    terms = together({str(number): text for number, text in enumerate(texts)})
    assert terms.strictest is None
    assert terms.unknown == unknown
