"""Custom methods: a class in a user's file takes part wherever a built-in method does, without being registered."""

import hashlib
import importlib.util
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avdistill.config_io import decode
from avdistill.errors import ConfigError
from avdistill.fsio import file_checksum
from avdistill.methods.base import Method
from avdistill.methods.config import BaseMethodConfig
from avdistill.types import Option


@dataclass(frozen=True)
class CustomMethodConfig(BaseMethodConfig):
    """A custom method.

    Attributes:
        source: "FILE.py:Class"; the class is a `Method` with a `config_class`.
        options: values of its config that differ from their defaults.
    """

    source: str
    name: Literal["custom"] = "custom"
    options: dict[str, Option] = field(default_factory=dict)


def load_custom(source: str) -> type[Method]:
    """The class that "FILE.py:Class" names. The file is run, as Python does with what it imports.

    Raises:
        ConfigError: no such file or class, the file fails, or the class is no `Method` with a `config_class`.
    """
    file, _, name = source.rpartition(":")
    path = Path(file).resolve()
    if not file.endswith(".py") or not name or not path.is_file():
        raise ConfigError(f"method {source!r}: expected FILE.py:Class, found no such file")
    # A file is loaded once: an object of its first load would be no instance of a class of its second.
    module_name = "avdistill_custom_" + hashlib.sha256(path.read_bytes() + str(path).encode()).hexdigest()[:16]
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # a user's file may raise anything
            del sys.modules[module_name]
            raise ConfigError(f"method {source!r}: {path.name} fails: {type(error).__name__}: {error}") from error
    found: Any = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"method {source!r}: expected a Method {name!r} in {path.name}, found none")
    if not hasattr(found, "config_class"):
        raise ConfigError(f"method {source!r}: expected a config_class, a frozen dataclass, found none in {name}")
    return found


def custom_checksum(config: object) -> str | None:
    """SHA-256 of a custom method's file; None for a built-in method. Raises ConfigError where the file is missing."""
    if not isinstance(config, CustomMethodConfig):
        return None
    load_custom(config.source)
    return file_checksum(Path(config.source.rpartition(":")[0]))


def custom_config(config: CustomMethodConfig) -> Any:
    """The settings of a custom method, an instance of its `config_class`. Raises ConfigError for unknown ones."""
    return decode(load_custom(config.source).config_class, dict(config.options), "config.method.options")
