"""Verbs around the store: phantoms, ingest, info."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, NamedTuple

import typer

from multiseg.errors import UsageError

if TYPE_CHECKING:
    from multiseg.store.ingest import IngestReport
    from multiseg.store.reader import Store
    from multiseg.store.sources.model import DatabaseFiles

MAX_SPACING_MM = 20

AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout instead of tables.")]
StoreUrl = Annotated[str, typer.Option(help="The store: a folder such as brain.zarr, or a URL.")]


def phantoms_command(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")],
    seed: Annotated[int, typer.Option(help="Another seed, other patients.")] = 0,
    cases: Annotated[int, typer.Option(help="Cases a hospital.", min=1)] = 10,
    coarseness: Annotated[float, typer.Option(help="Multiplies the voxel sizes; 2 is quick.", min=0.5)] = 1.0,
) -> int:
    """Write synthetic hospitals as NIfTI files with a manifest: four pathologies, four sets of sequences.

    Example: multiseg phantoms hospitals --cases 5
    """
    from multiseg.cli.console import output
    from multiseg.phantoms.hospitals import write_hospitals

    manifest = write_hospitals(folder, seed, cases, coarseness)
    output().print(f"Ingest them with: multiseg ingest {manifest} --store brain.zarr --spacing 2.5", soft_wrap=True)
    return 0


def ingest_command(
    source: Annotated[Path, typer.Argument(help="A folder of scans, or a manifest (.toml, .csv).")],
    store: StoreUrl,
    layout: Annotated[str, typer.Option("--as", help="The layout, where looking does not tell it.")] = "",
    database: Annotated[str, typer.Option(help="Name of the database (default: the folder's).")] = "",
    pathology: Annotated[str, typer.Option(help='What the patients have, such as "multiple sclerosis".')] = "",
    pattern: Annotated[str, typer.Option(help="Where images lie, such as {case}/{modality}.nii.gz.")] = "",
    label: Annotated[list[str] | None, typer.Option(help="Where labels lie: PATTERN or ANNOTATION=PATTERN.")] = None,
    labels: Annotated[list[str] | None, typer.Option(help='Their codes: "1=core,2=ignore" or "tissue:1=CSF".')] = None,
    raters: Annotated[str, typer.Option(help="Of several: all, consensus, majority or one's name.")] = "",
    brain_mask: Annotated[str, typer.Option(help="A pattern of masks; or nonzero, file.")] = "",
    modality: Annotated[list[str] | None, typer.Option(help="An unusual spelling: NAME=T1, or NAME=skip.")] = None,
    participants: Annotated[str, typer.Option(help="CSV in the folder; its first column names the case.")] = "",
    spacing: Annotated[str, typer.Option(help="Voxel size in mm: one number or three with commas.")] = "1",
    reference: Annotated[str, typer.Option(help="Sequence whose box is the case's grid (default: the label's).")] = "",
    headers_disagree: Annotated[
        str, typer.Option(help="A label of an image's shape but elsewhere in space: refuse, world or array.")
    ] = "refuse",
    codec: Annotated[str, typer.Option(help="Compression of images: none, lz4 or zstd.")] = "lz4",
    split: Annotated[str, typer.Option(help="Shares of the subjects.")] = "train=0.7,val=0.1,test=0.2",
    seed: Annotated[int, typer.Option(help="Of the split.")] = 0,
    replace: Annotated[bool, typer.Option("--replace", help="Replace cases whose files have changed.")] = False,
    allow_unlabelled: Annotated[
        bool, typer.Option("--allow-unlabelled", help="Take cases without label, too.")
    ] = False,
    as_json: AsJson = False,
) -> int:
    """Bring scans into a store: RAS+, one voxel size, z-scored in the brain. Cases already there are skipped.

    Examples:

    multiseg ingest BraTS2021_Training --store brain.zarr

    multiseg ingest data/ms --pattern "{case}/{modality}.nii.gz" --label "{case}/lesion.nii.gz" --store brain.zarr

    multiseg ingest manifest.toml --store brain.zarr --spacing 2
    """
    from multiseg.store.ingest import IngestOptions

    options = IngestOptions(
        _spacing(spacing), reference, headers_disagree, codec, replace, _shares(split), seed,
    )  # fmt: skip
    said = _Said(
        layout, database, pathology, pattern, label, labels, raters, brain_mask, modality, participants,
        allow_unlabelled,
    )  # fmt: skip
    return _ingest(_databases(source, said), store, options, as_json)


class _Said(NamedTuple):
    """What the flags say about a source."""

    layout: str
    database: str
    pathology: str
    pattern: str
    label: list[str] | None
    labels: list[str] | None
    raters: str
    brain_mask: str
    modality: list[str] | None
    participants: str
    allow_unlabelled: bool


def _databases(source: Path, said: _Said) -> list[DatabaseFiles]:
    """The databases that a folder or a manifest holds."""
    from multiseg.cli.console import messages
    from multiseg.store.sources.folder import look_into
    from multiseg.store.sources.gathering import SourceOptions
    from multiseg.store.sources.manifest import find_manifest
    from multiseg.store.sources.pattern import PatternSource, find_database
    from multiseg.store.sources.recognise import find_recognised, recognise

    if source.suffix in (".toml", ".csv") and not said.layout:
        if any(said):
            raise UsageError(f"{source} says where files lie and what they mean; leave such options out.")
        return find_manifest(source)
    codes = dict(_named(text, "lesion", r"([^=:,]+):(.+)") for text in said.labels or [])
    modalities = dict(_pair(text) for text in said.modality or [])
    name = said.database or source.resolve().name
    if said.pattern:
        return [find_database(PatternSource(
            name=name, root=source, pattern=said.pattern, pathology=said.pathology,
            labels=dict(_named(text, "lesion", r"(\w+)=(.+)") for text in said.label or []), codes=codes,
            brain_mask=said.brain_mask, modalities=modalities, participants=said.participants,
            raters=said.raters or "all", allow_unlabelled=said.allow_unlabelled,
        ))]  # fmt: skip
    if said.label:
        raise UsageError("--label says where labels lie, so say where the images lie, too: --pattern.")
    folder = look_into(source)
    seen = recognise(folder, said.layout)
    also = f" It could also be {', '.join(seen.others)}: --as." if seen.others else ""
    messages().print(f"{source} is {seen.layout.title} ({seen.layout.name}): {seen.evidence}.{also}", soft_wrap=True)
    options = SourceOptions(
        said.database, said.pathology, codes, modalities, said.participants, said.brain_mask, said.raters,
        said.allow_unlabelled,
    )  # fmt: skip
    return [find_recognised(folder, seen, options)]


def _ingest(databases: Sequence[DatabaseFiles], store: str, options: Any, as_json: bool) -> int:
    from rich.progress import TaskID

    from multiseg.cli.console import messages, print_findings, print_json, progress_bar
    from multiseg.store.ingest import ingest

    total = sum(len(files.cases) for files in databases)
    console = messages()
    with progress_bar("ingest", total) as bar:

        def on_case(database: str, case: str, outcome: str) -> None:
            bar.update(TaskID(0), advance=1, details=f"{database}/{case}")
            if bar.disable:
                console.print(f"{outcome} {database}/{case}", soft_wrap=True)

        reports = ingest(databases, store, options, on_case)
    findings = [finding for report in reports for finding in report.findings]
    if as_json:
        print_json([_report_json(report) for report in reports])
    else:
        print_findings(findings)
        for report in reports:
            console.print(
                f"{report.database}: {len(report.written)} written, {len(report.skipped)} already there, "
                f"{len(report.failed)} failed"
            )
    good = sum(len(report.written) + len(report.skipped) for report in reports)
    bad = any(report.failed for report in reports)
    return (4 if good else 3) if bad else 0


def _report_json(report: IngestReport) -> dict[str, Any]:
    return {
        "database": report.database,
        "written": list(report.written),
        "skipped": list(report.skipped),
        "failed": list(report.failed),
        "findings": [finding.to_json() for finding in report.findings],
    }


def _spacing(text: str) -> tuple[float, float, float]:
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


def _pair(text: str) -> tuple[str, str]:
    name, equals, value = text.partition("=")
    if not (name and equals and value):
        raise UsageError(f"{text!r} is not of the form NAME=VALUE.")
    return name, value


def _named(text: str, default: str, expression: str) -> tuple[str, str]:
    match = re.fullmatch(expression, text)
    return (match[1], match[2]) if match else (default, text)


def _shares(text: str) -> dict[str, float]:
    try:
        return {name.strip(): float(share) for name, share in (_pair(part) for part in text.split(","))}
    except ValueError as error:
        raise UsageError(f"--split {text!r} is not of the form train=0.7,val=0.1,test=0.2 ({error}).") from error


def info_command(
    store: Annotated[str, typer.Argument(help="The store.")],
    cases: Annotated[bool, typer.Option("--cases", help="List every case, too.")] = False,
    case: Annotated[str, typer.Option(help="One case as DATABASE/CASE: its files and every step they took.")] = "",
    database: Annotated[list[str] | None, typer.Option(help="Only these databases.")] = None,
    modality: Annotated[list[str] | None, typer.Option(help="Only cases with these sequences.")] = None,
    split: Annotated[str, typer.Option(help="Only train, val or test.")] = "",
    pathology: Annotated[str, typer.Option(help="Only this pathology.")] = "",
    write: Annotated[
        Path | None, typer.Option(help="Write the case into this folder, as NIfTI on its files' own grid.")
    ] = None,
    as_json: AsJson = False,
) -> int:
    """Say what a store holds: databases, cases, sequences, labels, sizes.

    Examples:

    multiseg info brain.zarr

    multiseg info brain.zarr --cases --modality FLAIR --split test

    multiseg info brain.zarr --case ms/patient07

    multiseg info brain.zarr --case ms/patient07 --write patient07
    """
    from multiseg.cli.case import show_case
    from multiseg.cli.console import print_json, print_table
    from multiseg.store.catalogue import select, table
    from multiseg.store.reader import open_store

    if write and not case:
        raise UsageError("--write needs a case to write: --case DATABASE/CASE.")
    held = open_store(store)
    if case:
        return show_case(held, case, write, as_json)
    chosen = select(held, database or (), modality or (), pathology, split)
    names = [name for name in held if not database or name in database]
    summary = [_summary(held, name, [c for c in chosen if c.database == name]) for name in names]
    listed = table(chosen)
    if as_json:
        held_cases = {"cases": listed.to_dict("records")} if cases else {}
        print_json({"store": store, "spacing_mm": list(held.spacing_mm), "databases": summary, **held_cases})
        return 0
    print_table(
        f"{store}: {len(chosen)} cases, voxels of {' x '.join(f'{mm:g}' for mm in held.spacing_mm)} mm",
        [
            "database",
            "pathology",
            "cases",
            "train/val/test",
            "sequences (cases)",
            "labels (cases)",
            "lesion ml",
            "MB",
        ],
        [_summary_row(one) for one in summary],
        right=["cases", "lesion ml", "MB"],
    )
    if cases and len(listed):
        print_table("Cases", list(listed.columns), [[_text(v) for v in row] for row in listed.itertuples(index=False)])
    return 0


def _text(value: object) -> str:
    return "" if value is None or value != value else f"{value:g}" if isinstance(value, float) else str(value)


def _summary(store: Store, name: str, cases: Sequence[Any]) -> dict[str, Any]:
    import numpy as np

    database = store[name]
    ml = float(np.prod(store.spacing_mm)) / 1000
    labels = {}
    for at, (annotation, schema) in enumerate(database.schemas.items()):
        counts = sum((c.foreground_count[at] for c in cases), np.zeros(1))
        labels[annotation] = {
            "structures": list(schema.names),
            "cases": sum(bool(c.annotated[at]) for c in cases),
            "ml_a_case": round(float(np.sum(counts)) * ml / max(1, len(cases)), 2),
        }
    return {
        "database": name,
        "pathology": database.pathology,
        "cases": len(cases),
        "splits": {split: sum(c.split == split for c in cases) for split in ("train", "val", "test")},
        "modalities": {m: sum(m in c.modalities for c in cases) for m in database.modalities},
        "annotations": labels,
        "recipe": database.recipe.to_json(),
        "licence": database.attributes.get("licence", ""),
        "bytes": store.size_on_disk(name),
    }


def _summary_row(one: dict[str, Any]) -> list[str]:
    labels = one["annotations"]
    return [
        one["database"],
        one["pathology"],
        str(one["cases"]),
        "/".join(str(n) for n in one["splits"].values()),
        " ".join(f"{name}({n})" for name, n in one["modalities"].items()),
        "; ".join(f"{name}: {', '.join(a['structures'][:6])} ({a['cases']})" for name, a in labels.items()),
        " ".join(f"{a['ml_a_case']:g}" for name, a in labels.items() if not name.startswith("tissue")),
        "" if one["bytes"] is None else f"{one['bytes'] / 1e6:.1f}",
    ]
