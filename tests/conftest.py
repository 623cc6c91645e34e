"""What many tests share: synthetic hospitals, a store of them, and the real data where there is some."""

import gc
import importlib
import locale
import multiprocessing.forkserver
import os
import sys
from collections import Counter
from collections.abc import Generator, Iterator
from contextlib import suppress
from pathlib import Path

# Before torch is imported, and for the commands that tests start: threads of tiny networks only wait for each other.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import checked_shapes  # noqa: F401
import hypothesis
import once_a_run
import pytest
from once_a_run import made_once
from servers import reach_bucket, s3_server

from multiseg.phantoms.hospitals import write_hospitals
from multiseg.store.ingest.ingest_plan import IngestOptions
from multiseg.store.ingest.ingestion import ingest
from multiseg.store.sources.manifest import find_manifest

SPACING_MM = (5.0, 5.0, 5.0)
LOCALE = locale.setlocale(locale.LC_ALL)

# The server that forks processes for a process of the tests imports once what each of these would import by itself.
FORKED = (
    "benchmarks.attack",
    "benchmarks.flood",
    "benchmarks.loader",
    "distributed",
    "multiseg.experiments.worker",
    "multiseg.loaders.serving",
    "multiseg.store.ingest.ingestion",
    "pytest",
    "torch._dynamo",
)
multiprocessing.set_forkserver_preload([*FORKED])
multiprocessing.forkserver.set_forkserver_preload = lambda modules: None  # whoever starts it first would decide

# A machine with other work is slow at times, which says nothing about what is tested.
hypothesis.settings.register_profile("multiseg", deadline=None)
hypothesis.settings.load_profile("multiseg")


def pytest_configure(config: pytest.Config) -> None:
    once_a_run.is_one_of_several = hasattr(config, "workerinput")


@pytest.hookimpl(wrapper=True)
def pytest_collection(session: pytest.Session) -> Generator[None, object, object]:
    """Imported modules stay: searching millions of their objects for garbage took a second again and again."""
    gc.disable()
    try:
        if session.config.args_source is pytest.Config.ArgsSource.TESTPATHS and once_a_run.is_one_of_several:
            share_compilation(session.config)
        return (yield)
    finally:
        gc.freeze()
        gc.enable()


def share_compilation(config: pytest.Config) -> None:
    """Import all tests, each process from another start: what one has compiled is there for the others.

    In a fresh clone all of them would compile all modules, in the same order at the same time.
    """
    files = sorted(Path(__file__).parent.rglob("test_*.py"))
    number, count = int(os.environ["PYTEST_XDIST_WORKER"].removeprefix("gw")), config.workerinput["workercount"]
    start = len(files) * number // count
    for file in files[start:] + files[:start]:
        if str(file.parent) not in sys.path:
            sys.path.insert(0, str(file.parent))
        with suppress(Exception, pytest.skip.Exception):  # which the collection tells
            importlib.import_module(file.stem)


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The files that take longest come first, so that no process is left with one when the others are done.

    A slow test counts as two seconds, or as the seconds that its mark gives, where it mostly waits.
    """
    seconds: Counter[Path] = Counter()
    for item in items:
        if mark := item.get_closest_marker("slow"):
            seconds[item.path] += mark.kwargs.get("seconds", 2)
    items.sort(key=lambda item: -seconds[item.path])


@pytest.fixture(autouse=True)
def same_locale() -> Iterator[None]:
    """The locale at the start: tests and fixtures that write DICOM with GDCM change that of their process."""
    locale.setlocale(locale.LC_ALL, LOCALE)
    yield
    locale.setlocale(locale.LC_ALL, LOCALE)


@pytest.fixture(scope="session")
def hospitals(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of four small synthetic hospitals with four cases each, and their manifest.toml."""
    return made_once(tmp_path_factory, "hospitals", lambda folder: write_hospitals(folder, num_cases=4, coarseness=2.0))


@pytest.fixture(scope="session")
def store_url(hospitals: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    """A store of all four hospitals in voxels of 5 mm. Only for reading: every test shares it."""

    def make(folder: Path) -> None:
        options = IngestOptions(spacing_mm=SPACING_MM)
        reports = ingest(find_manifest(hospitals / "manifest.toml"), str(folder / "brain.zarr"), options)
        assert [len(report.written) for report in reports] == [4, 4, 4, 4], reports

    return str(made_once(tmp_path_factory, "store", make) / "brain.zarr")


@pytest.fixture
def no_pictures() -> Iterator[None]:
    """Evaluations save their tables alone: their pictures take as long as the evaluation of a few phantoms."""
    with pytest.MonkeyPatch.context() as patched:
        for name in ("montage.save_montage", "reliability_plot.save_reliability"):
            patched.setattr(f"multiseg.evaluation.{name}", lambda *_, **__: None)
        yield


@pytest.fixture(scope="session")
def data() -> Path:
    """The folder of real scans."""
    folder = os.environ.get("MULTISEG_DATA", "")
    if not folder:
        pytest.skip("needs real scans: set $MULTISEG_DATA to their folder")
    return Path(folder)


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """An S3 server."""
    with s3_server() as url:
        yield url


@pytest.fixture
def bucket(server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The URL of an empty bucket, and an environment to reach it."""
    return reach_bucket(server, tmp_path.name.replace("_", "-").lower(), monkeypatch)
