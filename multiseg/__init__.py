"""One brain-lesion segmentation model learnt from many MRI databases that differ in sequences and labels."""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from multiseg.evaluation.comparison import ScoringOptions
    from multiseg.evaluation.cross_validation import evaluate_folds
    from multiseg.evaluation.evaluation_result import EvaluateOptions
    from multiseg.evaluation.model_evaluation import evaluate, load_ensemble
    from multiseg.evaluation.paired_runs import compare
    from multiseg.evaluation.paired_statistics import CompareOptions
    from multiseg.evaluation.prediction import predict
    from multiseg.evaluation.prediction_inputs import PredictOptions
    from multiseg.labels import LabelSchema, LabelSpace
    from multiseg.loaders.augment import AugmentOptions
    from multiseg.loaders.batches import Batch, PatchStream, Share, StreamOptions
    from multiseg.loaders.draw import DrawOptions
    from multiseg.modalities import ModalityAxis
    from multiseg.models.saved import load_model
    from multiseg.store.cases import CaseFiles
    from multiseg.store.catalogue import select, table
    from multiseg.store.ingest.ingest_plan import IngestOptions
    from multiseg.store.ingest.ingestion import ingest
    from multiseg.store.ingest.parallel import Workers
    from multiseg.store.reader import open_store
    from multiseg.store.sources.manifest import find_manifest
    from multiseg.store.sources.pattern_source import PatternSource, find_database
    from multiseg.store.sources.recognise import find_source
    from multiseg.store.sources.source_types import DatabaseFiles, SourceOptions
    from multiseg.training.fit import FitOptions
    from multiseg.training.meta import MetaOptions
    from multiseg.training.optimisers import OptimiserOptions
    from multiseg.training.run import train
    from multiseg.training.run_folder import ModelOptions, TrainOptions
    from multiseg.training.start import StartOptions
    from multiseg.training.trackers import TrackOptions

_HOMES = {
    "AugmentOptions": "loaders.augment",
    "Batch": "loaders.batches",
    "CaseFiles": "store.cases",
    "CompareOptions": "evaluation.paired_statistics",
    "DatabaseFiles": "store.sources.source_types",
    "DrawOptions": "loaders.draw",
    "EvaluateOptions": "evaluation.evaluation_result",
    "FitOptions": "training.fit",
    "IngestOptions": "store.ingest.ingest_plan",
    "LabelSchema": "labels",
    "LabelSpace": "labels",
    "MetaOptions": "training.meta",
    "ModalityAxis": "modalities",
    "ModelOptions": "training.run_folder",
    "OptimiserOptions": "training.optimisers",
    "PatchStream": "loaders.batches",
    "PatternSource": "store.sources.pattern_source",
    "PredictOptions": "evaluation.prediction_inputs",
    "ScoringOptions": "evaluation.comparison",
    "Share": "loaders.batches",
    "SourceOptions": "store.sources.source_types",
    "StartOptions": "training.start",
    "StreamOptions": "loaders.batches",
    "TrackOptions": "training.trackers",
    "TrainOptions": "training.run_folder",
    "Workers": "store.ingest.parallel",
    "compare": "evaluation.paired_runs",
    "evaluate": "evaluation.model_evaluation",
    "evaluate_folds": "evaluation.cross_validation",
    "find_database": "store.sources.pattern_source",
    "find_manifest": "store.sources.manifest",
    "find_source": "store.sources.recognise",
    "ingest": "store.ingest.ingestion",
    "load_ensemble": "evaluation.model_evaluation",
    "load_model": "models.saved",
    "open_store": "store.reader",
    "predict": "evaluation.prediction",
    "select": "store.catalogue",
    "table": "store.catalogue",
    "train": "training.run",
}

__all__ = [
    "AugmentOptions",
    "Batch",
    "CaseFiles",
    "CompareOptions",
    "DatabaseFiles",
    "DrawOptions",
    "EvaluateOptions",
    "FitOptions",
    "IngestOptions",
    "LabelSchema",
    "LabelSpace",
    "MetaOptions",
    "ModalityAxis",
    "ModelOptions",
    "OptimiserOptions",
    "PatchStream",
    "PatternSource",
    "PredictOptions",
    "ScoringOptions",
    "Share",
    "SourceOptions",
    "StartOptions",
    "StreamOptions",
    "TrackOptions",
    "TrainOptions",
    "Workers",
    "compare",
    "evaluate",
    "evaluate_folds",
    "find_database",
    "find_manifest",
    "find_source",
    "ingest",
    "load_ensemble",
    "load_model",
    "open_store",
    "predict",
    "select",
    "table",
    "train",
]


def __getattr__(name: str) -> object:
    """Import a public name when it is first used, so that `import multiseg` costs nothing."""
    if name not in _HOMES:
        raise AttributeError(f"module 'multiseg' has no attribute {name!r}")
    return getattr(import_module(f"multiseg.{_HOMES[name]}"), name)


def __dir__() -> list[str]:
    return sorted(__all__)
