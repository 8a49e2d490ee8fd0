"""The saved states of a run: `last/`, from which it resumes exactly, and `best/`, the student to use."""

import io

import torch

from avdistill import distributed
from avdistill.errors import RunError
from avdistill.fsio import error_message, regular_file, sync, write_json
from avdistill.models.checkpoint import WEIGHTS, save_student, saved_folder
from avdistill.models.weights import load_tensors, save_tensors, tensors
from avdistill.training.run_dir import TrainState, read_state, replace_folder, saved_progress
from avdistill.training.setup import TrainingSetup


def save_last(setup: TrainingSetup, train_state: TrainState) -> None:
    """Replace `last/` by the present state, completely or not at all. Every process must call it; process 0 writes."""
    random = {"cpu": distributed.all_gather_with_grad(torch.get_rng_state()[None])}
    if torch.cuda.is_available():
        random["cuda"] = distributed.all_gather_with_grad(torch.cuda.get_rng_state()[None])
    if distributed.rank():
        return
    state = {
        "optimizer": setup.optimizer.state_dict(),
        "schedule": setup.schedule.state_dict(),
        "random": random,
        "progress": vars(train_state).copy(),
    }
    with replace_folder(setup.run, "last") as fresh:
        # A run that resumes from this state does not write the earlier lines again.
        with regular_file(setup.run / "metrics.jsonl").open("rb") as metrics:
            sync(metrics)
        save_student(fresh, setup.method.student, setup.description)
        save_tensors(tensors(setup.method, without="student."), fresh / "helpers.safetensors")
        serialized = io.BytesIO()  # torch.save into a file does not report a full disk
        torch.save(state, serialized)
        (fresh / "state.pt").write_bytes(serialized.getbuffer())


def load_last(setup: TrainingSetup) -> TrainState:
    """Restore what `save_last` saved: weights, optimizer, schedule, random state, position in the data.

    A process that the saved run did not have keeps the random state of its seed. A run that ended before its first save
    begins anew.
    """
    folder = saved_folder(setup.run, "last")
    if folder is None:
        return TrainState()
    load_tensors(setup.method.student, folder / WEIGHTS)
    load_tensors(setup.method, folder / "helpers.safetensors", without="student.")
    state = read_state(folder, setup.device)
    progress = saved_progress(folder, state)
    try:
        setup.optimizer.load_state_dict(state["optimizer"])
        _check_optimizer(setup)
        setup.schedule.load_state_dict(state["schedule"])
        own = distributed.rank()
        if own < len(state["random"]["cpu"]):
            torch.set_rng_state(state["random"]["cpu"][own].cpu().clone())  # it crashes on a view
            if torch.cuda.is_available() and "cuda" in state["random"]:
                torch.cuda.set_rng_state(state["random"]["cuda"][own].cpu().clone())
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, RuntimeError) as error:
        raise RunError(f"{folder}/state.pt: does not fit the run: {error_message(error):.160}") from error
    return progress


def _check_optimizer(setup: TrainingSetup) -> None:
    """Raise ValueError unless the optimizer's moments have the shapes of their weights, and its rates are numbers."""
    for group in setup.optimizer.param_groups:
        if not all(isinstance(group[key], float | int) for key in ("lr", "weight_decay")):
            raise ValueError("its learning rate is no number")
        for weight in group["params"]:
            for name, value in setup.optimizer.state.get(weight, {}).items():
                if name != "step" and isinstance(value, torch.Tensor) and value.shape != weight.shape:
                    raise ValueError(f"{name} of shape {tuple(value.shape)} for a weight of {tuple(weight.shape)}")


def save_best(setup: TrainingSetup, train_state: TrainState, chosen_by: str) -> None:
    """Replace `best/` by the present student, with a record of how it was chosen; process 0 writes."""
    if distributed.rank():
        return
    with replace_folder(setup.run, "best") as fresh:
        save_student(fresh, setup.method.student, setup.description)
        write_json(fresh / "chosen.json", {"step": train_state.step, "by": chosen_by, "value": train_state.best})
