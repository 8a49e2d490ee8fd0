"""The training loop: `train(config)` and `resume(run)`, one function that reads from top to bottom."""

import json
import logging
import math
import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from avdistill import distributed
from avdistill.config_io import encode
from avdistill.dataset.splits import encode_labels
from avdistill.errors import NotFiniteError, RunError
from avdistill.evaluation.metrics import top_k_accuracy
from avdistill.executors.prefetch import prefetch
from avdistill.fsio import follow_link, is_vacant, open_regular, own_folder, write_json
from avdistill.inference.runner import run_network
from avdistill.methods import custom_checksum, trust_file
from avdistill.storage.copies import working_copy
from avdistill.storage.url import as_path
from avdistill.training.checkpoint import load_last, save_best, save_last
from avdistill.training.config import TrainConfig
from avdistill.training.malloc import configure_malloc
from avdistill.training.optim import clip_gradients
from avdistill.training.run_dir import (
    TrainState,
    data_manifest,
    environment,
    exclusive_lock,
    new_run,
    run_config,
    run_exists,
    run_state,
    truncate_metrics,
    with_whole_paths,
    wrap_io_errors,
)
from avdistill.training.setup import TrainingSetup, check_method
from avdistill.types import Batch

OnStep = Callable[[int, dict[str, float]], None]


def train(
    config: TrainConfig, *, on_step: OnStep | None = None, stop_after: int | None = None, trust_method: bool = False
) -> Path:
    """Train a student; returns the run folder. Under torchrun the processes share every batch; process 0 writes.

    A dataset at a URL is fetched. A run at a URL is trained in its local copy, which is returned, and uploaded when it
    ends or is stopped.

    Args:
        config: the whole run.
        on_step: called with the step and its named losses after each step.
        stop_after: save and return after this many steps, as after SIGTERM and SIGHUP; `resume` continues.
        trust_method: run the Python file of a custom method that a config names; one that `parse_method` was given in
            this process is run without it.

    Raises:
        KeyboardInterrupt: after Ctrl-C (SIGINT), once the step is done and the state saved; after a second one at once.
        RunError: the run folder exists (an empty one is accepted), another process has begun it meanwhile, a loss or
            gradient is not finite (the last good state is in `last/`), the folder cannot be written, or another process
            of the run was lost.
        DatasetError: the dataset does not hold what the config asks for, such as a teacher's features of any clip.
        AnnotationError: the file of decisions does not fit the dataset.
        StorageError: a storage does not answer. The run's copy is kept, and uploaded by `resume`.
    """
    with working_copy(config.out) as out:
        return _train(replace(config, out=out), on_step, stop_after, trust_method)


def _train(config: TrainConfig, on_step: OnStep | None, stop_after: int | None, trust_method: bool) -> Path:
    config = with_whole_paths(config)
    if trust_method:
        trust_file(custom_checksum(config.method))
    if config.out.resolve() == Path.cwd():  # it is replaced: a shell in it would see nothing of the run
        raise RunError(f"{config.out}: expected a new folder, found the working directory")
    if not is_vacant(config.out):
        raise run_exists(config.out)
    with _joined(config.out, config) as device:
        setup = TrainingSetup.open(config, config.out, device)
        distributed.barrier()
        records = {"config": encode(config), "environment": environment(), "data": setup.data_manifest()}
        with new_run(config.out, {f"{name}.json": record for name, record in records.items()}):
            return _run(setup, TrainState(), on_step, stop_after)


def resume(
    run: str | os.PathLike[str],
    *,
    on_step: OnStep | None = None,
    stop_after: int | None = None,
    dataset: str | os.PathLike[str] | None = None,
    trust_method: bool = False,
) -> Path:
    """Continue an interrupted run exactly from its last save; a finished run is returned as it is.

    The number of processes may differ from before.

    Args:
        on_step, stop_after: as for `train`.
        dataset: the folder of the run's dataset, if it was moved.
        trust_method: run the Python file of a custom method, which must be the one that the run was started with. A run
            from somebody else runs what they wrote: read the file first.

    Raises:
        RunError: no run is there, another process trains it, or its dataset, the features of its teacher or the file
            of its method have changed since.
        ConfigError: a custom method without `trust_method`.
    """
    with working_copy(run) as folder:
        return _resume(folder, on_step, stop_after, dataset, trust_method)


def _resume(
    run: Path,
    on_step: OnStep | None,
    stop_after: int | None,
    dataset: str | os.PathLike[str] | None,
    trust_method: bool,
) -> Path:
    config = run_config(run)
    config = config if dataset is None else replace(config, dataset=as_path(dataset).resolve())
    recorded = data_manifest(run)
    check_method(run, config, recorded, trust_method)
    with _joined(run, config) as device, exclusive_lock(run):
        setup = TrainingSetup.open(config, run, device)
        setup.check_data(recorded)
        state = load_last(setup)
        distributed.barrier()
        if distributed.rank() == 0:
            truncate_metrics(run, state.step)
        return _run(setup, state, on_step, stop_after)


def train_to_end(config: TrainConfig, *, on_step: OnStep | None = None) -> Path:
    """Train a student, or continue its run, for callers that go on with the result; returns the run folder.

    Raises:
        RunError: as `train` and `resume`, and where a signal ended the run before its last step; the state is saved.
    """
    run = follow_link(config.out)
    resume(run, on_step=on_step) if (run / "data.json").is_file() else train(config, on_step=on_step)
    if (state := run_state(run)).step < config.steps:
        raise RunError(f"{run}: stopped after step {state.step}, state saved; the same command continues")
    return run


@contextmanager
def _joined(run: Path, config: TrainConfig) -> Iterator[torch.device]:
    try:
        with distributed.init_distributed(config.device, config.process_timeout_seconds) as own:
            yield own
    except distributed.ProcessLostError as error:
        raise RunError(f"{run}: {error}; `avdistill resume {run}` continues from the last save") from error


def _run(setup: TrainingSetup, state: TrainState, on_step: OnStep | None, stop_after: int | None) -> Path:
    config, method, optimizer = setup.config, setup.method, setup.optimizer
    if setup.device.type == "cpu":
        configure_malloc()
    model = distributed.wrap_ddp(method, setup.device)
    plateau = isinstance(setup.schedule, ReduceLROnPlateau)
    micro_batches = range(
        state.step * config.gradient_accumulation_steps, config.steps * config.gradient_accumulation_steps
    )
    loader = prefetch(lambda number: setup.batches[number].ready_for(setup.device), micro_batches, config.workers)
    stop_at = config.steps if stop_after is None else min(config.steps, state.step + stop_after)
    method.train()

    with _stop_signals() as received, _log(setup.run, config.tensorboard) as log, closing(loader):
        while state.step < stop_at and not distributed.all_reduce_any(bool(received)):
            began = time.perf_counter()
            before = _snapshot(setup, state)
            losses = _backward(setup, model, loader, state, before)
            norms = clip_gradients(optimizer, config.optimizer.max_grad_norm)
            if not all(map(math.isfinite, norms.values())):
                raise _not_finite(setup, state, {f"gradient of {n}": v for n, v in norms.items()}, before)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not plateau:
                setup.schedule.step()
            state.step += 1

            values = {name: float(value) for name, value in losses.items()}
            if on_step is not None:
                on_step(state.step, values)
            if state.step % config.log_every == 0 or state.step == config.steps:
                rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
                seconds = time.perf_counter() - began
                log(state.step, {"losses": values, "gradient_norms": norms, "rates": rates, "step_seconds": seconds})
            if len(setup.validation) and (state.step % config.eval_every == 0 or state.step == config.steps):
                accuracy = _validate(setup, state.step)
                log(state.step, {"validation": {"top1_accuracy": accuracy}})
                if plateau:
                    setup.schedule.step(accuracy)  # type: ignore[arg-type]
                if accuracy > state.best:
                    state.best, state.best_step = accuracy, state.step
                    save_best(setup, state, "validation top1_accuracy")
            if state.step % config.save_every == 0 or state.step == stop_at:
                save_last(setup, state)
        if state.step < stop_at:
            save_last(setup, state)
    if state.step == config.steps and not len(setup.validation):
        save_best(setup, state, "last step (no validation)")
    distributed.barrier()  # after it every process may read what process 0 wrote
    if signal.SIGINT in received and state.step < stop_at:
        raise KeyboardInterrupt(
            f"stopped after step {state.step}, state saved; `avdistill resume {setup.run}` continues"
        )
    return setup.run


def _backward(
    setup: TrainingSetup, model: nn.Module, loader: Iterator[Batch], state: TrainState, before: dict[str, Tensor]
) -> dict[str, Tensor]:
    """Forward and backward of one step's batches; returns the mean of each loss, the gradients stay in the method."""
    config = setup.config
    losses: dict[str, Tensor] = {}
    for last in [False] * (config.gradient_accumulation_steps - 1) + [True]:
        batch = next(loader).to(setup.device)
        with distributed.no_sync(model, not last):
            with distributed.autocast(config.precision, setup.device):
                terms = model(batch)
            total = sum(terms.values()) / config.gradient_accumulation_steps
            if distributed.all_reduce_any(not torch.isfinite(total)):
                raise _not_finite(setup, state, {n: float(t.detach()) for n, t in terms.items()}, before)
            total.backward()
        losses = {
            name: losses.get(name, 0) + term.detach() / config.gradient_accumulation_steps
            for name, term in terms.items()
        }
    return losses


def _validate(setup: TrainingSetup, step: int) -> float:
    """Top-1 accuracy on the held-out clips; of multi-label clips, the fraction whose best class is among the labels."""
    distributed.broadcast_buffers(setup.method.student)  # each process has its own running statistics
    try:
        outputs = run_network(
            setup.method.student,
            setup.dataset,
            setup.validation,
            setup.config.student.view,
            multi_label=setup.description.multi_label,
            windows=setup.config.validation_windows,
            batch_size=setup.config.batch_size,
        )
    except NotFiniteError as error:
        # Training uses each batch's own statistics; the running ones may overflow before the losses do.
        if distributed.rank() == 0:
            record = {"step": step, "values": {"validation": "nan"}, "clips": error.clips}
            write_json(setup.run / "not_finite.json", record)
        raise RunError(f"{setup.run}: validation after step {step}: {error}; the last save stays") from error
    multi_label = setup.description.multi_label
    labels = encode_labels(setup.dataset, setup.validation, setup.description.classes, multi_label)
    if multi_label:
        return float(labels.values.gather(1, outputs.probabilities.argmax(1, keepdim=True)).mean())
    return top_k_accuracy(scores=outputs.probabilities, labels=labels.values, k=1)


def _not_finite(
    setup: TrainingSetup, state: TrainState, values: dict[str, float], before: dict[str, Tensor]
) -> RunError:
    """Save the state before this step, running statistics and memories included, and name the clips of the step."""
    _restore(setup, state, before)
    clips = setup.dataset.columns["id"][setup.batches.clips[_step_rows(setup, state)]].tolist()
    if distributed.rank() == 0:
        record = {"step": state.step, "values": {k: repr(v) for k, v in values.items()}, "clips": clips}
        write_json(setup.run / "not_finite.json", record)
    save_last(setup, state)
    wrong = ", ".join(f"{name} = {value}" for name, value in values.items() if not math.isfinite(value))
    return RunError(
        f"{setup.run}: {wrong or 'the sum of the losses'} at step {state.step}; the weights before this step are in "
        "last/, the clips of the batch in not_finite.json"
    )


def _step_rows(setup: TrainingSetup, state: TrainState) -> np.ndarray:
    """Indices among the run's training clips of those of the next step, in all processes."""
    batches = setup.config.gradient_accumulation_steps
    return np.concatenate([setup.batches.rows(state.step * batches + i) for i in range(batches)])


def _snapshot(setup: TrainingSetup, state: TrainState) -> dict[str, Tensor]:
    """Copies of what the next step changes in the buffers: of a memory only the rows of the step's clips."""
    buffers, memories = setup.method.named_buffers(), setup.method.clip_buffers
    rows = torch.from_numpy(_step_rows(setup, state)) if memories else None
    return {name: buffer[rows] if name in memories else buffer.clone() for name, buffer in buffers}


def _restore(setup: TrainingSetup, state: TrainState, before: dict[str, Tensor]) -> None:
    """Undo what the step has changed in the buffers since `_snapshot`."""
    rows = torch.from_numpy(_step_rows(setup, state))
    for name, buffer in setup.method.named_buffers():
        buffer[rows if name in setup.method.clip_buffers else ...] = before[name]


@contextmanager
def _stop_signals() -> Iterator[list[int]]:
    """The signals SIGTERM, SIGINT and SIGHUP received in the block: the loop ends after its step and saves.

    A second SIGINT raises KeyboardInterrupt at once. Outside the main thread no signal is handled.
    """
    received: list[int] = []
    if threading.current_thread() is not threading.main_thread():
        yield received
        return

    def handle(number: int, _frame: FrameType | None) -> None:
        # torchrun sends on a Ctrl-C that the terminal has already sent to every process.
        if number == signal.SIGINT and number in received and distributed.world_size() == 1:
            raise KeyboardInterrupt
        if number == signal.SIGINT and not received:
            logging.getLogger(__name__).warning("stopping after this step; a second Ctrl-C ends without a save")
        received.append(number)

    previous = {
        n: signal.signal(n, handle)
        for n in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
        if signal.getsignal(n) != signal.SIG_IGN  # as `nohup` has it
    }
    try:
        yield received
    except RuntimeError:
        if distributed.world_size() > 1:
            # torchrun ends the other processes when one is lost: they must live to report what happened.
            previous = dict.fromkeys(previous, handle)
        raise
    finally:
        for number, action in previous.items():
            signal.signal(number, action)


@contextmanager
def _log(run: Path, tensorboard: bool) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """Writes lines of `metrics.jsonl`, flushed one by one, and TensorBoard events if `tensorboard`; process 0 only."""
    if distributed.rank():
        yield lambda _step, _values: None
        return
    writer: Any = None
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RunError("tensorboard is not installed: install the extra 'log'") from None
        writer = SummaryWriter(str(own_folder(run, "tensorboard")))
    with open_regular(run / "metrics.jsonl", "a", encoding="utf-8") as file:

        def log(step: int, values: dict[str, Any]) -> None:
            with wrap_io_errors(run):
                file.write(json.dumps({"step": step, **values}) + "\n")
                file.flush()
            for group, entry in values.items() if writer is not None else ():
                for name, value in entry.items() if isinstance(entry, dict) else [("", entry)]:
                    with suppress(TypeError):
                        writer.add_scalar(f"{group}/{name}".rstrip("/"), value, step)

        try:
            yield log
        finally:
            if writer is not None:
                writer.close()
