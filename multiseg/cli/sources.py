"""The flags that say what lies in a folder of scans and how to prepare it: for every verb that reads one."""

from __future__ import annotations

import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from click.core import ParameterSource

from multiseg.errors import UnconfirmedError, UsageError

if TYPE_CHECKING:
    from multiseg.store.ingest.parallel import Workers
    from multiseg.store.sources.source_types import DatabaseFiles

MAX_SPACING_MM = 20
SMALL_BYTES = 100_000_000
"""Sources smaller than this are prepared before other processes have started."""

_WHAT, _HOW, _WHO = "What the files are", "How they are prepared", "Who does it"

Source = Annotated[Path, typer.Argument(help="A folder of scans, or a table or manifest (.csv, .toml, .json).")]
As = Annotated[
    str, typer.Option("--as", help="Its layout, where looking does not tell, or MODULE:NAME.", rich_help_panel=_WHAT)
]
DatabaseName = Annotated[
    str, typer.Option("--database", help="Name of the database (default: the folder's).", rich_help_panel=_WHAT)
]
Pathology = Annotated[
    str, typer.Option(help='What the patients have, such as "multiple sclerosis".', rich_help_panel=_WHAT)
]
Pattern = Annotated[
    str, typer.Option(help="Where images lie, such as {case}/{modality}.nii.gz.", rich_help_panel=_WHAT)
]
Label = Annotated[
    list[str] | None, typer.Option(help="Where labels lie: PATTERN or ANNOTATION=PATTERN.", rich_help_panel=_WHAT)
]
Labels = Annotated[
    list[str] | None,
    typer.Option(help='Their codes: "1=core,2=ignore", "tissue:1=CSF" or "tissue:dlmuse".', rich_help_panel=_WHAT),
]
Raters = Annotated[str, typer.Option(help="Of several: all, consensus, majority or one's name.", rich_help_panel=_WHAT)]
Modality = Annotated[
    list[str] | None,
    typer.Option(help="An unusual spelling: NAME=T1, or NAME=skip; with --pattern T1 for all.", rich_help_panel=_WHAT),
]
Participants = Annotated[
    str, typer.Option(help="CSV in the folder; its first column names the case.", rich_help_panel=_WHAT)
]
AllowUnlabelled = Annotated[
    bool, typer.Option("--allow-unlabelled", help="Take cases without label, too.", rich_help_panel=_WHAT)
]
Yes = Annotated[
    bool, typer.Option("--yes", help="What was guessed and shown is right (DICOM series).", rich_help_panel=_WHAT)
]
BrainMask = Annotated[
    str,
    typer.Option(
        help='nonzero, file (the layout\'s), otsu, a PATTERN, or "command hd-bet -i {image} -o {mask}".',
        rich_help_panel=_HOW,
    ),
]
Spacing = Annotated[str, typer.Option(help="Voxel size in mm: one number or three with commas.", rich_help_panel=_HOW)]
Reference = Annotated[
    str, typer.Option(help="Sequence whose box is the case's grid (default: the label's).", rich_help_panel=_HOW)
]
HeadersDisagree = Annotated[
    str,
    typer.Option(help="Files of one shape but elsewhere in space: refuse, world or array.", rich_help_panel=_HOW),
]
Register = Annotated[str, typer.Option(help="rigid: move every sequence onto the reference.", rich_help_panel=_HOW)]
N4 = Annotated[bool, typer.Option("--n4", help="Correct the bias field (N4).", rich_help_panel=_HOW)]
Normalise = Annotated[
    str, typer.Option(help="Intensities: zscore, histogram (landmarks, then z-score) or none.", rich_help_panel=_HOW)
]
NumWorkers = Annotated[
    str, typer.Option("--workers", help="Cases at once (auto: one a processor).", rich_help_panel=_WHO)
]
Scheduler = Annotated[
    str,
    typer.Option(help="processes, threads, or a dask scheduler's address (tcp://HOST:8786).", rich_help_panel=_WHO),
]
Memory = Annotated[
    str, typer.Option(help="For all workers, such as 8GB (auto: 3/4 of what is free).", rich_help_panel=_WHO)
]


@dataclass(frozen=True)
class Said:
    """What the flags say about a source."""

    layout: str = ""
    database: str = ""
    pathology: str = ""
    pattern: str = ""
    label: list[str] | None = None
    labels: list[str] | None = None
    raters: str = ""
    brain_mask: str = ""
    modality: list[str] | None = None
    participants: str = ""
    allow_unlabelled: bool = False
    yes: bool = False


def check_no_source(context: typer.Context, store: str) -> None:
    """Whether nothing is said of source files, where it is a store that is looked at.

    Raises:
        UsageError: something is, and would be left unheard.
    """
    said = [
        option.opts[0] for option in context.command.params
        if getattr(option, "rich_help_panel", None) in (_WHAT, _HOW)
        and context.get_parameter_source(option.name or "") is not ParameterSource.DEFAULT
    ]  # fmt: skip
    if said:
        raise UsageError(
            f"{store} is a store, whose cases are prepared already: {', '.join(said)} would say how to read a source. "
            "Leave it out, or name the source."
        )


def confirmed_databases(source: Path, said: Said, as_json: bool) -> list[DatabaseFiles]:
    """The databases of a source; where something had to be guessed, the guesses are shown before the error.

    Raises:
        UnconfirmedError: a person has to look first.
    """
    try:
        return _databases_of(source, said)
    except UnconfirmedError as error:
        _show_guesses(error, as_json)
        raise


def _databases_of(source: Path, said: Said) -> list[DatabaseFiles]:
    """The databases that a folder, a table or a manifest holds; what a folder was taken for is printed."""
    from multiseg.store.sources.manifest import find_manifest
    from multiseg.store.sources.recognise import is_listing

    if source.suffix in (".toml", ".csv") and not (said.layout or is_listing(source)):
        if said != Said():
            raise UsageError(f"{source} says where files lie and what they mean; leave such options out.")
        return find_manifest(source)
    if said.pattern and said.layout:
        raise UsageError(
            f"--as {said.layout} looks for files its own way, and --pattern says where they lie: keep one."
        )
    if said.pattern:
        return [_by_pattern(source, said)]
    if said.label:
        raise UsageError("--label says where labels lie, so say where the images lie, too: --pattern.")
    return [_by_looking(source, said)]


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


def _by_pattern(source: Path, said: Said) -> DatabaseFiles:
    from multiseg.store.sources.pattern import PatternSource, find_database

    return find_database(PatternSource(
        name=said.database or source.resolve().name, root=source, pattern=said.pattern, pathology=said.pathology,
        labels=_unique("--label", (_named(text, r"(\w+)=(.+)") for text in said.label or [])), codes=_codes(said),
        brain_mask=said.brain_mask, modalities=_modalities(said), modality=_modality(said),
        participants=said.participants,
        raters=said.raters or "all", allow_unlabelled=said.allow_unlabelled,
    ))  # fmt: skip


def _by_looking(source: Path, said: Said) -> DatabaseFiles:
    from multiseg.cli.console import messages
    from multiseg.store.sources.recognise import find_recognised, look_at, recognise
    from multiseg.store.sources.source_types import SourceOptions

    folder = look_at(source)
    seen = recognise(folder, said.layout)
    also = f" It could also be {', '.join(seen.others)}: --as." if seen.others else ""
    messages().print(f"{source} is {seen.layout.title} ({seen.layout.name}): {seen.evidence}.{also}", soft_wrap=True)
    if _modality(said):
        raise UsageError(
            f"--modality {_modality(said)} says what all images are, so say where they lie, too: --pattern. In "
            f"the layout {seen.layout.name} give the spelling of one: NAME={_modality(said)}."
        )
    options = SourceOptions(
        name=said.database, pathology=said.pathology, codes=_codes(said), modalities=_modalities(said),
        participants=said.participants, brain_mask=said.brain_mask, raters=said.raters,
        allow_unlabelled=said.allow_unlabelled, yes=said.yes,
    )  # fmt: skip
    return find_recognised(folder, seen, options)


def _codes(said: Said) -> dict[str, str]:
    return _unique("--labels", (_named(text, r"([^=:,]+):(.+)") for text in said.labels or []))


def _named(text: str, expression: str) -> tuple[str, str]:
    match = re.fullmatch(expression, text)
    return (match[1], match[2]) if match else ("lesion", text)


def _modalities(said: Said) -> dict[str, str]:
    return _unique("--modality", (pair(text) for text in said.modality or [] if "=" in text))


def _modality(said: Said) -> str:
    """The one sequence that all images are said to be, or ""."""
    alone = [text for text in said.modality or [] if "=" not in text]
    if len(alone) > 1:
        raise UsageError(f"--modality says twice what all images are: {' and '.join(alone)}. Keep one.")
    return alone[0] if alone else ""


def _unique(flag: str, pairs: Iterable[tuple[str, str]]) -> dict[str, str]:
    """What a flag that was given several times says of each name.

    Raises:
        UsageError: it says two things of one.
    """
    said: dict[str, str] = {}
    for name, value in pairs:
        if said.setdefault(name, value) != value:
            raise UsageError(f"{flag} says two things of {name!r}: {said[name]!r} and {value!r}. Keep one.")
    return said


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


def workers_of(text: str, scheduler: str, memory: str, databases: list[DatabaseFiles]) -> Workers:
    """Who prepares the cases.

    Raises:
        UsageError: a number or a size cannot be read.
    """
    from multiseg.sizes import num_bytes
    from multiseg.store.ingest.parallel import Workers, default_memory_bytes, default_workers
    from multiseg.store.ingest.plan import source_bytes

    if text == "auto":
        num = 1 if "://" not in scheduler and source_bytes(databases) < SMALL_BYTES else default_workers()
        num = 16 if "://" in scheduler else num
    elif text.isdigit():
        num = int(text)
    else:
        raise UsageError(f"--workers {text!r} is no whole number, and not auto.")
    size = default_memory_bytes() if memory == "auto" else num_bytes(memory, "--memory")
    return Workers(num, scheduler, None if "://" in scheduler and memory == "auto" else size)
