"""Flags that many verbs have."""

from __future__ import annotations

from typing import Annotated

import typer

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
Overwrite = Annotated[
    bool, typer.Option("--overwrite", help="Write over files that are there; inputs and read-only files stay.")
]
StoreUrl = Annotated[str, typer.Option(help="The store: a folder such as brain.zarr, or a URL.")]
Device = Annotated[str, typer.Option(help="auto, cpu, cuda or cuda:N.")]
DryRun = Annotated[bool, typer.Option("--dry-run", help="Only say what would be done.")]
ThisStore = Annotated[str, typer.Argument(help="The store, by path or URL.")]
