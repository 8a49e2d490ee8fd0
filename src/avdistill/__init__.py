"""Cross-modal knowledge distillation on videos as people upload them.

    from pathlib import Path
    from avdistill import ClipDataset, TrainConfig, train

Names are loaded when they are first asked for, so that importing the package costs nothing.
"""

from importlib import import_module

_HOMES = {
    "Batch": "avdistill.types",
    "Features": "avdistill.types",
    "METHODS": "avdistill.methods",
    "MODELS": "avdistill.models.registry",
    "Method": "avdistill.methods",
    "NoiseFilter": "avdistill.models.noise_filter",
    "RECIPES": "avdistill.training.recipes",
    "Student": "avdistill.inference.predictor",
    "ClipDataset": "avdistill.dataset.clip_dataset",
    "TrainConfig": "avdistill.training",
    "evaluate": "avdistill.evaluation.classification",
    "export": "avdistill.inference.export",
    "load_reference_checkpoint": "avdistill.integrations.gewu_lab.importer",
    "load_student": "avdistill.models.checkpoint",
    "prepare": "avdistill.preparation.prepare",
    "read_annotations": "avdistill.annotations.readers",
    "read_clip": "avdistill.media.decoder",
    "r2plus1d_xia2023": "avdistill.models.r2plus1d",
    "resume": "avdistill.training",
    "retrieve": "avdistill.evaluation.retrieval",
    "train": "avdistill.training",
}

__all__ = sorted(_HOMES)


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'avdistill' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return __all__
