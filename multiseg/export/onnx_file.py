"""Write a model as an ONNX file, with all that a program needs to prepare a patient for it as JSON beside it."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool
from torch import Tensor, nn

from multiseg.errors import CheckpointError, UsageError
from multiseg.export.preparation_record import preparation_record
from multiseg.files import check_files, write_atomically
from multiseg.models.branch_models import check_learnt
from multiseg.models.presence import AllPairs
from multiseg.models.saved import Model
from multiseg.types import Index3, OnStep, no_progress

INPUTS, OUTPUT = ("images", "present"), "logits"
OPSET = 17
ABSOLUTE, RELATIVE = 5e-4, 1e-5
"""How far the file's logits may be from those of the network, in total: ABSOLUTE + RELATIVE * |logit|."""
ALL_SUBSETS = 64
"""With at most as many subsets of the sequences, the file is checked with all of them."""
AT_ONCE = 8
ENDING = (".onnx",)


@dataclass(frozen=True)
class OnnxExport:
    """The written files, and how far the file's logits were from the network's at most.

    Attributes:
        subsets, sizes: the subsets of sequences, and the sizes in voxels, with which they were compared.
    """

    path: Path
    record: Path
    largest_difference: float
    subsets: int
    sizes: tuple[Index3, ...]


def export_onnx(
    model: Model, out: Path, inputs: Sequence[Path] = (), overwrite: bool = False, on_check: OnStep = no_progress
) -> OnnxExport:
    """Write `out` and, with the ending .json, its preparation. Before, the file is compared with the network.

    The file has the inputs `images` [batch modality i j k] (float32) and `present` [batch modality] (bool) and the
    output `logits` [batch label i j k]; batch, i, j and k may have any size that fits the network. Networks that
    compute only the sequences of a sample compute all of them here, and leave out what is not present.

    Args:
        inputs: files that must not be overwritten.
        on_check: called after each comparison with the network.

    Raises:
        UsageError: the packages for ONNX are not installed, a file may not be written, the network has an operation
            that ONNX does not have, or what answers has not learnt.
        CheckpointError: the answers of the file differ from those of the network.
    """
    check_learnt(model.info)
    runtime = _packages()
    record_path = out.with_suffix(".json")
    check_files([out], inputs, overwrite, ENDING)
    check_files([record_path], inputs, overwrite)
    data = _traced(Model(exportable(model.network), model.info).eval())
    sizes, subsets = _sizes(model), _subsets(len(model.info.axis))
    session = runtime.InferenceSession(data, providers=["CPUExecutionProvider"])
    checks = [(sizes[0], [subset]) for subset in subsets]  # alone, since others in the batch may hide a fault
    checks += [(sizes[1], subsets[start : start + AT_ONCE]) for start in range(0, len(subsets), AT_ONCE)]
    checks += [(sizes[-1], subsets[:1])]
    largest = 0.0
    for done, (size, compared) in enumerate(checks, start=1):
        largest = max(largest, _difference(model, session, _example(model, size, compared)))
        on_check(done, len(checks), f"{len(compared)} sets of sequences at {' x '.join(map(str, size))} voxels")
    record = preparation_record(model.info, getattr(model.network, "multiple", None))
    record["model"] = {"file": out.name, "sha256": hashlib.sha256(data).hexdigest(), "opset": OPSET}
    write_atomically(record_path, (json.dumps(record, indent=1, ensure_ascii=False) + "\n").encode())
    write_atomically(out, data)
    return OnnxExport(out, record_path, largest, len(subsets), sizes)


def exportable(network: nn.Module) -> nn.Module:
    """A copy of a network that computes every sequence of every sample, with the same logits to rounding."""
    made = copy.deepcopy(network).eval()
    for module in made.modules():
        if hasattr(module, "pairs_of"):
            setattr(module, "pairs_of", AllPairs.of)  # noqa: B010 (mypy takes it for a tensor or a module)
    return made


def _packages() -> Any:
    """The module onnxruntime; torch's exporter needs onnx, too."""
    try:
        import onnx  # noqa: F401
        import onnxruntime
    except ImportError as error:
        raise UsageError(
            f"--onnx needs packages that are not installed ({error}). Install them in the folder of multiseg "
            "with: pip install '.[onnx]'."
        ) from error
    return onnxruntime


def _traced(model: Model) -> bytes:
    """The file of a model: its network is traced, since its steps do not depend on the data.

    torch.export gives the same graph, but takes minutes where sizes are not fixed.
    """
    images, present = _example(model, _sizes(model)[0], _subsets(len(model.info.axis))[:2])
    space = {2: "i", 3: "j", 4: "k"}
    try:
        with TemporaryDirectory() as folder, warnings.catch_warnings(), torch.no_grad():
            file = Path(folder, "network.onnx")
            warnings.simplefilter("ignore")  # that sizes are compared, and that torch will export in another way
            torch.onnx.export(
                model, (images, present), file, dynamo=False, opset_version=OPSET,
                input_names=list(INPUTS), output_names=[OUTPUT],
                dynamic_axes={"images": {0: "batch", **space}, "present": {0: "batch"}, OUTPUT: {0: "batch", **space}},
            )  # fmt: skip
            return file.read_bytes()
    except torch.onnx.errors.OnnxExporterError as error:
        raise UsageError(f"the network {model.info.builder} cannot be exported to ONNX: {error}") from error


def _sizes(model: Model) -> tuple[Index3, ...]:
    """The sizes at which the file is compared: that of the trace, another to show that sizes are free, and that of the
    training's patches, since norms over more voxels round more."""
    multiple = getattr(model.network, "multiple", None)
    if multiple is None:  # a network of the user, which may have a size of its own
        return (model.info.patch,) * 3
    small, large = 2 * multiple, 3 * multiple
    return (small, small, small), (large, small, small), model.info.patch


def _subsets(num_modalities: int) -> list[tuple[bool, ...]]:
    """All sets of one sequence or more; of many sequences those that have, or lack, at most two.

    The norms of an empty image are rounding errors, so without any sequence no two programs agree.
    """
    if 2**num_modalities <= ALL_SUBSETS:
        return list(itertools.product((True, False), repeat=num_modalities))[:-1]
    few = [chosen for size in (0, 1, 2) for chosen in itertools.combinations(range(num_modalities), size)]
    lacking = [tuple(m not in chosen for m in range(num_modalities)) for chosen in few]
    having = [tuple(not there for there in subset) for subset in lacking]
    return [subset for subset in (*lacking, *having) if any(subset)]


def _example(model: Model, size: Index3, subsets: Sequence[tuple[bool, ...]]) -> tuple[Tensor, Bool[Tensor, "b m"]]:
    random = torch.Generator().manual_seed(0)
    images = torch.randn(len(subsets), len(model.info.axis), *size, generator=random)
    return images, torch.tensor(subsets)


def _difference(model: Model, session: Any, example: tuple[Tensor, Tensor]) -> float:
    """The largest difference between the logits of the file and of the network.

    Raises:
        CheckpointError: it is too large, or the file does not run.
    """
    with torch.inference_mode():
        expected = model(*example).numpy()
    failed = f"the exported network {model.info.builder} does not answer as the model does"
    try:
        (given,) = session.run([OUTPUT], dict(zip(INPUTS, (part.numpy() for part in example), strict=True)))
    except Exception as error:  # the errors of onnxruntime have no class of their own
        raise CheckpointError(f"{failed}: {error}. Nothing was written.") from error
    if given.shape != expected.shape:
        raise CheckpointError(f"{failed}: its logits have the shape {given.shape}, not {expected.shape}.")
    difference = np.abs(given - expected)
    if not (difference <= ABSOLUTE + RELATIVE * np.abs(expected)).all():
        raise CheckpointError(
            f"{failed}: logits differ by up to {np.nanmax(difference):.3g} at "
            f"{' x '.join(map(str, expected.shape[2:]))} voxels. Nothing was written."
        )
    return float(difference.max())
