"""Verb: pack."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.export.model_package import Handover


def pack_command(
    model: Annotated[Path, typer.Argument(help="A run folder or a model file.")],
    out: Annotated[Path | None, typer.Option("--out", "-o", help="File for the package (.multiseg).")] = None,
    hf: Annotated[
        Path | None, typer.Option("--hf", help="Folder for the same files as the Hugging Face Hub expects them.")
    ] = None,
    keep_digests: Annotated[
        bool,
        typer.Option(
            "--keep-digests", help="Keep the digests of the training scans: to recognise them, in your own hospital."
        ),
    ] = False,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Pack a model for others: weights, description, model card and checksums in one file.

    predict, evaluate, finetune and export read the package like a run. Its model card has the databases with their
    licences, and the results of the evaluations in the run folder. The digests of the training scans are left out: by
    them, anyone who has such a scan could tell that it was among them.

    Examples:

    multiseg pack runs/joint -o joint.multiseg

    multiseg pack runs/joint --hf joint-for-the-hub
    """
    from multiseg.cli.console import messages, output, print_json
    from multiseg.export.model_package import handover, write_hub_folder, write_package
    from multiseg.models.saved import model_path

    if out is None and hf is None:
        raise UsageError("say where to: -o model.multiseg, or --hf DIR.")
    inputs = [model_path(model)]
    handed = handover(model, keep_digests)
    if out is not None:
        write_package(handed, out, inputs, overwrite)
    if hf is not None:
        write_hub_folder(handed, hf, inputs, overwrite)
    if as_json:
        print_json({"path": None if out is None else str(out), "hub": None if hf is None else str(hf), **_json(handed)})
        return 0
    for text in handed.doubts:
        messages().print(text, soft_wrap=True, markup=False)
    for name in handed.results.stale:
        text = f"{name} is left out of the model card: it is of another state of the model. Evaluate again."
        messages().print(text, soft_wrap=True, markup=False)
    for path in filter(None, (out, hf)):
        output().print(f"{path}: {', '.join(handed.files)}", soft_wrap=True, highlight=False)
    return 0


def _json(handed: Handover) -> dict[str, Any]:
    from multiseg.export.model_card import terms_of
    from multiseg.export.model_package import sha256_of

    terms = terms_of(handed.info)
    return {
        "files": {name: {"sha256": sha256_of(data), "bytes": len(data)} for name, data in handed.files.items()},
        "licence": {
            "strictest": terms.strictest.name if terms.strictest else None,
            "conditions": list(terms.conditions),
            "unknown": list(terms.unknown),
        },
        "evaluations": [table["title"] for table in handed.results.tables],
        "left_out": list(handed.results.stale),
        "doubts": list(handed.doubts),
    }
