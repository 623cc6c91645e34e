"""Pseudonyms for patients, cases and visits, made with a key that stays outside the store.

A pseudonym is the beginning of an HMAC-SHA256 of the real name (RFC 2104). A file holds the key and the table of real
names: only with this file can real names be found again. The same file gives the same pseudonyms for later visits.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path

from multiseg.errors import UsageError
from multiseg.faults import check_machine
from multiseg.files import lock_folder, write_atomically
from multiseg.store.cases import CaseFiles, paths_of
from multiseg.store.findings import Finding, by_name
from multiseg.store.hierarchy import is_remote, local_path
from multiseg.store.ingest.encoding import EncodedCase
from multiseg.store.sources.source_types import REAL_NAMES, DatabaseFiles

VERSION = 1
KEY_BYTES = 32
SUBJECT_DIGITS, MORE_DIGITS = 12, 8
"""Hexadecimal digits of a person's pseudonym; and of what a case adds to it, and of a visit's pseudonym."""
MIN_LETTERS = 3
"""Shorter names occur in texts by chance, so texts are not searched for them."""
# Offset and length of the free-text fields of a NIfTI-1 and NIfTI-2 header.
_TEXTS = {348: ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16)), 540: ((240, 80), (320, 24), (508, 16))}


@dataclass
class Book:
    """The key, and the pseudonym of each real name so far, by kind ("subject", "case", "session")."""

    key: bytes
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    is_new: bool = True
    _taken: dict[str, set[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._taken = {kind: set(pseudonyms.values()) for kind, pseudonyms in self.names.items()}

    @property
    def fingerprint(self) -> str:
        """Identifies the key without revealing it."""
        return self._digest("fingerprint", "", 16)

    def subject(self, name: str) -> str:
        """The pseudonym of a person."""
        return self._remember("subject", name, "p" + self._digest("subject", name, SUBJECT_DIGITS))

    def session(self, person: str, name: str) -> str:
        """The pseudonym of a person's visit. Visits of two people on the same day get different ones."""
        if not name:
            return ""
        real = f"{person} {name}"
        return self._remember("session", real, "v" + self._digest("session", real, MORE_DIGITS))

    def case(self, person: str, name: str) -> str:
        """The pseudonym of a case. It begins with its person's."""
        pseudonym = self.subject(person)
        if name != person:
            pseudonym += "-" + self._digest("case", name, MORE_DIGITS)
        return self._remember("case", name, pseudonym)

    def _digest(self, kind: str, name: str, digits: int) -> str:
        return hmac.new(self.key, f"{kind}\0{name}".encode(), hashlib.sha256).hexdigest()[:digits]

    def _remember(self, kind: str, name: str, pseudonym: str) -> str:
        pseudonyms, taken = self.names.setdefault(kind, {}), self._taken.setdefault(kind, set())
        if name not in pseudonyms:
            if pseudonym in taken and kind != "session":
                raise UsageError(f"two names ({kind}) have the pseudonym {pseudonym}. Start a new file of pseudonyms.")
            pseudonyms[name] = pseudonym
            taken.add(pseudonym)
            self.is_new = True
        return pseudonyms[name]


def read_book(path: Path) -> Book:
    """The book in a file; if the file does not exist, a new book with a random key.

    Raises:
        UsageError: the file is not a file of pseudonyms, or cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["multiseg_pseudonyms"] != VERSION:
            raise ValueError(f"its version is {data['multiseg_pseudonyms']!r}")
        key = bytes.fromhex(data["key"])
        names = {
            str(kind): {str(real): str(pseudonym) for real, pseudonym in table.items()}
            for kind, table in data["names"].items()
        }
        if len(key) != KEY_BYTES:
            raise ValueError(f"its key has {len(key)} bytes")
    except FileNotFoundError:
        return Book(secrets.token_bytes(KEY_BYTES))
    except OSError as error:
        check_machine(error)
        raise UsageError(f"cannot read {path}: {error.strerror}. Check the name of the file of pseudonyms.") from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is not a file of pseudonyms ({error}). Name another file; a missing one is created. Keep the file "
            "that was used before: without it, nobody can find the real names again."
        ) from error
    return Book(key, names, is_new=False)


def write_book(path: Path, book: Book) -> None:
    """Write a book to a file that only its owner can read.

    Raises:
        ResourceError: it cannot be written.
    """
    data = {"multiseg_pseudonyms": VERSION, "key": book.key.hex(), "names": book.names}
    write_atomically(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode(), mode=0o600)


def check_place(path: str, store: str) -> Path:
    """The resolved path of the file of pseudonyms.

    Raises:
        UsageError: it is inside the store, which others will see, or not on this machine.
    """
    if is_remote(path):
        raise UsageError(f"the file of pseudonyms {path!r} must be on this machine. Name a local path.")
    file = Path(path).expanduser().resolve()
    if not is_remote(store) and file.is_relative_to(local_path(store).resolve()):
        raise UsageError(
            f"the file of pseudonyms {path} is inside the store, so that everybody with the store could read the real "
            "names. Name a path outside it."
        )
    if file.is_dir():
        raise UsageError(f"{path} is a folder. Name a file for the pseudonyms.")
    return file


@dataclass(frozen=True)
class Renamed:
    """Databases with pseudonyms for every person, case and visit. `by_real`: the pseudonyms of cases and people."""

    databases: tuple[DatabaseFiles, ...]
    by_real: Mapping[str, str]

    def name(self, real: str) -> str:
        """The pseudonym of a case, a person or DATABASE/CASE; an unknown name stays as it is."""
        database, slash, case = real.rpartition("/")
        return self.by_real.get(real) or database + slash + self.by_real.get(case, case)


def with_pseudonyms(databases: Sequence[DatabaseFiles], path: str, store: str, *, is_kept: bool = True) -> Renamed:
    """Give databases pseudonyms from the file at `path`, after writing the new names to it; create it if necessary.

    Args:
        is_kept: write the file. If not, nothing is written, and without a file the pseudonyms come from a temporary
            key.

    Raises:
        UsageError: the file is inside the store or is not a file of pseudonyms; or a database is named like a patient.
        ResourceError: the file cannot be written, or another process is writing to it.
    """
    file = check_place(path, store)
    lock: AbstractContextManager[None] = nullcontext()
    if is_kept:
        file.parent.mkdir(parents=True, exist_ok=True)
        remedy = "it is adding names to the same file. Try again when it is done."
        lock = lock_folder(file.with_name(f".{file.name}.lock"), remedy)
    with lock:
        book = read_book(file)
        renamed = _renamed(databases, book)
        if is_kept and (book.is_new or file.stat().st_mode & 0o077):  # nobody else may read it
            write_book(file, book)
    return renamed


def _renamed(databases: Sequence[DatabaseFiles], book: Book) -> Renamed:
    by_real: dict[str, str] = {}
    renamed = []
    for files in databases:
        _check_database(files)
        people = {case.person: book.subject(case.person) for case in files.cases}
        all_names = RealNames(people | {case.case: book.case(case.person, case.case) for case in files.cases})
        cases = []
        for case in files.cases:
            cases.append(_renamed_case(case, book, all_names))
            by_real |= {case.person: book.subject(case.person), case.case: cases[-1].case}
        findings = []
        for finding in files.findings:
            if finding.case:
                by_real.setdefault(finding.case, _pseudonym_of_finding(finding, book))
            if finding.code != REAL_NAMES:
                findings.append(replace(finding, case=by_real.get(finding.case, "")))
        renamed.append(replace(files, cases=tuple(cases), findings=tuple(findings), pseudonyms=book.fingerprint))
    return Renamed(tuple(renamed), by_real)


def _pseudonym_of_finding(finding: Finding, book: Book) -> str:
    """The pseudonym of a bad case. Its person is unknown, unless the book has the case from an earlier ingest."""
    return book.names.get("case", {}).get(finding.case) or book.case(finding.case, finding.case)


def _check_database(files: DatabaseFiles) -> None:
    """Raises UsageError if a database is named like a patient in it, as a folder with one patient often is."""
    real = {name for case in files.cases for name in (case.case, case.person)}
    real |= {case.session for case in files.cases if re.search(r"\d{6}", case.session)}
    long = [name for name in real if len(name) >= MIN_LETTERS]
    possible = _possible_names(_index_names(long), files.name)
    named = [name for name in possible if _whole_words(re.escape(name)).search(files.name)]
    if named:
        raise UsageError(
            f"the name of the database, {files.name!r}, contains that of the patient or case {min(named)!r}. Give it "
            "another name: --database NAME."
        )


def _renamed_case(case: CaseFiles, book: Book, all_names: RealNames) -> CaseFiles:
    name, person = book.case(case.person, case.case), book.subject(case.person)
    session = book.session(case.person, case.session)
    own_names = RealNames({case.case: name, case.person: person, case.session: session})
    participant = {column: _replace_names(value, own_names, all_names) for column, value in case.participant.items()}
    site = str(_replace_names(case.site, own_names, all_names))
    return replace(case, case=name, subject=person, session=session, participant=participant, site=site)


class RealNames:
    """Real names with their pseudonyms, which replace them where they occur as words in texts."""

    def __init__(self, names: Mapping[str, str]) -> None:
        # BIDS writes labels with and without their key, as sub-01 and 01.
        short = {real[4:]: pseudonym for real, pseudonym in names.items() if re.match("(sub|ses)-.", real)}
        self.by_name = {real.lower(): pseudonym for real, pseudonym in (short | dict(names)).items() if real}
        self.index = _index_names([name for name in self.by_name if len(name) >= MIN_LETTERS])

    def without(self, text: str) -> str:
        """Replace the real names in a text by their pseudonyms."""
        if text.lower() in self.by_name:
            return self.by_name[text.lower()]
        possible = sorted(_possible_names(self.index, text), key=len, reverse=True)
        if not possible:
            return text
        pattern = _whole_words("|".join(map(re.escape, possible)))
        return pattern.sub(lambda found: self.by_name[found[0].lower()], text)


def _index_names(names: Sequence[str]) -> dict[str, list[str]]:
    """Names by their rarest word, to find quickly which of thousands of names may occur in a text."""
    words = {name: _WORD.findall(_as_ascii(name)) or [""] for name in names}
    count = Counter(word for words_of_name in words.values() for word in set(words_of_name))
    return by_name(words, lambda name: min(words[name], key=lambda word: count[word]))


def _possible_names(index: Mapping[str, Sequence[str]], text: str) -> list[str]:
    """The names that may occur in a text; all others do not."""
    return [name for word in {"", *_WORD.findall(_as_ascii(text))} for name in index.get(word, ())]


_WORD = re.compile("[a-z0-9]+")
_LIKE_ASCII = str.maketrans("\u0130\u0131\u017f\u212a", "iisk")
"""Non-ASCII letters that a case-insensitive search matches with i, s and k."""


def _as_ascii(text: str) -> str:
    return text.translate(_LIKE_ASCII).lower()


def _replace_names(value: str | float, own_names: RealNames, all_names: RealNames) -> str | float:
    """Replace real names in a value of a table of patients: its own case's and all others'. A number may be a name."""
    if isinstance(value, str):
        return all_names.without(own_names.without(value))
    whole = str(int(value)) if float(value).is_integer() else ""
    return own_names.by_name[whole] if len(whole) >= MIN_LETTERS and whole in own_names.by_name else value


def _whole_words(expression: str) -> re.Pattern[str]:
    """A pattern that matches the expression where it occurs as whole words."""
    return re.compile(rf"(?<![A-Za-z0-9])(?:{expression})(?![A-Za-z0-9])", re.IGNORECASE)


def without_names(encoded: EncodedCase, case: CaseFiles) -> EncodedCase:
    """An encoded case without the names of its files and without the free texts of their headers."""
    neutral = {role: role.replace(":", "_") + _suffix(paths_of(file)[0]) for role, file in case.by_role.items()}
    sources = []
    for source in encoded.sources:
        steps = [_without_paths(str(step), case) for step in source["steps"]]
        sources.append({**source, "file": neutral[source["role"]], "steps": steps})
    return replace(encoded, sources=tuple(sources), native_header=_without_texts(encoded.native_header))


def _suffix(path: Path) -> str:
    """The suffix of a file's name, if it is that of a known format."""
    suffix = re.search(r"\.(nii|nii\.gz|hdr|img|mg[hz]|mha|mhd|nrrd|nhdr|dcm)$", path.name, re.IGNORECASE)
    return suffix[0].lower() if suffix else ""


def _without_paths(text: str, case: CaseFiles) -> str:
    for role, file in case.by_role.items():
        for path in paths_of(file):
            for part in (str(path), str(path.parent), path.name):
                text = text.replace(part, role)
    return text


def _without_texts(header: bytes) -> bytes:
    """Clear the free texts of a NIfTI header."""
    cleared = bytearray(header)
    for offset, length in _TEXTS.get(len(header), ()):
        cleared[offset : offset + length] = bytes(length)
    return bytes(cleared)
