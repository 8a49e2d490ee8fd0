"""Custom methods: a class in a user's file takes part wherever a built-in method does, without being registered."""

import hashlib
import sys
import types
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from avdistill.config_io import decode
from avdistill.errors import ConfigError
from avdistill.methods.base import Method
from avdistill.methods.config import BaseMethodConfig
from avdistill.types import Option

# SHA-256 of the files that the user of this process has named or vouched for. A config alone does not: it may come with
# a run from somebody else.
_TRUSTED: set[str] = set()


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


def trust_file(sha256: str | None) -> None:
    """Allow this process to run Python files of exactly this content; None, of a built-in method, allows nothing."""
    if sha256 is not None:
        _TRUSTED.add(sha256)


def load_custom(source: str) -> type[Method]:
    """The class that "FILE.py:Class" names. The file is run, if its content is trusted (`trust_file`).

    The bytes that are run are those that were hashed: not a compiled file beside them, nor a later state of the file.

    Raises:
        ConfigError: no such file or class, an untrusted file, one that fails, or no `Method` with a `config_class`.
    """
    path, name, content = _read(source)
    digest = hashlib.sha256(content).hexdigest()
    if digest not in _TRUSTED:
        raise ConfigError(
            f"method {source!r}: expected --trust-method (trust_method=True) to run the file {path.name}, which is "
            "named by a config and may come from somebody else; nothing of it was run"
        )
    # A file is loaded once: an object of its first load would be no instance of a class of its second.
    module_name = "avdistill_custom_" + hashlib.sha256(content + str(path).encode()).hexdigest()[:16]
    module = sys.modules.get(module_name)
    if module is None:
        module = types.ModuleType(module_name)
        module.__file__ = str(path)
        sys.modules[module_name] = module
        try:
            exec(compile(content, str(path), "exec"), module.__dict__)
        except Exception as error:  # a user's file may raise anything
            del sys.modules[module_name]
            raise ConfigError(f"method {source!r}: {path.name} fails: {type(error).__name__}: {error}") from error
    found: Any = getattr(module, name, None)
    if not (isinstance(found, type) and issubclass(found, Method)):
        raise ConfigError(f"method {source!r}: expected a Method {name!r} in {path.name}, found none")
    if not hasattr(found, "config_class"):
        raise ConfigError(f"method {source!r}: expected a config_class, a frozen dataclass, found none in {name}")
    return found


def _read(source: str) -> tuple[Path, str, bytes]:
    """Path, class name and content of "FILE.py:Class"."""
    file, _, name = source.rpartition(":")
    try:
        path = Path(file).resolve()
        if file.endswith(".py") and name and path.is_file():
            return path, name, path.read_bytes()
    except (OSError, ValueError):  # not readable; a NUL in the name
        pass
    raise ConfigError(f"method {source!r}: expected FILE.py:Class, found no such file")


def custom_checksum(config: object) -> str | None:
    """SHA-256 of a custom method's file, which is not run; None for a built-in method.

    Raises:
        ConfigError: the file is missing.
    """
    return hashlib.sha256(_read(config.source)[2]).hexdigest() if isinstance(config, CustomMethodConfig) else None


def custom_config(config: CustomMethodConfig) -> Any:
    """The settings of a custom method, an instance of its `config_class`. Raises ConfigError for unknown ones."""
    return decode(load_custom(config.source).config_class, dict(config.options), "config.method.options")
