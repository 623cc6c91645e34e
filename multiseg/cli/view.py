"""Verb: view."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite
from multiseg.errors import UsageError


def view_command(
    store: Annotated[str, typer.Argument(help="The store.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of the pictures.")] = Path("pictures"),
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None,
    case: Annotated[str, typer.Option(help="Only this case, as DATABASE/CASE.")] = "",
    split: Annotated[str, typer.Option(help="Only train, val or test.")] = "",
    rows: Annotated[int, typer.Option(help="Cases in a picture, at most.", min=1)] = 6,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Draw what a store holds: a PNG a database, a row a case, lesions outlined and structures in colour.

    Examples:

    multiseg view brain.zarr -o pictures

    multiseg view brain.zarr --case ms/patient07
    """
    from multiseg.cli.console import output, print_json
    from multiseg.evaluation.gallery import save_gallery
    from multiseg.files import check_files
    from multiseg.store.catalogue import select
    from multiseg.store.reader import open_store

    if case and (database or split):
        raise UsageError(f"--case {case} names one case; leave out --database and --split.")
    held = open_store(store)
    if case:
        name, _, own = case.partition("/")
        drawn = {out / f"{name}-{own}.png": ([held[name][own]], case)}
    else:
        chosen = select(held, database or (), split=split)
        names = dict.fromkeys(one.database for one in chosen)
        drawn = {out / f"{n}.png": ([one for one in chosen if one.database == n][:rows], n) for n in names}
    check_files(drawn, overwrite=overwrite)
    written = [save_gallery(path, held, cases, title, overwrite) for path, (cases, title) in drawn.items()]
    if as_json:
        print_json({"pictures": [str(path) for path in written]})
    else:
        output().print("\n".join(map(str, written)) or f"{store} holds no such case.", soft_wrap=True)
    return 0 if written else 4
