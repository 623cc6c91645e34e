"""Layouts with one label a case: what that annotation is called."""

from __future__ import annotations

from multiseg.errors import UsageError
from multiseg.store.sources.model import SourceOptions


def only_annotation(options: SourceOptions, default: str) -> str:
    """The name of the one annotation: that for which the user gives codes, else the layout's own.

    Raises:
        UsageError: codes are given for several.
    """
    if len(options.codes) > 1:
        raise UsageError(
            f"--labels gives codes of {', '.join(options.codes)}, but this layout has one label a case. "
            "Give the codes of one."
        )
    return next(iter(options.codes), default)
