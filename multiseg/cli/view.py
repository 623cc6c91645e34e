"""Verb: view."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from multiseg.cli.shared_flags import AsJson, Overwrite
from multiseg.cli.source_flags import FolderFlags, confirmed_databases
from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.labels import LabelSpace
    from multiseg.store.reader import Case, Store
    from multiseg.types import Codes
    from multiseg.viewer.case_view import Cases
    from multiseg.viewer.stored_cases import StoredCases

STORE, RUN, PREDICTION = "store", "run", "prediction"
PICTURE_PANEL = "Pictures instead of a page"


@dataclass(frozen=True)
class PageFlags:
    """How the page is served."""

    port: Annotated[int, typer.Option(help="Port on this computer (0: a free one).", min=0, max=65535)] = 0
    no_browser: Annotated[bool, typer.Option("--no-browser", help="Print the address only.")] = False


@dataclass(frozen=True)
class PictureFlags:
    """Pictures as files."""

    png: Annotated[
        Path | None, typer.Option(help="Write PNG files into this folder.", rich_help_panel=PICTURE_PANEL)
    ] = None
    rows: Annotated[
        int, typer.Option(help="Maximum number of cases in a picture.", min=1, rich_help_panel=PICTURE_PANEL)
    ] = 6


@dataclass(frozen=True)
class PlaceFlags:
    """What belongs to a run or to a folder of predictions."""

    source: Annotated[
        str, typer.Option(help="What predict was given: a store, a folder or a manifest; of a run another store.")
    ] = ""
    evaluation: Annotated[
        Path | None, typer.Option(help="Folder of an evaluation of the run (default: its newest).")
    ] = None


def view_command(
    place: Annotated[
        str,
        typer.Argument(metavar="STORE|RUN|PREDICTION", help="A store, a run folder, or a folder that predict wrote."),
    ],
    *,
    places: PlaceFlags,
    folder: FolderFlags,
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None,
    case: Annotated[str, typer.Option(help="Only this case, as DATABASE/CASE.")] = "",
    split: Annotated[str, typer.Option(help="Only train, val or test.")] = "",
    page: PageFlags,
    pictures: PictureFlags,
    overwrite: Overwrite = False,
    as_json: AsJson = False,
) -> int:
    """Look at cases in the browser: sequences side by side, with annotations and findings; or draw them as PNG.

    The page is served on this computer only, to the one browser that opens the printed address first. Ctrl-C ends it.

    Examples:

    multiseg view brain.zarr

    multiseg view brain.zarr --database ms --no-browser --port 8765

    multiseg view runs/joint

    multiseg view predicted --source brain.zarr

    multiseg view brain.zarr --png pictures

    multiseg view brain.zarr --png pictures --case ms/patient07
    """
    if case and (database or split):
        raise UsageError(f"--case {case} names one case; leave out --database and --split.")
    chosen = Chosen(tuple(database or ()), case, split)
    kind = _kind(place)
    _check_flags(kind, places, folder, pictures)
    if pictures.png is not None:
        return _draw(place, chosen, pictures, overwrite, as_json)
    if overwrite or as_json:
        raise UsageError("--overwrite and --json belong to --png: leave them out.")
    if kind == PREDICTION:
        return serve(_predicted(Path(place), chosen, places, folder), page)
    return serve(_evaluated(Path(place), chosen, places) if kind == RUN else _stored(place, chosen), page)


def _kind(place: str) -> str:
    from multiseg.cli.info import is_model
    from multiseg.viewer.predicted_cases import is_predictions

    if is_predictions(Path(place)):
        return PREDICTION
    return RUN if is_model(Path(place)) else STORE


def _check_flags(kind: str, places: PlaceFlags, folder: FolderFlags, pictures: PictureFlags) -> None:
    """Raises UsageError if a flag would have no effect, or one is missing."""
    if kind == PREDICTION and not places.source:
        raise UsageError("a folder of predictions holds no scans. Name what predict was given: --source STORE|FOLDER.")
    if kind == STORE and places.source:
        raise UsageError("--source belongs to a run or to a folder of predictions: leave it out.")
    if kind != RUN and places.evaluation:
        raise UsageError("--evaluation belongs to a run: leave it out.")
    if kind != PREDICTION and folder != FolderFlags():
        raise UsageError("--as, --pattern, --modality and --yes say how to read the --source of predictions.")
    if kind != STORE and pictures.png is not None:
        raise UsageError("--png draws the cases of a store. Pictures of a run are in its evaluations (montage.png).")


def _stored(url: str, chosen: Chosen) -> StoredCases:
    from multiseg.store.reader import open_store
    from multiseg.viewer.stored_cases import StoredCases

    store = open_store(url)
    return StoredCases(store, chosen.cases(store))


def _evaluated(run: Path, chosen: Chosen, places: PlaceFlags) -> Cases:
    from multiseg.evaluation.evaluation_result import options_to_repeat
    from multiseg.evaluation.model_evaluation import store_of_run
    from multiseg.evaluation.result_folder import is_of_several
    from multiseg.evaluation.stored_answers import answered
    from multiseg.models.branch_models import branch_info
    from multiseg.models.saved import load_model, model_path
    from multiseg.viewer.evaluated_cases import EvaluatedCases, about_evaluation, newest_evaluation, read_evaluation

    evaluation = places.evaluation or newest_evaluation(run if run.is_dir() else run.parent)
    about = about_evaluation(evaluation) if evaluation else {}
    # An evaluation of another store has cases of that store, perhaps of the same names.
    stored = _stored(places.source or about.get("store") or store_of_run(run), chosen)
    title = str(evaluation or run)
    digest = hashlib.sha256(model_path(run).read_bytes()).hexdigest()
    if about and digest not in about.get("models", [about.get("model")]):
        title += " (of an older model)"
    if is_of_several(about):
        title += " (of several models)"
    table = None if evaluation is None else read_evaluation(evaluation)
    if table is not None and (chosen.case or chosen.databases or chosen.split):
        table = table[(table["database"] + "/" + table["case"]).isin(list(stored.cases))]

    def segment(case: Case) -> tuple[LabelSpace, Codes]:
        options = options_to_repeat(about)
        model = load_model(run)
        return branch_info(model.info, options.branch).space, answered(model, stored.store, case, options)[2]

    return EvaluatedCases(title, stored, table, segment)


def _predicted(root: Path, chosen: Chosen, places: PlaceFlags, folder: FolderFlags) -> Cases:
    from multiseg.store.hierarchy import is_like_a_store
    from multiseg.viewer.predicted_cases import PredictedCases, ScansOfFiles, ScansOfStore

    if chosen != Chosen():
        raise UsageError("--database, --case and --split choose cases of a store: filter on the page instead.")
    if is_like_a_store(places.source):
        if folder != FolderFlags():
            raise UsageError(f"{places.source} is a store: leave out --as, --pattern, --modality and --yes.")
        return PredictedCases(root, ScansOfStore(_stored(places.source, chosen)))
    databases = confirmed_databases(Path(places.source), folder.options(), as_json=False)
    files = {(database.name, case.case): case for database in databases for case in database.cases}
    return PredictedCases(root, ScansOfFiles(files))


@dataclass(frozen=True)
class Chosen:
    """Which cases of a store."""

    databases: tuple[str, ...] = ()
    case: str = ""
    split: str = ""

    def cases(self, store: Store) -> Sequence[Case]:
        from multiseg.store.catalogue import select

        if self.case:
            database_name, _, case_name = self.case.partition("/")
            return [store[database_name][case_name]]
        return select(store, self.databases, split=self.split)


def _by_database(cases: Sequence[Case]) -> dict[str, Sequence[Case]]:
    names = dict.fromkeys(case.database for case in cases)
    return {name: [case for case in cases if case.database == name] for name in names}


def _draw(url: str, chosen: Chosen, flags: PictureFlags, overwrite: bool, as_json: bool) -> int:
    """Draw one picture for each database, or for the one case."""
    from multiseg.cli.console import case_counter, output, print_json
    from multiseg.evaluation.panels import save_gallery
    from multiseg.files import check_files
    from multiseg.store.reader import open_store

    assert flags.png is not None
    store = open_store(url)
    cases = chosen.cases(store)
    by_title = {chosen.case: cases} if chosen.case else _by_database(cases)
    files = {flags.png / f"{title.replace('/', '-', 1)}.png": title for title in by_title}
    check_files(files, overwrite=overwrite)
    written = []
    with case_counter("view") as on_picture:
        for done, (file, title) in enumerate(files.items(), start=1):
            written.append(save_gallery(file, store, by_title[title][: flags.rows], title, overwrite))
            on_picture(done, len(files), title)
    if as_json:
        print_json({"pictures": [str(path) for path in written]})
    else:
        output().print("\n".join(map(str, written)) or f"{store.url} has no such case.", soft_wrap=True)
    return 0 if written else 4


def serve(cases: Cases, flags: PageFlags) -> int:
    """Serve a page until Ctrl-C."""
    import webbrowser

    from multiseg.cli.console import messages, output
    from multiseg.processes import term_interrupts
    from multiseg.viewer.page_server import PageServer

    if not cases.listed:
        messages().print(f"{cases.title} has no such case.", soft_wrap=True, markup=False)
        return 4
    with PageServer(cases, flags.port) as server, term_interrupts():
        output().print(server.access.address, soft_wrap=True, markup=False, highlight=False)
        messages().print("The address is good for one browser, once. Ctrl-C ends the page.")
        if not flags.no_browser:
            webbrowser.open(server.access.address)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            messages().print("The page is closed.")
    return 0
