"""torchdata's StatefulDataLoader resumes a stream at the very next batch, from any number of workers."""

import json
from importlib.util import find_spec
from pathlib import Path

import pytest
from commands import Command

PROGRAM = """
import json, sys
from streams import digests, stream_of
from torchdata.stateful_dataloader import StatefulDataLoader
from multiseg.errors import UsageError
from multiseg.store.reader import open_store

store, num = open_store(sys.argv[1]), 6

def loader(workers, state=None):
    made = StatefulDataLoader(stream_of(store), batch_size=None, num_workers=workers)
    if state is not None:
        made.load_state_dict(state)
    return iter(made), made

def some(batches, num):
    return digests(next(batches) for _ in range(num))

found = {"stream": digests(stream_of(store).batches(0, num))}
for workers in (0, 1, 2):
    for stop in (1, 2, 3):
        batches, made = loader(workers)
        first = some(batches, stop)
        found[f"{workers} {stop}"] = first + some(loader(workers, made.state_dict())[0], num - stop)
moved = stream_of(store)
moved.load_state_dict({"position": 2})
found["moved"] = some(iter(StatefulDataLoader(moved, batch_size=None, num_workers=2)), 4)
stream = stream_of(store)
stream.load_state_dict({"position": 3, "worker": 1, "num_workers": 2})
try:
    next(iter(stream))
except UsageError as error:
    found["refused"] = str(error)
open(sys.argv[2], 'w').write(json.dumps(found))
"""


@pytest.mark.slow
@pytest.mark.skipif(find_spec("torchdata") is None, reason="torchdata is not installed")
def test_a_stateful_loader_resumes_at_the_next_batch(store_url: Path, tmp_path: Path) -> None:
    script, said, answer = tmp_path / "program.py", tmp_path / "said.txt", tmp_path / "found.json"
    script.write_text(f"import sys\nsys.path.insert(0, {str(Path(__file__).parent)!r})\n{PROGRAM}")
    assert Command([str(store_url), str(answer)], said, script=script).wait() == 0, said.read_text()[-2000:]
    found = json.loads(answer.read_text())
    stream = found.pop("stream")
    assert len(set(stream)) == 6
    assert "state of worker 1 of 2 was loaded, but this is no worker: give the DataLoader" in found.pop("refused")
    assert found.pop("moved") == stream[2:]
    assert found == {f"{workers} {stop}": stream for workers in (0, 1, 2) for stop in (1, 2, 3)}
