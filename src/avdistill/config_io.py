"""JSON <-> frozen dataclasses: an unknown key, a missing key or a wrong type is a one-line error that names the key.

A file may come from somebody else: what no reader could use (NaN, numbers beyond 64 bits, text that is not Unicode, a
depth beyond Python's) is an error here, not wherever the value is used.
"""

import json
import math
import types
from dataclasses import MISSING, asdict, fields, is_dataclass
from pathlib import Path
from reprlib import Repr
from typing import Any, Literal, NoReturn, TypeVar, Union, get_args, get_origin, get_type_hints

from avdistill.errors import ConfigError
from avdistill.fsio import regular_file
from avdistill.storage.url import as_path

T = TypeVar("T")

_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = _SHORT.maxlong = 80
_show = _SHORT.repr


def read_json(path: Path) -> Any:
    """The content of a JSON file.

    Raises:
        OSError: no such file, or no file.
        ValueError: not UTF-8, not JSON, nested too deeply, or with a number that is NaN or infinite.
    """
    return parse_json(regular_file(path).read_text(encoding="utf-8"))


def parse_json(text: str) -> Any:
    """A JSON text. Raises ValueError for anything else, NaN, infinity and a depth beyond Python's."""
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except RecursionError:
        raise ValueError("nested too deeply") from None


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is no number of JSON")


def decode(kind: type[T], value: object, key: str = "config") -> T:
    """`value`, as read from JSON, as an instance of the dataclass `kind`.

    Fields may be dataclasses, unions of dataclasses distinguished by a field with one literal value, tuples, dicts
    with string keys, literals, paths, numbers, strings and None. An int is accepted for a float, nothing else is
    converted. `key` names the outermost object in messages.

    Raises:
        ConfigError: the value does not fit.
    """
    return _decode(kind, value, key)


def encode(value: Any) -> dict[str, Any]:
    """The dataclass as JSON-ready objects, the inverse of `decode`."""
    return dict(json.loads(json.dumps(asdict(value), default=lambda path: str(as_path(path)))))


def _decode(kind: Any, value: object, key: str) -> Any:
    origin, arguments = get_origin(kind), get_args(kind)
    if kind is Any:
        return value
    if is_dataclass(kind):
        return _decode_dataclass(kind, value, key)
    if origin in (Union, types.UnionType):
        return _decode_union(arguments, value, key)
    if origin is Literal:
        if any(type(value) is type(a) and value == a for a in arguments):
            return value
        raise ConfigError(f"{key}: expected one of {', '.join(map(repr, arguments))}, got {_show(value)}")
    if origin is tuple and isinstance(value, list):
        if arguments[-1] is Ellipsis:
            return tuple(_decode(arguments[0], v, f"{key}[{i}]") for i, v in enumerate(value))
        if len(value) != len(arguments):
            raise ConfigError(f"{key}: expected {len(arguments)} values, got {len(value)}")
        return tuple(_decode(a, v, f"{key}[{i}]") for i, (a, v) in enumerate(zip(arguments, value, strict=True)))
    if origin is dict and isinstance(value, dict):
        return {_plain(str, k, key): _decode(arguments[1], v, f"{key}.{k:.80}") for k, v in value.items()}
    if kind is Path and isinstance(value, str):
        if "\0" in value:
            raise ConfigError(f"{key}: expected a path, got {_show(value)}")
        return Path(_plain(str, value, key))
    if kind is float and type(value) is int:
        return float(_plain(int, value, key))
    if kind in (int, float, str, bool, types.NoneType) and type(value) is kind:
        return _plain(kind, value, key)
    raise ConfigError(f"{key}: expected {getattr(kind, '__name__', kind)}, got {_show(value)}")


def _plain(kind: Any, value: Any, key: str) -> Any:
    """A value of its kind that can be stored and computed with: 64 bits, finite, Unicode."""
    if kind is int and not -(2**63) <= value < 2**63:
        raise ConfigError(f"{key}: expected a number of 64 bits, got {_show(value)}")
    if kind is float and not math.isfinite(value):
        raise ConfigError(f"{key}: expected a finite number, got {value}")
    if kind is str:
        try:
            value.encode()
        except UnicodeEncodeError:
            raise ConfigError(f"{key}: expected Unicode, got {_show(value)}") from None
    return value


def _decode_dataclass(kind: Any, value: object, key: str) -> Any:
    if not isinstance(value, dict):
        raise ConfigError(f"{key}: expected an object with keys, got {_show(value)}")
    known = {f.name: f for f in fields(kind)}
    for name in value:
        if name not in known:
            raise ConfigError(f"{key}.{name:.80}: unknown key; known: {', '.join(known)}")
    for name, each in known.items():
        if name not in value and each.default is MISSING and each.default_factory is MISSING:
            raise ConfigError(f"{key}.{name}: missing")
    hints = get_type_hints(kind)
    return kind(**{name: _decode(hints[name], item, f"{key}.{name}") for name, item in value.items()})


def _decode_union(choices: tuple[Any, ...], value: object, key: str) -> Any:
    if value is None and types.NoneType in choices:
        return None
    if isinstance(value, dict):
        return _decode_tagged([c for c in choices if is_dataclass(c)], value, key)
    for choice in choices:  # bool before int, int before float: JSON's own type decides
        if choice in (int, float, str, bool) and type(value) is choice:
            return _plain(choice, value, key)
    for choice in choices:
        if choice is not types.NoneType and not is_dataclass(choice):
            try:
                return _decode(choice, value, key)
            except ConfigError:
                continue
    names = ", ".join("null" if c is types.NoneType else getattr(c, "__name__", str(c)) for c in choices)
    raise ConfigError(f"{key}: expected one of {names}, got {_show(value)}")


def _decode_tagged(choices: list[Any], value: dict[str, object], key: str) -> Any:
    tags: dict[object, Any] = {}
    tag_name = ""
    for choice in choices:
        for name, hint in get_type_hints(choice).items():
            if get_origin(hint) is Literal and len(get_args(hint)) == 1:
                tag_name, tags[get_args(hint)[0]] = name, choice
                break
    if not tags and len(choices) == 1:
        return _decode_dataclass(choices[0], value, key)
    tag = value.get(tag_name)
    if not isinstance(tag, str | int) or tag not in tags:
        expected = ", ".join(map(repr, tags))
        raise ConfigError(f"{key}.{tag_name}: expected one of {expected}, got {_show(tag)}")
    return _decode_dataclass(tags[tag], value, key)
