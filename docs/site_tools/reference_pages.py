"""Reference pages: the public Python names, every setting of a run file, and the JSON schemas."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any

import multiseg

PUBLIC = {
    "Data in": """ingest find_source find_manifest find_database IngestOptions SourceOptions PatternSource Workers
        DatabaseFiles CaseFiles LabelSchema""",
    "The store": "open_store select table",
    "Batches": "PatchStream Batch StreamOptions DrawOptions Share ModalityAxis LabelSpace",
    "Training": """train TrainOptions ModelOptions FitOptions OptimiserOptions AugmentOptions StartOptions MetaOptions
        TrackOptions""",
    "Answers": "load_model predict PredictOptions evaluate EvaluateOptions ScoringOptions compare CompareOptions",
}
"""The public names by what they are for."""

MORE = {
    "augment": "[Augmentation](../augment.md) says what each of these does, with the presets and pictures.",
    "fit": "More on each in [Training](../training.md).",
    "model": "The networks are listed in [Networks](../models.md).",
}
"""What stands above the settings of a table."""


def python_page() -> str:
    """All public names, each with a line for mkdocstrings, which reads their docstrings.

    Raises:
        ValueError: a public name is in no group, or a group has a name that is not public.
    """
    grouped = [name for names in PUBLIC.values() for name in names.split()]
    if sorted(grouped) != sorted(multiseg.__all__):
        raise ValueError(f"groups of names in {__file__}: {sorted(set(grouped) ^ set(multiseg.__all__))} differ")
    parts = [
        "# Python",
        "All names are those of the package: `multiseg.train`. Importing it costs nothing until a name is used.",
    ]
    for title, names in PUBLIC.items():
        parts += [f"## {title}", *(f"::: multiseg.{multiseg._HOMES[name]}.{name}" for name in names.split())]
    return "\n\n".join(parts) + "\n"


def run_file_page() -> str:
    """Every setting of a run file with its default and its meaning, from the classes that hold them."""
    from multiseg.training.run_folder import TrainOptions

    parts = [
        "# Run file",
        "One TOML file is one training: `multiseg train --run run.toml`. `multiseg train STORE --print-config` prints "
        "all settings with the defaults for the machine at hand, which differ from those below where there is no card.",
    ]
    for name, options in _tables(TrainOptions, ""):
        heading = f"`[{name}]`" if name else "At the top"
        parts += [f"## {heading}", *filter(None, [MORE.get(name)])]
        parts += ["| setting | default | meaning |\n|---|---|---|\n" + "\n".join(_rows(options))]
    return "\n\n".join(parts) + "\n"


def _tables(options: type, name: str) -> Iterator[tuple[str, type]]:
    """The classes of options by the names of their tables."""
    yield name, options
    for one in fields(options):
        value = one.default if one.default is not MISSING else None
        if is_dataclass(value):
            yield from _tables(type(value), f"{name}.{one.name}".strip("."))


def _rows(options: type) -> Iterator[str]:
    said = attributes(options)
    for one in fields(options):
        default = one.default_factory() if one.default_factory is not MISSING else one.default
        if is_dataclass(default):
            continue
        shown = "" if default is MISSING else f"`{toml(default)}`"
        meaning = " ".join(said.get(one.name, "").split()).replace("|", "\\|")
        yield f"| `{one.name}` | {shown} | {meaning} |"


def attributes(options: type) -> dict[str, str]:
    """What the docstring of a class says of each attribute: "name: text", or "name, other: text"."""
    _, _, below = inspect.getdoc(options).partition("Attributes:\n")  # type: ignore[union-attr]
    block = re.split(r"^\S", below, maxsplit=1, flags=re.MULTILINE)[0]
    found = {}
    for entry in re.split(r"^ {4}(?=\w)", block, flags=re.MULTILINE)[1:]:
        names, _, text = entry.partition(":")
        found |= dict.fromkeys((name.strip() for name in names.split(",")), text)
    return found


def toml(value: Any) -> str:
    """A value as a run file has it; what is not set is empty."""
    if value is None:
        return "not set"
    if isinstance(value, tuple | list):
        return json.dumps(list(value))
    return (
        json.dumps(value)
        if isinstance(value, str | bool | dict)
        else f"{value:g}"
        if isinstance(value, float)
        else str(value)
    )


def schemas_page(folder: Path) -> str:
    """All JSON schemas."""
    parts = [
        "# JSON schemas",
        "What commands print with `--json`, as JSON schemas (draft 2020-12). The files stand in `docs/schemas`; tests "
        "check that the commands keep to them.",
    ]
    for path in sorted(folder.glob("*.json")):
        text = path.read_text(encoding="utf-8")
        parts += [f"## {path.stem}", f"{json.loads(text)['title']}.", f"```json\n{text.strip()}\n```"]
    return "\n\n".join(parts) + "\n"
