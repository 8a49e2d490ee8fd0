"""One change of a file, drawn with a seed from the structure of its content: JSON, Parquet, arrays, weights, text."""

from __future__ import annotations

import hashlib
import json
import os
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file


class Code:
    """A pickled object that leaves a marker where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """One of several, by chance."""
    return choices[int(rng.integers(len(choices)))]


VALUES: tuple[Any, ...] = (
    *(None, [], {}, "", "x", 0, -1, 1, 1.5, True, 2**40, -(2**63), 2**70, 1e308, float("nan"), float("inf")),
    *(
        "../../../etc/passwd",
        "/dev/zero",
        "1e306",
        "\x1b]0;title\x07\x9b31m",
        "a\0b",
        "\ud800",
        "=1+1",
        ["x"] * 3,
        [[]],
        {"": {}},
        "9" * 5000,
    ),
    {"name": ["custom"]},
)


def places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from places(value[key])


def change_json(file: Path, rng: np.random.Generator, marker: Path) -> str:
    """Change a value, or the text; a run's config may name a method's file, whose code makes `marker`."""
    content = json.loads(file.read_text())
    if rng.random() < 0.15:
        text = pick(rng, ("[" * 100_000, "{", "", "null", "[]", '"x"', "\xff", '{"a":' * 5000, "1" * 10_000))
        file.write_bytes(text.encode("latin-1"))
        return f"the text {text[:10]!r}"
    if file.name == "config.json" and "method" in content and rng.random() < 0.2:
        code = file.with_name("mine.py")
        code.write_text(f"import os\nos.mkdir({str(marker)!r})\n")
        content["method"] = {"name": "custom", "source": f"{code}:Mine"}
        file.write_text(json.dumps(content))
        data = file.with_name("data.json")
        told = json.loads(data.read_text()) | {"method_file": hashlib.sha256(code.read_bytes()).hexdigest()}
        data.write_text(json.dumps(told))
        return "a method from a file"
    container, key = pick(rng, list(places(content)))
    action = pick(rng, ("delete", "add", "set", "set", "set", "set"))
    value = pick(rng, VALUES)
    if action == "delete":
        del container[key]
    elif action == "add" and isinstance(container, dict):
        container["unknown\x1b[2J"] = value
    else:
        container[key] = value
    file.write_text(json.dumps(content))
    return f"{action} {key} {value!r:.30}"


def change_parquet(file: Path, rng: np.random.Generator, marker: Path) -> str:
    """Change a column or the rows."""
    table = pq.read_table(file)
    name = pick(rng, table.column_names)
    place = table.column_names.index(name)
    action = pick(rng, ("drop", "null", "type", "number", "number", "text", "repeat", "fewer", "none", "bytes"))
    row, rows = int(rng.integers(table.num_rows)), table.num_rows
    kind, values = table.schema.field(name).type, table[name].to_pylist()
    if action == "drop":
        table = table.drop_columns([name])
    elif action == "null":
        values[row] = None
        table = table.set_column(place, name, pa.array(values, kind))
    elif action == "type":
        table = table.set_column(place, name, pa.array([{"a": [1]}] * rows))
    elif action == "number":
        name = pick(rng, [f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_boolean(f.type)])
        place, kind, values = table.column_names.index(name), table.schema.field(name).type, table[name].to_pylist()
        wrong = not values[row] if pa.types.is_boolean(kind) else pick(rng, (-1, 0, 10**6, 2**31 - 1))
        values[row] = wrong
        table = table.set_column(place, name, pa.array(values, kind))
    elif action == "text":
        name = pick(rng, ("id", "path", "group", "split"))
        values = table[name].to_pylist()
        values[row] = pick(rng, ("\x1b[2J\x9b1m", "", "a\nb", "../../x", "=cmd", "\u202egpj", "x" * 10**6))
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    elif action == "repeat":
        table = pa.concat_tables([table, table])
    elif action == "fewer":
        table = table.slice(1)
    elif action == "none":
        table = table.slice(0, 0)
    if action == "bytes":
        change_text(file, rng, marker)
    else:
        pq.write_table(table, file)
    return f"{action} {name}"


def change_npy(file: Path, rng: np.random.Generator, marker: Path) -> str:
    """Change kind, shape, content or header of an array."""
    array = np.load(file)
    actions = (
        "float64",
        "int8",
        "short",
        "wider",
        "huge",
        "objects",
        "parens",
        "nan",
        "fortran",
        "empty",
        "bytes",
        "structured",
    )
    action = pick(rng, actions)
    if action in ("float64", "int8"):
        np.save(file, np.nan_to_num(array).astype(action))
    elif action == "short":
        with file.open("r+b") as content:
            content.truncate(max(0, file.stat().st_size - int(rng.integers(1, array.nbytes + 64))))
    elif action == "wider":
        np.save(file, array[..., None])
    elif action in ("huge", "parens", "structured"):
        shape = {"huge": f"({2**50}, 3)", "parens": "(" * 4000, "structured": "(1,)"}[action]
        descr = "[('a', '<f4')]" if action == "structured" else repr(array.dtype.str)
        header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}, }}".encode()
        file.write_bytes(b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"\0" * 64)
    elif action == "objects":
        np.save(file, np.array([Code(marker)], object), allow_pickle=True)
    elif action == "nan" and array.dtype.kind == "f":
        array[0] = np.nan
        array.flat[-1] = np.inf
        np.save(file, array)
    elif action == "fortran":
        np.save(file, np.asfortranarray(array))
    elif action == "empty":
        np.save(file, array[:0])
    else:
        change_text(file, rng, marker)
    return action


def change_safetensors(file: Path, rng: np.random.Generator, marker: Path) -> str:
    """Change a tensor, the names or the header."""
    tensors = load_file(file)
    action = pick(rng, ("kind", "shape", "less", "more", "nan", "bytes", "header"))
    if not tensors:
        action = "bytes"
    key = pick(rng, sorted(tensors)) if tensors else ""
    if action == "kind":
        tensors[key] = (tensors[key] * 0).to(torch.bool if tensors[key].dtype == torch.int64 else torch.int64)
    elif action == "shape":
        tensors[key] = tensors[key][None].contiguous()
    elif action == "less":
        del tensors[key]
    elif action == "more":
        tensors["unknown"] = torch.zeros(3)
    elif action == "nan" and tensors[key].is_floating_point():
        tensors[key] = tensors[key] * float("nan")
    elif action == "header":
        header = json.dumps({key: {"dtype": "F99", "shape": [2**40], "data_offsets": [0, 2**50]}}).encode()
        file.write_bytes(len(header).to_bytes(8, "little") + header)
        return action
    else:
        return change_text(file, rng, marker)
    save_file(tensors, file)
    return f"{action} {key}"


def change_state(file: Path, rng: np.random.Generator, marker: Path) -> str:
    """Change a file of torch.save."""
    state = torch.load(file, weights_only=True)
    action = pick(rng, ("code", "pickle", "key", "value", "value", "progress", "list", "bytes"))
    if action == "code":
        torch.save(state | {"progress": Code(marker)}, file)
    elif action == "pickle":
        file.write_bytes(pickle.dumps(Code(marker)))
    elif action == "list":
        torch.save([state], file)
    elif action == "bytes":
        return change_text(file, rng, marker)
    else:
        container, key = pick(rng, list(places(state["progress"] if action == "progress" else state)))
        if action == "key" and isinstance(container, dict):
            del container[key]
        else:
            container[key] = pick(rng, (*VALUES[:16], torch.zeros(3), torch.zeros(0)))
        torch.save(state, file)
        return f"{action} {key}"
    return action


def change_text(file: Path, rng: np.random.Generator, marker: Path) -> str:
    """Change bytes, whatever they mean."""
    content = bytearray(file.read_bytes())
    action = pick(rng, ("cut", "flip", "lines", "empty", "nul"))
    if action == "cut":
        del content[int(rng.integers(len(content) + 1)) :]
    elif action == "flip":
        for place in rng.integers(max(1, len(content)), size=8):
            content[place : place + 1] = bytes([int(rng.integers(256))])
    elif action == "lines":
        content = bytearray(b'null\n[]\n{"step": "x"}\n{"step": [1]}\n,,,\n"\n' + bytes(content))
    elif action == "nul":
        content += b"\0" * 100
    else:
        content.clear()
    file.write_bytes(bytes(content))
    return action
