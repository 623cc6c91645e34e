import pytest
import torch

from multiseg.errors import CheckpointError
from multiseg.federation.sites.protecting import check_circle, count_release, note_circle

SENT, OTHER = {"w": torch.tensor([1, 2])}, {"w": torch.tensor([1, 3])}
CIRCLE = "c" * 64


def test_one_circle_of_masks_hides_one_answer(tmp_path):
    check_circle(tmp_path, 1, CIRCLE, OTHER)  # which notes nothing
    note_circle(tmp_path, 1, CIRCLE, SENT)
    note_circle(tmp_path, 1, CIRCLE, {"w": SENT["w"].clone()})
    note_circle(tmp_path, 1, "d" * 64, OTHER)
    note_circle(tmp_path, 2, CIRCLE, OTHER)  # other masks: they are a round's
    for refuses in (check_circle, note_circle):
        with pytest.raises(CheckpointError, match="another answer under the same masks"):
            refuses(tmp_path, 1, CIRCLE, OTHER)
    note_circle(tmp_path, 1, CIRCLE, SENT)


def test_a_release_counts_once(tmp_path):
    assert count_release(tmp_path, 1, "a" * 64) == 1
    assert count_release(tmp_path, 1, "a" * 64) == 1
    assert count_release(tmp_path, 1, "b" * 64) == 2
    assert count_release(tmp_path, 2, "a" * 64) == 3
    (tmp_path / "releases" / ".half.tmp").touch()  # of a process that was killed
    assert count_release(tmp_path, 2, "a" * 64) == 3
