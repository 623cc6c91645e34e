"""The JSON that a command prints, held against its schema in docs/schemas."""

import json
from functools import cache
from pathlib import Path
from typing import Any

import jsonschema

SCHEMAS = Path(__file__).parents[1] / "docs" / "schemas"


@cache
def _validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(json.loads((SCHEMAS / f"{name}.json").read_text(encoding="utf-8")))


def checked(text: str, name: str) -> Any:
    """The one JSON document that a text is, if it fits the schema of this name."""
    content = json.loads(text)
    error = jsonschema.exceptions.best_match(_validator(name).iter_errors(content))
    assert error is None, f"{error.json_path}: {error.message}"
    return content
