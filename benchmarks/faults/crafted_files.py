"""Crafted files that stand alone: lists of clips, decisions, embeddings, published checkpoints, HDF5 videos.

`CHANGES` has a function per kind. It makes one good file in a folder, changes it at one place, and returns what it did
and the command that reads it.
"""

from __future__ import annotations

import io
import json
import pickle
import shutil
import warnings
import zipfile
from collections.abc import Callable
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np
import pyarrow.parquet as pq
import torch
from PIL import Image

from avdistill.models.efficientnet_lite import EfficientNetLite0
from avdistill.models.noise_filter import NoiseFilter
from avdistill.models.panns import cnn6
from avdistill.models.r2plus1d import r2plus1d_xia2023
from changes import VALUES, Code, change_npy, change_text, pick, places

if TYPE_CHECKING:
    from crafted import Good

# What was done, and the words of the command.
Made = tuple[str, tuple[object, ...]]

_CELLS = (
    *("", "-1", "nan", "inf", "1e999", "1e306", "x" * 200_000, "\x1b[2J", "../../../etc/passwd", "/etc/passwd"),
    *("http://a.b/c.mp4", "file:///etc/passwd", "=1+1", "\ufeff", '"', "a\rb", "2" * 5000, "|||", "con\0", "\udcff"),
    *("concat:a|b", "\u202egpj", "a" * 300, "1_000", "٣", "-0"),
)
_DECISIONS = ("keep", "drop_clip", "drop_audio", "relabel:", "relabel:|", "relabel:no such class", "drop:audio", "KEEP")


def _prepare(good: Good, folder: Path, listed: Path, *more: object, by_name: bool = False) -> tuple[object, ...]:
    """`prepare` of a list; with `by_name` in the folder of its first video alone, where every name is there once."""
    videos = good.videos / Path(_listed(good)[1][0]).parent if by_name else good.videos
    words = ("prepare", listed, "--videos", videos, "--out", folder / "out", "--short-side", "16")
    return (*words, "--workers", 1, *more)


def _listed(good: Good) -> list[list[str]]:
    return [line.split(",") for line in good.annotations.read_text().splitlines()[:4]]


def _change_cells(lines: list[list[str]], rng: np.random.Generator, cells: tuple[str, ...], columns: Any) -> str:
    """Change one cell, the header or the number of cells."""
    row, column = int(rng.integers(len(lines))), int(rng.integers(len(lines[0])))
    cell = pick(rng, cells)
    action = pick(rng, ("cell", "cell", "cell", "header", "ragged", "repeat"))
    if action == "cell":
        lines[row][column] = cell
    elif action == "header":
        lines[0][column] = pick(rng, columns)
    elif action == "ragged":
        lines[row] += ["x"] * 5
    else:
        lines += lines[1:]
    return f"{action} {cell[:20]!r}"


def _write_cells(file: Path, lines: list[list[str]], rng: np.random.Generator, done: str) -> str:
    written = "\n".join(",".join(line) for line in lines) + "\n"
    file.write_bytes(written.encode("utf-8", "surrogateescape"))
    return change_text(file, rng, file) if rng.random() < 0.15 else done


def _csv(good: Good, folder: Path, rng: np.random.Generator, marker: Path) -> Made:
    lines = _listed(good)
    done = _change_cells(lines, rng, _CELLS, ("start", "end", "subset", "class", lines[0][0], ""))
    file = folder / "list.csv"
    done = _write_cells(file, lines, rng, done)
    if rng.random() < 0.15:
        (folder / "labels.txt").write_bytes(pick(rng, (b"", b"\xff", b"x\n", b"\n" * 9, b"a" * 10**6, b"\0\n")))
        return "labels", _prepare(good, folder, file, "--labels", folder / "labels.txt")
    return done, _prepare(good, folder, file)


def _change_value(content: Any, rng: np.random.Generator) -> str:
    """Change a JSON value at one place."""
    container, key = pick(rng, list(places(content)))
    action, value = pick(rng, ("delete", "set", "set", "set", "nest")), pick(rng, VALUES)
    if action == "delete":
        del container[key]
    elif action == "nest":
        container[key] = [container[key]]
    else:
        container[key] = value
    return f"{action} {str(key)[:40]!r} {value!r:.30}"


_BROKEN_JSON = ("[" * 100_000, '{"path": {}}', '{"path": "a", "labels": 3}', "null", '{"path": NaN}', "{", "[1] 2")


def _jsonl(good: Good, folder: Path, rng: np.random.Generator, marker: Path) -> Made:
    header, *rows = _listed(good)
    entries: list[Any] = [dict(zip(header, row, strict=True)) for row in rows]
    for entry in entries:
        entry |= {"start_seconds": 0.25, "end_seconds": 1, "labels": (entry.pop("label", None) or "x").split("|")}
    done = _change_value(entries, rng)
    lines = [json.dumps(entry) for entry in entries]
    if rng.random() < 0.2:
        lines.insert(int(rng.integers(len(lines) + 1)), done := pick(rng, (*_BROKEN_JSON, '{"path": "a", "path": 1}')))
    file = folder / "list.jsonl"
    file.write_text("\n".join(lines), errors="surrogatepass")
    if rng.random() < 0.1:
        done = change_text(file, rng, marker)
    return done[:60], _prepare(good, folder, file)


def _database(good: Good, folder: Path, rng: np.random.Generator, marker: Path) -> Made:
    """ActivityNet's JSON or the release's."""
    header, *rows = _listed(good)
    release = rng.random() < 0.4
    database: dict[str, Any] = {}
    for row in rows:
        entry = dict(zip(header, row, strict=True))
        label = entry.get("label") or entry.get("labels") or "x"
        segment = {"segment": [0.0, 1.5], "label": label}
        told = {"label": label} if release else {"annotations": [segment], "duration": 2.0, "url": "https://a.b"}
        database[Path(entry["path"]).stem] = {"subset": "training", **told}
    labels = sorted({entry.get("label", "x") for entry in database.values()})
    content = {"database": database} | ({"labels": labels} if release else {"version": "1", "taxonomy": []})
    done = _change_value(content, rng)
    file = folder / "list.json"
    text = json.dumps(content)
    file.write_text(text if rng.random() < 0.9 else pick(rng, _BROKEN_JSON), errors="surrogatepass")
    form = ("--format", "gewu_lab" if release else "activitynet") if rng.random() < 0.8 else ()
    return done, _prepare(good, folder, file, *form, by_name=True)


def _ucf(good: Good, folder: Path, rng: np.random.Generator, marker: Path) -> Made:
    """UCF101's lists, alone or both of a fold in a folder."""
    lists = folder / "lists"
    lists.mkdir()
    lines = [f"Archery/v_Archery_g0{i}_c01.avi {i}" for i in range(1, 4)]
    place = int(rng.integers(len(lines)))
    changed = pick(rng, (*_CELLS, "Archery/", "/a.avi", "a/b/c.avi 1", "Archery/../x.avi", "A/\x9b.avi", "A/..avi 1"))
    lines[place] = changed if rng.random() < 0.5 else pick(rng, (f"Archery/{changed}", f"{changed}/v.avi", lines[0]))
    names = pick(
        rng, (("trainlist01.txt",), ("trainlist01.txt", "testlist01.txt"), ("trainlist02.txt", "testlist1.txt"))
    )
    for name in names:
        (lists / name).write_bytes("\n".join(lines).encode("utf-8", "surrogateescape"))
    if rng.random() < 0.2:
        changed = change_text(lists / names[0], rng, marker)
    listed = lists if len(names) > 1 else lists / names[0]
    return f"{names[0]} {changed[:20]!r}", _prepare(good, folder, listed, *pick(rng, ((), ("--format", "ucf101"))))


def _catalog(good: Good, folder: Path, rng: np.random.Generator, marker: Path) -> Made:
    """The CSV lists of VGGSound, Kinetics and AudioSet."""
    kind = pick(rng, ("vggsound", "kinetics", "audioset"))
    names = [Path(row[0]).stem for row in _listed(good)[1:]]
    lines = {
        "vggsound": [[name, "0", "a bird", "train"] for name in names],
        "kinetics": [["label", "youtube_id", "time_start", "time_end", "split"]]
        + [["a bird", name, "0", "1", "train"] for name in names],
        "audioset": [["# Segments csv created"]] + [[name, " 0.000", " 1.500", ' "/m/01,/m/02"'] for name in names],
    }[kind]
    done = _change_cells(lines, rng, _CELLS, ("start", "label", "path", ""))
    file = folder / ("eval_segments.csv" if kind == "audioset" else "list.csv")
    done = _write_cells(file, lines, rng, done)
    if kind == "audioset" and rng.random() < 0.5:
        text = pick(rng, ("", "index,mid,display_name\n0,/m/01\n", "index,mid,display_name\n0,/m/01,\x1b[2J\n", '"'))
        (folder / "class_labels_indices.csv").write_text(text)
    return f"{kind} {done}", _prepare(good, folder, file, "--format", kind, by_name=True)


def _decisions(good: Good, folder: Path, rng: np.random.Generator, marker: Path) -> Made:
    ids = pq.read_table(good.dataset / "clips.parquet")["id"].to_pylist()
    lines = [["clip", "decision", "by"], *([name, pick(rng, _DECISIONS[:3]), "me"] for name in ids[:4])]
    done = _change_cells(lines, rng, (*_CELLS, *_DECISIONS, ids[0]), ("id", "label", "clip", ""))
    if rng.random() < 0.15:
        lines, done = [lines[0], *([name, "drop_clip", ""] for name in ids)], "all dropped"
    file = folder / "decisions.csv"
    done = _write_cells(file, lines, rng, done)
    if rng.random() < 0.5:
        return done, ("corrupt", good.dataset, "mismatched=0.4", "--decisions", file, "--out", folder / "out")
    config = good.run / "config.json"
    return done, ("train", "--config", config, "--decisions", file, "--out", folder / "out")


def _embeddings(good: Good, folder: Path, rng: np.random.Generator, marker: Path) -> Made:
    """An .npz with names, or a folder of .npy."""
    ids = pq.read_table(good.dataset / "clips.parquet")["id"].to_pylist()
    arrays: dict[str, np.ndarray] = {"name": np.array(ids), "embedding": rng.random((len(ids), 6), np.float32)}
    arrays |= {"logits": rng.random((len(ids), 3), np.float32), "classes": np.array(["a", "b", "c"])}
    stored = folder / "stored"
    stored.mkdir()
    words = ("embed", good.dataset, "--name", "made", "--teacher")
    if rng.random() < 0.3:
        for name in ids:
            (stored / f"{name}.npy").parent.mkdir(parents=True, exist_ok=True)
            np.save(stored / f"{name}.npy", arrays["embedding"][0])
        done = change_npy(stored / f"{pick(rng, ids)}.npy", rng, marker)
        return f"folder {done}", (*words, f"precomputed:{stored}")
    changed = pick(rng, list(arrays))
    action = pick(rng, ("npy", "npy", "npy", "drop", "swap", "repeat", "number", "pickle", "zip", "bytes", "text"))
    if action == "drop":
        del arrays[changed]
    elif action == "swap":
        arrays[changed] = arrays[pick(rng, list(arrays))]
    elif action == "repeat":
        arrays[changed] = np.concatenate([arrays[changed]] * 2)
    elif action == "number":
        arrays[changed] = arrays[changed][..., None]
    elif action == "text":
        arrays["name"] = arrays["name"].astype(pick(rng, ("S", "O", "U1"))) if rng.random() < 0.7 else np.array("x")
    for key, value in arrays.items():
        np.save(stored / f"{key}.npy", value, allow_pickle=True)
    member = stored / f"{changed}.npy"
    if action == "npy" and arrays[changed].dtype.kind == "f":
        action = change_npy(member, rng, marker)
    elif action == "npy":
        action = change_text(member, rng, marker)
    elif action == "pickle":
        np.save(member, np.array([Code(marker)], object), allow_pickle=True)
    file = folder / "made.npz"
    with zipfile.ZipFile(file, "w", pick(rng, (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED))) as archive:
        for each in sorted(stored.iterdir()):
            archive.write(each, each.name)
        if action == "zip":
            archive.writestr(pick(rng, ("../../outside/planted.npy", "/x.npy", "folder/", "", "x.npy")), b"x")
    if action == "bytes":
        action = change_text(file, rng, marker)
    return f"{changed} {action}", (*words, f"precomputed:{file}")


@lru_cache
def _states() -> dict[str, dict[str, Any]]:
    """The content of good checkpoints: of PANNs, of a network as torch.save writes it, of the release."""
    torch.manual_seed(0)
    names = {"gate": "gated_feature_composer", "attention": "attn", "guide": "trans_sv"}
    names |= {"classifier": "sv_cls_classifier"}
    noise_filter = {}
    for key, value in NoiseFilter(16, 3).state_dict().items():
        head, _, rest = key.partition(".")
        noise_filter[f"{names.get(head, head)}.{rest}"] = value
    return {
        "cnn6": {"iteration": 3, "model": dict(cnn6().state_dict())},
        "efficientnet_lite0": dict(EfficientNetLite0().state_dict()),
        "reference": {
            "epoch": 170,
            "state_dict": dict(r2plus1d_xia2023(3, depth=18, embedding_dim=16).state_dict()),
            "audio_state_dict": noise_filter,
        },
    }


def _odd_tensor(value: torch.Tensor, rng: np.random.Generator) -> torch.Tensor:
    """A tensor of another kind, size or content."""
    kinds: dict[str, Callable[[], torch.Tensor]] = {
        "nan": lambda: value * float("nan"),
        "huge": lambda: torch.zeros(1).expand(2**40, 16),
        "large": lambda: torch.zeros(1).expand(2**20, 16),
        "number": lambda: torch.tensor(0.0),
        "empty": lambda: value[..., :0] if value.ndim else torch.zeros(0),
        "sparse": lambda: value.to_sparse(),
        "complex": lambda: value.to(torch.complex64),
        "bool": lambda: value.bool(),
        "double": lambda: value.double() * 1e300,
        "half": lambda: value.half(),
        "more": lambda: value[None],
        "quantized": lambda: torch.quantize_per_tensor(value.float(), 0.1, 0, torch.quint8),
        "parameter": lambda: torch.nn.Parameter(value.float()),
        "meta": lambda: value.to("meta"),
        "nested": lambda: torch.zeros(2).to_sparse(),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # quantized tensors are on their way out
        return kinds[pick(rng, list(kinds))]()


def _change_checkpoint(file: Path, content: dict[str, Any], rng: np.random.Generator, marker: Path) -> str:
    """Write a checkpoint with one change."""
    content = {key: dict(value) if isinstance(value, dict) else value for key, value in content.items()}
    action = pick(rng, ("code", "pickle", "key", "name", "tensor", "tensor", "tensor", "value", "list", "bytes", "old"))
    found = list(places(content))
    container, key = pick(rng, found)
    if action == "code":
        container[key] = Code(marker)
    elif action == "list":
        container[key] = [container[key]]
    elif action == "key":
        del container[key]
    elif action == "name":
        name = pick(rng, (0, None, ("a", 1), "\x1b[2J", "unknown", "x" * 10**5, b"x"))
        container[name] = container.pop(key) if rng.random() < 0.5 else container[key]
    elif action == "tensor":
        container, key = pick(rng, [place for place in found if isinstance(place[0][place[1]], torch.Tensor)])
        container[key] = _odd_tensor(container[key], rng)
    elif action == "value":
        container[key] = pick(rng, (*VALUES, set(), b"x", 3j, range(3)))
    torch.save(content, file, _use_new_zipfile_serialization=action != "old")
    if action == "pickle":
        file.write_bytes(pickle.dumps(pick(rng, (Code(marker), [], "x", content.keys() and None))))
    elif action == "bytes":
        return change_text(file, rng, marker)
    return f"{action} {str(key)[:40]!r}"


def _published(good: Good, folder: Path, rng: np.random.Generator, marker: Path) -> Made:
    """Weights of a pretrained teacher."""
    teacher, file = pick(rng, ("cnn6", "cnn6", "efficientnet_lite0")), folder / "weights.pth"
    done = _change_checkpoint(file, _states()[teacher], rng, marker)
    table = pq.read_table(good.dataset / "clips.parquet").slice(0, 3)  # a network that fits takes its time
    pq.write_table(table, good.dataset / "clips.parquet")
    told = json.loads((good.dataset / "dataset.json").read_text())
    (good.dataset / "dataset.json").write_text(json.dumps(told | {"clips": 3}))
    shutil.rmtree(good.dataset / "features", ignore_errors=True)  # which are of all clips
    words = ("embed", good.dataset, "--name", "made", "--teacher", teacher, "--weights", file)
    return f"{teacher} {done}", words


def _reference(good: Good, folder: Path, rng: np.random.Generator, marker: Path) -> Made:
    """The release's checkpoint, with the list that names its classes."""
    file, annotation = folder / "save_model.pth", folder / "annotation.json"
    annotation.write_text(json.dumps(content := {"labels": ["a", "b", "c"], "database": {}}))
    words = ("reference", "checkpoint", file, "--annotation", annotation, "--out", folder / "out")
    if rng.random() < 0.2:
        torch.save(_states()["reference"], file)
        done = _change_value(content, rng)
        annotation.write_text(json.dumps(content), errors="surrogatepass")
        return done, words
    return _change_checkpoint(file, _states()["reference"], rng, marker), words


def _hdf5(good: Good, folder: Path, rng: np.random.Generator, marker: Path) -> Made:
    """The release's videos and embeddings."""
    for name in ("videos", "embeddings"):
        (folder / name).mkdir()
    (folder / "annotation.json").write_text(
        json.dumps({"labels": ["x"], "database": {name: {"subset": "training", "label": "x"} for name in ("a", "b")}})
    )
    image = io.BytesIO()
    Image.fromarray(np.zeros((20, 30, 3), np.uint8)).save(image, "JPEG")
    rows = np.array([image.getvalue()] * 3, dtype=f"S{len(image.getvalue()) + 8}")
    for name in ("a", "b"):
        np.save(folder / "embeddings" / f"{name}.npy", np.ones(4, np.float32))
        with h5py.File(folder / "videos" / f"{name}.hdf5", "w") as file:
            file["video"] = rows
    changed = folder / "videos" / "a.hdf5"
    kinds = ("bytes", "external", "soft", "group", "floats", "scalar", "huge", "empty", "image", "storage", "npy")
    action = pick(rng, kinds)
    with h5py.File(changed, "a") as file:
        if action not in ("bytes", "npy"):
            del file["video"]
        if action == "external":
            file["video"] = h5py.ExternalLink(pick(rng, ("b.hdf5", "/dev/zero", "/etc/passwd")), "/video")
        elif action == "soft":
            file["video"] = h5py.SoftLink("/video")
        elif action == "group":
            file.create_group("video")
        elif action == "floats":
            file["video"] = np.ones((3, 4))
        elif action == "scalar":
            file["video"] = 3
        elif action == "huge":
            file.create_dataset("video", (2**40,), dtype="S64", chunks=(16,))
        elif action == "empty":
            file["video"] = rows[:0]
        elif action == "image":
            file["video"] = np.array([b"\xff\xd8\xff" * 20, rows[0], b"x"])
        elif action == "storage":
            size = rows.dtype.itemsize
            file.create_dataset("video", (3,), rows.dtype, external=[("/etc/passwd", 0, 3 * size)])
    if action == "bytes":
        action = change_text(changed, rng, marker)
    elif action == "npy":
        action = f"npy {change_npy(folder / 'embeddings' / 'a.npy', rng, marker)}"
    words = ("--videos", folder / "videos", "--embeddings", folder / "embeddings", "--out", folder / "out")
    return action, ("reference", "clips", folder / "annotation.json", *words, "--workers", 1)


CHANGES: dict[str, Callable[[Any, Path, np.random.Generator, Path], Made]] = {
    "csv": _csv,
    "jsonl": _jsonl,
    "database": _database,
    "ucf": _ucf,
    "catalog": _catalog,
    "decisions": _decisions,
    "embeddings": _embeddings,
    "published": _published,
    "reference": _reference,
    "hdf5": _hdf5,
}
