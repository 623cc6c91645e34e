"""Other names for patients, cases and visits, made with a key that stays outside the store.

A pseudonym is the beginning of an HMAC-SHA256 of the real name (RFC 2104). The file holds the key and the table of
real names: whoever has it can go back, nobody else can. The same file gives the same names for later visits.
"""

from __future__ import annotations

import hashlib
import hmac
import json
import re
import secrets
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from multiseg.errors import UsageError
from multiseg.faults import check_machine
from multiseg.files import lock_folder, write_atomically
from multiseg.store.cases import CaseFiles, paths_of
from multiseg.store.findings import Finding
from multiseg.store.hierarchy import is_remote, local_path
from multiseg.store.ingest.encoding import EncodedCase
from multiseg.store.sources.model import REAL_NAMES, DatabaseFiles

VERSION = 1
KEY_BYTES = 32
SUBJECT_DIGITS, MORE_DIGITS = 12, 8
"""Hexadecimal digits of a person's pseudonym, and of what is added for a case or is a visit's."""
MIN_LETTERS = 3
"""Shorter names than this stand in many words by chance."""
# Texts of a header that a person or a program wrote: their beginning and length.
_TEXTS = {348: ((4, 10), (14, 18), (148, 80), (228, 24), (328, 16)), 540: ((240, 80), (320, 24), (508, 16))}


@dataclass
class Book:
    """The key, and the real names so far with their pseudonyms: by kind ("subject", "case", "session")."""

    key: bytes
    names: dict[str, dict[str, str]] = field(default_factory=dict)
    is_new: bool = True
    _taken: dict[str, set[str]] = field(init=False, repr=False)

    def __post_init__(self) -> None:
        self._taken = {kind: set(known.values()) for kind, known in self.names.items()}

    @property
    def fingerprint(self) -> str:
        """What tells one key from another and nothing of either."""
        return self._digest("fingerprint", "", 16)

    def subject(self, name: str) -> str:
        """The pseudonym of a person."""
        return self._kept("subject", name, "p" + self._digest("subject", name, SUBJECT_DIGITS))

    def session(self, person: str, name: str) -> str:
        """That of a person's visit; two people's visits of one day have nothing in common."""
        if not name:
            return ""
        real = f"{person} {name}"
        return self._kept("session", real, "v" + self._digest("session", real, MORE_DIGITS))

    def case(self, person: str, name: str) -> str:
        """That of a case, which begins with its person's."""
        own = self.subject(person)
        if name != person:
            own += "-" + self._digest("case", name, MORE_DIGITS)
        return self._kept("case", name, own)

    def _digest(self, kind: str, name: str, digits: int) -> str:
        return hmac.new(self.key, f"{kind}\0{name}".encode(), hashlib.sha256).hexdigest()[:digits]

    def _kept(self, kind: str, name: str, pseudonym: str) -> str:
        known, taken = self.names.setdefault(kind, {}), self._taken.setdefault(kind, set())
        if name not in known:
            if pseudonym in taken and kind != "session":
                raise UsageError(f"two names ({kind}) have the pseudonym {pseudonym}. Begin a new file of pseudonyms.")
            known[name] = pseudonym
            taken.add(pseudonym)
            self.is_new = True
        return known[name]


def read_book(path: Path) -> Book:
    """The book in a file; a new one with a random key where there is none.

    Raises:
        UsageError: the file is something else, or cannot be read.
    """
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        if data["multiseg_pseudonyms"] != VERSION:
            raise ValueError(f"its version is {data['multiseg_pseudonyms']!r}")
        key = bytes.fromhex(data["key"])
        names = {str(kind): {str(a): str(b) for a, b in some.items()} for kind, some in data["names"].items()}
        if len(key) != KEY_BYTES:
            raise ValueError(f"its key has {len(key)} bytes")
    except FileNotFoundError:
        return Book(secrets.token_bytes(KEY_BYTES))
    except OSError as error:
        check_machine(error)
        raise UsageError(
            f"{path} cannot be read: {error.strerror}. Check the name of the file of pseudonyms."
        ) from error
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise UsageError(
            f"{path} is no file of pseudonyms ({error}). Name another, which is made where it does not exist; without "
            "the file that was used before, nobody finds the real names again."
        ) from error
    return Book(key, names, is_new=False)


def write_book(path: Path, book: Book) -> None:
    """Keep a book, for its owner's eyes only.

    Raises:
        ResourceError: it cannot be written.
    """
    data = {"multiseg_pseudonyms": VERSION, "key": book.key.hex(), "names": book.names}
    write_atomically(path, (json.dumps(data, indent=1, ensure_ascii=False) + "\n").encode(), mode=0o600)


def check_place(path: str, store: str) -> Path:
    """Where the file of pseudonyms lies.

    Raises:
        UsageError: in the store, which others are to see, or not on this machine.
    """
    if is_remote(path):
        raise UsageError(f"the file of pseudonyms {path!r} has to lie on this machine. Name a path.")
    file = Path(path).expanduser().resolve()
    if not is_remote(store) and file.is_relative_to(local_path(store).resolve()):
        raise UsageError(f"the file of pseudonyms {path} lies in the store, and whoever has it would have the names. "
                         "Name a place outside.")  # fmt: skip
    if file.is_dir():
        raise UsageError(f"{path} is a folder. Name a file for the pseudonyms.")
    return file


@dataclass(frozen=True)
class Renamed:
    """Databases in which every person, case and visit has a pseudonym; `by_real` gives that of a case or person."""

    databases: tuple[DatabaseFiles, ...]
    by_real: Mapping[str, str]

    def name(self, real: str) -> str:
        """The pseudonym of a case, a person or DATABASE/CASE; itself where there is none."""
        database, slash, case = real.rpartition("/")
        return self.by_real.get(real) or database + slash + self.by_real.get(case, case)

    def names(self, given: Mapping[str, str]) -> dict[str, str]:
        """The same by pseudonym, for what a split file says."""
        return {self.name(real): value for real, value in given.items()}


def with_pseudonyms(databases: Sequence[DatabaseFiles], path: str, store: str, *, is_kept: bool = True) -> Renamed:
    """Databases with pseudonyms from the file at `path`, which is made, or gets the new names, before anything else.

    Args:
        is_kept: write the file. Else nothing is written, and without a file the names are of a key that goes again.

    Raises:
        UsageError: the file lies in the store or holds something else; or a database is called like a patient.
        ResourceError: the file cannot be written, or another process does it now.
    """
    file = check_place(path, store)
    if is_kept:
        file.parent.mkdir(parents=True, exist_ok=True)
    lock = file.with_name(f".{file.name}.lock")
    with lock_folder(lock, "it adds names to the same file. Try again when it is done.") if is_kept else nullcontext():
        book = read_book(file)
        renamed = _renamed(databases, book)
        if is_kept and (book.is_new or file.stat().st_mode & 0o077):  # nobody else is to read it
            write_book(file, book)
    return renamed


def _renamed(databases: Sequence[DatabaseFiles], book: Book) -> Renamed:
    by_real: dict[str, str] = {}
    done = []
    for files in databases:
        _check_database(files)
        people = {case.person: book.subject(case.person) for case in files.cases}
        others = _Words(people | {case.case: book.case(case.person, case.case) for case in files.cases})
        cases = []
        for case in files.cases:
            cases.append(_renamed_case(case, book, others))
            by_real |= {case.person: book.subject(case.person), case.case: cases[-1].case}
        findings = []
        for finding in files.findings:
            if finding.case:
                by_real.setdefault(finding.case, _of_finding(finding, book))
            if finding.code != REAL_NAMES:
                findings.append(replace(finding, case=by_real.get(finding.case, "")))
        done.append(replace(files, cases=tuple(cases), findings=tuple(findings), pseudonyms=book.fingerprint))
    return Renamed(tuple(done), by_real)


def _of_finding(finding: Finding, book: Book) -> str:
    """The pseudonym of a case that nothing could be made of, so that its person is not known, unless from before."""
    return book.names.get("case", {}).get(finding.case) or book.case(finding.case, finding.case)


def _check_database(files: DatabaseFiles) -> None:
    """Whether a database is called like nobody in it; a folder of one patient often is."""
    real = {name for case in files.cases for name in (case.case, case.person)}
    real |= {case.session for case in files.cases if re.search(r"\d{6}", case.session)}
    long = [name for name in real if len(name) >= MIN_LETTERS]
    named = [name for name in _by_word(long).of(files.name) if _words(re.escape(name)).search(files.name)]
    if named:
        raise UsageError(
            f"the database would be called {files.name!r}, as the patient or case {min(named)!r} is. Give it another "
            "name: --database NAME."
        )


def _renamed_case(case: CaseFiles, book: Book, others: _Words) -> CaseFiles:
    name, person = book.case(case.person, case.case), book.subject(case.person)
    session = book.session(case.person, case.session)
    own = _Words({case.case: name, case.person: person, case.session: session})
    participant = {column: _without(value, own, others) for column, value in case.participant.items()}
    site = str(_without(case.site, own, others))
    return replace(case, case=name, subject=person, session=session, participant=participant, site=site)


class _Words:
    """Real names with their pseudonyms, to be found where they stand as words in other texts."""

    def __init__(self, names: Mapping[str, str]) -> None:
        # BIDS writes a label with and without its key.
        short = {real[4:]: other for real, other in names.items() if re.match("(sub|ses)-.", real)}
        self.by_name = {real.lower(): other for real, other in (short | dict(names)).items() if real}
        self.known = _by_word([name for name in self.by_name if len(name) >= MIN_LETTERS])

    def without(self, text: str) -> str:
        """A text with pseudonyms in the place of names."""
        if text.lower() in self.by_name:
            return self.by_name[text.lower()]
        possible = sorted(self.known.of(text), key=len, reverse=True)
        if not possible:
            return text
        pattern = _words("|".join(map(re.escape, possible)))
        return pattern.sub(lambda found: self.by_name[found[0].lower()], text)


@dataclass(frozen=True)
class _ByWord:
    """Names by one of their words, the one that fewest have: which of thousands can stand in a text shows at once."""

    names: Mapping[str, Sequence[str]]

    def of(self, text: str) -> list[str]:
        """The names that may stand in a text; no other one does."""
        return [name for word in {"", *_WORD.findall(_plain(text))} for name in self.names.get(word, ())]


def _by_word(names: Sequence[str]) -> _ByWord:
    words = {name: _WORD.findall(_plain(name)) or [""] for name in names}
    count = Counter(word for own in words.values() for word in set(own))
    found: dict[str, list[str]] = {}
    for name, own in words.items():
        found.setdefault(min(own, key=lambda word: count[word]), []).append(name)
    return _ByWord(found)


_WORD = re.compile("[a-z0-9]+")
_LIKE_ASCII = str.maketrans("\u0130\u0131\u017f\u212a", "iisk")
"""Letters that a search without regard to case takes for i, s and k."""


def _plain(text: str) -> str:
    return text.translate(_LIKE_ASCII).lower()


def _without(value: str | float, own: _Words, others: _Words) -> str | float:
    """A value of a patients' table without names: its case's own, and those of any other; a number may be one."""
    if isinstance(value, str):
        return others.without(own.without(value))
    whole = str(int(value)) if float(value).is_integer() else ""
    return own.by_name[whole] if len(whole) >= MIN_LETTERS and whole in own.by_name else value


def _words(expression: str) -> re.Pattern[str]:
    """What fits where it stands as words of its own."""
    return re.compile(rf"(?<![A-Za-z0-9])(?:{expression})(?![A-Za-z0-9])", re.IGNORECASE)


def without_names(encoded: EncodedCase, case: CaseFiles) -> EncodedCase:
    """A packed case in which nothing tells the names of its files, nor what was written into their headers."""
    neutral = {role: role.replace(":", "_") + _suffix(paths_of(file)[0]) for role, file in case.by_role.items()}
    sources = []
    for source in encoded.sources:
        one: dict[str, Any] = {**source, "file": neutral[source["role"]]}
        sources.append({**one, "steps": [_without_paths(str(step), case) for step in one["steps"]]})
    return replace(encoded, sources=tuple(sources), native_header=_without_texts(encoded.native_header))


def _suffix(path: Path) -> str:
    """The end of a file's name as far as it tells a format."""
    found = re.search(r"\.(nii|nii\.gz|hdr|img|mg[hz]|mha|mhd|nrrd|nhdr|dcm)$", path.name, re.IGNORECASE)
    return found[0].lower() if found else ""


def _without_paths(text: str, case: CaseFiles) -> str:
    for role, file in case.by_role.items():
        for path in paths_of(file):
            for part in (str(path), str(path.parent), path.name):
                text = text.replace(part, role)
    return text


def _without_texts(header: bytes) -> bytes:
    """A NIfTI header with its free texts empty."""
    clean = bytearray(header)
    for begin, length in _TEXTS.get(len(header), ()):
        clean[begin : begin + length] = bytes(length)
    return bytes(clean)
