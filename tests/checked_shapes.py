"""Once this is imported, a call with an array of another shape or type than a function names is an error.

Import it before anything of multiseg.
"""

import functools
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from beartype import beartype
from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parents[1] / "multiseg"
NAMES_SHAPES = re.compile(r"^\s*from (jaxtyping|multiseg\.types) import", re.MULTILINE)


def modules_with_shapes() -> list[str]:
    """The modules whose functions name the shapes of arrays: checks of all modules would cost much time."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if NAMES_SHAPES.search(path.read_text(encoding="utf-8"))]
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]


def check_when_called(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function with its arguments and its answer checked. The checks are made at its first call.

    Every process of the tests imports all modules and calls few of their functions: checks of all took it seconds.
    """
    checked: Callable[..., Any] | None = None

    @functools.wraps(function)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal checked
        if checked is None:
            checked = beartype(function)
        return checked(*arguments, **named)

    return call


install_import_hook(modules_with_shapes(), f"{__name__}.{check_when_called.__name__}")
