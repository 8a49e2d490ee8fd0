"""Methods by name: found in the modules of this package, chosen by a config or a text, built around a student."""

import json
import re
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules
from typing import TYPE_CHECKING, Any, Union

from avdistill.config_io import decode
from avdistill.errors import ConfigError
from avdistill.methods.base import _METHODS, Method, MethodContext, TeacherRequirement
from avdistill.methods.config import BaseMethodConfig
from avdistill.methods.custom import CustomMethodConfig, custom_checksum, custom_config, load_custom, trust_file
from avdistill.types import Option, StudentNetwork

for _module in iter_modules([str(Path(__file__).parent)]):
    if _module.name != "registry":
        import_module(f"{__package__}.{_module.name}")

#: name -> class, in alphabetical order
METHODS: dict[str, type[Method]] = dict(sorted(_METHODS.items()))

if TYPE_CHECKING:
    MethodConfig = BaseMethodConfig
else:  # for the strict reader and the command line: the config of every method, distinguished by its name
    MethodConfig = Union[*(method.config_class for method in METHODS.values()), CustomMethodConfig]


def method_class(config: MethodConfig) -> type[Method]:
    """The class that `config` belongs to. Raises ConfigError where a custom method's file does not hold it."""
    return load_custom(config.source) if isinstance(config, CustomMethodConfig) else METHODS[config.name]


def method_settings(config: MethodConfig) -> Any:
    """The settings as the method's class takes them. Raises ConfigError for unknown options of a custom method."""
    return custom_config(config) if isinstance(config, CustomMethodConfig) else config


def teacher_requirement(config: MethodConfig) -> TeacherRequirement:
    """The teacher's features that the method needs with these settings (`Method.requires`)."""
    return method_class(config).requires(method_settings(config))


def uses_unlabeled(config: MethodConfig) -> bool:
    """Whether unlabeled clips contribute with these settings."""
    return method_class(config).uses_unlabeled(method_settings(config))


def supports_multi_label(config: MethodConfig) -> bool:
    """Whether the method with these settings is defined for clips with several labels."""
    return method_class(config).supports_multi_label(method_settings(config))


def parse_method(text: str) -> MethodConfig:
    """A method by name or from a file, with settings: "kd", "crd:negatives=batch", "mine.py:Mine:weight=2".

    A file is run, now and later in this process: whoever names it trusts it.

    Raises:
        ConfigError: no such method, file or setting, or a value that the setting cannot have.
    """
    custom = re.fullmatch(r"(.*\.py:\w+)(?::(.*))?", text)
    name, _, settings = (custom[1], "", custom[2] or "") if custom else text.partition(":")
    if not custom and name not in METHODS:
        raise ConfigError(f"no method {name!r}; methods: {', '.join(METHODS)}, or FILE.py:Class")
    options: dict[str, Option] = {}
    for pair in filter(None, settings.split(",")):
        key, _, value = pair.partition("=")
        try:
            options[key] = json.loads(value)
        except json.JSONDecodeError:
            options[key] = value
    if custom:
        trust_file(custom_checksum(CustomMethodConfig(name)))
    chosen = load_custom(name) if custom else METHODS[name]
    config: MethodConfig = decode(chosen.config_class, dict(options), f"method {name}")
    if not custom:
        return config
    file, _, class_name = name.rpartition(":")
    return CustomMethodConfig(f"{Path(file).resolve()}:{class_name}", options=options)


def build_method(config: MethodConfig, student: StudentNetwork, context: MethodContext) -> Method:
    """The method that `config` describes, around a student, which becomes part of it.

    Raises:
        ConfigError: the method needs a teacher and there is none, its settings do not fit the run, or a custom method
            cannot be loaded or does not know an option.
    """
    if teacher_requirement(config) and not context.teacher_dim:
        raise ConfigError(f"method {config.name!r}: expected a teacher's embedding, found none")
    chosen, settings = method_class(config), method_settings(config)
    try:
        return chosen(student, settings, context)
    except ValueError as error:
        raise ConfigError(f"method {config.name!r}: {error}") from error
