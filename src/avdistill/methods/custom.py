"""Methods from a file of the user's custom: they take part wherever a built-in one does, without being registered."""

from __future__ import annotations

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
from avdistill.types import Option


@dataclass(frozen=True)
class CustomMethodConfig:
    """A method of the user's custom.

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
        raise ConfigError(f"method {source!r}: expected FILE.py:Class, and the file to be there")
    # The same file is loaded once: two classes of one name would not be each other's instances.
    module_name = "avdistill_own_" + hashlib.sha256(path.read_bytes() + str(path).encode()).hexdigest()[:16]
    module = sys.modules.get(module_name)
    if module is None:
        spec = importlib.util.spec_from_file_location(module_name, path)
        assert spec is not None
        assert spec.loader is not None
        module = importlib.util.module_from_spec(spec)
        sys.modules[module_name] = module
        try:
            spec.loader.exec_module(module)
        except Exception as error:  # whatever a file of somebody else's may raise
            del sys.modules[module_name]
            raise ConfigError(f"method {source!r}: {path.name} fails: {type(error).__name__}: {error}") from error
    found: Any = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"method {source!r}: {path.name} has no class {name!r} that is an avdistill.Method")
    if not hasattr(found, "config_class"):
        raise ConfigError(f"method {source!r}: {name} has no config_class, a frozen dataclass of its settings")
    return found


def custom_checksum(config: object) -> str | None:
    """SHA-256 of the file that a method of the user's custom is from; None for another method."""
    if not isinstance(config, CustomMethodConfig):
        return None
    load_custom(config.source)  # says it if the file is gone
    return file_checksum(Path(config.source.rpartition(":")[0]))


def custom_config(config: CustomMethodConfig) -> Any:
    """The settings of a method of the user's custom, as its class wants them. Raises ConfigError for unknown ones."""
    return decode(load_custom(config.source).config_class, dict(config.options), "config.method.options")
