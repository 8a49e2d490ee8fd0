"""The run folder: `config.json`, `environment.json`, `data.json`, `metrics.jsonl`, `last/` and `best/`."""

from __future__ import annotations

import io
from pathlib import Path

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from avdistill import distributed
from avdistill.errors import RunError
from avdistill.fsio import (
    sync,
    write_json,
)
from avdistill.methods.base import Method
from avdistill.models.checkpoint import WEIGHTS, load_tensors, save_student, save_tensors, saved_folder, tensors
from avdistill.training.run_dir import TrainState, read_state, replace_folder
from avdistill.types import StudentConfig


def save_last(
    run: Path,
    method: Method,
    description: StudentConfig,
    optimizer: Optimizer,
    schedule: LRScheduler,
    train_state: TrainState,
) -> None:
    """Replace `last/` by the present state, whole or not at all. Every process must call it; process 0 writes."""
    random = {"cpu": distributed.all_gather_with_grad(torch.get_rng_state()[None])}
    if torch.cuda.is_available():
        random["cuda"] = distributed.all_gather_with_grad(torch.cuda.get_rng_state()[None])
    if distributed.rank():
        return
    state = {
        "optimizer": optimizer.state_dict(),
        "schedule": schedule.state_dict(),
        "random": random,
        "progress": vars(train_state).copy(),
    }
    with replace_folder(run, "last") as fresh:
        # A run that goes on from this state does not write the lines before it again.
        with (run / "metrics.jsonl").open("rb") as metrics:
            sync(metrics)
        save_student(fresh, method.student, description)
        save_tensors(tensors(method, without="student."), fresh / "helpers.safetensors")
        serialized = io.BytesIO()  # torch.save into a file has no words for a full disk
        torch.save(state, serialized)
        (fresh / "state.pt").write_bytes(serialized.getbuffer())


def load_last(
    run: Path, method: Method, optimizer: Optimizer, schedule: LRScheduler, device: torch.device
) -> TrainState:
    """Put everything back as `save_last` found it: weights, optimizer, schedule, random state, place in the data.

    A process that the saved run did not have keeps the random state of its seed.

    Raises:
        RunError: there is no saved state.
    """
    folder = saved_folder(run, "last")
    if folder is None:
        raise RunError(f"{run}: no saved state to resume from (last/ is missing)")
    load_tensors(method.student, folder / WEIGHTS)
    load_tensors(method, folder / "helpers.safetensors", without="student.")
    state = read_state(folder, device)
    optimizer.load_state_dict(state["optimizer"])
    schedule.load_state_dict(state["schedule"])
    own = distributed.rank()
    if own < len(state["random"]["cpu"]):
        torch.set_rng_state(state["random"]["cpu"][own].cpu().clone())  # a view of the table crashes it
        if torch.cuda.is_available() and "cuda" in state["random"]:
            torch.cuda.set_rng_state(state["random"]["cuda"][own].cpu().clone())
    return TrainState(**state["progress"])


def save_best(run: Path, method: Method, description: StudentConfig, train_state: TrainState, chosen_by: str) -> None:
    """Replace `best/` by the present student, with a line on how it was chosen; process 0 writes."""
    if distributed.rank():
        return
    with replace_folder(run, "best") as fresh:
        save_student(fresh, method.student, description)
        write_json(fresh / "chosen.json", {"step": train_state.step, "by": chosen_by, "value": train_state.best})
