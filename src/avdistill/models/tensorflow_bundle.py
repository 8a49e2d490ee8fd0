"""Reads the variables of a TensorFlow checkpoint or SavedModel (a "tensor bundle") without TensorFlow.

`variables.index` is a table in LevelDB's format: name -> BundleEntryProto (type, shape, offset, size, checksum);
`variables.data-00000-of-00001` holds the values one after the other. Every checksum is verified.
"""

import struct
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.errors import CheckpointError

_MAGIC = 0xDB4775248B80FB57
_FOOTER_BYTES = 48
_FLOAT = 1  # DT_FLOAT of types.proto


def read_bundle(folder: Path) -> dict[str, np.ndarray]:
    """The float32 variables of a bundle of one shard, by name, from the SavedModel's `variables` folder.

    Raises:
        CheckpointError: a file is missing, damaged or cut short, or the bundle has several shards.
    """
    index, data = folder / "variables.index", folder / "variables.data-00000-of-00001"
    for file in (index, data):
        if not file.is_file():
            raise CheckpointError(
                f"{folder}: expected {index.name} and {data.name} (one shard); {file.name} is missing"
            )
    try:
        entries = dict(_table(index.read_bytes()))
        header = _message(entries.pop(b"", b""))
        if header.get(1) != 1 or header.get(2, 0) != 0:
            raise ValueError("expected one shard, little endian")
        values = data.read_bytes()
        messages = {name.decode(): _message(value) for name, value in entries.items()}
        return {name: _tensor(name, entry, values) for name, entry in messages.items() if entry.get(1) == _FLOAT}
    except (ValueError, IndexError, OverflowError, struct.error, TypeError) as error:
        raise CheckpointError(f"{folder}: damaged TensorFlow variables: {error}") from error


def _tensor(name: str, entry: dict[int, Any], values: bytes) -> np.ndarray:
    offset, size = entry.get(4, 0), entry.get(5, 0)
    content = values[offset : offset + size]
    shape = [
        _message(dimension).get(1, 0) for message in entry.get(2, []) for dimension in _message(message).get(2, [])
    ]
    if len(content) != size or size != 4 * int(np.prod(shape)):
        raise ValueError(f"{name}: expected {4 * int(np.prod(shape))} bytes at {offset}, found {len(content)}")
    if masked_crc32c(content) != entry.get(6):
        raise ValueError(f"{name}: wrong checksum")
    return np.frombuffer(content, dtype="<f4").reshape(shape)


def _table(file: bytes) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a LevelDB table: the index block at the end lists the blocks with the entries."""
    if len(file) < _FOOTER_BYTES or struct.unpack("<Q", file[-8:])[0] != _MAGIC:
        raise ValueError(f"the index of {len(file)} bytes does not end as a table does")
    footer = BytesIO(file[-_FOOTER_BYTES:])
    _, _, *index = (_varint(footer) for _ in range(4))  # offset and size of the metaindex and of the index
    for _, handle in _block(file, *index):
        place = BytesIO(handle)
        yield from _block(file, _varint(place), _varint(place))


def _block(file: bytes, offset: int, size: int) -> Iterator[tuple[bytes, bytes]]:
    """(key, value) of a block; each key starts with the number of bytes it shares with the previous one."""
    content, trailer = file[offset : offset + size], file[offset + size : offset + size + 5]
    if len(content) != size or len(trailer) != 5 or size < 4:
        raise ValueError(f"a block of {size} bytes at {offset} lies outside the index")
    if trailer[0] != 0:
        raise ValueError("the index is compressed, TensorFlow's are not")
    if masked_crc32c(content + trailer[:1]) != struct.unpack("<I", trailer[1:])[0]:
        raise ValueError("the index has a wrong checksum")
    end = size - 4 - 4 * int(struct.unpack("<I", content[-4:])[0])
    stream, key = BytesIO(content), b""
    while stream.tell() < end:
        shared, own, length = (_varint(stream) for _ in range(3))
        key = key[:shared] + stream.read(own)
        yield key, stream.read(length)


def _message(content: bytes) -> dict[int, Any]:
    """Fields of a protocol buffer by number: integers, and lists of bytes for length-delimited ones."""
    fields: dict[int, Any] = {}
    stream = BytesIO(content)
    while stream.tell() < len(content):
        tag = _varint(stream)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            fields[number] = _varint(stream)
        elif wire == 5:
            fields[number] = struct.unpack("<I", stream.read(4))[0]
        elif wire == 2:
            fields.setdefault(number, []).append(stream.read(_varint(stream)))
        else:
            raise ValueError(f"unknown wire type {wire}")
    return fields


def _varint(stream: BytesIO) -> int:
    """An integer of seven bits a byte. Raises IndexError at the end of the stream."""
    value = shift = 0
    while True:
        byte = stream.read(1)[0]
        value |= (byte & 127) << shift
        shift += 7
        if byte < 128:
            return value


_CRC = np.arange(256, dtype=np.uint32)
for _ in range(8):
    _CRC = np.where(_CRC & 1, (_CRC >> 1) ^ np.uint32(0x82F63B78), _CRC >> 1)


def masked_crc32c(content: bytes) -> int:
    """CRC-32C as TensorFlow stores it: rotated by 15 bits, plus a constant.

    The checksum is linear, so chunks are computed in parallel by NumPy and then combined.
    """
    length = 1 << len(content).bit_length() // 2  # about the square root: as many chunks as bytes in a chunk
    head = len(content) % length
    state = 0xFFFFFFFF
    for byte in content[:head]:
        state = int(_CRC[(state ^ byte) & 255]) ^ (state >> 8)
    if chunks := len(content) // length:
        # The last 32 columns hold the effect of a chunk of zeros on each bit of the state.
        columns = np.zeros((length, chunks + 32), dtype=np.uint8)
        columns[:, :chunks] = np.frombuffer(content, dtype=np.uint8, offset=head).reshape(chunks, length).T
        states = np.zeros(chunks + 32, dtype=np.uint32)
        states[chunks:] = np.uint32(1) << np.arange(32, dtype=np.uint32)
        for column in columns:
            states = _CRC[(states ^ column) & 255] ^ (states >> 8)
        effects: list[int] = states[chunks:].tolist()
        for chunk in states[:chunks].tolist():
            for bit, effect in enumerate(effects):
                chunk ^= effect if state >> bit & 1 else 0
            state = chunk
    crc = state ^ 0xFFFFFFFF
    return (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
