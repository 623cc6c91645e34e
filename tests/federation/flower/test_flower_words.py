"""Flower still says what is read in its logs: each of its words, found where the installed flwr writes it."""

import importlib
import inspect
import logging
from importlib.metadata import version
from pathlib import Path
from string import Formatter
from types import ModuleType

import pytest

from multiseg.federation.flower import flower_words as words
from multiseg.federation.flower.submit import Sieve

NODE, SERVER_APP = "flwr.supernode.start_client_internal", "flwr.superlink.runtime.run_serverapp"
HTTP_RETRY, CORE = "flwr.supercore.retry.http_retry", "flwr.supercore.corestate.sql_corestate"


def source(name: str) -> str:
    module: ModuleType = importlib.import_module(name)
    return Path(inspect.getfile(module)).read_text(encoding="utf-8")


def test_the_installed_flower_is_the_one_whose_words_these_are() -> None:
    assert version("flwr") == words.VERSION


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (NODE, f'"{words.NODE_ID} %s"'),
        (HTTP_RETRY, f'"{words.TRIES_AGAIN}'),
        (HTTP_RETRY, f'"{words.CONNECTED_AGAIN}'),
        (NODE, f'{words.CLOSED_BY_SERVER}."'),
        (NODE, f'"{words.ANSWER_IS_GONE[0]} %s message'),
        (NODE, f'"{words.ANSWER_IS_GONE[1]}"'),
        (NODE, f"{words.ANSWER_IS_GONE[2]} message %s"),
        *((NODE, f'"{text}') for text in words.MESSAGE_IS_LOST),
        (CORE, f'"{words.RUN_IS_LOST[0]}'),
        (SERVER_APP, f'"{words.RUN_IS_LOST[1]}'),
        ("flwr.cli.install", 'f"Successfully installed '),
    ],
)
def test_flower_still_says_it(name: str, text: str) -> None:
    assert text in source(name)


def test_flower_writes_the_code_of_a_refusal_as_it_is_read() -> None:
    from flwr.supercore.error.base import ApiErrorCode

    assert ApiErrorCode.FLEET_NODE_ACTIVATION_FAILED == words.STILL_ONLINE
    template = words.code_in_words(7).replace("7", "{flower_error.code}")
    assert [field for _, field, _, _ in Formatter().parse(template)] == ["flower_error.code", None]
    assert f'f"{template} ' in source("flwr.supernode.fleet_http_connection")


@pytest.mark.parametrize("level", [logging.DEBUG, logging.INFO, logging.WARNING, logging.ERROR])
@pytest.mark.parametrize("colored", [True, False])
def test_the_lines_that_flower_writes_are_known(level: int, colored: bool) -> None:
    """What Flower's own handler makes of a message: none of it gets through to whoever follows a run."""
    from flwr.supercore.logger import ConsoleHandler

    written = ConsoleHandler(colored=colored).format(logging.LogRecord("flwr", level, "", 0, "a message", (), None))
    plain = words.COLOURS.sub("", written)
    assert bool(words.OWN_LINE.match(plain)) == (level != logging.ERROR)
    assert bool(words.FAILURE.match(plain)) == (level == logging.ERROR)
    heard: list[str] = []
    sieve = Sieve(heard.append)
    sieve(f"round 1: asked ash\n{written}\n")
    assert heard == ["round 1: asked ash\n"]
