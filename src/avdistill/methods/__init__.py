"""Methods of distillation by name, all behind `Method`: a file per paper with its config, losses and equations."""

from avdistill.methods.base import (
    Method,
    MethodContext,
    TeacherRequirement,
    classification_loss,
    paired,
    register_method,
)
from avdistill.methods.config import BaseMethodConfig
from avdistill.methods.custom import CustomMethodConfig, custom_checksum, trust_file
from avdistill.methods.registry import (
    METHODS,
    MethodConfig,
    build_method,
    method_class,
    parse_method,
    supports_multi_label,
    teacher_requirement,
    uses_unlabeled,
)

__all__ = [
    "METHODS",
    "BaseMethodConfig",
    "CustomMethodConfig",
    "Method",
    "MethodConfig",
    "MethodContext",
    "TeacherRequirement",
    "build_method",
    "classification_loss",
    "custom_checksum",
    "method_class",
    "paired",
    "parse_method",
    "register_method",
    "supports_multi_label",
    "teacher_requirement",
    "trust_file",
    "uses_unlabeled",
]
