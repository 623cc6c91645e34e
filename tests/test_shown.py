"""Words from elsewhere as a person is shown them."""

import pytest

from multiseg.shown import cell, line, lines

HOSTILE = "ok\x1b[31m\x1b]0;title\x07\nround 9: all is well\r\x9b2J\u202egpj.exe\u2066\u200b\ud800\x00end"
CLEANED = r"ok\x1b[31m\x1b]0;title\x07\nround 9: all is well\r\x9b2J\u202egpj.exe\u2066\u200b\ud800\x00end"


def test_a_line_is_one_line_of_what_is_seen() -> None:
    assert line(HOSTILE) == CLEANED
    assert line(HOSTILE).isprintable()
    assert line("Zürich\u00a0é 脑 100 µm") == "Zürich\u00a0é 脑 100 µm"


def test_a_text_keeps_its_lines_and_nothing_else() -> None:
    assert lines(HOSTILE) == CLEANED.replace(r"\n", "\n")
    assert lines("a\r\nb\rc") == "a\nb\\rc"


def test_what_is_long_says_how_long_it_was() -> None:
    assert line("x" * 1200) == "x" * 1000 + " ... (1200 characters)"
    assert line("x" * 1000) == "x" * 1000
    assert lines("x\n" * 4, 2) == "x\n ... (8 characters)"


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ('=HYPERLINK("http://x","y")', '\'=HYPERLINK("http://x","y")'),
        ("+1+1", "'+1+1"),
        ("-1+1", "'-1+1"),
        ("@SUM(1)", "'@SUM(1)"),
        ("  =1", "'  =1"),
        ("\t=1", r"\t=1"),
        ("＝1", "'＝1"),
        ("a\n=1", r"a\n=1"),
        ("-1.5", "-1.5"),
        ("+1e-3", "+1e-3"),
        ("plain", "plain"),
        (-1.5, -1.5),
        (0, 0),
        ("", ""),
    ],
)
def test_a_cell_is_a_number_or_a_text_and_never_a_formula(value: object, shown: object) -> None:
    assert cell(value) == shown
