"""Methods by name, all behind `Method`. A file per paper: its config, its losses, its equations."""

from __future__ import annotations

from avdistill.methods.base import Method, Sizes
from avdistill.methods.baselines import KD, KDConfig, Supervised, SupervisedConfig
from avdistill.methods.mnf_csc import MNFCSC, MNFCSCConfig
from avdistill.methods.own import OwnMethodConfig, load_own, own_config
from avdistill.types import Network

__all__ = [
    "METHODS",
    "KDConfig",
    "MNFCSCConfig",
    "Method",
    "MethodConfig",
    "OwnMethodConfig",
    "Sizes",
    "SupervisedConfig",
    "build_method",
    "method_class",
]

MethodConfig = SupervisedConfig | KDConfig | MNFCSCConfig | OwnMethodConfig

METHODS: dict[str, type[Method]] = {
    "kd": KD,
    "mnf_csc": MNFCSC,
    "supervised": Supervised,
}


def method_class(config: MethodConfig) -> type[Method]:
    """The class that `config` belongs to. Raises ConfigError where a file of the user's own does not hold it."""
    return load_own(config.source) if isinstance(config, OwnMethodConfig) else METHODS[config.name]


def build_method(config: MethodConfig, student: Network, sizes: Sizes) -> Method:
    """The method that `config` describes, around a student, which becomes part of it.

    Raises:
        ValueError: the method needs a teacher and there is none.
        ConfigError: a method of the user's own that cannot be loaded, or does not know an option.
    """
    chosen = method_class(config)
    if chosen.needs and not sizes.teacher_dim:
        raise ValueError(f"method {config.name!r} needs a teacher's embedding")
    return chosen(student, own_config(config) if isinstance(config, OwnMethodConfig) else config, sizes)
