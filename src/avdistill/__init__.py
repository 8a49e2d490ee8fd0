"""Cross-modal knowledge distillation on videos as people upload them.

    from pathlib import Path
    from avdistill import Store, TrainConfig, train

Names are loaded when they are first asked for, so that importing the package costs nothing.
"""

from importlib import import_module

_HOMES = {
    "Batch": "avdistill.types",
    "Features": "avdistill.types",
    "METHODS": "avdistill.methods",
    "MODELS": "avdistill.models",
    "Method": "avdistill.methods",
    "NoiseFilter": "avdistill.models.noise_filter",
    "RECIPES": "avdistill.training.recipes",
    "Store": "avdistill.data.store",
    "TrainConfig": "avdistill.training",
    "evaluate": "avdistill.evaluation.classification",
    "export": "avdistill.application.export",
    "load": "avdistill.application.prediction",
    "load_checkpoint": "avdistill.release",
    "load_student": "avdistill.models.weights",
    "prepare": "avdistill.data.preparation",
    "read_annotations": "avdistill.data.annotations",
    "read_clip": "avdistill.data.media",
    "released_r2plus1d": "avdistill.models.video",
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
