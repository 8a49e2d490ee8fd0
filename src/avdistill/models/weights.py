"""Weights in files: safetensors as we write them, and files of torch.save as others publish them."""

import json
import os
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from avdistill.errors import CheckpointError
from avdistill.fsio import create_file, regular_file

#: the key of class names in the header of a file of weights
CLASSES = "classes"


def tensors(module: nn.Module, without: str | None = None) -> dict[str, Tensor]:
    """The module's state as plain tensors on the CPU, keys that start with `without` left out."""
    return {
        key: value.detach().to("cpu", copy=True).contiguous()
        for key, value in module.state_dict().items()
        if without is None or not key.startswith(without)
    }


def save_tensors(values: dict[str, Tensor], file: Path, metadata: dict[str, str] | None = None) -> None:
    """Write a new safetensors file, with the mode that the umask gives (`save_file` gives 0600).

    Args:
        values: by name.
        file: its path.
        metadata: texts for the file's header.

    Raises:
        OSError: it cannot be written; its `filename` is `file`.
    """
    with create_file(file, "xb"):
        mode = file.stat().st_mode
    try:
        save_file(values, file, metadata)
    except SafetensorError as error:
        if found := re.search(r"\(os error (\d+)\)", str(error)):  # such as a full disk
            raise OSError(int(found[1]), os.strerror(int(found[1])), str(file)) from error
        raise
    file.chmod(mode)


def load_tensors(module: nn.Module, file: Path, without: str | None = None) -> None:
    """Load a safetensors file into the module; keys that start with `without` are not in it, and stay as they are.

    Raises:
        CheckpointError: the file is missing or damaged, or names and shapes differ.
    """
    try:
        state, own = load_file(regular_file(file)), module.state_dict()
        for key, value in state.items():  # a copy would convert it silently
            if key in own and value.dtype.is_floating_point != own[key].dtype.is_floating_point:
                raise CheckpointError(f"{file}: {key}: expected {own[key].dtype}, found {value.dtype}")
        missing, unexpected = module.load_state_dict(state, strict=without is None)
    except FileNotFoundError:
        raise CheckpointError(f"{file}: no such file") from None
    except (SafetensorError, OSError, KeyError, ValueError, MemoryError) as error:
        raise CheckpointError(f"{file}: damaged: {str(error)[:160]}") from error
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:]]
        raise CheckpointError(f"{file}: does not fit {type(module).__name__}: {'; '.join(lines)[:300]}") from error
    if unexpected:
        raise CheckpointError(f"{file}: unexpected {', '.join(unexpected[:3])}")
    if lacking := [name for name in missing if without is None or not name.startswith(without)]:
        raise CheckpointError(f"{file}: does not fit {type(module).__name__}: it lacks {', '.join(lacking[:3])}")


def saved_classes(file: Path) -> tuple[str, ...]:
    """The class names in the header of a safetensors file, as `avdistill teacher convert` writes them; else none."""
    if file.suffix != ".safetensors":
        return ()
    try:
        with safe_open(regular_file(file), "pt") as opened:
            names = json.loads((opened.metadata() or {}).get(CLASSES, "[]"))
        if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
            raise ValueError(f"metadata {CLASSES!r} is no list of names")
    except (SafetensorError, OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{file}: damaged: {str(error)[:160]}") from error
    return tuple(names)


def check_tensors(where: str, weights: Mapping[Any, Any]) -> dict[str, Tensor]:
    """Weights by name of a file that may come from somebody else, each dense, real and as large as its shape says.

    Raises:
        CheckpointError: anything else is among them; the message names it.
    """
    for key, value in weights.items():
        plain = isinstance(value, Tensor) and value.layout == torch.strided and not value.is_meta
        plain = plain and not value.is_quantized and not value.is_complex()
        if not isinstance(key, str) or not plain:
            found = f"{value.dtype}, {value.layout}" if isinstance(value, Tensor) else type(value).__name__
            raise CheckpointError(f"{where}: expected a tensor for {key!r:.80}, found {found}")
        if value.untyped_storage().nbytes() < value.numel() * value.element_size():
            raise CheckpointError(f"{where}: {key:.80}: expected the {value.numel()} values of its shape, found fewer")
    return dict(weights)


def load_torch_file(module: nn.Module, file: Path, unused: tuple[str, ...] = ()) -> None:
    """Load a file of torch.save, or of safetensors, into the module without the keys that start with one of `unused`.

    Raises:
        CheckpointError: it cannot be read, holds more than tensors, or does not fit.
    """
    try:
        if file.suffix == ".safetensors":
            content: Any = load_file(regular_file(file))
        else:
            content = torch.load(file, map_location="cpu", weights_only=True)
    except OSError as error:
        raise CheckpointError(f"{file}: {error.strerror or error}") from None
    except Exception as error:  # a damaged or malicious pickle may raise any exception
        raise CheckpointError(f"{file}: expected a PyTorch file of weights, found a damaged or other file") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{file}: expected weights by name, found {type(content).__name__}")
    for key in [key for key in content if str(key).startswith(unused)]:
        del content[key]  # in place: the dictionary also holds the versions of modules
    try:
        module.load_state_dict(content)
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        heading, *lines = str(error).splitlines()
        details = "; ".join(line.strip() for line in lines or [heading])
        raise CheckpointError(f"{file}: does not fit {type(module).__name__}: {details[:300]}") from error
