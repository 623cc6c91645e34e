"""The labelled healthy image that a two_branch model carries, so that an adaptation cannot drift away from anatomy."""

from __future__ import annotations

import numpy as np
import torch

from multiseg.errors import UsageError
from multiseg.models.saved import ModelInfo
from multiseg.models.two_branch import TwoBranch
from multiseg.models.two_unets import branch_space
from multiseg.store.reader import Case, Store
from multiseg.types import Index3

PUBLIC = ("template", "phantom")
"""The pathologies of databases whose scans may travel in a model file."""


def check_anchor(store: Store, name: str, builder: str) -> None:
    """Check that a case, "DATABASE/CASE", may be the anchor of a network.

    Raises:
        UsageError: the network has no anchor, there is no such case, its database is not declared to be public, or it
            is not a train case.
    """
    if builder != "two_branch":
        raise UsageError(f"meta.anchor is {name!r}, but a {builder} network has no anchor: leave it out.")
    database, _, case = name.partition("/")
    if database not in store or case not in [one.name for one in store[database].cases]:
        raise UsageError(f"meta.anchor is {name!r}, but {store.url} has no such case: give DATABASE/CASE.")
    split = anchor_case(store, name).split
    pathology = store[database].pathology
    if pathology not in PUBLIC:
        raise UsageError(
            f"meta.anchor is {name!r}, whose pathology is {pathology or 'not known'!r}. Everybody with the model file "
            "can read this scan, so it may not be a patient's: ingest a public template with --pathology template, or "
            "a phantom with --pathology phantom."
        )
    if split != "train":
        raise UsageError(
            f"meta.anchor is {name!r}, which is a {split} case: adaptations learn from the anchor, so results on it "
            "would be too good. Name a train case."
        )


def anchor_case(store: Store, name: str) -> Case:
    """The case "DATABASE/CASE", which must be in the store."""
    database, _, case = name.partition("/")
    return store[database][case]


def put_anchor(network: TwoBranch, store: Store, name: str, info: ModelInfo) -> None:
    """Put the window in the middle of a case, as large as a patch, into the network.

    Raises:
        UsageError: the case has not all sequences of the anatomy branch, or no annotation of a tissue.
    """
    case = anchor_case(store, name)
    database = store[case.database]
    names = [info.axis[channel] for channel in network.anatomy_channels]
    view = database.label_view(case, branch_space(info.space, "anatomy"))
    if not set(names) <= set(case.modalities) or not view.annotated.any():
        raise UsageError(
            f"meta.anchor is {name!r}, but it needs {', '.join(names)} and an annotation of a tissue of the model, and "
            f"has {', '.join(case.modalities)} and {'one' if view.annotated.any() else 'none'}."
        )
    stored, codes = database.whole(case)
    images = stored[[database.modalities.index(one) for one in names]].astype(np.float32)
    layers = np.concatenate([images, view.target(codes)[None].astype(np.float32)])
    window = torch.from_numpy(middle(layers, info.patch))
    network.put_anchor(window[:-1], window[-1].to(torch.uint8), torch.from_numpy(view.annotated))


def middle(layers: np.ndarray, size: Index3) -> np.ndarray:
    """The middle of volumes [layer i j k], with zeros around them if they are smaller."""
    out = np.zeros((len(layers), *size), dtype=layers.dtype)
    inside, outside = [], []
    for n, wanted in zip(layers.shape[1:], size, strict=True):
        length = min(n, wanted)
        inside.append(slice((n - length) // 2, (n - length) // 2 + length))
        outside.append(slice((wanted - length) // 2, (wanted - length) // 2 + length))
    out[:, *outside] = layers[:, *inside]
    return out
