"""Methods by name, all behind `Method`. A file per paper: its config, its losses, its equations."""

from __future__ import annotations

from avdistill.methods.base import Method
from avdistill.methods.baselines import KD, KDConfig, Supervised, SupervisedConfig
from avdistill.methods.mnf_csc import MNFCSC, MNFCSCConfig
from avdistill.types import Network

__all__ = ["METHODS", "KDConfig", "MNFCSCConfig", "Method", "MethodConfig", "SupervisedConfig", "build_method"]

MethodConfig = SupervisedConfig | KDConfig | MNFCSCConfig

METHODS: dict[str, tuple[type[MethodConfig], type[Method]]] = {
    "kd": (KDConfig, KD),
    "mnf_csc": (MNFCSCConfig, MNFCSC),
    "supervised": (SupervisedConfig, Supervised),
}


def build_method(config: MethodConfig, student: Network, *, num_classes: int, teacher_dim: int | None) -> Method:
    """The method that `config` describes, around a student.

    Args:
        config: an instance of one of the config classes in `METHODS`.
        student: becomes part of the method.
        num_classes: C.
        teacher_dim: width of the teacher's embedding; None where the method uses no teacher.

    Raises:
        ValueError: the method needs a teacher and there is none.
    """
    if isinstance(config, SupervisedConfig):
        return Supervised(student)
    if isinstance(config, KDConfig):
        return KD(student, config)
    if teacher_dim is None:
        raise ValueError(f"method {config.name!r} needs a teacher's embedding")
    return MNFCSC(student, config, num_classes=num_classes, teacher_dim=teacher_dim)
