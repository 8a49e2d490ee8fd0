"""The run folder: `config.json`, `environment.json`, `data.json`, `metrics.jsonl`, `best/` and `last/`."""

import json
import os
import pickle
import platform
import shutil
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from avdistill import distributed
from avdistill.errors import RunError
from avdistill.fsio import commit, error_message, open_lock, replace_text, sync_all, sync_folder, write_json
from avdistill.models.checkpoint import saved_folder
from avdistill.training.config import TrainConfig, read_config


@contextmanager
def wrap_io_errors(run: Path) -> Iterator[None]:
    """Turn an error of writing (a full disk, a folder without permission) into a RunError of one line."""
    try:
        yield
    # PyTorch and safetensors raise errors of their own for a full disk.
    except (OSError, RuntimeError, SafetensorError) as error:
        raise RunError(f"{run}: cannot be written: {error_message(error):.160}; what was saved before stays") from error


@contextmanager
def exclusive_lock(run: Path) -> Iterator[None]:
    """Hold the run's lock, so that no second process overwrites its saves. Raises RunError if one trains it."""
    if distributed.rank():
        yield
        return
    try:
        lock = open_lock(run)
    except BlockingIOError:
        raise RunError(f"{run}: another process is training it") from None
    except OSError as error:
        raise RunError(f"{run}: cannot be written: {error_message(error)}") from error
    with lock:
        yield


def create_run(run: Path, files: Mapping[str, object]) -> None:
    """Make a run folder with these JSON files, completely or not at all."""
    fresh = run.with_name(run.name + ".tmp")
    with wrap_io_errors(run):
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir(parents=True)
        for name, content in files.items():
            write_json(fresh / name, content)
        commit(fresh, run)


@dataclass
class TrainState:
    """Where a run stands: finished steps, and the best validation accuracy so far with its step (-1: none yet)."""

    step: int = 0
    best: float = -1.0
    best_step: int = 0


def truncate_metrics(run: Path, step: int) -> None:
    """Drop the lines of `metrics.jsonl` after `step`: the resumed run writes them again."""
    path = run / "metrics.jsonl"
    if not path.exists():
        return
    kept = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            entry = json.loads(line)
        except json.JSONDecodeError:  # a line that a kill cut short
            break
        if entry["step"] <= step:
            kept.append(line + "\n")
    replace_text(path, "".join(kept))


def environment() -> dict[str, Any]:
    """What is needed to repeat the run: command, versions, processor."""
    packages = ("avdistill", "torch", "torchvision", "numpy", "av", "scikit-learn")
    return {
        "command": [Path(sys.argv[0]).name, *sys.argv[1:]],
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "processor": _processor(),
        "cores": os.cpu_count(),
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.processor()
    return next(
        (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), platform.processor()
    )


@contextmanager
def replace_folder(run: Path, name: str) -> Iterator[Path]:
    """A new folder to write into; at the end of the block it replaces the folder `name` of the run."""
    fresh, old = run / f"{name}.tmp", run / f"{name}.old"
    with wrap_io_errors(run):
        # A kill between the renames below leaves only the old folder: it is removed once a complete one exists.
        if (run / name).exists():
            shutil.rmtree(old, ignore_errors=True)
        shutil.rmtree(fresh, ignore_errors=True)
        fresh.mkdir()
        yield fresh
        sync_all(fresh)
        if (run / name).exists():
            (run / name).rename(old)
        fresh.rename(run / name)
        sync_folder(run)
        shutil.rmtree(old, ignore_errors=True)


def run_config(run: Path) -> TrainConfig:
    """The config a run was started with. Raises RunError where there is no run, ConfigError for a damaged one."""
    if not (run / "config.json").is_file():
        raise RunError(f"{run}: no run folder (config.json is missing)")
    return read_config(run / "config.json")


def run_state(run: Path) -> TrainState:
    """Where a run stands by its last save; of a run without one, the beginning."""
    folder = saved_folder(run, "last")
    return TrainState() if folder is None else TrainState(**read_state(folder, "cpu")["progress"])


def read_state(folder: Path, device: torch.device | str) -> dict[str, Any]:
    """What `save_last` wrote into `state.pt`. Raises RunError where it is missing or damaged."""
    try:
        state: dict[str, Any] = torch.load(folder / "state.pt", weights_only=True, map_location=device)
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, KeyError) as error:
        raise RunError(f"{folder}/state.pt: missing or damaged: {error_message(error):.160}") from error
    return state


def data_manifest(run: Path) -> dict[str, Any]:
    """`data.json` of a run (`TrainingSetup.data_manifest`). Raises RunError where it is missing or damaged."""
    try:
        record = json.loads((run / "data.json").read_text(encoding="utf-8"))
        if missing := {"dataset_checksum", "teacher", "method_file", "training"} - record.keys():
            raise ValueError(f"{min(missing)} is not there")
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{run}: data.json is missing or damaged: {error_message(error)}") from error
    return dict(record)
