"""`train(config) -> run folder`. The loop is one function that reads top to bottom."""

from __future__ import annotations

import json
import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.optim.lr_scheduler import ReduceLROnPlateau
from torch.utils.data import DataLoader

from avdistill.data.dataset import TrainingBatches, clips_of_split, cut_validation, encode_labels, has_modality
from avdistill.data.store import Store, StoreError, write_json
from avdistill.decoding import encode
from avdistill.evaluation.metrics import top_k_accuracy
from avdistill.inference import run_network
from avdistill.methods import METHODS, Method, build_method
from avdistill.models import build_model
from avdistill.models.weights import best_device
from avdistill.training.checkpoint import (
    Progress,
    RunError,
    cut_metrics,
    environment,
    load_last,
    save_best,
    save_last,
)
from avdistill.training.config import TrainConfig, read_config
from avdistill.training.optim import autocast, build_optimizer, build_schedule, clip_gradients
from avdistill.types import StudentDescription

OnStep = Callable[[int, dict[str, float]], None]


def train(config: TrainConfig, *, on_step: OnStep | None = None, stop_after: int | None = None) -> Path:
    """Train a student; returns the run folder.

    Args:
        config: the whole run.
        on_step: called with the step and its losses after each step.
        stop_after: save and return after this many steps, as SIGTERM would do; `resume` goes on.

    Raises:
        RunError: the run folder exists, or a loss is not finite (the last good state is in `last/`).
        StoreError: the store does not hold what the config asks for.
    """
    if config.out.exists():
        raise RunError(f"{config.out}: already there; `avdistill resume` continues a run")
    session = _Session.open(config)
    config.out.mkdir(parents=True)
    write_json(config.out / "config.json", encode(config))
    write_json(config.out / "environment.json", environment())
    write_json(config.out / "data.json", session.data_record())
    return _run(session, Progress(), on_step, stop_after)


def resume(run: Path, *, on_step: OnStep | None = None, stop_after: int | None = None) -> Path:
    """Continue an interrupted run exactly where its last save left it; a finished run is returned as it is.

    Raises:
        RunError: no run there, or its store has changed since.
    """
    if not (run / "config.json").is_file():
        raise RunError(f"{run}: no run folder (config.json is missing)")
    session = _Session.open(read_config(run / "config.json"), run)
    recorded = json.loads((run / "data.json").read_text(encoding="utf-8"))
    if recorded["store_checksum"] != session.store.checksum:
        raise RunError(f"{run}: the store {session.store.folder} is no longer the one this run was started on")
    if not (run / "last").is_dir() and not (run / "last.old").is_dir():
        cut_metrics(run, 0)  # killed before the first save: from the beginning
        return _run(session, Progress(), on_step, stop_after)
    progress = load_last(run, session.method, session.optimizer, session.schedule, session.device)
    cut_metrics(run, progress.step)
    return _run(session, progress, on_step, stop_after)


@dataclass
class _Session:
    """Everything of a run that is built from its config."""

    config: TrainConfig
    run: Path
    store: Store
    device: torch.device
    batches: TrainingBatches
    validation: np.ndarray
    method: Method
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    description: StudentDescription
    left_out: int

    @classmethod
    def open(cls, config: TrainConfig, run: Path | None = None) -> _Session:
        store = Store(config.store)
        device = best_device(config.device)
        split = clips_of_split(store, config.train_split)
        clips = split[has_modality(store, split, config.student.view)]
        if not len(clips):
            raise StoreError(
                f"{store.folder}: no clip of split {config.train_split!r} holds {config.student.view.modality}"
            )
        multi_label = any(len(store.labels[i]) > 1 for i in clips)
        training, validation = cut_validation(store, clips, config.validation_fraction, config.seed)
        method_class = METHODS[config.method.name][1]
        teacher = _teacher_features(store, config, method_class)
        batches = TrainingBatches(
            store,
            training,
            encode_labels(store, training, store.classes, multi_label),
            config.student.view,
            batch_size=config.batch_size,
            labelled_per_batch=config.labelled_per_batch,
            use_unlabelled=method_class.uses_unlabelled,
            teacher=teacher,
            seed=config.seed,
        )
        torch.manual_seed(config.seed)
        student = build_model(config.student.model, len(store.classes), config.student.options)
        if student.modality != config.student.view.modality:
            raise RunError(
                f"model {config.student.model} takes {student.modality}, its view is {config.student.view.modality}"
            )
        method = build_method(
            config.method,
            student,
            num_classes=len(store.classes),
            teacher_dim=None if teacher is None else teacher[0].shape[1],
        ).to(device)
        optimizer = build_optimizer(config.optimizer, method)
        return cls(
            config=config,
            run=run or config.out,
            store=store,
            device=device,
            batches=batches,
            validation=validation,
            method=method,
            optimizer=optimizer,
            schedule=build_schedule(config.optimizer, optimizer, config.steps),
            description=StudentDescription(
                model=config.student.model,
                classes=store.classes,
                view=config.student.view,
                fps=store.fps,
                sample_rate_hz=store.sample_rate_hz,
                multi_label=multi_label,
                options=dict(config.student.options),
            ),
            left_out=len(split) - len(clips),
        )

    def data_record(self) -> dict[str, Any]:
        """Which clips the run trains on and is chosen by; written beside its config."""
        ids = self.store.columns["id"]
        return {
            "store": str(self.store.folder),
            "store_checksum": self.store.checksum,
            "classes": list(self.store.classes),
            "labelled": int(self.batches.labels.labelled.sum()),
            "unlabelled": int((~self.batches.labels.labelled).sum()),
            "left_out_without_modality": self.left_out,
            "training": ids[self.batches.clips].tolist(),
            "validation": ids[self.validation].tolist(),
        }


def _teacher_features(
    store: Store, config: TrainConfig, method: type[Method]
) -> tuple[np.ndarray, np.ndarray | None, np.ndarray] | None:
    """The teacher's rows, its logits' columns put in the order of the store's classes."""
    if not method.needs:
        return None
    if config.teacher is None:
        raise RunError(
            f"method {config.method.name!r} needs a teacher: name one that `avdistill embed` put into the store"
        )
    embedding, logits, present = store.teacher_features(config.teacher)
    if logits is not None:
        columns = {name: i for i, name in enumerate(store.teachers[config.teacher].classes)}
        missing = [name for name in store.classes if name not in columns]
        logits = None if missing else logits[:, [columns[name] for name in store.classes]]
    if method.needs == "logits" and logits is None:
        raise RunError(
            f"method {config.method.name!r} needs logits in the store's classes; {config.teacher!r} has none"
        )
    return embedding, logits, present


def _run(session: _Session, progress: Progress, on_step: OnStep | None, stop_after: int | None) -> Path:
    config, method, optimizer = session.config, session.method, session.optimizer
    plateau = isinstance(session.schedule, ReduceLROnPlateau)
    micro_batches = range(progress.step * config.accumulate, config.steps * config.accumulate)
    # A generator of its own: DataLoader would draw from the global one, and a resumed run would differ.
    own = torch.Generator()
    loader = iter(
        DataLoader(session.batches, batch_size=None, sampler=micro_batches, num_workers=config.workers, generator=own)
    )
    stop_at = config.steps if stop_after is None else min(config.steps, progress.step + stop_after)
    method.train()

    with _sigterm() as terminated, _log(session.run, config.tensorboard) as log:
        while progress.step < stop_at and not terminated.is_set():
            began = time.perf_counter()
            losses: dict[str, Tensor] = {}
            for _ in range(config.accumulate):
                batch = next(loader).to(session.device)
                with autocast(config.precision, session.device):
                    terms = method(batch)
                total = sum(terms.values()) / config.accumulate
                if not torch.isfinite(total):
                    raise _not_finite(session, progress, terms, batch.clip_ids)
                total.backward()
                losses = {name: losses.get(name, 0) + term.detach() / config.accumulate for name, term in terms.items()}
            norms = clip_gradients(optimizer, config.optimizer.clip_norm)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            if not plateau:
                session.schedule.step()
            progress.step += 1

            values = {name: float(value) for name, value in losses.items()}
            if on_step is not None:
                on_step(progress.step, values)
            if progress.step % config.log_every == 0 or progress.step == config.steps:
                rates = {g["name"]: g["lr"] for g in optimizer.param_groups}
                seconds = time.perf_counter() - began
                log(progress.step, {"losses": values, "gradient_norms": norms, "rates": rates, "step_seconds": seconds})
            if len(session.validation) and (
                progress.step % config.validate_every == 0 or progress.step == config.steps
            ):
                figure = _validate(session)
                log(progress.step, {"validation": {"top1": figure}})
                if plateau:
                    session.schedule.step(figure)  # type: ignore[arg-type]
                if figure > progress.best:
                    progress.best, progress.best_step = figure, progress.step
                    save_best(session.run, method, session.description, progress, "validation top1")
            if progress.step % config.save_every == 0 or progress.step == stop_at:
                save_last(session.run, method, session.description, optimizer, session.schedule, progress)
        if terminated.is_set() and progress.step < stop_at:
            save_last(session.run, method, session.description, optimizer, session.schedule, progress)
    if progress.step == config.steps and not len(session.validation):
        save_best(session.run, method, session.description, progress, "last step (nothing set aside for validation)")
    return session.run


def _validate(session: _Session) -> float:
    """Top-1 on the clips set aside (with several labels: the share whose best class is among them)."""
    outputs = run_network(
        session.method.student,
        session.store,
        session.validation,
        session.config.student.view,
        multi_label=session.description.multi_label,
        windows=session.config.validation_windows,
        batch_size=session.config.batch_size,
    )
    labels = encode_labels(session.store, session.validation, session.store.classes, session.description.multi_label)
    if session.description.multi_label:
        return float(labels.values.gather(1, outputs.probabilities.argmax(1, keepdim=True)).mean())
    return top_k_accuracy(scores=outputs.probabilities, labels=labels.values, k=1)


def _not_finite(session: _Session, progress: Progress, terms: dict[str, Tensor], clips: tuple[str, ...]) -> RunError:
    values = {name: float(term.detach()) for name, term in terms.items()}
    write_json(
        session.run / "not_finite.json",
        {"step": progress.step, "losses": {k: repr(v) for k, v in values.items()}, "clips": list(clips)},
    )
    save_last(session.run, session.method, session.description, session.optimizer, session.schedule, progress)
    bad = (
        ", ".join(f"{name} = {value}" for name, value in values.items() if not np.isfinite(value))
        or "the sum of the losses"
    )
    return RunError(
        f"{session.run}: {bad} at step {progress.step}; the weights before this step are in last/, "
        f"the clips of the batch in not_finite.json"
    )


@contextmanager
def _sigterm() -> Iterator[threading.Event]:
    """An event that SIGTERM sets: the loop ends after its step, saves and returns. Outside the main thread: never."""
    event = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield event
        return

    def handle(_number: int, _frame: FrameType | None) -> None:
        event.set()

    previous = signal.signal(signal.SIGTERM, handle)
    try:
        yield event
    finally:
        signal.signal(signal.SIGTERM, previous)


@contextmanager
def _log(run: Path, tensorboard: bool) -> Iterator[Callable[[int, dict[str, Any]], None]]:
    """Writes lines of `metrics.jsonl`, each at once, and TensorBoard events where asked for."""
    writer: Any = None
    if tensorboard:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError:
            raise RunError("tensorboard is not installed: pip install avdistill[log]") from None
        writer = SummaryWriter(str(run / "tensorboard"))
    with (run / "metrics.jsonl").open("a", encoding="utf-8") as file:

        def log(step: int, values: dict[str, Any]) -> None:
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
