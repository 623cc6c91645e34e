"""The environment of Flower's processes and of calls to them: calls within a machine use no proxy."""

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
"""No telemetry, no installing, and unbuffered logs."""
NO_PROXY = {"NO_PROXY": "*", "no_proxy": "*"}
"""For a process that calls only this machine. It overrides all other proxy variables."""


@contextmanager
def without_proxies() -> Iterator[None]:
    """HTTP clients made in this block use no proxy: they read the environment when they are made."""
    before = {name: os.environ[name] for name in NO_PROXY if name in os.environ}
    os.environ.update(NO_PROXY)
    try:
        yield
    finally:
        for name in NO_PROXY:
            del os.environ[name]
        os.environ.update(before)
