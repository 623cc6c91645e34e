"""The app: its hash is that of the sources it stands for."""

import hashlib
import io
import shutil
import subprocess
import sys
import tomllib
import zipfile
from importlib.metadata import version
from pathlib import Path

import pytest

from multiseg.errors import FederationError
from multiseg.federation.fab import PACKAGE, app_bytes, app_hash, sources_hash

BUILD = "import sys; from setuptools import build_meta; build_meta.build_wheel(sys.argv[1])"


@pytest.fixture
def package(tmp_path: Path) -> Path:
    """A small one."""
    folder = tmp_path / "package"
    (folder / "b").mkdir(parents=True)
    (folder / "b" / "one.py").write_text("x = 1\n")
    (folder / "b.py").write_text("")
    (folder / "table.csv").write_text("a,b\n")
    return folder


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    """A copy of our own sources."""
    return Path(shutil.copytree(PACKAGE, tmp_path / "copy" / "multiseg"))


def hashed(package: Path) -> str:
    """As in a new process."""
    return sources_hash.__wrapped__(package)


def app_of(package: Path) -> str:
    """The hash that a multiseg in another place says."""
    code = "from multiseg.federation.fab import PACKAGE, app_hash; print(PACKAGE, app_hash())"
    command = [sys.executable, "-c", code]
    said = subprocess.run(command, cwd=package.parent, capture_output=True, encoding="utf-8", check=True)
    place, found = said.stdout.split()
    assert place == str(package)
    return found


def test_a_hash_worked_by_hand(package: Path) -> None:
    """Paths in the order of their characters: "." comes before "/"."""
    data = b"b.py\x000\x00" + b"b/one.py\x006\x00x = 1\n" + b"table.csv\x004\x00a,b\n"
    assert hashed(package) == hashlib.sha256(data).hexdigest()


@pytest.mark.parametrize("name", ["__pycache__/b.cpython-311.pyc", "b/old.pyc", ".swp", ".hidden/a.py", "b/one.py~"])
def test_what_is_no_source_does_not_count(package: Path, name: str) -> None:
    before = hashed(package)
    (package / name).parent.mkdir(exist_ok=True)
    (package / name).write_text("anything")
    assert hashed(package) == before


@pytest.mark.parametrize("name", ["b/one.py", "table.csv", "b/new.py", "weights.safetensors", "fast.so"])
def test_any_other_file_counts(package: Path, name: str) -> None:
    before = hashed(package)
    (package / name).write_text("x = 2\n")
    assert hashed(package) != before


def test_a_file_that_moves_or_lends_content_counts(package: Path) -> None:
    found = {hashed(package)}
    (package / "b" / "one.py").rename(package / "b" / "two.py")
    found.add(hashed(package))
    (package / "b.py").write_text("x = 1\n")
    (package / "b" / "two.py").write_text("")
    found.add(hashed(package))
    assert len(found) == 3


def test_a_package_without_sources_has_no_hash(package: Path) -> None:
    for file in package.rglob("*.py"):
        file.unlink()
    with pytest.raises(FederationError, match=f"{package} holds no source file"):
        hashed(package)


@pytest.mark.slow
def test_a_line_of_any_module_changes_the_app(copy: Path) -> None:
    before = app_of(copy)
    with (copy / "training" / "fit.py").open("a") as file:
        file.write("# another line\n")
    assert app_of(copy) != before


@pytest.mark.slow
def test_a_wheel_has_the_hash_of_the_checkout(copy: Path) -> None:
    """What multiseg needs and a wheel leaves out would differ here: name it in pyproject.toml's package-data."""
    pytest.importorskip("setuptools")
    project = copy.parent
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(PACKAGE.parent / name, project)
    done = subprocess.run(
        [sys.executable, "-c", BUILD, "dist"], cwd=project, capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 0, done.stderr
    (wheel,) = (project / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(project / "installed")
    assert hashed(project / "installed" / "multiseg") == hashed(copy)


def test_the_manifest_says_what_is_installed() -> None:
    with zipfile.ZipFile(io.BytesIO(app_bytes())) as archive:
        manifest = tomllib.loads(archive.read("pyproject.toml").decode())
        assert all(entry.date_time == (1980, 1, 1, 0, 0, 0) for entry in archive.infolist())
    assert manifest["project"]["version"] == version("multiseg")
    assert manifest["tool"]["multiseg"]["sources"] == sources_hash()
    assert app_hash() == hashlib.sha256(app_bytes()).hexdigest()
