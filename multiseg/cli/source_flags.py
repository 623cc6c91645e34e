"""The flags of verbs that read a source: its files, the preparation of its cases, and the workers."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace
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
"""Smaller sources are prepared by this process alone, which is faster than starting others."""

SOURCE_PANEL, PREPARATION_PANEL = "Source files", "Preparation"
file_option = partial(typer.Option, rich_help_panel=SOURCE_PANEL)
preparation_option = partial(typer.Option, rich_help_panel=PREPARATION_PANEL)
worker_option = partial(typer.Option, rich_help_panel="Workers")

LayoutName = Annotated[str, file_option("--as", help="Layout, if it is not recognised, or MODULE:NAME.")]
ImagePattern = Annotated[str, file_option(help="Paths of images, such as {case}/{modality}.nii.gz.")]
Spellings = Annotated[
    list[str] | None,
    file_option(help="Meaning of an unusual name: NAME=T1 or NAME=skip. With --pattern, T1 sets that of all."),
]
Confirmed = Annotated[bool, file_option("--yes", help="Confirm the guesses that were shown (DICOM series).")]
NumWorkers = Annotated[str, worker_option("--workers", help="Cases at once (auto: one per processor).")]


@dataclass(frozen=True)
class SourceFlags:
    """How to read a source. A flag that needs no parsing is named like its field of `SourceOptions`."""

    layout: LayoutName = ""
    pattern: ImagePattern = ""
    label: Annotated[list[str] | None, file_option(help="Paths of labels: PATTERN or ANNOTATION=PATTERN.")] = None
    labels: Annotated[
        list[str] | None, file_option(help='Label codes: "1=core,2=ignore", "tissue:1=CSF" or "tissue:dlmuse".')
    ] = None
    raters: Annotated[str, file_option(help="Which raters: all, consensus, majority or a rater's name.")] = ""
    modality: Spellings = None
    participants: Annotated[str, file_option(help="CSV in the folder; its first column names the case.")] = ""
    allow_unlabelled: Annotated[bool, file_option("--allow-unlabelled", help="Also take cases without a label.")] = (
        False
    )
    yes: Confirmed = False
    brain_mask: Annotated[
        str,
        preparation_option(
            help='nonzero, file (from the layout), otsu, a PATTERN, or "command hd-bet -i {image} -o {mask}".'
        ),
    ] = ""

    def options(self, name: str = "", pathology: str = "") -> SourceOptions:
        """The parsed flags.

        Raises:
            UsageError: a flag is given several times, with values that contradict each other.
        """
        from multiseg.store.sources.source_types import SourceOptions

        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "label"}
        parsed = {
            "labels": _unique("--label", (_with_annotation(text, r"(\w+)=(.+)") for text in self.label or [])),
            "codes": _unique("--labels", (_with_annotation(text, r"([^=:,]+):(.+)") for text in self.labels or [])),
            **_sequences(self.modality or []),
        }
        return SourceOptions(**values | parsed, name=name, pathology=pathology)


@dataclass(frozen=True)
class FolderFlags:
    """How to read the images of a folder, without labels. Each flag is named like its field of `SourceOptions`."""

    layout: LayoutName = ""
    pattern: ImagePattern = ""
    modality: Spellings = None
    yes: Confirmed = False

    def options(self, brain_mask: str = "") -> SourceOptions:
        """The parsed flags.

        Raises:
            UsageError: --modality is given several times, with values that contradict each other.
        """
        from multiseg.store.sources.source_types import SourceOptions

        values: dict[str, Any] = {name: getattr(self, name) for name in ("layout", "pattern", "yes")}
        return SourceOptions(**values, **_sequences(self.modality or []), brain_mask=brain_mask, only_images=True)


@dataclass(frozen=True)
class PreparationFlags:
    """How cases are prepared. Each flag except `spacing` is named like its field of `IngestOptions`."""

    spacing: Annotated[str, preparation_option(help="Voxel size in mm: one number or three with commas.")] = "1"
    reference: Annotated[
        str, preparation_option(help="Sequence that gives the case its grid (default: the label's).")
    ] = ""
    headers_disagree: Annotated[
        str, preparation_option(help="If files have one shape but other positions: refuse, world or array.")
    ] = "refuse"
    register: Annotated[str, preparation_option(help="rigid: align every sequence with the reference.")] = ""
    n4: Annotated[bool, preparation_option("--n4", help="Correct the bias field (N4).")] = False
    normalise: Annotated[
        str, preparation_option(help="Intensities: zscore, histogram (landmarks, then z-score) or none.")
    ] = "zscore"

    def options(self, **others: Any) -> IngestOptions:
        """The parsed flags, with `others` for the other options of an ingest.

        Raises:
            UsageError: the spacing is invalid.
        """
        from multiseg.store.ingest.ingest_plan import IngestOptions

        values = {field.name: getattr(self, field.name) for field in fields(self) if field.name != "spacing"}
        return IngestOptions(**values, spacing_mm=spacing_of(self.spacing), **others)


@dataclass(frozen=True)
class WorkerFlags:
    """The workers that prepare the cases."""

    workers: NumWorkers = "auto"
    scheduler: Annotated[
        str, worker_option(help="processes, threads, or the address of a dask scheduler (tcp://HOST:8786).")
    ] = "processes"
    memory: Annotated[str, worker_option(help="Memory for all workers, such as 8GB (auto: 3/4 of the free).")] = "auto"

    def options(self, databases: list[DatabaseFiles]) -> Workers:
        """The workers for an ingest of these databases.

        Raises:
            UsageError: a number or a size is invalid.
        """
        from multiseg.sizes import num_bytes
        from multiseg.store.ingest.ingest_plan import source_bytes
        from multiseg.store.ingest.parallel import Workers, default_memory_bytes, default_workers

        is_remote = "://" in self.scheduler
        if self.workers.isdigit():
            num = int(self.workers)
        elif self.workers != "auto":
            raise UsageError(f"--workers {self.workers!r} is not a whole number or auto.")
        elif is_remote:
            num = 16
        else:
            num = 1 if source_bytes(databases) < SMALL_BYTES else default_workers()
        size = default_memory_bytes() if self.memory == "auto" else num_bytes(self.memory, "--memory")
        return Workers(num, self.scheduler, None if is_remote and self.memory == "auto" else size)


def check_no_source(context: typer.Context, place: str, but: Sequence[str] = ()) -> None:
    """Check that no flag is given that only reads a source, since a store or corrected masks are read.

    Args:
        place: what is read instead, such as "brain.zarr is a store".
        but: flags that mean something there, too.

    Raises:
        UsageError: such a flag is given, and would be ignored.
    """
    ignored = [
        option.opts[0] for option in context.command.params
        if getattr(option, "rich_help_panel", None) in (SOURCE_PANEL, PREPARATION_PANEL)
        and context.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT
        and option.opts[0] not in but
    ]  # fmt: skip
    if ignored:
        raise UsageError(
            f"{place}; {', '.join(ignored)} can only be used with a source. Leave it out or name the source."
        )


def confirmed_databases(source: Path, options: SourceOptions, as_json: bool) -> list[DatabaseFiles]:
    """The databases of a source. If something was guessed, the guesses are printed before the error.

    Raises:
        UnconfirmedError: a person has to confirm the guesses.
    """
    try:
        return _databases_of(source, options)
    except UnconfirmedError as error:
        from multiseg.cli.console import after_document

        _show_guesses(error, as_json)
        with after_document():
            raise


def _databases_of(source: Path, options: SourceOptions) -> list[DatabaseFiles]:
    """The databases of a folder, a table or a manifest. The layout of a folder is printed."""
    from multiseg.store.sources.manifest import find_manifest
    from multiseg.store.sources.recognise import find_recognised, is_listing, look_at, recognise
    from multiseg.store.sources.source_folder import look_into
    from multiseg.store.sources.source_types import SourceOptions

    if source.suffix in (".toml", ".csv") and not (options.layout or is_listing(source)):
        if replace(options, only_images=False) != SourceOptions():
            raise UsageError(f"{source} already describes its files; leave out the options that describe them.")
        return find_manifest(source, options.only_images)
    folder = look_into(source) if options.pattern else look_at(source)
    recognised = recognise(folder, options)
    if not options.pattern:
        _show_layout(source, recognised, options)
    return [find_recognised(folder, recognised, options)]


def _show_layout(source: Path, recognised: Recognised, options: SourceOptions) -> None:
    """Print the layout of a folder.

    Raises:
        UsageError: one sequence is given for all images, but the layout knows the sequence of each.
    """
    from multiseg.cli.console import messages

    layout, others = recognised.layout, recognised.others
    also = f" It could also be {', '.join(others)}: --as." if others else ""
    messages().print(f"{source} is {layout.title} ({layout.name}): {recognised.evidence}.{also}", soft_wrap=True)
    if options.modality:
        raise UsageError(
            f"--modality {options.modality} is for all images, so it needs --pattern. The layout {layout.name} needs "
            f"the name of one sequence: NAME={options.modality}."
        )


def _show_guesses(error: UnconfirmedError, as_json: bool) -> None:
    """Print the guesses that a person has to confirm."""
    from multiseg.cli.console import plain, print_json, print_table

    if as_json:
        print_json([{"series": list(error.rows), "to_do": str(error)}])
        return
    columns = list(error.rows[0])
    rows = [[plain(str(row[column])) or "-" for column in columns] for row in error.rows]
    print_table("Guesses", columns, rows, right=["studies", "slices", "TE", "TR", "TI"])


def _with_annotation(text: str, expression: str) -> tuple[str, str]:
    """The annotation that a text names, "lesion" if none, and the rest of the text."""
    match = re.fullmatch(expression, text)
    return (match[1], match[2]) if match else ("lesion", text)


def _sequences(spellings: list[str]) -> dict[str, Any]:
    """The fields of `SourceOptions` that --modality gives."""
    return {
        "modalities": _unique("--modality", (pair(text) for text in spellings if "=" in text)),
        "modality": _modality_of_all([text for text in spellings if "=" not in text]),
    }


def named_sequences(options: SourceOptions) -> list[str]:
    """The sequences that --modality gives, but for skipped images."""
    from multiseg.store.sources.source_types import SKIP

    return [name for name in (*options.modalities.values(), options.modality) if name not in ("", SKIP)]


def _modality_of_all(names: list[str]) -> str:
    """The sequence that is given for all images, or ""."""
    if len(names) > 1:
        raise UsageError(f"--modality gives two sequences for all images: {' and '.join(names)}. Keep one.")
    return names[0] if names else ""


def _unique(flag: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """The values by name of a flag that may be given several times.

    Raises:
        UsageError: a name has two values.
    """
    values: dict[str, str] = {}
    for name, value in pairs:
        if values.setdefault(name, value) != value:
            raise UsageError(f"{flag} gives two values for {name!r}: {values[name]!r} and {value!r}. Keep one.")
    return values


def pair(text: str) -> tuple[str, str]:
    """The name and the value of "NAME=VALUE".

    Raises:
        UsageError: the text is not of this form.
    """
    name, equals, value = text.rpartition("=")
    if not (name and equals and value):
        raise UsageError(f"{text!r} is not of the form NAME=VALUE.")
    return name, value


def spacing_of(text: str) -> tuple[float, float, float]:
    """A voxel size in mm from one number, or three with commas.

    Raises:
        UsageError: the text is invalid, or a size is not above 0 and up to 20 mm.
    """
    try:
        sizes = [float(part) for part in text.split(",")]
        i, j, k = sizes * 3 if len(sizes) == 1 else sizes
    except ValueError:
        raise UsageError(f"--spacing {text!r} is not one number, or three with commas, such as 1 or 1,1,3.") from None
    if not all(0 < mm <= MAX_SPACING_MM for mm in (i, j, k)):
        raise UsageError(f"--spacing {text!r}: voxel sizes must be above 0 and at most {MAX_SPACING_MM} mm.")
    return i, j, k
