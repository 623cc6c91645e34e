import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import once_a_run
import pytest
from once_a_run import made_once


def test_who_comes_while_a_folder_is_made_waits_for_it(tmp_path_factory: pytest.TempPathFactory) -> None:
    made = []

    def make(folder: Path) -> None:
        time.sleep(0.2)  # all have come by then
        folder.mkdir()
        made.append(folder)

    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda _: made_once(tmp_path_factory, f"shared-{os.getpid()}", make), range(4)))
    assert found == made * 4


def test_a_python_that_a_test_starts_is_a_run_of_its_own() -> None:
    code = "import os, once_a_run; print(once_a_run.run_number() == os.getpid())"
    environment = {**os.environ, "PYTEST_XDIST_WORKER": "gw0"}
    folder = Path(once_a_run.__file__).parent
    run = subprocess.run([sys.executable, "-c", code], cwd=folder, env=environment, capture_output=True, check=True)
    assert run.stdout == b"True\n"
