"""Once this is imported, a call with an array of another shape or type than a function names is an error.

Import it before anything of multiseg.
"""

import re
from pathlib import Path

from jaxtyping import install_import_hook

PACKAGE = Path(__file__).parents[1] / "multiseg"
NAMES_SHAPES = re.compile(r"^\s*from (jaxtyping|multiseg\.types) import", re.MULTILINE)


def modules_with_shapes() -> list[str]:
    """The modules whose functions name the shapes of arrays: checks of all modules would cost much time."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if NAMES_SHAPES.search(path.read_text(encoding="utf-8"))]
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]


install_import_hook(modules_with_shapes(), "beartype.beartype")
