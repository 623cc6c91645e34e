"""What multiseg finds in a folder, before it reads a single scan."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from multiseg.modalities import in_canonical_order
from multiseg.store.cases import CaseFiles
from multiseg.store.sources.recognise import find_recognised, look_at, recognise
from multiseg.store.sources.source_types import DatabaseFiles, SourceOptions


@dataclass(frozen=True)
class Looked:
    """What a folder was taken for, and the files of its cases."""

    layout: str
    evidence: str
    others: tuple[str, ...]
    files: DatabaseFiles

    @property
    def cases(self) -> dict[str, CaseFiles]:
        """The cases that can be ingested, by name."""
        return {case.case: case for case in self.files.cases}

    @property
    def schemas(self) -> dict[str, tuple[str, ...]]:
        """The names of the structures of every annotation."""
        return {name: schema.names for name, schema in self.files.schemas.items()}

    @property
    def modalities(self) -> dict[str, tuple[str, ...]]:
        """The sequences of every case, in the canonical order."""
        return {name: tuple(in_canonical_order(case.images)) for name, case in self.cases.items()}

    @property
    def annotations(self) -> dict[str, list[str]]:
        """The annotations of every case."""
        return {name: sorted(case.labels) for name, case in self.cases.items()}

    @property
    def errors(self) -> list[tuple[str, str]]:
        """The code and the case of every error."""
        return [(finding.code, finding.case) for finding in self.files.findings if finding.severity == "error"]

    def codes(self, *severities: str) -> list[str]:
        """The codes of the findings of these severities ("error", "warning", "note"), or of all."""
        return [f.code for f in self.files.findings if not severities or f.severity in severities]

    def messages(self, code: str) -> list[str]:
        return [finding.message for finding in self.files.findings if finding.code == code]

    def names(self, case: str) -> dict[str, str]:
        """The file names of a case by sequence, "label:" and annotation, and "brain_mask", as the store says them."""
        files = self.cases[case]
        names = {sequence: Path(str(file)).name for sequence, file in files.images.items()}
        names |= {f"label:{name}": Path(str(file)).name for name, file in files.labels.items()}
        return names | ({"brain_mask": Path(str(files.brain_mask)).name} if files.brain_mask else {})


def look(source: Path, name: str = "", **options: Any) -> Looked:
    """Find the cases of a folder or a list; `name` is that of a layout, and `options` are those of a source."""
    folder, source_options = look_at(source), SourceOptions(layout=name, **options)
    seen = recognise(folder, source_options)
    files = find_recognised(folder, seen, source_options)
    return Looked(seen.layout.name, seen.evidence, seen.others, files)
