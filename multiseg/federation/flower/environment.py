"""The environment of Flower's processes, and of calls to them: within one machine none goes by a proxy."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

OF_FLOWER = {
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "FLWR_DISABLE_RUNTIME_DEPENDENCY_INSTALLATION": "1",
    "PYTHONUNBUFFERED": "1",
}
"""Flower tells nobody of itself and installs nothing, and its logs are written at once."""
NO_PROXY = {"NO_PROXY": "*", "no_proxy": "*"}
"""The environment of a process that speaks with this machine alone. It wins over every spelling of the others."""


@contextmanager
def without_proxies() -> Iterator[None]:
    """In this block an HTTP client is made that uses no proxy: clients read the environment when they are made."""
    before = {name: os.environ.get(name) for name in NO_PROXY}
    os.environ.update(NO_PROXY)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value
