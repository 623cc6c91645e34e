"""The SuperLink's database: it waits for a lock, is away rather than broken, and does not grow without end."""

import sqlite3
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from flwr.app import RecordDict
from flwr.proto.control_pb2 import RegisterNodeRequest
from flwr.proto.message_pb2 import ObjectTree
from flwr.supercore import sql_mixin
from flwr.supercore.inflatable.inflatable_object import get_object_tree
from flwr.superlink import main as link
from flwr.superlink.config_loader import get_federation_manager, get_objectstore_linkstate_factories

from multiseg.federation.flower import superlink as module
from multiseg.federation.flower.superlink import away_for_once, clean, pragmas, where_left

with warnings.catch_warnings():  # it would rather have the successor of the library that Flower brings
    warnings.simplefilter("ignore")
    from starlette.testclient import TestClient

pytestmark = pytest.mark.filterwarnings(
    "ignore:No path_separator found in configuration:DeprecationWarning"
)  # Flower's
PROTOBUF = {"content-type": "application/protobuf", "accept": "application/protobuf"}


@pytest.fixture
def database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A file for Flower's state, opened with our settings, and next to no patience."""
    monkeypatch.setattr(sql_mixin, "SQLITE_PRAGMAS", pragmas(sql_mixin.SQLITE_PRAGMAS, busy_s=0.05))
    return tmp_path / "link.db"


@pytest.fixture
def state(database: Path) -> Iterator[Any]:
    _, factory = get_objectstore_linkstate_factories(str(database), get_federation_manager(is_simulation=False))
    made = factory.state()
    yield made
    made._engine.dispose()


def setting(state: Any, name: str) -> object:
    return next(iter(state.query(f"PRAGMA {name}")[0].values()))


def test_each_connection_waits_and_the_journal_is_cut(state: Any) -> None:
    known = dict(sql_mixin.SQLITE_PRAGMAS)
    assert dict(pragmas(known.items()))["busy_timeout"] == "60000"
    assert setting(state, "journal_mode") == "wal"
    assert setting(state, "busy_timeout") == 50
    assert setting(state, "journal_size_limit") == module.JOURNAL_BYTES
    assert setting(state, "auto_vacuum") == 2
    assert setting(state, "foreign_keys") == 1, "Flower's own stay"


@pytest.mark.slow
def test_a_database_that_stays_locked_is_away_and_not_broken(database: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FLWR_DATABASE", str(database))
    monkeypatch.setattr(link, "http_error_translator", away_for_once(link.http_error_translator))
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    public = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    body = RegisterNodeRequest(public_key=public, name="alder").SerializeToString()
    with TestClient(link.create_app(), raise_server_exceptions=False) as client:
        other = sqlite3.connect(database, isolation_level=None)
        other.execute("BEGIN IMMEDIATE")
        locked = client.post("/v1/control/register-node", content=body, headers=PROTOBUF)
        other.execute("ROLLBACK")
        freed = client.post("/v1/control/register-node", content=body, headers=PROTOBUF)
        other.close()
    assert (locked.status_code, locked.headers["retry-after"]) == (503, "5")
    assert "database is locked" in locked.text
    assert freed.status_code == 200


def run_with_a_model(state: Any, size: int) -> int:
    """A run, with an object of such a size that nobody has taken."""
    number = state.create_run("multiseg/app", "1", "ab" * 32, {}, "@none/federation", None, "", "flwr-serverapp")
    record = RecordDict()
    tree = get_object_tree(record)
    name = f"{number:064x}"[-64:]
    state.object_store.preregister(number, ObjectTree(object_id=name, children=[tree]))
    with state.session():
        state.query("UPDATE objects SET content = zeroblob(:size), is_available = 1 WHERE object_id = :name",
                    {"size": size, "name": name})  # fmt: skip
    return int(number)


def objects(state: Any) -> set[int]:
    from flwr.supercore.utils import int64_to_uint64

    return {int64_to_uint64(row["run_id"]) for row in state.query("SELECT run_id FROM run_objects")}


@pytest.mark.slow
def test_what_finished_runs_left_is_deleted_and_the_file_shrinks(
    state: Any, database: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "SLACK_BYTES", 2**20)
    monkeypatch.setattr(module, "STEP_PAGES", 1000)
    monkeypatch.setattr(module, "STEP_PAUSE_S", 0.0)
    pauses: list[float] = []
    monkeypatch.setattr(module.time, "sleep", pauses.append)
    lost, goes_on = run_with_a_model(state, 24 * 2**20), run_with_a_model(state, 2**20)
    clean(state)
    assert objects(state) == {lost, goes_on}, "a run that goes on keeps its own"
    task = state.get_run_info(run_ids=[lost])[0].primary_task_id
    assert state.finish_task(task, "failed", "No heartbeat received from the task")
    state.query("PRAGMA wal_checkpoint(TRUNCATE)")
    before = database.stat().st_size
    clean(state)
    state.query("PRAGMA wal_checkpoint(TRUNCATE)")
    assert objects(state) == {goes_on}
    assert before > 24 * 2**20
    assert database.stat().st_size < 4 * 2**20
    assert 5 <= len(pauses) <= 7, "24 MiB in steps of 1000 pages of 4 KiB"
    cleaned: list[int] = []
    clean_up = where_left(lambda state, number: cleaned.append(number))
    clean_up(state, lost)  # nothing is left to do
    clean_up(state, goes_on)
    assert cleaned == [goes_on]


def test_a_cleaning_that_failed_is_done_again(monkeypatch: pytest.MonkeyPatch) -> None:
    answers = iter([sqlite3.OperationalError("database is locked"), SystemExit])

    def fail(state: Any) -> None:
        raise next(answers)

    monkeypatch.setattr(module, "clean", fail)
    monkeypatch.setattr(module, "CLEAN_EVERY_S", 0.0)
    with pytest.raises(SystemExit):
        module._clean_for_ever(None)
