"""What label codes mean: the schema of an annotation, and the label space a model answers in."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Bool, Integer, Num, UInt8

from multiseg.errors import LabelError
from multiseg.modalities import as_names

IGNORE = 255
"""The code of a voxel that no loss and no metric may look at."""
BACKGROUND = "background"
KINDS = ("lesion", "tissue")


@dataclass(frozen=True)
class Structure:
    """A named structure of an annotation, and the numbers that the source files use for it."""

    name: str
    kind: str
    source_codes: tuple[int, ...]


@dataclass(frozen=True)
class LabelSchema:
    """What one annotation's codes mean. In the store structure n (from 0) has the compact code n + 1.

    `background_codes` and `ignore_codes` are the source's own numbers for "nothing here" and "do not
    look"; in the store they are 0 and 255.

    Raises:
        LabelError: a source code or a structure's name stands twice, a kind is unknown, or there are
            no structure or more than 254.
    """

    structures: tuple[Structure, ...]
    background_codes: tuple[int, ...] = (0,)
    ignore_codes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        codes = [code for structure in self.structures for code in structure.source_codes]
        codes += [*self.background_codes, *self.ignore_codes]
        twice = sorted({code for code in codes if codes.count(code) > 1})
        if twice:
            raise LabelError(f"label codes {twice} are given two meanings. Give each code one.")
        names = [structure.name for structure in self.structures]
        if len(set(names)) != len(names) or BACKGROUND in names:
            raise LabelError(f"structures need distinct names other than {BACKGROUND!r}, but got {names}.")
        unknown = sorted({structure.kind for structure in self.structures} - set(KINDS))
        if unknown:
            raise LabelError(f"unknown kinds of structure {unknown}: a structure is one of {list(KINDS)}.")
        if not names:
            raise LabelError("the label codes name no structure to look for. Write them as 1=lesion,2=ignore.")
        if len(names) >= IGNORE:
            raise LabelError(f"{len(names)} structures do not fit into one byte: at most {IGNORE - 1}.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(structure.name for structure in self.structures)

    def encode(self, values: Num[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """The source's numbers as compact codes. Values within 0.01 of a whole number count as it.

        Raises:
            LabelError: a value is no whole number, or no code of this schema.
        """
        found, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        whole = np.rint(found)
        if not np.all(np.isfinite(found)) or np.any(np.abs(found - whole) > 0.01):
            wrong = [float(v) for v in found if not np.isfinite(v) or abs(v - round(float(v))) > 0.01]
            raise LabelError(
                f"the label holds values that are no codes: {wrong[:5]}. "
                "Is this a probability map or an image? Give the file of whole-number codes."
            )
        compact = dict.fromkeys(self.background_codes, 0) | dict.fromkeys(self.ignore_codes, IGNORE)
        for at, structure in enumerate(self.structures):
            compact |= dict.fromkeys(structure.source_codes, at + 1)
        seen = [int(code) for code in whole]
        unknown: dict[int, int] = {}
        for code, count in zip(seen, counts, strict=True):
            if code not in compact:
                unknown[code] = unknown.get(code, 0) + int(count)
        if unknown:
            known = self._known()
            listed = ", ".join(f"{code} ({number} voxels)" for code, number in list(unknown.items())[:8])
            suggestion = ",".join(f"{code}=NAME" for code in list(unknown)[:4])
            raise LabelError(
                f"the label holds unknown codes: {listed}; known are {known}. "
                f'Say what they mean: --labels "...,{suggestion}" (=ignore and =background are allowed).'
            )
        table = np.array([compact[code] for code in seen], dtype=np.uint8)
        return table[inverse].reshape(values.shape)

    def _known(self) -> str:
        """The codes for a message; of an atlas with hundreds only how many there are."""
        known = [f"{code}={name}" for name, codes in self._meanings() for code in codes]
        return ", ".join(known) if len(known) <= 30 else f"{len(known)} others"

    def _meanings(self) -> list[tuple[str, tuple[int, ...]]]:
        special = [(BACKGROUND, self.background_codes), ("ignore", self.ignore_codes)]
        return special + [(s.name, s.source_codes) for s in self.structures]

    def source_number(self, code: int) -> int:
        """The source's own number for a compact code: of several with one meaning the first that was given.

        What the source has no number for (255 without ignore codes) gets one that it does not use.

        Raises:
            LabelError: this schema has no such code.
        """
        if code not in (0, IGNORE) and code > len(self.structures):
            raise LabelError(f"code {code} is none of the {len(self.structures)} structures {', '.join(self.names)}.")
        own = {0: self.background_codes, IGNORE: self.ignore_codes}
        numbers = own[code] if code in own else self.structures[code - 1].source_codes
        used = {number for _, codes in self._meanings() for number in codes}
        return numbers[0] if numbers else next(n for n in itertools.count(code) if n not in used)

    def decode(self, codes: UInt8[np.ndarray, "*shape"]) -> Integer[np.ndarray, "*shape"]:
        """Compact codes as the source's numbers (see `source_number`), in uint8, int16 or int32.

        Raises:
            LabelError: a code is none of this schema.
        """
        found = [int(code) for code in np.unique(codes)]
        table = np.zeros(256, dtype=np.int32)
        table[found] = [self.source_number(code) for code in found]
        fits = [dtype for dtype in (np.uint8, np.int16) if np.array_equal(table.astype(dtype), table)]
        values: Integer[np.ndarray, "*shape"] = table.astype(fits[0] if fits else np.int32)[codes]
        return values

    def to_json(self) -> dict[str, Any]:
        return {
            "structures": [
                {"code": at + 1, "name": s.name, "kind": s.kind, "source_codes": list(s.source_codes)}
                for at, s in enumerate(self.structures)
            ],
            "background_codes": list(self.background_codes),
            "ignore_codes": list(self.ignore_codes),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LabelSchema:
        structures = tuple(Structure(s["name"], s["kind"], tuple(s["source_codes"])) for s in data["structures"])
        return cls(structures, tuple(data["background_codes"]), tuple(data["ignore_codes"]))

    @classmethod
    def parse(cls, text: str, kind: str) -> LabelSchema:
        """A schema from text such as "1=necrosis,2=oedema,4=enhancing,3=ignore,9=background".

        Codes that share a name become one structure. 0 is background unless it is given a meaning. A name may
        say its own kind: "1=tissue:CSF,2=lesion:infarct"; `kind` is that of the others.

        Raises:
            LabelError: the text is not of that form.
        """
        codes: dict[str, list[int]] = {}
        for part in (part.strip() for part in text.split(",")):
            match = re.fullmatch(r"(-?\d+)\s*=\s*([^=,]+)", part)
            if match is None:
                raise LabelError(f"cannot read {part!r} in the label codes {text!r}. Write them as 1=lesion,2=ignore.")
            codes.setdefault(match[2].strip(), []).append(int(match[1]))
        background, ignore = codes.pop(BACKGROUND, []), codes.pop("ignore", [])
        given = {code for listed in codes.values() for code in listed} | set(background) | set(ignore)
        if 0 not in given:
            background.insert(0, 0)
        structures = tuple(_structure(name, kind, tuple(listed)) for name, listed in codes.items())
        return cls(structures, tuple(background), tuple(ignore))


def _structure(name: str, kind: str, codes: tuple[int, ...]) -> Structure:
    own, colon, rest = name.partition(":")
    return Structure(rest, own, codes) if colon and own in KINDS else Structure(name, kind, codes)


_TISSUE_WORDS = (
    r"csf|gm|wm|gr[ae]y|white|matter|tissue|ventricles?|cortex|cortical|cerebell(?:um|ar)|brain-?stem|stem|thalamus|"
    r"putamen|caudate|pallidum|hippocampus|amygdala|accumbens|ganglia|brain|skull|bone"
)
_LESION_WORDS = r"lesions?|hyperintensit(?:y|ies)|wmh|tumou?r|infarct(?:ion)?"


def kind_of_structure(name: str) -> str:
    """Whether a structure's name is that of a healthy tissue or, as all names that are none, of a lesion.

    >>> kind_of_structure("white matter"), kind_of_structure("white matter lesion"), kind_of_structure("edema")
    ('tissue', 'lesion', 'lesion')
    """
    is_tissue, is_lesion = (
        re.search(rf"(?<![a-z])(?:{words})(?![a-z])", name.lower()) for words in (_TISSUE_WORDS, _LESION_WORDS)
    )
    return "tissue" if is_tissue and not is_lesion else "lesion"


@dataclass(frozen=True)
class SpaceLabel:
    """A structure that a model tells apart."""

    name: str
    kind: str


LESION = SpaceLabel("lesion", "lesion")
RESTS = ("", BACKGROUND, "ignore")
TISSUE = "tissue:"
"""What the name of a tissue begins with where structures are named in a text."""


@dataclass(frozen=True)
class LabelSpace:
    """Background (index 0) and the structures a model tells apart (index n + 1 for `labels[n]`).

    The label "lesion" of kind lesion stands for lesions of any name, so the default space merges all
    of them, as in Xu et al. 2024 (section 3.1).

    Attributes:
        rest: what voxels of lesion structures are that the space does not list: "background" (none of the labels),
            "ignore" (not looked at), or "" where nobody said so, which reads them as background.

    Raises:
        LabelError: no label, one that is none, a name twice, or an unknown `rest`.
    """

    labels: tuple[SpaceLabel, ...] = (LESION,)
    rest: str = ""

    def __post_init__(self) -> None:
        if self.rest not in RESTS:
            raise LabelError(f"rest {self.rest!r} is none of {', '.join(filter(None, RESTS))}.")
        if not all(isinstance(label, SpaceLabel) for label in self.labels):
            raise LabelError(f"a label space takes SpaceLabels, not {self.labels!r}. From names: LabelSpace.of(...).")
        names = [label.name for label in self.labels]
        if not names or len(set(names)) != len(names) or BACKGROUND in names:
            raise LabelError(f"a label space needs distinct names other than {BACKGROUND!r}, but got {names}.")

    @classmethod
    def of(cls, names: str | Iterable[str], rest: str = "") -> LabelSpace:
        """The space of these structures: "lesion", "oedema", "tissue:CSF" ...

        >>> LabelSpace.of(["lesion", "tissue:CSF"]).names
        ('lesion', 'CSF')
        """
        labels = [
            SpaceLabel(n.removeprefix(TISSUE).removeprefix("lesion:"), "tissue" if n.startswith(TISSUE) else "lesion")
            for n in as_names(names)
        ]
        return cls(tuple(labels), rest)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def num_logits(self) -> int:
        """One for background against a single structure, otherwise background and every structure."""
        return 1 if len(self.labels) == 1 else 1 + len(self.labels)

    def index_of(self, structure: Structure) -> int | None:
        """The index of a structure in this space, or None when the space does not hold it."""
        for at, label in enumerate(self.labels):
            if label.name == structure.name and label.kind == structure.kind:
                return at + 1
        if structure.kind == "lesion" and LESION in self.labels:
            return self.labels.index(LESION) + 1
        return None

    def unlisted(self, schemas: Iterable[LabelSchema]) -> tuple[str, ...]:
        """The lesion structures of a case's annotations that the space does not list.

        Of all its annotations if the space has lesions, and otherwise of those that the space reads.
        """
        read = [schema for schema in schemas if self._reads(schema)]
        return tuple(
            dict.fromkeys(
                structure.name
                for schema in read
                for structure in schema.structures
                if structure.kind == "lesion" and self.index_of(structure) is None
            )
        )

    def _reads(self, schema: LabelSchema) -> bool:
        has_lesions = any(label.kind == "lesion" for label in self.labels)
        return has_lesions or any(self.index_of(structure) is not None for structure in schema.structures)

    def view(self, schemas: Mapping[str, LabelSchema], annotated: Sequence[bool]) -> LabelView:
        """How the annotations that a case has (`annotated`, in the schemas' order) become targets.

        A structure comes from the first annotation of the case that looked for it, and where two
        annotations differ the first one counts: a second rater never overrides the first. Lesions lie
        over tissue, and what `rest` ignores over tissue and under lesions that are listed.
        """
        tables: dict[int, UInt8[np.ndarray, 256]] = {}
        known = np.zeros(len(self.labels), dtype=bool)
        taken: set[tuple[str, str]] = set()
        for at, schema in enumerate(schemas.values()):
            if not annotated[at]:
                continue
            table = np.zeros(256, dtype=np.uint8)
            for code, structure in enumerate(schema.structures, start=1):
                index = self.index_of(structure)
                if (structure.name, structure.kind) in taken:
                    continue
                if index is not None:
                    table[code] = index
                    known[index - 1] = True
                elif self.rest == "ignore" and structure.kind == "lesion" and self._reads(schema):
                    table[code] = IGNORE
            if table.any():
                table[IGNORE] = IGNORE
                tables[at] = table
                taken |= {(structure.name, structure.kind) for structure in schema.structures}
        is_lesion = [any(s.kind == "lesion" for s in schema.structures) for schema in schemas.values()]
        # The last one to be laid down is seen.
        is_listed = {at: bool(((table > 0) & (table < IGNORE)).any()) for at, table in tables.items()}
        lesion_and_first_last = sorted(tables, key=lambda at: (is_lesion[at], is_listed[at], -at))
        return LabelView(tuple((at, tables[at]) for at in lesion_and_first_last), known)


@dataclass(frozen=True, eq=False)
class LabelView:
    """A label space seen from one case: which stored annotations to read, and what their codes become.

    `annotated[n]` says whether anyone looked for the space's label n in this case.
    """

    tables: tuple[tuple[int, UInt8[np.ndarray, 256]], ...]
    annotated: Bool[np.ndarray, " label"]

    def target(self, codes: UInt8[np.ndarray, "annotation i j k"]) -> UInt8[np.ndarray, "i j k"]:
        """Stored codes of all annotations as indices in the label space; 255 where not to look."""
        target = np.zeros(codes.shape[1:], dtype=np.uint8)
        for annotation, table in self.tables:
            mapped = table[codes[annotation]]
            np.copyto(target, mapped, where=mapped != 0)
        return target
