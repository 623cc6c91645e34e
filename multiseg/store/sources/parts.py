"""The parts that published datasets come in: training and test, told by the names of folders."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

from multiseg.store.sources.folder import Folder

_WORD = re.compile(r"(?<![a-z])(?P<test>test|testing|testset)(?![a-z])|(?<![a-z])train(?:ing|set)?(?![a-z])")


def is_test_part(folder: Folder, file: str) -> bool:
    """Whether a file lies in a test part, such as "Testing/" or "SISS2015_Testing/"; the innermost name counts."""
    for part in (*reversed(PurePosixPath(file).parts[:-1]), folder.name):
        if word := _WORD.search(part.lower()):
            return bool(word["test"])
    return False
