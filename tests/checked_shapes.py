"""Once this is imported, a call with an array of another shape or type than a function names is an error.

Import it before anything of multiseg.
"""

import dataclasses
import functools
import inspect
import re
import typing
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jaxtyping
import numpy as np
from beartype import beartype
from jaxtyping._array_types import _FixedDim, _NamedDim
from jaxtyping._storage import get_shape_memo

PACKAGE = Path(__file__).parents[1] / "multiseg"
NAMES_SHAPES = re.compile(r"^\s*from (jaxtyping|multiseg\.types) import", re.MULTILINE)


def modules_with_shapes() -> list[str]:
    """The modules whose functions name the shapes of arrays: checks of all modules would cost much time."""
    paths = [path for path in sorted(PACKAGE.rglob("*.py")) if NAMES_SHAPES.search(path.read_text(encoding="utf-8"))]
    return [".".join(path.relative_to(PACKAGE.parent).with_suffix("").parts) for path in paths]


def shapes_checked(thing: Any) -> Any:
    """The function, or the dataclass with its `__init__`, with arguments and answer checked.

    The check is made at the first call: every process of the tests imports all modules and calls few functions. A
    dimension has one size in a call. jaxtyping's own decorator checks arguments twice and binds them in Python.
    """
    if isinstance(thing, type):
        if dataclasses.is_dataclass(thing):
            thing.__init__ = shapes_checked(thing.__init__)
        return thing
    if inspect.isgeneratorfunction(thing):  # its body runs after the call
        return jaxtyped(typechecker=beartype)(thing)
    checked: Callable[..., Any] | None = None
    has_arrays = True

    @functools.wraps(thing)
    def call(*arguments: Any, **named: Any) -> Any:
        nonlocal checked, has_arrays
        if checked is None:
            hints = {name: meant(hint, thing) for name, hint in thing.__annotations__.items()}
            has_arrays = any(map(names_array, hints.values()))
            thing.__annotations__ = hints
            checked = beartype(thing)
        if not has_arrays:
            return checked(*arguments, **named)
        with OWN_SIZES:
            return checked(*arguments, **named)

    return call


def names_array(hint: Any) -> bool:
    """Whether an annotation is of an array, or has one in it."""
    return isinstance(hint, ARRAY) or any(map(names_array, typing.get_args(hint)))


def meant(hint: Any, function: Callable[..., Any]) -> Any:
    """An annotation of a function, or anything where only type checkers understand it, as jaxtyping's own decorator."""
    holder = type("Holder", (), {"__annotations__": {"hint": hint}})
    try:
        return typing.get_type_hints(holder, function.__globals__, include_extras=True)["hint"]
    except Exception:  # noqa: BLE001 (of a name that is not there, or of jaxtyping itself)
        return Any


def is_of(hint: Any, thing: Any) -> bool:
    """What `isinstance` says of an array and a hint, in about half of the time that jaxtyping needs."""
    try:
        sizes = SIZES[hint, thing.__class__, thing.dtype]
    except (KeyError, AttributeError):
        return learnt(hint, thing)
    shape, known, new = thing.shape, get_shape_memo()[0], []
    if len(sizes) != len(shape):
        return False
    for size, meant in zip(shape, sizes, strict=True):
        if meant.__class__ is str and meant not in known:
            new.append((meant, size))
        elif size != known.get(meant, meant):
            return False
    known.update(new)
    return True


def learnt(hint: Any, thing: Any) -> bool:
    """What jaxtyping says, which is kept where all dimensions are numbers or different names and nothing more."""
    is_so = by_jaxtyping(hint, thing)
    if is_so and all(map(is_plain, hint.dims)):
        sizes = [size.name if type(size) is _NamedDim else size.size for size in hint.dims]
        names = [size for size in sizes if type(size) is str]
        if len(set(names)) == len(names):
            SIZES[hint, thing.__class__, thing.dtype] = sizes
    return is_so


def is_plain(size: Any) -> bool:
    return type(size) in (_FixedDim, _NamedDim) and not (size.broadcastable or getattr(size, "treepath", False))


SIZES: dict[tuple[Any, type, Any], list[str | int]] = {}
"""The dimensions of a hint, names and sizes, by the types of arrays and of their numbers that fit it."""
jaxtyped = jaxtyping.jaxtyped
OWN_SIZES = jaxtyped("context")
"""Within it, dimensions have sizes of their own. It has no state, and making one takes longer than most checks."""
ARRAY = type(jaxtyping.Float[np.ndarray, "i"])
by_jaxtyping = ARRAY.__instancecheck__
ARRAY.__instancecheck__ = is_of
# The import hook writes `@jaxtyping.jaxtyped(...)` above what it finds in these modules.
jaxtyping.jaxtyped = lambda **_: shapes_checked
jaxtyping.install_import_hook(modules_with_shapes(), None)
