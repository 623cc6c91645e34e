"""Flags that several verbs share: each field of their dataclass is a flag of the verb."""

from dataclasses import dataclass
from typing import Annotated

import pytest
import typer
from typer.testing import CliRunner

from multiseg.cli.flag_groups import with_single_flags
from multiseg.cli.source_flags import SourceFlags
from multiseg.errors import UsageError
from multiseg.store.sources.source_types import SourceOptions


@dataclass(frozen=True)
class Size:
    width: Annotated[int, typer.Option(help="Of it.")] = 2
    name: Annotated[list[str] | None, typer.Option(help="Its names.")] = None


def test_every_field_of_a_group_is_a_flag() -> None:
    seen: list[object] = []

    def command(path: Annotated[str, typer.Argument()], size: Size, height: int = 3) -> int:
        seen.append((path, size, height))
        return 0

    app = typer.Typer()
    app.command()(with_single_flags(command))
    assert CliRunner().invoke(app, ["a", "--width", "5", "--name", "x", "--name", "y"]).exit_code == 0
    assert CliRunner().invoke(app, ["--height", "4", "b"]).exit_code == 0
    assert CliRunner().invoke(app, ["b", "--size", "4"]).exit_code == 2
    assert seen == [("a", Size(5, ["x", "y"]), 3), ("b", Size(), 4)]


def test_source_flags_are_source_options() -> None:
    assert SourceFlags().options() == SourceOptions()
    flags = SourceFlags(
        pattern="{case}/{modality}.nii", label=["{case}/l.nii", "gt={case}/g.nii"], labels=["1=core", "gt:1=x"],
        modality=["T1", "anat=FLAIR"], yes=True,
    )  # fmt: skip
    assert flags.options("db", "stroke") == SourceOptions(
        name="db", pathology="stroke", pattern="{case}/{modality}.nii", yes=True,
        labels={"lesion": "{case}/l.nii", "gt": "{case}/g.nii"}, codes={"lesion": "1=core", "gt": "1=x"},
        modality="T1", modalities={"anat": "FLAIR"},
    )  # fmt: skip
    with pytest.raises(UsageError, match="gives two sequences for all images: T1 and T2"):
        SourceFlags(modality=["T1", "T2"]).options()
