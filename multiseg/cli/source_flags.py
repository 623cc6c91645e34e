"""The flags of verbs that read a source: what its files are, how cases are prepared, and by how many workers."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from click.core import ParameterSource

from multiseg.errors import UnconfirmedError, UsageError

if TYPE_CHECKING:
    from multiseg.store.ingest.ingest_plan import IngestOptions
    from multiseg.store.ingest.parallel import Workers
    from multiseg.store.sources.recognise import Recognised
    from multiseg.store.sources.source_types import DatabaseFiles, SourceOptions

MAX_SPACING_MM = 20
SMALL_BYTES = 100_000_000
"""Sources smaller than this are prepared before other processes have started."""

WHAT, HOW = "What the files are", "How they are prepared"
file_option = partial(typer.Option, rich_help_panel=WHAT)
preparation_option = partial(typer.Option, rich_help_panel=HOW)
worker_option = partial(typer.Option, rich_help_panel="Who does it")

NumWorkers = Annotated[str, worker_option("--workers", help="Cases at once (auto: one a processor).")]


@dataclass(frozen=True)
class SourceFlags:
    """How to read a source; a flag that needs no parsing is called as its field of `SourceOptions`."""

    layout: Annotated[str, file_option("--as", help="Its layout, where looking does not tell, or MODULE:NAME.")] = ""
    pattern: Annotated[str, file_option(help="Where images lie, such as {case}/{modality}.nii.gz.")] = ""
    label: Annotated[list[str] | None, file_option(help="Where labels lie: PATTERN or ANNOTATION=PATTERN.")] = None
    labels: Annotated[
        list[str] | None, file_option(help='Their codes: "1=core,2=ignore", "tissue:1=CSF" or "tissue:dlmuse".')
    ] = None
    raters: Annotated[str, file_option(help="Of several: all, consensus, majority or one's name.")] = ""
    modality: Annotated[
        list[str] | None, file_option(help="An unusual spelling: NAME=T1, or NAME=skip; with --pattern T1 for all.")
    ] = None
    participants: Annotated[str, file_option(help="CSV in the folder; its first column names the case.")] = ""
    allow_unlabelled: Annotated[bool, file_option("--allow-unlabelled", help="Take cases without label, too.")] = False
    yes: Annotated[bool, file_option("--yes", help="What was guessed and shown is right (DICOM series).")] = False
    brain_mask: Annotated[
        str,
        preparation_option(
            help='nonzero, file (the layout\'s), otsu, a PATTERN, or "command hd-bet -i {image} -o {mask}".'
        ),
    ] = ""

    def options(self, name: str = "", pathology: str = "") -> SourceOptions:
        """The same for whatever reads the source.

        Raises:
            UsageError: a flag that was given several times contradicts itself.
        """
        from multiseg.store.sources.source_types import SourceOptions

        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "label"}
        spellings = self.modality or []
        parsed = {
            "labels": _unique("--label", (_named(text, r"(\w+)=(.+)") for text in self.label or [])),
            "codes": _unique("--labels", (_named(text, r"([^=:,]+):(.+)") for text in self.labels or [])),
            "modalities": _unique("--modality", (pair(text) for text in spellings if "=" in text)),
            "modality": _modality_of_all([text for text in spellings if "=" not in text]),
        }
        return SourceOptions(**given | parsed, name=name, pathology=pathology)


@dataclass(frozen=True)
class PreparationFlags:
    """How cases are prepared; each flag but `spacing` is called as its field of `IngestOptions`."""

    spacing: Annotated[str, preparation_option(help="Voxel size in mm: one number or three with commas.")] = "1"
    reference: Annotated[
        str, preparation_option(help="Sequence whose box is the case's grid (default: the label's).")
    ] = ""
    headers_disagree: Annotated[
        str, preparation_option(help="Files of one shape but elsewhere in space: refuse, world or array.")
    ] = "refuse"
    register: Annotated[str, preparation_option(help="rigid: move every sequence onto the reference.")] = ""
    n4: Annotated[bool, preparation_option("--n4", help="Correct the bias field (N4).")] = False
    normalise: Annotated[
        str, preparation_option(help="Intensities: zscore, histogram (landmarks, then z-score) or none.")
    ] = "zscore"

    def options(self, **others: Any) -> IngestOptions:
        """The same for an ingest, with its other options.

        Raises:
            UsageError: the spacing is invalid.
        """
        from multiseg.store.ingest.ingest_plan import IngestOptions

        given = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "spacing"}
        return IngestOptions(**given, spacing_mm=spacing_of(self.spacing), **others)


@dataclass(frozen=True)
class WorkerFlags:
    """Who prepares the cases."""

    workers: NumWorkers = "auto"
    scheduler: Annotated[
        str, worker_option(help="processes, threads, or a dask scheduler's address (tcp://HOST:8786).")
    ] = "processes"
    memory: Annotated[str, worker_option(help="For all workers, such as 8GB (auto: 3/4 of what is free).")] = "auto"

    def options(self, databases: list[DatabaseFiles]) -> Workers:
        """The same for an ingest of these databases.

        Raises:
            UsageError: a number or a size cannot be read.
        """
        from multiseg.sizes import num_bytes
        from multiseg.store.ingest.ingest_plan import source_bytes
        from multiseg.store.ingest.parallel import Workers, default_memory_bytes, default_workers

        is_remote = "://" in self.scheduler
        if self.workers == "auto":
            num = 1 if not is_remote and source_bytes(databases) < SMALL_BYTES else default_workers()
            num = 16 if is_remote else num
        elif self.workers.isdigit():
            num = int(self.workers)
        else:
            raise UsageError(f"--workers {self.workers!r} is no whole number, and not auto.")
        size = default_memory_bytes() if self.memory == "auto" else num_bytes(self.memory, "--memory")
        return Workers(num, self.scheduler, None if is_remote and self.memory == "auto" else size)


def check_no_source(context: typer.Context, store: str) -> None:
    """Check that no flag says how to read a source, where the path is a store.

    Raises:
        UsageError: one does, and would have no effect.
    """
    given = [
        option.opts[0] for option in context.command.params
        if getattr(option, "rich_help_panel", None) in (WHAT, HOW)
        and context.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT
    ]  # fmt: skip
    if given:
        raise UsageError(
            f"{store} is a store, whose cases are prepared already: {', '.join(given)} would say how to read a source. "
            "Leave it out, or name the source."
        )


def confirmed_databases(source: Path, options: SourceOptions, as_json: bool) -> list[DatabaseFiles]:
    """The databases of a source; where something had to be guessed, the guesses are shown before the error.

    Raises:
        UnconfirmedError: a person has to look first.
    """
    try:
        return _databases_of(source, options)
    except UnconfirmedError as error:
        _show_guesses(error, as_json)
        raise


def _databases_of(source: Path, options: SourceOptions) -> list[DatabaseFiles]:
    """The databases that a folder, a table or a manifest holds; what a folder was taken for is printed."""
    from multiseg.store.sources.manifest import find_manifest
    from multiseg.store.sources.recognise import find_recognised, is_listing, look_at, recognise
    from multiseg.store.sources.source_folder import look_into
    from multiseg.store.sources.source_types import SourceOptions

    if source.suffix in (".toml", ".csv") and not (options.layout or is_listing(source)):
        if options != SourceOptions():
            raise UsageError(f"{source} says where files lie and what they mean; leave such options out.")
        return find_manifest(source)
    folder = look_into(source) if options.pattern else look_at(source)
    recognised = recognise(folder, options)
    if not options.pattern:
        _show_layout(source, recognised, options)
    return [find_recognised(folder, recognised, options)]


def _show_layout(source: Path, recognised: Recognised, options: SourceOptions) -> None:
    """What a folder was taken for.

    Raises:
        UsageError: the user gives one sequence for all images of a layout that tells them apart.
    """
    from multiseg.cli.console import messages

    layout, others = recognised.layout, recognised.others
    also = f" It could also be {', '.join(others)}: --as." if others else ""
    messages().print(f"{source} is {layout.title} ({layout.name}): {recognised.evidence}.{also}", soft_wrap=True)
    if options.modality:
        raise UsageError(
            f"--modality {options.modality} says what all images are, so say where they lie, too: --pattern. In "
            f"the layout {layout.name} give the spelling of one: NAME={options.modality}."
        )


def _show_guesses(error: UnconfirmedError, as_json: bool) -> None:
    """What a person has to look at first, as a table or as JSON."""
    from multiseg.cli.console import print_json, print_table

    if as_json:
        print_json([{"series": list(error.rows), "to_do": str(error)}])
        return
    columns = list(error.rows[0])
    # "[b 1000]" would be a style to rich.
    rows = [[str(row[column]).replace("[", r"\[") or "-" for column in columns] for row in error.rows]
    print_table("What was guessed", columns, rows, right=["studies", "slices", "TE", "TR", "TI"])


def _named(text: str, expression: str) -> tuple[str, str]:
    match = re.fullmatch(expression, text)
    return (match[1], match[2]) if match else ("lesion", text)


def _modality_of_all(names: list[str]) -> str:
    """The one sequence that all images are said to be, or ""."""
    if len(names) > 1:
        raise UsageError(f"--modality says twice what all images are: {' and '.join(names)}. Keep one.")
    return names[0] if names else ""


def _unique(flag: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What a flag that was given several times says of each name.

    Raises:
        UsageError: it says two things of one.
    """
    values: dict[str, str] = {}
    for name, value in pairs:
        if values.setdefault(name, value) != value:
            raise UsageError(f"{flag} says two things of {name!r}: {values[name]!r} and {value!r}. Keep one.")
    return values


def pair(text: str) -> tuple[str, str]:
    """NAME=VALUE.

    Raises:
        UsageError: it is not.
    """
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise UsageError(f"{text!r} is not of the form NAME=VALUE.")
    return name, value


def spacing_of(text: str) -> tuple[float, float, float]:
    """A voxel size in mm.

    Raises:
        UsageError: it is neither one nor three sizes that a voxel may have.
    """
    try:
        sizes = [float(part) for part in text.split(",")]
        i, j, k = sizes * 3 if len(sizes) == 1 else sizes
    except ValueError:
        raise UsageError(
            f"--spacing {text!r} is neither one number nor three with commas, such as 1 or 1,1,3."
        ) from None
    if not all(0 < mm <= MAX_SPACING_MM for mm in (i, j, k)):
        raise UsageError(f"--spacing {text!r}: voxels need a size above 0 and up to {MAX_SPACING_MM} mm.")
    return i, j, k
