"""Flags that many verbs share."""

from __future__ import annotations

from typing import Annotated

import typer

from multiseg.errors import UsageError

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Overwrite existing files, except inputs and read-only files.")
]
StoreUrl = Annotated[str, typer.Option(help="The store: a folder such as brain.zarr, or a URL.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only print what would be done.")]
FromRound = Annotated[
    int | None, typer.Option("--from-round", help="Return to the state after this round, and resume from there.", min=1)
]
PrintConfig = Annotated[
    bool, typer.Option("--print-config", help="Print all settings (TOML, or with --json JSON) and exit.")
]
ThisStore = Annotated[str, typer.Argument(help="The store, by path or URL.")]
Fuse = Annotated[
    str,
    typer.Option(help="Combine two models: lesion-over-tissue puts the lesions of one over the tissues of the other."),
]
Ensemble = Annotated[
    str, typer.Option(help="How several models answer: mean (of their probabilities) or vote (the majority).")
]
Tta = Annotated[
    bool, typer.Option("--tta", help="Average the probabilities of the image and of its left-right mirror image.")
]
Memory = Annotated[
    str,
    typer.Option(
        "--memory",
        help="The most memory for a process, such as 4GB; if it is too little, an error says how much is.",
    ),
]
Adapt = Annotated[
    str, typer.Option(help="on: adapt the anatomy branch of a two_branch model to each patient's lesion first; or off.")
]


AnsweringBranch = Annotated[
    str,
    typer.Option(
        "--branch",
        help="What of a two_branch or two_unets model answers: anatomy (tissues, also under lesions), lesion, or "
        "pasted (lesions of one branch over tissues of the other). Default: the fusion of two_branch, pasted of "
        "two_unets.",
    ),
]


def checked_adapt(adapt: str) -> bool:
    """Whether --adapt is on; raises UsageError for any other word than on and off."""
    if adapt not in ("on", "off"):
        raise UsageError(f"--adapt is {adapt!r}: give on or off.")
    return adapt == "on"


def checked_ensemble(ensemble: str) -> str:
    """The rule of --ensemble, "" if there is none; raises UsageError for any other word than mean and vote."""
    if ensemble not in ("", "mean", "vote"):
        raise UsageError(f"--ensemble is {ensemble!r}: give mean or vote.")
    return ensemble
