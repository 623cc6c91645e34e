"""The model card: what a model learnt from, under which licences, how good it is, and what it is not for."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from multiseg.errors import UsageError
from multiseg.evaluation.result_folder import ANSWERED, SUMMARY, not_known
from multiseg.export.licences import UNKNOWN, Terms, licence_of, together
from multiseg.models.saved import ModelInfo
from multiseg.shown import line

TEMPLATE = Path(__file__).with_suffix(".md.jinja")
EVALUATIONS = "evaluation-*"
NUMBERS = {"dice": "Dice", "sensitivity": "sensitivity", "precision": "precision", "hd95_mm": "HD95 mm"}
COLUMNS = ("database", "label", "sequences", "learnt from", "cases", *NUMBERS.values())
LEARNT = {"": "no", "train": "yes, trained on", "val": "yes, chosen by", "not known": "not known"}
TAGS = ("medical", "mri", "brain", "segmentation", "multiseg")


@dataclass(frozen=True)
class Results:
    """The evaluations in a run folder.

    Attributes:
        tables: title and rows of each evaluation of this model.
        stale: the folders of other evaluations.
    """

    tables: tuple[Mapping[str, Any], ...] = ()
    stale: tuple[str, ...] = ()


def results_in(folder: Path, model_sha256: str) -> Results:
    """The evaluations in the folder of a run that are of the model with this SHA-256.

    Raises:
        UsageError: a summary cannot be read, or says how the model answered in a way that is not known.
    """
    tables, stale = [], []
    for summary in sorted(folder.glob(f"{EVALUATIONS}/{SUMMARY}")):
        try:
            content = json.loads(summary.read_text(encoding="utf-8"))
            if content.get("model") != model_sha256:
                stale.append(summary.parent.name)
                continue
            rows = [_row(row) for row in content["summary"]]
            answered, policy = content.get(ANSWERED, {}), str(content["empty_mask_policy"])
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise UsageError(f"{summary} cannot be read ({error!r}). Evaluate again, or move it away.") from error
        if not isinstance(answered, dict):
            raise not_known([f"{ANSWERED} = {answered}"])
        how = ", ".join(f"{name} {value}".removesuffix(" True") for name, value in answered.items())
        title = f"{summary.parent.name} ({how})" if how else summary.parent.name
        tables.append({"title": title, "rows": rows, "policy": policy})
    return Results(tuple(tables), tuple(stale))


def _row(row: Mapping[str, Any]) -> list[str]:
    learnt = LEARNT[row["learnt"] or ""]
    cases = row["num_with_lesion"] + row["num_lesion_free"]
    return [row["database"], row["label"], row["modalities"], learnt, str(cases), *(_number(row[n]) for n in NUMBERS)]


def _number(value: float | None) -> str:
    return "-" if value is None or math.isnan(value) else f"{value:.3f}"


def model_card(info: ModelInfo, parameters: int, results: Results, limits: tuple[str, ...], terms: Terms) -> str:
    """The card as Markdown, with the YAML header of the Hugging Face Hub.

    Args:
        limits: further limits, a sentence each.
        terms: the licences of all data.
    """
    usable = info.usable(tuple(info.axis))
    environment = Environment(
        loader=FileSystemLoader(TEMPLATE.parent), undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True,
        keep_trailing_newline=True, autoescape=False,  # noqa: S701 (Markdown, whose cells `_cell` escapes)
    )  # fmt: skip
    environment.filters.update(json=lambda value: json.dumps(value, ensure_ascii=False), cell=_cell)
    return environment.get_template(TEMPLATE.name).render(
        info=info,
        parameters=parameters,
        usable=usable,
        untrained=[name for name in info.axis if name not in usable],
        spacing=" x ".join(f"{mm:g}" for mm in info.spacing_mm),
        databases=_databases(info),
        terms=terms,
        hub_licence=_hub_licence(info, terms),
        tags=[*TAGS, *sorted({str(about.get("pathology", "")) for about in info.databases.values()} - {""})],
        columns=COLUMNS,
        evaluations=results.tables,
        stale=results.stale,
        limits=limits,
    )


def _databases(info: ModelInfo) -> list[dict[str, Any]]:
    return [
        {
            "name": name,
            "pathology": about.get("pathology", ""),
            "cases": about.get("num_cases", 0) or "not known",
            "sequences": [sequence for sequence in info.axis if name in info.trained_on.get(sequence, ())],
            "licence": _licence(about),
        }
        for name, about in info.databases.items()
    ]


def terms_of(info: ModelInfo) -> Terms:
    """The licences of a model's databases together."""
    return together({name: _licence(about) for name, about in info.databases.items()})


def _licence(about: Mapping[str, Any]) -> str:
    return str(about.get("licence") or "")


def _hub_licence(info: ModelInfo, terms: Terms) -> str:
    """What the hub shows: the licence that was stated for the weights, or else the strictest of the data."""
    if info.licence:
        stated = licence_of(info.licence)
        return stated.hub if stated else "other"
    return terms.strictest.hub if terms.strictest else UNKNOWN


def _cell(text: object) -> str:
    """A text in one line that cannot end a cell of a table or begin other Markdown."""
    escaped = line(text)
    for sign in "\\|<>`*_[]#":
        escaped = escaped.replace(sign, f"\\{sign}")
    return escaped
