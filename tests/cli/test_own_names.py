"""`module:name` on the command line: never from the current folder by itself."""

import os
import subprocess
import sys

import pytest

SOURCE = "def nothing(root, options):\n    raise RuntimeError('I ran')\n"


def said(folder, start, **environment):
    (folder / "mine_here.py").write_text(SOURCE)
    (folder / "scans").mkdir(exist_ok=True)
    plain = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    command = [*start, "verify", "scans", "--as", "mine_here:nothing"]
    done = subprocess.run(command, cwd=folder, env=plain | environment, capture_output=True, encoding="utf-8")
    assert done.returncode == 2, done.stderr
    return done.stderr


@pytest.mark.slow
@pytest.mark.parametrize("start", [[sys.executable, "-m", "multiseg"], [sys.executable, "-m", "multiseg.cli.app"]])
def test_the_current_folder_is_searched_only_where_pythonpath_says_so(tmp_path, start):
    refused = said(tmp_path, start)
    assert "there is no module 'mine_here'" in refused
    assert "PYTHONPATH=. multiseg" in refused
    assert "failed: RuntimeError: I ran" in said(tmp_path, start, PYTHONPATH=".")
