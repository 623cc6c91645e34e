"""The public names, and that importing them costs nothing until they are used."""

import subprocess
import sys

import multiseg


def test_every_public_name_is_there() -> None:
    assert sorted(multiseg._HOMES) == sorted(multiseg.__all__)
    for name in multiseg.__all__:
        assert getattr(multiseg, name).__name__ == name
    assert dir(multiseg) == sorted(multiseg.__all__)


def test_unknown_names_are_refused() -> None:
    assert not hasattr(multiseg, "nothing_of_ours")


def test_import_is_light() -> None:
    code = "import sys, multiseg; print(sorted({'torch', 'zarr', 'numpy'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
