import os
import subprocess
import sys

_DIGEST = """
import hashlib
import numpy as np
from multiseg.store.preparation.interpolation import interpolate

scan = np.random.default_rng(0).standard_normal((91, 87, 64)).astype(np.float32)
moved = interpolate(scan, np.diag([0.9, 1.1, 0.7]), np.array([0.3, 0.2, 0.1]), (98, 78, 90), np.array([0, 0.3, 0]))
print(hashlib.sha256(np.ascontiguousarray(moved).tobytes()).hexdigest())
"""


def test_the_threads_of_the_linear_algebra_do_not_matter():
    """Else the same scan would not be the same in the store of another computer."""
    digests = {
        subprocess.run(
            [sys.executable, "-c", _DIGEST],
            env=os.environ | {"OMP_NUM_THREADS": num, "OPENBLAS_NUM_THREADS": num},
            capture_output=True,
            encoding="utf-8",
            check=True,
        ).stdout
        for num in ("1", "4")
    }
    assert len(digests) == 1
