"""The meaning of label codes: the schema of an annotation, and the label space of a model."""

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
"""The code of voxels that losses and metrics ignore."""
BACKGROUND = "background"
KINDS = ("lesion", "tissue")
CORRECTED = "corrected"
"""The annotation of masks that a rater has corrected; those of an annotation NAME are "corrected-NAME"."""


def is_correction(annotation: str) -> bool:
    """Whether an annotation of this name holds corrected masks, which are read instead of the others.

    >>> is_correction("corrected"), is_correction("corrected-tissue"), is_correction("lesion")
    (True, True, False)
    """
    return annotation.partition("-")[0] == CORRECTED


@dataclass(frozen=True)
class Structure:
    """A named structure of an annotation, and its numbers in the source files."""

    name: str
    kind: str
    source_codes: tuple[int, ...]


@dataclass(frozen=True)
class LabelSchema:
    """The meaning of one annotation's codes. In the store, structure n (from 0) has the compact code n + 1.

    `background_codes` and `ignore_codes` are the source's numbers for background and for ignored voxels, which are 0
    and 255 in the store.

    Raises:
        LabelError: a source code or a structure's name occurs twice, a kind is unknown, or the number of structures is
            0 or more than 254.
    """

    structures: tuple[Structure, ...]
    background_codes: tuple[int, ...] = (0,)
    ignore_codes: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        codes = [code for structure in self.structures for code in structure.source_codes]
        codes += [*self.background_codes, *self.ignore_codes]
        duplicates = sorted({code for code in codes if codes.count(code) > 1})
        if duplicates:
            raise LabelError(f"label codes {duplicates} have two meanings. Give each code one.")
        names = [structure.name for structure in self.structures]
        if len(set(names)) != len(names) or BACKGROUND in names:
            raise LabelError(f"structures need distinct names other than {BACKGROUND!r}, but got {names}.")
        unknown = sorted({structure.kind for structure in self.structures} - set(KINDS))
        if unknown:
            raise LabelError(f"unknown kinds of structure {unknown}: a kind is one of {list(KINDS)}.")
        if not names:
            raise LabelError("the label codes have no structure. Write them like 1=lesion,2=ignore.")
        if len(names) >= IGNORE:
            raise LabelError(f"{len(names)} structures are too many for one byte: at most {IGNORE - 1}.")

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(structure.name for structure in self.structures)

    def encode(self, values: Num[np.ndarray, "*shape"]) -> UInt8[np.ndarray, "*shape"]:
        """Convert the source's numbers to compact codes. Values within 0.01 of a whole number are rounded.

        Raises:
            LabelError: a value is not a whole number, or not a code of this schema.
        """
        distinct, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
        whole = np.rint(distinct)
        if not np.all(np.isfinite(distinct)) or np.any(np.abs(distinct - whole) > 0.01):
            wrong = [float(v) for v in distinct if not np.isfinite(v) or abs(v - round(float(v))) > 0.01]
            raise LabelError(
                f"the label has values that are not whole numbers: {wrong[:5]}. "
                "Is this a probability map or an image? Give the file of whole-number codes."
            )
        compact = dict.fromkeys(self.background_codes, 0) | dict.fromkeys(self.ignore_codes, IGNORE)
        for code, structure in enumerate(self.structures, start=1):
            compact |= dict.fromkeys(structure.source_codes, code)
        codes = [int(code) for code in whole]
        unknown: dict[int, int] = {}
        for code, count in zip(codes, counts, strict=True):
            if code not in compact:
                unknown[code] = unknown.get(code, 0) + int(count)
        if unknown:
            listed = ", ".join(f"{code} ({count} voxels)" for code, count in list(unknown.items())[:8])
            suggestion = ",".join(f"{code}=NAME" for code in list(unknown)[:4])
            raise LabelError(
                f"the label has unknown codes: {listed}; known are {self._known_codes()}. "
                f'Give their meaning: --labels "...,{suggestion}" (=ignore and =background are allowed).'
            )
        table = np.array([compact[code] for code in codes], dtype=np.uint8)
        return table[inverse].reshape(values.shape)

    def _known_codes(self) -> str:
        """The codes for a message; only their number if there are more than 30, as in an atlas."""
        known = [f"{code}={name}" for name, codes in self._meanings() for code in codes]
        return ", ".join(known) if len(known) <= 30 else f"{len(known)} others"

    def _meanings(self) -> list[tuple[str, tuple[int, ...]]]:
        special = [(BACKGROUND, self.background_codes), ("ignore", self.ignore_codes)]
        return special + [(s.name, s.source_codes) for s in self.structures]

    def source_number(self, code: int) -> int:
        """The source's number for a compact code, the first if there are several.

        If the source has none (255 without ignore codes), it is a number that the source does not use.

        Raises:
            LabelError: the code is not in this schema.
        """
        if code not in (0, IGNORE) and code > len(self.structures):
            raise LabelError(f"code {code} is not one of {len(self.structures)} structures: {', '.join(self.names)}.")
        special = {0: self.background_codes, IGNORE: self.ignore_codes}
        numbers = special[code] if code in special else self.structures[code - 1].source_codes
        used = {number for _, codes in self._meanings() for number in codes}
        return numbers[0] if numbers else next(n for n in itertools.count(code) if n not in used)

    def decode(self, codes: UInt8[np.ndarray, "*shape"]) -> Integer[np.ndarray, "*shape"]:
        """Convert compact codes to the source's numbers (see `source_number`), as uint8, int16 or int32.

        Raises:
            LabelError: a code is not in this schema.
        """
        distinct = [int(code) for code in np.unique(codes)]
        table = np.zeros(256, dtype=np.int32)
        table[distinct] = [self.source_number(code) for code in distinct]
        fits = [dtype for dtype in (np.uint8, np.int16) if np.array_equal(table.astype(dtype), table)]
        values: Integer[np.ndarray, "*shape"] = table.astype(fits[0] if fits else np.int32)[codes]
        return values

    def to_json(self) -> dict[str, Any]:
        return {
            "structures": [
                {"code": code, "name": s.name, "kind": s.kind, "source_codes": list(s.source_codes)}
                for code, s in enumerate(self.structures, start=1)
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

        Codes with the same name become one structure. 0 is background unless it is given a meaning. A name may have a
        kind, as in "1=tissue:CSF,2=lesion:infarct"; `kind` is that of the others.

        Raises:
            LabelError: the text is invalid.
        """
        codes: dict[str, list[int]] = {}
        for part in (part.strip() for part in text.split(",")):
            match = re.fullmatch(r"(-?\d+)\s*=\s*([^=,]+)", part)
            if match is None:
                raise LabelError(f"invalid {part!r} in the label codes {text!r}. Write them like 1=lesion,2=ignore.")
            codes.setdefault(match[2].strip(), []).append(int(match[1]))
        background, ignore = codes.pop(BACKGROUND, []), codes.pop("ignore", [])
        given = {code for listed in codes.values() for code in listed} | set(background) | set(ignore)
        # Most sources do not list 0.
        if 0 not in given:
            background.insert(0, 0)
        structures = tuple(_structure(name, kind, tuple(listed)) for name, listed in codes.items())
        return cls(structures, tuple(background), tuple(ignore))


def _structure(name: str, kind: str, codes: tuple[int, ...]) -> Structure:
    prefix, colon, rest = name.partition(":")
    return Structure(rest, prefix, codes) if colon and prefix in KINDS else Structure(name, kind, codes)


_TISSUE_WORDS = (
    r"csf|gm|wm|gr[ae]y|white|matter|tissue|ventricles?|cortex|cortical|cerebell(?:um|ar)|brain-?stem|stem|thalamus|"
    r"putamen|caudate|pallidum|hippocampus|amygdala|accumbens|ganglia|brain|skull|bone"
)
_LESION_WORDS = r"lesions?|hyperintensit(?:y|ies)|wmh|tumou?r|infarct(?:ion)?"


def kind_of_structure(name: str) -> str:
    """The kind of a structure by its name: "tissue" for a healthy tissue, otherwise "lesion".

    >>> kind_of_structure("white matter"), kind_of_structure("white matter lesion"), kind_of_structure("edema")
    ('tissue', 'lesion', 'lesion')
    """
    is_tissue, is_lesion = (
        re.search(rf"(?<![a-z])(?:{words})(?![a-z])", name.lower()) for words in (_TISSUE_WORDS, _LESION_WORDS)
    )
    return "tissue" if is_tissue and not is_lesion else "lesion"


@dataclass(frozen=True)
class SpaceLabel:
    """A structure that a model segments.

    `pathology`: if not empty, the label stands for lesions of any name in cases with this pathology.
    """

    name: str
    kind: str
    pathology: str = ""


LESION = SpaceLabel("lesion", "lesion")
RESTS = ("", BACKGROUND, "ignore")
TISSUE, PATHOLOGY = "tissue:", "pathology:"
"""The prefixes of tissues, and of the lesions of one pathology, in texts that list structures."""
WORDS = ("tissues", "tissues+lesion", "lesions-by-pathology")
"""Label spaces whose structures depend on the data: `multiseg.store.structures.listed_labels` lists them."""


@dataclass(frozen=True)
class LabelSpace:
    """Background (index 0) and the structures that a model segments (index n + 1 for `labels[n]`).

    The label "lesion" of kind lesion includes lesions of any name, so the default space merges all of them, as in Xu
    et al. 2024 (section 3.1).

    Attributes:
        rest: how voxels of lesion structures that the space does not list are read: "background", "ignore", or ""
            if not specified, which reads them as background.

    Raises:
        LabelError: there is no label, a label is invalid, a name occurs twice, or `rest` is unknown.
    """

    labels: tuple[SpaceLabel, ...] = (LESION,)
    rest: str = ""

    def __post_init__(self) -> None:
        if self.rest not in RESTS:
            raise LabelError(f"unknown rest {self.rest!r}: choose one of {', '.join(filter(None, RESTS))}.")
        if not all(isinstance(label, SpaceLabel) for label in self.labels):
            raise LabelError(f"a label space takes SpaceLabels, not {self.labels!r}. From names: LabelSpace.of(...).")
        names = [label.name for label in self.labels]
        if not names or len(set(names)) != len(names) or BACKGROUND in names:
            raise LabelError(f"a label space needs distinct names other than {BACKGROUND!r}, but got {names}.")

    @classmethod
    def of(cls, names: str | Iterable[str], rest: str = "") -> LabelSpace:
        """The space of these structures: "lesion", "oedema", "tissue:CSF", "pathology:stroke" ...

        >>> LabelSpace.of(["lesion", "tissue:CSF"]).names
        ('lesion', 'CSF')

        Raises:
            LabelError: a name is one of `WORDS`, whose structures only a store can tell; and see the class.
        """
        return cls(tuple(_space_label(name) for name in as_names(names)), rest)

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(label.name for label in self.labels)

    @property
    def tissues(self) -> tuple[int, ...]:
        """The positions of the tissues among the labels."""
        return tuple(position for position, label in enumerate(self.labels) if label.kind == "tissue")

    @property
    def num_logits(self) -> int:
        """1 for a single structure against background; otherwise one for background and one per structure."""
        return 1 if len(self.labels) == 1 else 1 + len(self.labels)

    def index_of(self, structure: Structure, pathology: str = "") -> int | None:
        """The index of a structure in this space; None if the space does not have it.

        A label of the structure's own name comes before one of its pathology, and that before "lesion".

        Args:
            pathology: of the case.
        """
        candidates = [SpaceLabel(structure.name, structure.kind)]
        if structure.kind == "lesion":
            by_pathology = [label for label in self.labels if label.pathology and label.pathology == pathology]
            candidates += [*by_pathology, LESION]
        return next((self.labels.index(label) + 1 for label in candidates if label in self.labels), None)

    def unlisted(self, schemas: Iterable[LabelSchema], pathology: str = "") -> tuple[str, ...]:
        """The lesion structures in a case's annotations that the space does not list.

        All annotations count if the space has lesions; otherwise those that the space reads.
        """
        read = [schema for schema in schemas if self._reads(schema, pathology)]
        return tuple(
            dict.fromkeys(
                structure.name
                for schema in read
                for structure in schema.structures
                if structure.kind == "lesion" and self.index_of(structure, pathology) is None
            )
        )

    def _reads(self, schema: LabelSchema, pathology: str) -> bool:
        has_lesions = any(label.kind == "lesion" for label in self.labels)
        return has_lesions or any(self.index_of(structure, pathology) is not None for structure in schema.structures)

    def view(self, schemas: Mapping[str, LabelSchema], annotated: Sequence[bool], pathology: str = "") -> LabelView:
        """How the annotations of a case (`annotated`, in the order of the schemas) become targets.

        Each structure is read from the first annotation of the case that has it, so a second rater never overrides
        the first. Where the case has a correction (see `is_correction`), the kinds of structures in it are read from
        corrections alone. Lesions override tissue; voxels that `rest` ignores override tissue, but not listed lesions.
        """
        tables: dict[int, UInt8[np.ndarray, 256]] = {}
        is_annotated = np.zeros(len(self.labels), dtype=bool)
        taken: set[tuple[str, str]] = set()
        corrected = corrected_kinds(schemas, annotated)
        for position, (name, schema) in enumerate(schemas.items()):
            if not annotated[position]:
                continue
            table = np.zeros(256, dtype=np.uint8)
            for code, structure in enumerate(schema.structures, start=1):
                index = self.index_of(structure, pathology)
                is_replaced = structure.kind in corrected and not is_correction(name)
                if is_replaced or (structure.name, structure.kind) in taken:
                    continue
                if index is not None:
                    table[code] = index
                    is_annotated[index - 1] = True
                elif self.rest == "ignore" and structure.kind == "lesion" and self._reads(schema, pathology):
                    table[code] = IGNORE
            if table.any():
                table[IGNORE] = IGNORE
                tables[position] = table
                taken |= {(structure.name, structure.kind) for structure in schema.structures}
        is_lesion = [any(s.kind == "lesion" for s in schema.structures) for schema in schemas.values()]
        is_listed = {n: bool(((table > 0) & (table < IGNORE)).any()) for n, table in tables.items()}
        # Later tables override earlier ones: lesions come last, and the first annotation after the second.
        order = sorted(tables, key=lambda n: (is_lesion[n], is_listed[n], -n))
        return LabelView(tuple((n, tables[n]) for n in order), is_annotated)


def corrected_kinds(schemas: Mapping[str, LabelSchema], annotated: Iterable[bool]) -> frozenset[str]:
    """The kinds of structures in the corrections of a case: these are read from its corrections alone."""
    return frozenset(
        structure.kind
        for (name, schema), has_it in zip(schemas.items(), annotated, strict=True)
        if has_it and is_correction(name)
        for structure in schema.structures
    )


def _space_label(text: str) -> SpaceLabel:
    if text in WORDS:
        raise LabelError(
            f"the structures of {text!r} depend on the data: list them, such as lesion,tissue:CSF. To see those of a "
            f"store: multiseg train STORE --labels {text} --print-config."
        )
    if text.startswith(PATHOLOGY):
        name = text.removeprefix(PATHOLOGY)
        return SpaceLabel(name, "lesion", name)
    if text.startswith(TISSUE):
        return SpaceLabel(text.removeprefix(TISSUE), "tissue")
    return SpaceLabel(text.removeprefix("lesion:"), "lesion")


@dataclass(frozen=True, eq=False)
class LabelView:
    """A label space for one case: the annotations to read, and tables that map their codes to the space.

    `annotated[n]`: whether label n of the space was annotated in this case.
    """

    tables: tuple[tuple[int, UInt8[np.ndarray, 256]], ...]
    annotated: Bool[np.ndarray, " label"]

    def target(self, codes: UInt8[np.ndarray, "annotation i j k"]) -> UInt8[np.ndarray, "i j k"]:
        """Map the stored codes of all annotations to indices of the label space; 255 is ignored."""
        target = np.zeros(codes.shape[1:], dtype=np.uint8)
        for annotation, table in self.tables:
            mapped = table[codes[annotation]]
            np.copyto(target, mapped, where=mapped != 0)
        return target
