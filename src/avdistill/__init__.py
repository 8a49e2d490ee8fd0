"""Cross-modal knowledge distillation on uncurated videos with noisy audio-visual correspondence.

    from avdistill import ClipDataset, TrainConfig, evaluate, train

Public names are imported on first use, so `import avdistill` imports no PyTorch.
"""

from importlib import import_module
from typing import TYPE_CHECKING

from avdistill.errors import *  # noqa: F403

if TYPE_CHECKING:  # what a type checker reads of the table below
    from avdistill import losses as losses
    from avdistill.analysis.audit.audit import audit as audit
    from avdistill.annotations.readers import read_annotations as read_annotations
    from avdistill.dataset.clip_dataset import ClipDataset as ClipDataset
    from avdistill.dataset.stored_features import StoredFeatures as StoredFeatures
    from avdistill.evaluation.classification import evaluate as evaluate
    from avdistill.evaluation.metrics import ClassificationMetrics as ClassificationMetrics
    from avdistill.evaluation.multilabel import MultilabelMetrics as MultilabelMetrics
    from avdistill.evaluation.retrieval import retrieve as retrieve
    from avdistill.evaluation.retrieval_metrics import RetrievalMetrics as RetrievalMetrics
    from avdistill.inference.export import export as export
    from avdistill.inference.onnx_student import OnnxStudent as OnnxStudent
    from avdistill.inference.predictor import Student as Student
    from avdistill.inputs import AudioInput as AudioInput
    from avdistill.inputs import VideoInput as VideoInput
    from avdistill.integrations.gewu_lab.importer import load_reference_checkpoint as load_reference_checkpoint
    from avdistill.media.decoder import read_clip as read_clip
    from avdistill.methods import METHODS as METHODS
    from avdistill.methods import Method as Method
    from avdistill.models.checkpoint import load_student as load_student
    from avdistill.models.noise_filter import NoiseFilter as NoiseFilter
    from avdistill.models.r2plus1d import r2plus1d_xia2023 as r2plus1d_xia2023
    from avdistill.models.registry import MODELS as MODELS
    from avdistill.preparation.join import join as join
    from avdistill.preparation.prepare import PrepareConfig as PrepareConfig
    from avdistill.preparation.prepare import prepare as prepare
    from avdistill.progress import Progress as Progress
    from avdistill.search.forms import build_index as build_index
    from avdistill.search.forms import open_index as open_index
    from avdistill.teachers.extraction import embed as embed
    from avdistill.teachers.registry import load_teacher as load_teacher
    from avdistill.training import ModelConfig as ModelConfig
    from avdistill.training import OptimizerConfig as OptimizerConfig
    from avdistill.training import TrainConfig as TrainConfig
    from avdistill.training import resume as resume
    from avdistill.training import train as train
    from avdistill.training.recipes import RECIPES as RECIPES
    from avdistill.types import Batch as Batch
    from avdistill.types import Features as Features
    from avdistill.types import StudentFeatures as StudentFeatures

_LAZY = {
    "avdistill.analysis.audit.audit": ("audit",),
    "avdistill.annotations.readers": ("read_annotations",),
    "avdistill.dataset.clip_dataset": ("ClipDataset",),
    "avdistill.evaluation.classification": ("evaluate",),
    "avdistill.evaluation.metrics": ("ClassificationMetrics",),
    "avdistill.evaluation.multilabel": ("MultilabelMetrics",),
    "avdistill.evaluation.retrieval": ("retrieve",),
    "avdistill.evaluation.retrieval_metrics": ("RetrievalMetrics",),
    "avdistill.inference.export": ("export",),
    "avdistill.inference.onnx_student": ("OnnxStudent",),
    "avdistill.inference.predictor": ("Student",),
    "avdistill.inputs": ("AudioInput", "VideoInput"),
    "avdistill.integrations.gewu_lab.importer": ("load_reference_checkpoint",),
    "avdistill.media.decoder": ("read_clip",),
    "avdistill.methods": ("METHODS", "Method"),
    "avdistill.models.checkpoint": ("load_student",),
    "avdistill.models.noise_filter": ("NoiseFilter",),
    "avdistill.models.r2plus1d": ("r2plus1d_xia2023",),
    "avdistill.models.registry": ("MODELS",),
    "avdistill.preparation.join": ("join",),
    "avdistill.preparation.prepare": ("PrepareConfig", "prepare"),
    "avdistill.progress": ("Progress",),
    "avdistill.search.forms": ("build_index", "open_index"),
    "avdistill.teachers.extraction": ("embed",),
    "avdistill.teachers.registry": ("load_teacher",),
    "avdistill.training": ("ModelConfig", "OptimizerConfig", "TrainConfig", "resume", "train"),
    "avdistill.training.recipes": ("RECIPES",),
    "avdistill.dataset.stored_features": ("StoredFeatures",),
    "avdistill.types": ("Batch", "Features", "StudentFeatures"),
}
_HOMES = {name: module for module, names in _LAZY.items() for name in names}
__all__ = sorted([*_HOMES, "losses", *(name for name in globals() if name.endswith("Error"))])

if not TYPE_CHECKING:

    def __getattr__(name):
        if name == "losses":
            return import_module("avdistill.losses")
        if name not in _HOMES:
            raise AttributeError(f"module 'avdistill' has no attribute {name!r}")
        return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
