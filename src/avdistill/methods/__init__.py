"""Methods by name, all behind `Method`. A file per paper: its config, its losses, its equations."""

from __future__ import annotations

import json
import re
from pathlib import Path

from avdistill.config_io import decode
from avdistill.errors import ConfigError
from avdistill.methods.attention_transfer import AT, ATConfig
from avdistill.methods.base import Method, MethodContext
from avdistill.methods.c2kd import C2KD, C2KDConfig
from avdistill.methods.ccl import CCL, CCLConfig
from avdistill.methods.cmc import CMC, CMCConfig
from avdistill.methods.crd import CRD, CRDConfig
from avdistill.methods.custom import CustomMethodConfig, custom_checksum, custom_config, load_custom
from avdistill.methods.dist import DIST, DISTConfig
from avdistill.methods.dkd import DKD, DKDConfig
from avdistill.methods.fitnet import FitNet, FitNetConfig
from avdistill.methods.information_flow import IFD, IFDConfig
from avdistill.methods.kd import KD, KDConfig
from avdistill.methods.mnf_csc import MNFCSC, MNFCSCConfig
from avdistill.methods.neuron_selectivity import NST, NSTConfig
from avdistill.methods.pseudo_label import PseudoLabel, PseudoLabelConfig
from avdistill.methods.relational import CC, PKT, RKD, SP, CCConfig, PKTConfig, RKDConfig, SPConfig
from avdistill.methods.robust import Robust, RobustConfig
from avdistill.methods.supervised import Supervised, SupervisedConfig
from avdistill.methods.vid import VID, VIDConfig
from avdistill.types import Option, StudentNetwork

__all__ = [
    "METHODS",
    "ATConfig",
    "C2KDConfig",
    "CCConfig",
    "CCLConfig",
    "CMCConfig",
    "CRDConfig",
    "CustomMethodConfig",
    "DISTConfig",
    "DKDConfig",
    "FitNetConfig",
    "IFDConfig",
    "KDConfig",
    "MNFCSCConfig",
    "Method",
    "MethodConfig",
    "MethodContext",
    "NSTConfig",
    "PKTConfig",
    "PseudoLabelConfig",
    "RKDConfig",
    "RobustConfig",
    "SPConfig",
    "SupervisedConfig",
    "VIDConfig",
    "build_method",
    "custom_checksum",
    "method_class",
    "parse_method",
]

MethodConfig = (
    SupervisedConfig
    | KDConfig
    | MNFCSCConfig
    | ATConfig
    | FitNetConfig
    | NSTConfig
    | VIDConfig
    | C2KDConfig
    | DISTConfig
    | DKDConfig
    | PseudoLabelConfig
    | CCConfig
    | CCLConfig
    | CMCConfig
    | CRDConfig
    | IFDConfig
    | PKTConfig
    | RKDConfig
    | RobustConfig
    | SPConfig
    | CustomMethodConfig
)

METHODS: dict[str, type[Method]] = {
    "at": AT,
    "c2kd": C2KD,
    "cc": CC,
    "ccl": CCL,
    "cmc": CMC,
    "crd": CRD,
    "dist": DIST,
    "dkd": DKD,
    "fitnet": FitNet,
    "ifd": IFD,
    "kd": KD,
    "mnf_csc": MNFCSC,
    "nst": NST,
    "pkt": PKT,
    "pseudo_label": PseudoLabel,
    "rkd": RKD,
    "robust": Robust,
    "sp": SP,
    "supervised": Supervised,
    "vid": VID,
}


def method_class(config: MethodConfig) -> type[Method]:
    """The class that `config` belongs to. Raises ConfigError where a file of the user's own does not hold it."""
    return load_custom(config.source) if isinstance(config, CustomMethodConfig) else METHODS[config.name]


def parse_method(text: str) -> MethodConfig:
    """A method by name or from a file, with settings: "kd", "crd:negatives=batch", "mine.py:Mine:weight=2".

    Raises:
        ConfigError: no such method, file or setting.
    """
    own = re.fullmatch(r"(.*\.py:\w+)(?::(.*))?", text)
    name, _, settings = (own[1], "", own[2] or "") if own else text.partition(":")
    if not own and name not in METHODS:
        raise ConfigError(f"no method {name!r}; methods: {', '.join(sorted(METHODS))}, or FILE.py:Class")
    options: dict[str, Option] = {}
    for pair in filter(None, settings.split(",")):
        key, _, value = pair.partition("=")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    chosen = load_custom(name) if own else METHODS[name]
    config: MethodConfig = decode(chosen.config_class, dict(options), f"method {name}")
    if not own:
        return config
    file, _, class_name = name.rpartition(":")
    return CustomMethodConfig(f"{Path(file).resolve()}:{class_name}", options=options)


def build_method(config: MethodConfig, student: StudentNetwork, context: MethodContext) -> Method:
    """The method that `config` describes, around a student, which becomes part of it.

    Raises:
        ConfigError: the method needs a teacher and there is none, an option has a value that it cannot have, or a
            method of the user's own cannot be loaded or does not know an option.
    """
    chosen = method_class(config)
    if chosen.needs and not context.teacher_dim:
        raise ConfigError(f"method {config.name!r} needs a teacher's embedding")
    settings = custom_config(config) if isinstance(config, CustomMethodConfig) else config
    temperature = getattr(settings, "temperature", None)
    if isinstance(temperature, float | int) and temperature <= 0:
        raise ConfigError(f"method {config.name!r}: temperature must be above 0, got {temperature:g}")
    try:
        return chosen(student, settings, context)
    except ValueError as error:
        raise ConfigError(f"method {config.name!r}: {error}") from error
