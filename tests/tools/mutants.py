"""Break the package in random places, one at a time, and see whether a test notices.

    python -m tests.tools.mutants --num 60 --seed 1

A mutant is one small change: a comparison, a number, a condition, an operator, a statement or two arguments. It is
first tried with the test files that concern its module, and where these pass, with all tests that are not slow. A test
that fails is run again without the mutant, so that one that fails anyway kills nothing. All of this happens in a copy
of the tree, in a temporary folder.

What survives is either a gap in the tests, or equivalent: a change that nobody can see, such as a larger buffer.
"""

from __future__ import annotations

import argparse
import ast
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("multiseg", "tests", "docs", "deploy", "benchmarks", "pyproject.toml", "README.md", "CHANGELOG.md", "LICENSE",
          "AGENTS.md", "ARCHITECTURE.md", "CITATION.cff", "CONTRIBUTING.md", "SECURITY.md", "mkdocs.yml",
          "Makefile", "constraints.txt", "requirements-site.txt", ".ci")  # fmt: skip
MOST_FILES = 10
"""Test files that a mutant is tried with first."""
FLIPPED = {
    ast.Lt: "<=", ast.LtE: "<", ast.Gt: ">=", ast.GtE: ">", ast.Eq: "!=", ast.NotEq: "==",
    ast.Is: "is not", ast.IsNot: "is", ast.In: "not in", ast.NotIn: "in",
}  # fmt: skip
OPERATORS = {ast.Add: "-", ast.Sub: "+", ast.Mult: "/", ast.Div: "*", ast.FloorDiv: "*"}


@dataclass(frozen=True)
class Mutant:
    """One change of one file.

    Attributes:
        file: below the root of the tree.
        line: where it begins, from 1.
        start, stop: the bytes of the file that are replaced.
    """

    file: str
    line: int
    kind: str
    start: int
    stop: int
    before: str
    after: str

    def __str__(self) -> str:
        one, other = (" ".join(text.split())[:60] for text in (self.before, self.after))
        return f"{self.file}:{self.line}  {self.kind}: {one}  ->  {other}"

    def applied(self, source: bytes) -> bytes:
        return source[: self.start] + self.after.encode() + source[self.stop :]


class Source:
    """The text of a file, and where its nodes lie in it."""

    def __init__(self, file: str, text: str) -> None:
        self.file, self.data = file, text.encode()
        self.tree = ast.parse(text)
        self._lines = [0]
        for line in self.data.splitlines(keepends=True):
            self._lines.append(self._lines[-1] + len(line))

    def start(self, node: ast.expr | ast.stmt) -> int:
        return self._lines[node.lineno - 1] + node.col_offset

    def stop(self, node: ast.expr | ast.stmt) -> int:
        assert node.end_lineno is not None
        assert node.end_col_offset is not None
        return self._lines[node.end_lineno - 1] + node.end_col_offset

    def text(self, node: ast.expr | ast.stmt) -> str:
        return self.data[self.start(node) : self.stop(node)].decode()

    def replaced(self, kind: str, node: ast.expr | ast.stmt, after: str) -> Mutant:
        return self.between(kind, self.start(node), self.stop(node), after)

    def between(self, kind: str, start: int, stop: int, after: str) -> Mutant:
        line = self.data.count(b"\n", 0, start) + 1
        return Mutant(self.file, line, kind, start, stop, self.data[start:stop].decode(), after)


def mutants_of(file: str, text: str) -> list[Mutant]:
    """All mutants of a file, in the order of its lines."""
    source = Source(file, text)
    found = [mutant for node in executed(source.tree) for mutant in changes(source, node)]
    return sorted(found, key=lambda mutant: (mutant.start, mutant.stop, mutant.kind))


def executed(tree: ast.AST) -> Iterator[ast.AST]:
    """The nodes that are run: no annotations, since nothing but a checker of types reads these."""
    yield tree
    for name, value in ast.iter_fields(tree):
        if name in ("annotation", "returns"):
            continue
        for node in value if isinstance(value, list) else [value]:
            if isinstance(node, ast.AST):
                yield from executed(node)


def changes(source: Source, node: ast.AST) -> Iterator[Mutant]:
    """The mutants of one node by itself."""
    match node:
        case ast.Compare(left=left, ops=[op], comparators=[right]):
            yield source.between("comparison", source.stop(left), source.start(right), f" {FLIPPED[type(op)]} ")
        case ast.Constant(value=bool(value)):
            yield source.replaced("constant", node, str(not value))
        case ast.Constant(value=int(value)):
            yield source.replaced("off by one", node, str(value + 1))
        case ast.Constant(value=float(value)):
            yield source.replaced("constant", node, repr(value * 2 or 1.0))
        case ast.If(test=test) | ast.IfExp(test=test) | ast.While(test=test):
            yield source.replaced("negation", test, f"not ({source.text(test)})")
        case ast.BoolOp(op=op, values=[first, second, *_]):
            other = " or " if isinstance(op, ast.And) else " and "
            yield source.between("boolean", source.stop(first), source.start(second), other)
        case ast.BinOp(left=left, op=op, right=right) if type(op) in OPERATORS:
            yield source.between("operator", source.stop(left), source.start(right), f" {OPERATORS[type(op)]} ")
        case ast.Expr(value=ast.Call()) | ast.AugAssign() | ast.Raise():
            yield source.replaced("dropped statement", node, "pass")
        case ast.Call(args=[first, second, *_]) if not isinstance(first, ast.Starred):
            one, other = source.text(first), source.text(second)
            if one != other and not isinstance(second, ast.Starred):
                middle = source.data[source.stop(first) : source.start(second)].decode()
                yield source.between(
                    "swapped arguments", source.start(first), source.stop(second), other + middle + one
                )


def is_whole(mutant: Mutant, source: bytes) -> bool:
    """Whether it is Python still, and another program: brackets around an operand lie outside of its node."""
    try:
        return ast.dump(ast.parse(mutant.applied(source))) != ast.dump(ast.parse(source))
    except SyntaxError:
        return False


def draw(root: Path, num: int, seed: int, within: str = "multiseg") -> list[Mutant]:
    """So many mutants of the files below a folder: as many of each kind as of another, and no file before others."""
    rng, by_kind = random.Random(seed), dict[str, list[Mutant]]()
    for path in sorted((root / within).rglob("*.py")):
        for mutant in mutants_of(str(path.relative_to(root)), path.read_text(encoding="utf-8")):
            by_kind.setdefault(mutant.kind, []).append(mutant)
    drawn: list[Mutant] = []
    while len(drawn) < num and by_kind:
        kind = rng.choice(sorted(by_kind))
        mutant = by_kind[kind].pop(rng.randrange(len(by_kind[kind])))
        if not by_kind[kind]:
            del by_kind[kind]
        if is_whole(mutant, (root / mutant.file).read_bytes()):
            drawn.append(mutant)
    return drawn


@cache
def imported(path: Path) -> set[str]:
    """The modules that a file names in its imports."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module, *(f"{node.module}.{alias.name}" for alias in node.names)}
        elif isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
    return found


def files_concerned(root: Path, file: str) -> list[str]:
    """The test files that concern a module, nearest first: importing it, importing one beside it, named for it."""
    module = file.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    package, _, name = module.rpartition(".")
    words, folder = set(name.split("_")), Path(file).parent.name
    ranked: list[tuple[tuple[int, int, bool, str], str]] = []
    for path in sorted((root / "tests").rglob("test_*.py")):
        shared = len(words & set(path.stem.split("_")[1:]))
        imports = module in imported(path)
        is_near = package != "multiseg" and any(one.startswith(f"{package}.") for one in imported(path))
        if imports or is_near or shared == len(words):
            nearness = imports + is_near
            ranked.append(((-nearness, -shared, folder not in path.parts, str(path)), str(path.relative_to(root))))
    return [name for _, name in sorted(ranked)][:MOST_FILES]


class Trial:
    """A copy of the tree in which mutants live."""

    def __init__(self, root: Path, place: Path, timeout_s: float, jobs: int) -> None:
        self.tree, self.timeout_s, self.jobs = place / "tree", timeout_s, jobs
        self.tree.mkdir()
        for name in COPIED:
            if (root / name).is_dir():
                shutil.copytree(root / name, self.tree / name, ignore=shutil.ignore_patterns("__pycache__"))
            elif (root / name).exists():
                shutil.copy(root / name, self.tree / name)

    def outcome(self, mutant: Mutant) -> str:
        """What kills a mutant, or that it survived."""
        files = files_concerned(self.tree, mutant.file)
        stages = [[*files, "-m", "not slow"]] if files else []
        for arguments in (*stages, ["-m", "not slow", "-n", str(self.jobs), "--dist", "loadfile"]):
            killer = self.killer(mutant, arguments)
            if killer:
                return f"killed by {killer}"
        return "SURVIVED"

    def killer(self, mutant: Mutant, arguments: list[str]) -> str:
        """The first test that fails with a mutant and passes without it; empty where there is none."""
        while True:
            with self.applied(mutant):
                code, said = self.pytest(arguments)
            if code in (0, 5):  # all passed, or there was nothing to run
                return ""
            named = re.search(r"^(?:FAILED|ERROR) (\S+)", said, flags=re.MULTILINE)
            if named is None:
                return "a hang" if code is None else f"pytest, which ended with code {code}"
            if self.pytest([named[1]])[0] == 0:
                return named[1]
            arguments = [*arguments, "--deselect" if "::" in named[1] else "--ignore", named[1]]

    @contextmanager
    def applied(self, mutant: Mutant) -> Iterator[None]:
        path = self.tree / mutant.file
        source = path.read_bytes()
        path.write_bytes(mutant.applied(source))
        try:
            yield
        finally:
            path.write_bytes(source)

    def pytest(self, arguments: list[str]) -> tuple[int | None, str]:
        """The exit code of a run that ends with the first failure, None where it took too long; and what it said."""
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *arguments]
        environment = os.environ | {"PYTHONPATH": str(self.tree), "PYTHONDONTWRITEBYTECODE": ""}
        with tempfile.TemporaryFile() as output:  # no pipe: processes that a mutant leaves behind would hold it open
            process = subprocess.Popen(
                command,
                cwd=self.tree,
                env=environment,
                stdout=output,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            try:
                code = process.wait(self.timeout_s)
            except subprocess.TimeoutExpired:
                return None, ""
            finally:
                with suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            output.seek(0)
            return code, output.read().decode()


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.tools.mutants", description=__doc__.split("\n\n")[0])
    parser.add_argument("--num", type=int, default=60, help="mutants")
    parser.add_argument("--seed", type=int, default=1, help="the same seed draws the same mutants of the same files")
    parser.add_argument("--within", default="multiseg", help="the folder that they are drawn from")
    parser.add_argument("--timeout", type=float, default=1200, metavar="S", help="a run that takes longer is a hang")
    parser.add_argument("--jobs", type=int, default=3, help="processes where all tests are run")
    parser.add_argument("--list", action="store_true", help="print the mutants and their test files, and run nothing")
    given = parser.parse_args()
    mutants = draw(ROOT, given.num, given.seed, given.within)
    if given.list:
        for mutant in mutants:
            print(mutant, *files_concerned(ROOT, mutant.file), sep="\n    ")
        return 0
    survived = 0
    with tempfile.TemporaryDirectory() as place:
        trial = Trial(ROOT, Path(place), given.timeout, given.jobs)
        for number, mutant in enumerate(mutants, start=1):
            outcome = trial.outcome(mutant)
            survived += outcome == "SURVIVED"
            print(f"{number:3}  {mutant}\n     {outcome}", flush=True)
    print(f"{len(mutants) - survived} of {len(mutants)} mutants were killed.")
    return 0


if __name__ == "__main__":
    sys.exit(main())
