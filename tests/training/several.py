"""What each of two processes does in the tests of distributed training: python several.py SCENARIO STORE."""

import math
import sys
from dataclasses import replace
from pathlib import Path

import torch

from multiseg.labels import LabelSpace
from multiseg.loaders.batches import PatchStream, StreamOptions
from multiseg.loaders.draw import DrawOptions
from multiseg.modalities import ModalityAxis
from multiseg.models.builders import build
from multiseg.store.reader import open_store
from multiseg.training.checkpoint import TrainState
from multiseg.training.distributed import joined
from multiseg.training.events import StepDone
from multiseg.training.fit import FitOptions, Hooks, fit

AXIS = ModalityAxis(("PD", "FLAIR", "T1", "T2", "DWI"))
OPTIONS = FitOptions(num_steps=4, validate_every=100)


def fresh(builder="multi_unet", widths=(8, 16)):
    torch.manual_seed(5)
    network = build(builder, len(AXIS), 1, widths=widths, dropout=0.2)
    optimiser = torch.optim.Adam(network.parameters())
    return TrainState(network, optimiser, torch.amp.GradScaler("cpu", enabled=False))


def stream_of(url, share, databases=()):
    options = StreamOptions(DrawOptions(patch=(16, 16, 16)), batch_size=1, workers=0)
    return PatchStream(open_store(url), AXIS, LabelSpace(), options, databases=databases, share=share)


class Altered:
    """A stream of which one batch goes through a function."""

    def __init__(self, stream, number, change):
        self.stream, self.number, self.change = stream, number, change

    def batches(self, start, stop):
        for number, batch in zip(range(start, stop), self.stream.batches(start, stop), strict=True):
            yield self.change(batch) if number == self.number else batch


def flat(state):
    return torch.cat([parameter.detach().flatten() for parameter in state.network.parameters()])


def assert_alike(peers, state):
    first, *others = peers.gather(flat(state))
    assert all(torch.equal(first, other) for other in others), "the processes have different weights"


def spoilt(peers, url):
    """A loss that is not finite in one process is skipped in all, and its cases are named in all."""
    state, events = fresh(), []
    stream = stream_of(url, peers.share)
    bad = Altered(stream, 2, lambda batch: replace(batch, images=torch.full_like(batch.images, torch.nan)))
    assert fit(state, bad if peers.rank == 1 else stream, OPTIONS, Hooks(events.append), peers=peers)
    steps = [event for event in events if isinstance(event, StepDone)]
    assert [bool(event.skipped) for event in steps] == [False, False, True, False]
    assert math.isnan(steps[2].loss)
    (batch,) = stream.batches(2, 3)
    assert all(case in steps[2].skipped for case in peers.gather(f"{batch.database[0]}/{batch.case[0]}"))
    assert_alike(peers, state)


def stopped(peers, url):
    """A wish to stop in one process stops all after the same step, and all save."""
    state, events, saves = fresh(), [], []
    hooks = Hooks(events.append, save=saves.append, should_stop=lambda: peers.rank == 1 and len(events) == 2)
    assert not fit(state, stream_of(url, peers.share), OPTIONS, hooks, peers=peers)
    assert peers.gather((state.step, saves)) == [(2, [False])] * 2


def head_first(peers, url):
    """First the head alone learns, then all, and the processes stay alike."""
    state = fresh()
    state.head_steps = 2
    body = next(state.network.parameters())
    seen = []
    before = body.detach().clone()

    def look(event):
        if isinstance(event, StepDone):
            seen.append((body.detach().clone(), state.network.head.weight.detach().clone()))

    hooks = Hooks(look)
    assert fit(state, stream_of(url, peers.share), OPTIONS, hooks, peers=peers)
    assert [torch.equal(first, before) for first, _ in seen] == [True, True, False, False]
    assert not torch.equal(seen[0][1], seen[1][1])
    assert_alike(peers, state)


def encoders(peers, url):
    """A process whose patches lack a sequence leaves that encoder to the others, accumulated or not."""
    for accumulate in (1, 2):
        state = fresh("maf_unet")
        stream = stream_of(url, peers.share, databases=["cedar", "dogwood"][peers.rank :][:1])
        assert fit(state, stream, replace(OPTIONS, num_steps=2, accumulate=accumulate), Hooks(), peers=peers)
        assert_alike(peers, state)
    fresh_one = fresh("maf_unet").network.encoders
    moved = [
        not torch.equal(next(a.parameters()), next(b.parameters()))
        for a, b in zip(state.network.encoders, fresh_one, strict=True)
    ]
    assert moved == [False, True, True, False, True], "PD and T2 are in neither database"


def scales(peers, url):
    """Deep supervision goes through the wrapper, and with head_steps too."""
    for head_steps in (0, 1):
        state = fresh("multi_unet_plus", (8, 16, 16))
        state.head_steps = head_steps
        assert fit(state, stream_of(url, peers.share), replace(OPTIONS, num_steps=2), Hooks(), peers=peers)
        assert_alike(peers, state)


def failing(peers, url):
    """One process fails, and the other hears of it."""

    def fail(batch):
        raise OSError("a disk went away")

    stream = stream_of(url, peers.share)
    fit(fresh(), Altered(stream, 2, fail) if peers.rank == 1 else stream, OPTIONS, Hooks(), peers=peers)


def main():
    scenarios = {one.__name__: one for one in (spoilt, stopped, head_first, encoders, scales, failing)}
    torch.set_num_threads(1)
    with joined("cpu") as (peers, _):
        assert peers.num == 2
        for name in sys.argv[1].split(","):
            scenarios[name](peers, sys.argv[2])
            if peers.is_first:
                print(f"{name} went well", flush=True)
    threads = [file.read_text(encoding="ascii").strip() for file in Path("/proc/self/task").glob("*/comm")]
    assert threads
    assert not [name for name in threads if "gloo" in name], "threads of the group are there when the interpreter ends"


if __name__ == "__main__":
    main()
