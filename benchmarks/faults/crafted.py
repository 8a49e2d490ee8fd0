"""Crafted datasets, runs, checkpoints and lists, as somebody could send them: what each says is changed at one place.

Every case is a copy of a good folder with one change, drawn with a seed from the structure of its files, and a command
that opens it. The command runs in a process of its own with limits. It must end in time with an exit code of 0, 1 or 2
and no traceback; no file outside its output may be touched, and no code that a file brings may run.
"""

from __future__ import annotations

import hashlib
import json
import os
import pickle
import resource
import shutil
import signal
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from safetensors.torch import load_file, save_file

_LIMIT_SECONDS = 60
_MEMORY_BYTES = 6 * 2**30
_FILE_BYTES = 2**30
_USED = (
    *(
        f"avdistill.commands.{name}"
        for name in ("audit", "compare", "dataset", "evaluate", "predict", "teachers", "train")
    ),
    *("sklearn.linear_model", "matplotlib.pyplot", "avdistill.reporting.plots", "torchvision"),
)


@dataclass(frozen=True)
class Good:
    """What is changed: a dataset with the teacher "audio", a run on it, and a list with its folder of videos."""

    dataset: Path
    run: Path
    annotations: Path
    videos: Path


@dataclass(frozen=True)
class Case:
    """A crafted folder, and the command that opens it."""

    name: str
    words: tuple[str, ...]


class _Code:
    """A pickled object that leaves a marker where it is unpickled."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.marker),)


def make_case(good: Good, folder: Path, marker: Path, victim: Path, seed: int) -> Case:
    """Case number `seed`, made in the empty `folder`; its code would make `marker`, its links lead to `victim`."""
    rng = np.random.default_rng([17, seed])
    kind = ("dataset", "dataset", "run", "run", "list", "partial")[seed % 6]
    dataset, run = folder / "dataset", folder / "run"
    shutil.copytree(good.dataset, dataset)
    shutil.copytree(good.run, run)
    out = str(folder / "out")
    config = run / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"dataset": str(dataset)}))  # the copy, which may be crafted
    if kind == "dataset":
        name = _change_folder(dataset, ("dataset.json", "clips.parquet", "*.npy", "sources.csv"), rng, marker, victim)
        verb = _pick(rng, ("info", "evaluate", "audit", "train", "probe", "corrupt", "export"))
    elif kind == "run":
        files = ("config.json", "data.json", "metrics.jsonl", "last/*", "best/*")
        name = _change_folder(run, files, rng, marker, victim)
        verb = _pick(rng, ("resume", "evaluate", "audit", "export", "again", "embed"))
    elif kind == "list":
        name, verb = _change_list(good, folder, rng), "prepare"
    else:
        name, verb = _change_partial(good, folder, rng, marker, victim), "prepare"
    splits = sorted(set(pq.read_table(good.dataset / "clips.parquet")["split"].to_pylist()))
    words = {
        "info": ("info", dataset),
        "evaluate": ("evaluate", run, dataset, "--split", splits[-1]),
        "audit": ("audit", run, dataset, "--split", splits[-1]),
        "train": ("train", "--config", config, "--out", out),
        "again": ("train", "--config", config, "--out", out),
        "probe": ("teacher", "probe", dataset, "--teacher", "audio", "--train-split", splits[-1], "--split", splits[0]),
        "corrupt": ("corrupt", dataset, "mismatched=0.4", "--out", out),
        "export": ("export", run, "--out", out, "--format", "safetensors", "--clips", dataset),
        "resume": ("resume", run),
        "embed": ("embed", dataset, "--teacher", run, "--name", "again"),
        "prepare": ("prepare", folder / "list.csv", "--videos", good.videos, "--out", out, "--short-side", "16"),
    }[verb]
    return Case(f"{verb}: {name}", tuple(map(str, words)))


def _pick(rng: np.random.Generator, choices: Any) -> Any:
    return choices[int(rng.integers(len(choices)))]


def _change_folder(
    folder: Path, patterns: tuple[str, ...], rng: np.random.Generator, marker: Path, victim: Path
) -> str:
    """Change one file of a folder; returns what was done."""
    file = _pick(rng, sorted(folder.glob(_pick(rng, patterns))) or [folder / "dataset.json"])
    if not file.exists():
        file = next(file for file in sorted(folder.glob("*")) if file.is_file())
    if rng.random() < 0.2:
        return f"{file.name}: {_plant(file, rng, victim)}"
    change: Callable[[Path, np.random.Generator, Path], str] = {
        ".json": _change_json,
        ".parquet": _change_parquet,
        ".npy": _change_npy,
        ".safetensors": _change_safetensors,
        ".pt": _change_state,
    }.get(file.suffix, _change_text)
    return f"{file.name}: {change(file, rng, marker)}"


def _plant(file: Path, rng: np.random.Generator, victim: Path) -> str:
    """Something else than a file under its name, or a link under a name that is written."""
    kind = _pick(rng, ("pipe", "device", "folder", "gone", "link", "lock", "temporary"))
    if kind in ("lock", "temporary"):
        name = "lock" if kind == "lock" else f"{file.name}.tmp"
        (file.parent / name).unlink(missing_ok=True)
        (file.parent / name).symlink_to(victim)
        return f"{name} is a link"
    file.unlink()
    if kind == "pipe":
        os.mkfifo(file)
    elif kind == "folder":
        file.mkdir()
    elif kind != "gone":
        file.symlink_to("/dev/zero" if kind == "device" else victim)
    return kind


_VALUES: tuple[Any, ...] = (
    *(None, [], {}, "", "x", 0, -1, 1, 1.5, True, 2**40, -(2**63), 2**70, 1e308, float("nan"), float("inf")),
    *(
        "../../../etc/passwd",
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


def _places(value: Any) -> Iterator[tuple[Any, Any]]:
    """Every (container, key) in a JSON value."""
    for key in list(value) if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
        yield value, key
        yield from _places(value[key])


def _change_json(file: Path, rng: np.random.Generator, marker: Path) -> str:
    content = json.loads(file.read_text())
    if rng.random() < 0.15:
        text = _pick(rng, ("[" * 100_000, "{", "", "null", "[]", '"x"', "\xff", '{"a":' * 5000, "1" * 10_000))
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
    container, key = _pick(rng, list(_places(content)))
    action = _pick(rng, ("delete", "add", "set", "set", "set", "set"))
    value = _pick(rng, _VALUES)
    if action == "delete":
        del container[key]
    elif action == "add" and isinstance(container, dict):
        container["unknown\x1b[2J"] = value
    else:
        container[key] = value
    file.write_text(json.dumps(content))
    return f"{action} {key} {value!r:.30}"


def _change_parquet(file: Path, rng: np.random.Generator, marker: Path) -> str:
    table = pq.read_table(file)
    name = _pick(rng, table.column_names)
    place = table.column_names.index(name)
    action = _pick(rng, ("drop", "null", "type", "number", "number", "text", "repeat", "fewer", "none", "bytes"))
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
        name = _pick(rng, [f.name for f in table.schema if pa.types.is_integer(f.type) or pa.types.is_boolean(f.type)])
        place, kind, values = table.column_names.index(name), table.schema.field(name).type, table[name].to_pylist()
        wrong = not values[row] if pa.types.is_boolean(kind) else _pick(rng, (-1, 0, 10**6, 2**31 - 1))
        values[row] = wrong
        table = table.set_column(place, name, pa.array(values, kind))
    elif action == "text":
        name = _pick(rng, ("id", "path", "group", "split"))
        values = table[name].to_pylist()
        values[row] = _pick(rng, ("\x1b[2J\x9b1m", "", "a\nb", "../../x", "=cmd", "\u202egpj", "x" * 10**6))
        table = table.set_column(table.column_names.index(name), name, pa.array(values))
    elif action == "repeat":
        table = pa.concat_tables([table, table])
    elif action == "fewer":
        table = table.slice(1)
    elif action == "none":
        table = table.slice(0, 0)
    if action == "bytes":
        _change_text(file, rng, marker)
    else:
        pq.write_table(table, file)
    return f"{action} {name}"


def _change_npy(file: Path, rng: np.random.Generator, marker: Path) -> str:
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
    action = _pick(rng, actions)
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
        np.save(file, np.array([_Code(marker)], object), allow_pickle=True)
    elif action == "nan" and array.dtype.kind == "f":
        array[0] = np.nan
        array[-1, -1] = np.inf
        np.save(file, array)
    elif action == "fortran":
        np.save(file, np.asfortranarray(array))
    elif action == "empty":
        np.save(file, array[:0])
    else:
        _change_text(file, rng, marker)
    return action


def _change_safetensors(file: Path, rng: np.random.Generator, marker: Path) -> str:
    tensors = load_file(file)
    action = _pick(rng, ("kind", "shape", "less", "more", "nan", "bytes", "header"))
    if not tensors:
        action = "bytes"
    key = _pick(rng, sorted(tensors)) if tensors else ""
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
        return _change_text(file, rng, marker)
    save_file(tensors, file)
    return f"{action} {key}"


def _change_state(file: Path, rng: np.random.Generator, marker: Path) -> str:
    state = torch.load(file, weights_only=True)
    action = _pick(rng, ("code", "pickle", "key", "value", "value", "progress", "list", "bytes"))
    if action == "code":
        torch.save(state | {"progress": _Code(marker)}, file)
    elif action == "pickle":
        file.write_bytes(pickle.dumps(_Code(marker)))
    elif action == "list":
        torch.save([state], file)
    elif action == "bytes":
        return _change_text(file, rng, marker)
    else:
        places = list(_places(state["progress"] if action == "progress" else state))
        container, key = _pick(rng, places)
        if action == "key" and isinstance(container, dict):
            del container[key]
        else:
            container[key] = _pick(rng, (*_VALUES[:16], torch.zeros(3), torch.zeros(0)))
        torch.save(state, file)
        return f"{action} {key}"
    return action


def _change_text(file: Path, rng: np.random.Generator, marker: Path) -> str:
    content = bytearray(file.read_bytes())
    action = _pick(rng, ("cut", "flip", "lines", "empty", "nul"))
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


_CELLS = (
    *(
        "",
        "-1",
        "nan",
        "inf",
        "1e999",
        "x" * 200_000,
        "\x1b[2J",
        "../../../etc/passwd",
        "/etc/passwd",
        "http://a.b/c.mp4",
    ),
    *("file:///etc/passwd", "=1+1", "\ufeff", '"', "a\rb", "2" * 5000, "|||", "con\0", "\udcff", "concat:a|b"),
)


def _change_list(good: Good, folder: Path, rng: np.random.Generator) -> str:
    text = good.annotations.read_text()
    lines = [line.split(",") for line in text.splitlines()[:4]]
    row, column = int(rng.integers(len(lines))), int(rng.integers(len(lines[0])))
    cell = _pick(rng, _CELLS)
    action = _pick(rng, ("cell", "cell", "cell", "header", "ragged", "bytes", "json"))
    if action == "cell":
        lines[row][column] = cell
    elif action == "header":
        lines[0][column] = _pick(rng, ("start", "end", "subset", "class", lines[0][0], ""))
    elif action == "ragged":
        lines[row] += ["x"] * 5
    written = "\n".join(",".join(line) for line in lines)
    if action == "json":
        written = _pick(rng, ("[" * 100_000, '{"path": {}}', '{"path": "a", "labels": 3}', "null", '{"path": NaN}'))
    file = folder / "list.csv"
    file.write_bytes(written.encode("utf-8", "surrogateescape"))
    if action == "bytes":
        _change_text(file, rng, folder)
    return f"{action} {cell[:20]!r}"


def _change_partial(good: Good, folder: Path, rng: np.random.Generator, marker: Path, victim: Path) -> str:
    """An interrupted preparation of somebody else: its journal says what it likes."""
    (folder / "list.csv").write_text("\n".join(good.annotations.read_text().splitlines()[:3]) + "\n")
    partial = folder / "out.partial"
    partial.mkdir()
    action = _pick(rng, ("journal", "settings", "link", "shard", "folder"))
    if action == "journal":
        row = {
            "id": "a",
            "path": "a",
            "has_video": True,
            "frame_shard": 0,
            "frame_offset": 0,
            "frame_count": 1,
            "crc": 0,
        }
        row |= {"has_audio": False, "frame_shape": [1, 1, 3], "source": [0, 0], "labels": []}
        entry: dict[str, Any] = _pick(rng, ({"row": row}, {"skipped": {"clip": "x"}}, {"synced": "x"}, {"row": 3}))
        if "row" in entry and isinstance(entry["row"], dict):
            container, key = _pick(rng, list(_places(row)))
            container[key] = _pick(rng, [v for v in _VALUES if v == v and v != float("inf")])
        text = _pick(rng, ("", "null\n", "[" * 10_000 + "\n")) + json.dumps(entry) + "\n"
        (partial / "journal.jsonl").write_text(text)
    elif action == "settings":
        (partial / "settings.json").write_text(_pick(rng, ("[" * 100_000, "{", "[]", "null")))
    elif action == "link":
        (partial / _pick(rng, ("journal.jsonl", "frames-00000.npy", "lock", "audio-00000.npy"))).symlink_to(victim)
    elif action == "shard":
        os.mkfifo(partial / _pick(rng, ("frames-00000.npy", "journal.jsonl", "lock", "settings.json")))
    else:
        partial.rmdir()
        partial.symlink_to(victim.parent)
    return f"partial {action}"


def run_case(case: Case, log: Path) -> tuple[int, str]:
    """Exit code and standard error of a case's command, in a process of its own with limits; -1000: it hung."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside idle threads
        child = os.fork()
    if child == 0:
        _run_here(case, log)
    until = time.monotonic() + _LIMIT_SECONDS
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -1000, log.read_text(errors="replace")
        time.sleep(0.01)


def _run_here(case: Case, log: Path) -> None:
    """The child: never returns."""
    code = 99
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(target, descriptor)
        for limit, bytes_ in ((resource.RLIMIT_DATA, _MEMORY_BYTES), (resource.RLIMIT_FSIZE, _FILE_BYTES)):
            resource.setrlimit(limit, (bytes_, bytes_))
        from avdistill.cli import main

        code = main(list(case.words))
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        import traceback

        os.write(2, traceback.format_exc().encode("utf-8", "replace"))
    finally:
        sys.stdout.flush()
        os._exit(code)


def faults_of(good: Good, work: Path, seeds: Iterator[int] | range) -> list[str]:
    """A line for each case that broke a promise."""
    for module in _USED:  # once, not in every process
        import_module(module)
    wrong = []
    for seed in seeds:
        folder, outside = work / "case", work / "outside"
        for each in (folder, outside):
            shutil.rmtree(each, ignore_errors=True)
            each.mkdir(parents=True)
        victim, marker = outside / "victim", work / "marker"
        victim.write_text("precious")
        case = make_case(good, folder, marker, victim, seed)
        code, text = run_case(case, work / "log")
        found = []
        if code not in (0, 1, 2):
            found.append("hung" if code == -1000 else f"exit code {code}")
        if "Traceback" in text:
            found.append("a traceback: " + text.strip().splitlines()[-1][:200])
        if any(steering in text for steering in ("\x07", "\x9b", "\u202e", "\x1b[2J", "\x1b]")):
            found.append("control characters on the terminal")
        if marker.exists():
            marker.rmdir()
            found.append("code was run")
        if victim.read_text() != "precious" or len(list(outside.iterdir())) > 1:
            found.append("a file outside was touched")
        wrong += [f"case {seed} ({case.name}): {each}" for each in found]
    return wrong
