"""Crafted datasets, runs, checkpoints and lists, as somebody could send them: what each says is changed at one place.

Every case is a copy of a good folder with one change, drawn with a seed from the structure of its files, and a command
that opens it. The command runs in a process of its own with limits. It must end in time with an exit code of 0, 1 or 2
and no traceback; no file outside its output may be touched, and no code that a file brings may run.
"""

from __future__ import annotations

import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq

import crafted_files
from changes import (
    VALUES,
    change_json,
    change_npy,
    change_parquet,
    change_safetensors,
    change_state,
    change_text,
    pick,
    places,
)

# Of the processor, which a busy machine does not use up; and by the clock, for what waits.
_LIMIT_SECONDS, _HANG_SECONDS = 60, 600
_MEMORY_BYTES = 6 * 2**30
_FILE_BYTES = 2**30
_USED = (
    *(
        f"avdistill.commands.{name}"
        for name in ("audit", "compare", "dataset", "evaluate", "predict", "reference", "teachers", "train")
    ),
    *("sklearn.linear_model", "matplotlib.pyplot", "avdistill.reporting.plots", "torchvision"),
)


# Folders that are opened are drawn more often: they have more to change.
KINDS = ("dataset", "dataset", "run", "run", "partial", *crafted_files.CHANGES)


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


def make_case(good: Good, folder: Path, marker: Path, victim: Path, seed: int) -> Case:
    """Case number `seed`, made in the empty `folder`; its code would make `marker`, its links lead to `victim`."""
    rng = np.random.default_rng([17, seed])
    kind = KINDS[seed % len(KINDS)]
    copy = replace(good, dataset=folder / "dataset", run=folder / "run")
    shutil.copytree(good.dataset, copy.dataset)
    shutil.copytree(good.run, copy.run)
    config = copy.run / "config.json"
    told = json.loads(config.read_text())
    config.write_text(json.dumps(told | {"dataset": str(copy.dataset)}))  # the copy, which may be crafted
    if kind in crafted_files.CHANGES:
        done, words = crafted_files.CHANGES[kind](copy, folder, rng, marker)
    elif kind == "partial":
        done = _change_partial(good, folder, rng, victim)
        words = ("prepare", folder / "list.csv", "--videos", good.videos, "--out", folder / "out", "--short-side", "16")
    else:
        patterns, verbs = _FOLDERS[kind]
        done = _change_folder(copy.dataset if kind == "dataset" else copy.run, patterns, rng, marker, victim)
        splits = sorted(set(pq.read_table(good.dataset / "clips.parquet")["split"].to_pylist()))
        words = _words(copy, splits, pick(rng, verbs), folder / "out")
    return Case(f"{kind}, {words[0]}: {done}", tuple(map(str, words)))


# What is changed of a folder, and what opens it.
_FOLDERS = {
    "dataset": (
        ("dataset.json", "clips.parquet", "*.npy", "sources.csv", "features/*/features.json", "features/*/*.npy"),
        ("info", "evaluate", "audit", "train", "probe", "corrupt", "export"),
    ),
    "run": (
        ("config.json", "data.json", "metrics.jsonl", "last/*", "best/*"),
        ("resume", "evaluate", "audit", "export", "train", "embed"),
    ),
}


def _words(good: Good, splits: list[str], verb: str, out: Path) -> tuple[object, ...]:
    """The command that opens a dataset or a run."""
    dataset, run = good.dataset, good.run
    return {
        "info": ("info", dataset),
        "evaluate": ("evaluate", run, dataset, "--split", splits[-1]),
        "audit": ("audit", run, dataset, "--split", splits[-1]),
        "train": ("train", "--config", run / "config.json", "--out", out),
        "probe": ("teacher", "probe", dataset, "--teacher", "audio", "--train-split", splits[-1], "--split", splits[0]),
        "corrupt": ("corrupt", dataset, "mismatched=0.4", "--out", out),
        "export": ("export", run, "--out", out, "--format", "safetensors", "--clips", dataset),
        "resume": ("resume", run),
        "embed": ("embed", dataset, "--teacher", run, "--name", "again"),
    }[verb]


def _change_folder(
    folder: Path, patterns: tuple[str, ...], rng: np.random.Generator, marker: Path, victim: Path
) -> str:
    """Change one file of a folder; returns what was done."""
    file = pick(rng, sorted(folder.glob(pick(rng, patterns))) or [folder / "dataset.json"])
    if not file.exists():
        file = next(file for file in sorted(folder.glob("*")) if file.is_file())
    if rng.random() < 0.2:
        return f"{file.name}: {_plant(file, rng, victim)}"
    change: Callable[[Path, np.random.Generator, Path], str] = {
        ".json": change_json,
        ".parquet": change_parquet,
        ".npy": change_npy,
        ".safetensors": change_safetensors,
        ".pt": change_state,
    }.get(file.suffix, change_text)
    return f"{file.name}: {change(file, rng, marker)}"


def _plant(file: Path, rng: np.random.Generator, victim: Path) -> str:
    """Something else than a file under its name, or a link under a name that is written."""
    kind = pick(rng, ("pipe", "device", "folder", "gone", "link", "lock", "temporary"))
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


def _change_partial(good: Good, folder: Path, rng: np.random.Generator, victim: Path) -> str:
    """An interrupted preparation of somebody else: its journal says what it likes."""
    (folder / "list.csv").write_text("\n".join(good.annotations.read_text().splitlines()[:3]) + "\n")
    partial = folder / "out.partial"
    partial.mkdir()
    action = pick(rng, ("journal", "settings", "link", "shard", "folder"))
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
        entry: dict[str, Any] = pick(rng, ({"row": row}, {"skipped": {"clip": "x"}}, {"synced": "x"}, {"row": 3}))
        if "row" in entry and isinstance(entry["row"], dict):
            container, key = pick(rng, list(places(row)))
            container[key] = pick(rng, [v for v in VALUES if v == v and v != float("inf")])
        text = pick(rng, ("", "null\n", "[" * 10_000 + "\n")) + json.dumps(entry) + "\n"
        (partial / "journal.jsonl").write_text(text)
    elif action == "settings":
        (partial / "settings.json").write_text(pick(rng, ("[" * 100_000, "{", "[]", "null")))
    elif action == "link":
        (partial / pick(rng, ("journal.jsonl", "frames-00000.npy", "lock", "audio-00000.npy"))).symlink_to(victim)
    elif action == "shard":
        os.mkfifo(partial / pick(rng, ("frames-00000.npy", "journal.jsonl", "lock", "settings.json")))
    else:
        partial.rmdir()
        partial.symlink_to(victim.parent)
    return f"partial {action}"


def run_case(case: Case, log: Path) -> tuple[int, str]:
    """Exit code and standard error of a case's command, in a process of its own with limits; -SIGKILL: too long."""
    sys.stdout.flush()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of forks beside idle threads
        child = os.fork()
    if child == 0:
        _run_here(case, log)
    until = time.monotonic() + _HANG_SECONDS
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), log.read_text(errors="replace")
        if time.monotonic() > until:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            return -signal.SIGKILL, log.read_text(errors="replace")
        time.sleep(0.01)


def _run_here(case: Case, log: Path) -> None:
    """The child: never returns."""
    code = 99
    try:
        target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        for descriptor in (1, 2):
            os.dup2(target, descriptor)
        limits = {resource.RLIMIT_DATA: _MEMORY_BYTES, resource.RLIMIT_FSIZE: _FILE_BYTES}
        for limit, most in (limits | {resource.RLIMIT_CPU: _LIMIT_SECONDS}).items():
            resource.setrlimit(limit, (most, most))
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


def faults_of(good: Good, work: Path, seeds: range) -> list[str]:
    """A line for each case that broke a promise.

    Cases are forks of a new process: one of a process whose OpenMP or gradients had threads waits for them forever.
    """
    words = [*map(str, vars(good).values()), str(work), str(seeds.start), str(seeds.stop)]
    subprocess.run([sys.executable, __file__, *words], env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True)
    return list(json.loads((work / "faults.json").read_text(encoding="utf-8")))


def _faults_of_forks(good: Good, work: Path, seeds: range) -> list[str]:
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
            found.append("hung" if code in (-signal.SIGKILL, -signal.SIGXCPU) else f"exit code {code}")
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


if __name__ == "__main__":
    *files, out = map(Path, sys.argv[1:6])
    found = _faults_of_forks(Good(*files), out, range(*map(int, sys.argv[6:])))
    (out / "faults.json").write_text(json.dumps(found), encoding="utf-8")
