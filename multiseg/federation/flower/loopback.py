"""Calls within one machine: they never go by a proxy, whatever the environment says."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

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
