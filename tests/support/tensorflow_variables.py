"""Writes TensorFlow variables as TensorFlow does: an index in LevelDB's table format beside the values."""

from __future__ import annotations

import struct
from pathlib import Path

import numpy as np
from torch import nn

from avdistill.models.tensorflow_bundle import masked_crc32c
from avdistill.models.yamnet import YAMNet


def varint(value: int) -> bytes:
    held = bytearray()
    while value > 127:
        held.append(value & 127 | 128)
        value >>= 7
    return bytes([*held, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries: list[tuple[bytes, bytes]]) -> bytes:
    held, before = b"", b""
    for key, value in entries:
        shared = next((i for i, (a, b) in enumerate(zip(key, before)) if a != b), min(len(key), len(before)))  # noqa: B905
        held += varint(shared) + varint(len(key) - shared) + varint(len(value)) + key[shared:] + value
        before = key
    return held + struct.pack("<II", 0, 1)


def write_bundle(folder: Path, variables: dict[str, np.ndarray]) -> None:
    folder.mkdir()
    values, entries = b"", [(b"", field(1, 1) + field(3, field(1, 1)))]
    for name in sorted(variables):
        held = np.ascontiguousarray(variables[name], dtype="<f4").tobytes()
        shape = b"".join(field(2, field(1, size)) for size in np.shape(variables[name]))
        entry = field(1, 1) + field(2, shape) + field(4, len(values)) + field(5, len(held))
        entries.append((name.encode(), entry + varint(6 << 3 | 5) + struct.pack("<I", masked_crc32c(held))))
        values += held
    file, handles = b"", []
    for each in (block(entries), block([])):
        handles.append(varint(len(file)) + varint(len(each)))
        file += each + b"\0" + struct.pack("<I", masked_crc32c(each + b"\0"))
    listing = block([(entries[-1][0], handles[0])])
    handle = varint(len(file)) + varint(len(listing))
    file += listing + b"\0" + struct.pack("<I", masked_crc32c(listing + b"\0"))
    file += (handles[1] + handle).ljust(40, b"\0") + struct.pack("<Q", 0xDB4775248B80FB57)
    (folder / "variables.index").write_bytes(file)
    (folder / "variables.data-00000-of-00001").write_bytes(values)


def yamnet_variables(network: YAMNet) -> dict[str, np.ndarray]:
    """The network's weights under the names Keras gives them in a SavedModel."""
    variables: dict[str, np.ndarray] = {}
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.BatchNorm2d | nn.Linear)]
    for number, layer in enumerate(layers):
        if isinstance(layer, nn.BatchNorm2d):
            named = {"beta": layer.bias, "moving_mean": layer.running_mean, "moving_variance": layer.running_var}
        elif isinstance(layer, nn.Linear):
            named = {"kernel": layer.weight.T, "bias": layer.bias}
        elif layer.groups > 1:
            named = {"depthwise_kernel": layer.weight.permute(2, 3, 0, 1)}
        else:
            named = {"kernel": layer.weight.permute(2, 3, 1, 0)}
        for name, value in named.items():
            key = f"_yamnet/layer_with_weights-{number}/{name}/.ATTRIBUTES/VARIABLE_VALUE"
            variables[key] = value.detach().numpy()
    return variables
