"""What Flower starts on the server for a run."""

from pathlib import Path
from unittest.mock import create_autospec

import pytest
from flwr.app import Context, RecordDict
from flwr.serverapp import Grid

from multiseg.errors import FederationError, UsageError
from multiseg.federation.fab import app_hash
from multiseg.federation.flower.server_app import RUNS, main


def start(settings: str, app: str) -> None:
    config = {"settings": settings, "app": app}
    context = Context(run_id=1, node_id=0, node_config={}, state=RecordDict(), run_config=config)  # type: ignore[arg-type]
    main(create_autospec(Grid, instance=True), context)


def test_a_run_of_another_multiseg_than_is_installed_now_is_not_begun(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUNS, str(tmp_path))
    settings = '{"experiment": "lesions", "sites": []}'
    with pytest.raises(FederationError, match="multiseg has changed here since the server started"):
        start(settings, "0" * 64)
    with pytest.raises(UsageError, match="a run needs sites"):
        start(settings, app_hash())
    assert not list(tmp_path.iterdir())


def test_a_run_needs_a_folder(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(RUNS, raising=False)
    with pytest.raises(FederationError, match="is not set to a folder for experiments"):
        start("{}", app_hash())
