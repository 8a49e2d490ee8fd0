"""The run folder: `config.json`, `environment.json`, `data.json`, `metrics.jsonl`, `best/` and `last/`."""

import os
import pickle
import platform
import re
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from avdistill import distributed
from avdistill.config_io import decode, encode, parse_json, read_json
from avdistill.dataset.stored_features import Provenance
from avdistill.errors import ConfigError, RunError
from avdistill.fsio import (
    LOCK,
    acquire_staging_dir,
    commit,
    error_message,
    follow_link,
    open_lock,
    regular_file,
    remove_tree,
    replace_text,
    sync_all,
    sync_folder,
    write_json,
)
from avdistill.models.checkpoint import saved_folder
from avdistill.storage.url import Url, as_path
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


def run_exists(run: Path) -> RunError:
    """Why no run can be begun in a folder that is there."""
    if (run / LOCK).is_file():
        with exclusive_lock(run):
            pass
    return RunError(f"{run}: already there; `avdistill resume` continues a run")


@contextmanager
def new_run(run: Path, files: Mapping[str, object]) -> Iterator[None]:
    """Make a run folder with these JSON files, completely or not at all, and hold its lock for the time of the block.

    Raises:
        RunError: another process has begun the run, or the folder cannot be written.
    """
    if distributed.rank():
        yield
        return
    fresh = run.with_name(run.name + ".tmp")
    try:
        # The lock travels with the folder: of two processes that begin the same run, one makes it and trains it.
        lock = acquire_staging_dir(fresh, run)
    except BlockingIOError:
        raise RunError(f"{run}: another process is training it") from None
    except OSError as error:
        raise RunError(f"{run}: cannot be written: {error_message(error)}") from error
    if lock is None:
        raise run_exists(run)
    with lock:
        with wrap_io_errors(run):
            for left in fresh.iterdir():
                if left.name != LOCK:
                    remove_tree(left)
            for name, content in files.items():
                write_json(fresh / name, content)
            commit(fresh, run)
        yield


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
    for line in regular_file(path).read_text(encoding="utf-8", errors="replace").splitlines():
        try:
            entry = parse_json(line)
            known = entry["step"]
        except (ValueError, TypeError, KeyError):  # a line that a kill cut short
            break
        if isinstance(known, int) and known <= step:
            kept.append(line + "\n")
    replace_text(path, "".join(kept))


def environment() -> dict[str, Any]:
    """What is needed to repeat the run: command, versions, processor."""
    return {"command": [Path(sys.argv[0]).name, *sys.argv[1:]]} | machine()


def machine() -> dict[str, Any]:
    """What a result depends on beside its command: versions and processor."""
    packages = ("avdistill", "torch", "torchvision", "numpy", "av", "scikit-learn")
    return {
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
        "processor": processor_name(),
        "cores": os.cpu_count(),
        "processes": distributed.world_size(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def processor_name() -> str:
    """The processor's own name; where only Linux would know it, its architecture."""
    try:
        found = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(encoding="utf-8"), re.MULTILINE)
    except OSError:  # not Linux
        found = None
    return found[1] if found else platform.processor() or platform.machine()


@contextmanager
def replace_folder(run: Path, name: str) -> Iterator[Path]:
    """A new folder to write into; at the end of the block it replaces the folder `name` of the run."""
    fresh, old = run / f"{name}.tmp", run / f"{name}.old"
    with wrap_io_errors(run):
        # A kill between the renames below leaves only the old folder: it is removed once a complete one exists.
        if (run / name).exists():
            remove_tree(old)
        remove_tree(fresh)
        fresh.mkdir()
        yield fresh
        sync_all(fresh)
        if (run / name).exists():
            (run / name).rename(old)
        fresh.rename(run / name)
        sync_folder(run)
        remove_tree(old)


def run_config(run: Path) -> TrainConfig:
    """The config a run was started with. Raises RunError where there is no run, ConfigError for a damaged one."""
    if not (run / "config.json").is_file():
        raise RunError(f"{run}: no run folder (config.json is missing)")
    return read_config(run / "config.json")


def with_whole_paths(config: TrainConfig) -> TrainConfig:
    """A config as a run folder holds it: where the run is resumed from must not matter."""
    decisions = None if config.decisions is None else config.decisions.resolve()
    dataset = as_path(config.dataset).resolve()
    return replace(config, dataset=dataset, decisions=decisions, out=follow_link(config.out))


def is_begun(config: TrainConfig) -> bool:
    """Whether the folder of a config holds its run already.

    Raises:
        RunError: it holds another one.
        ConfigError: it is not on a file system.
    """
    if isinstance(as_path(config.out), Url):
        raise ConfigError(f"--resume: expected a run in a folder, found {config.out}; `avdistill resume` takes a URL")
    config = with_whole_paths(config)
    if not (config.out / "data.json").is_file():
        return False
    found, asked = encode(run_config(config.out)), encode(config)
    if differing := [key for key in asked if key != "out" and found.get(key) != asked[key]]:
        raise RunError(f"{config.out}: expected the run of this config, found one with another {', '.join(differing)}")
    return True


def run_state(run: Path) -> TrainState:
    """Where a run stands by its last save; of a run without one, the beginning."""
    folder = saved_folder(run, "last")
    return TrainState() if folder is None else saved_progress(folder, read_state(folder, "cpu"))


def saved_progress(folder: Path, state: Mapping[str, Any]) -> TrainState:
    """Where the state of a run stands. Raises RunError where it does not say."""
    try:
        progress = decode(TrainState, state["progress"], "progress")
        if progress.step < 0:
            raise ConfigError(f"progress.step: expected at least 0, got {progress.step}")
    except (ConfigError, KeyError) as error:
        raise RunError(f"{folder}/state.pt: expected the progress of a run: {error}") from error
    return progress


def read_state(folder: Path, device: torch.device | str) -> dict[str, Any]:
    """What `save_last` wrote into `state.pt`. Raises RunError where it is missing or damaged."""
    try:
        state = torch.load(regular_file(folder / "state.pt"), weights_only=True, map_location=device)
    except pickle.UnpicklingError as error:  # its message is torch's advice to unpickle anything
        raise RunError(f"{folder}/state.pt: missing or damaged: not tensors and numbers") from error
    except Exception as error:  # a damaged or malicious pickle may raise any exception
        raise RunError(f"{folder}/state.pt: missing or damaged: {error_message(error):.160}") from error
    if not isinstance(state, dict):
        raise RunError(f"{folder}/state.pt: expected a dictionary, found {type(state).__name__}")
    return state


def data_manifest(run: Path) -> dict[str, Any]:
    """`data.json` of a run (`TrainingSetup.data_manifest`). Raises RunError where it is missing or damaged."""
    try:
        record = read_json(run / "data.json")
        known = {field.name for field in fields(_Manifest)}
        used = {key: value for key, value in record.items() if key in known}
        return record | vars(decode(_Manifest, used, "data.json")) | {"teacher": record["teacher"]}
    except (OSError, ValueError, AttributeError) as error:
        raise RunError(f"{run}: data.json is missing or damaged: {error_message(error)}") from error


@dataclass(frozen=True)
class _Teacher:
    name: str
    provenance: Provenance
    files: dict[str, str]


@dataclass(frozen=True)
class _Manifest:
    """What is read of `data.json`."""

    dataset_checksum: str
    teacher: _Teacher | None
    method_file: str | None
    training: tuple[str, ...]
    with_teacher: int | None = None
