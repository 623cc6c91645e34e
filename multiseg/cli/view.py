"""Verb: view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite
from multiseg.errors import UsageError


def view_command(
    store: Annotated[str, typer.Argument(help="The store.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the pictures.")] = Path("pictures"),
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None,
    case: Annotated[str, typer.Option(help="Only this case, as DATABASE/CASE.")] = "",
    split: Annotated[str, typer.Option(help="Only train, val or test.")] = "",
    rows: Annotated[int, typer.Option(help="Maximum number of cases in a picture.", min=1)] = 6,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Draw the cases of a store: one PNG per database, one row per case, lesions outlined, structures in colour.

    Examples:

    multiseg view brain.zarr -o pictures

    multiseg view brain.zarr --case ms/patient07
    """
    from multiseg.cli.console import output, print_json
    from multiseg.evaluation.panels import save_gallery
    from multiseg.files import check_files
    from multiseg.store.catalogue import select
    from multiseg.store.reader import Case, open_store

    if case and (database or split):
        raise UsageError(f"--case {case} names one case; leave out --database and --split.")
    opened = open_store(store)
    pictures: dict[str, list[Case]] = {}
    if case:
        database_name, _, case_name = case.partition("/")
        pictures[case] = [opened[database_name][case_name]]
    else:
        for selected in select(opened, database or (), split=split):
            pictures.setdefault(selected.database, []).append(selected)
    files = {out / f"{title.replace('/', '-', 1)}.png": title for title in pictures}
    check_files(files, overwrite=overwrite)
    written = [save_gallery(file, opened, pictures[title][:rows], title, overwrite) for file, title in files.items()]
    if as_json:
        print_json({"pictures": [str(path) for path in written]})
    else:
        output().print("\n".join(map(str, written)) or f"{store} has no such case.", soft_wrap=True)
    return 0 if written else 4
