"""From the config of a run to its data, networks and optimizer."""

import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import numpy as np
import torch

from avdistill import distributed
from avdistill.dataset.batches import TrainingBatches
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import decision_counts, open_dataset
from avdistill.dataset.splits import (
    check_view_fits,
    clips_of_splits,
    encode_labels,
    has_modality,
    split_validation,
    training_classes,
)
from avdistill.dataset.stored_features import TeacherFeatures, format_provenance
from avdistill.errors import ConfigError, DatasetError, RunError
from avdistill.methods import (
    Method,
    MethodContext,
    build_method,
    custom_checksum,
    supports_multi_label,
    teacher_requirement,
    trust_file,
    uses_unlabeled,
)
from avdistill.models.checkpoint import load_student, saved_folder
from avdistill.models.registry import INITIAL_WEIGHTS, build_model
from avdistill.models.weights import load_tensors
from avdistill.training.config import TrainConfig
from avdistill.training.optim import build_optimizer, build_schedule
from avdistill.training.run_dir import data_manifest, run_config
from avdistill.types import StudentConfig, StudentNetwork


@dataclass
class TrainingSetup:
    """Everything of a run that is built from its config.

    Attributes:
        batches: this process's share of every batch.
        validation: rows of the dataset that are held out to choose the best model.
        left_out: clips of the training split without the student's modality.
    """

    config: TrainConfig
    run: Path
    dataset: ClipDataset
    device: torch.device
    batches: TrainingBatches
    validation: np.ndarray
    method: Method
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    description: StudentConfig
    left_out: int

    @classmethod
    def open(cls, config: TrainConfig, run: Path, device: torch.device) -> Self:
        """Build everything, on `device`; several processes build the same.

        Raises:
            DatasetError, RunError, ConfigError, AnnotationError: the config or its decisions do not fit the dataset.
        """
        processes = distributed.world_size()
        if config.batch_size % processes:
            raise ConfigError(f"config.batch_size: must be a multiple of the {processes} processes")
        dataset = open_dataset(config.dataset, config.decisions)
        split = clips_of_splits(dataset, config.train_split)
        clips = split[has_modality(dataset, split, config.student.view)]
        if not len(clips):
            raise DatasetError(
                f"{dataset.folder}: no clip of split {config.train_split!r} holds {config.student.view.modality}"
            )
        check_view_fits(dataset, clips, config.student.view)
        classes = training_classes(dataset, split)
        multi_label = dataset.multi_label
        if multi_label and not supports_multi_label(config.method):
            raise ConfigError(
                f"method {config.method.name!r} needs one label per clip; clips of {dataset.folder} have several"
            )
        training, validation = split_validation(dataset, clips, config.val_fraction, config.seed)
        if config.optimizer.schedule == "plateau" and not len(validation):
            raise ConfigError("config.optimizer.schedule: 'plateau' needs validation, and no video is set aside for it")
        teacher = _teacher_features(dataset, training, config, classes)
        batches = TrainingBatches(
            dataset,
            training,
            encode_labels(dataset, training, classes, multi_label),
            config.student.view,
            batch_size=config.batch_size,
            labeled_per_batch=config.labeled_per_batch,
            use_unlabeled=uses_unlabeled(config.method),
            teacher=teacher,
            seed=config.seed,
            share=(distributed.rank(), processes),
        )
        student = _build_student(config, dataset, len(classes), begun=saved_folder(run, "last") is not None)
        if config.sync_batchnorm:
            distributed.sync_batchnorm(student, device)
        context = _context(config, classes, teacher, len(training))
        method = distributed.move_module(build_method(config.method, student, context), device)
        if distributed.rank():  # the same weights, but other dropout and blanking
            torch.manual_seed(config.seed + 1_000_003 * distributed.rank())
        optimizer = build_optimizer(config.optimizer, method)
        return cls(
            config=config,
            run=run,
            dataset=dataset,
            device=device,
            batches=batches,
            validation=validation,
            method=method,
            optimizer=optimizer,
            schedule=build_schedule(config.optimizer, optimizer, config.steps),
            description=_describe(config, dataset, classes, multi_label),
            left_out=len(split) - len(clips),
        )

    def data_manifest(self) -> dict[str, Any]:
        """The clips and features that the run trains on and is validated by; written beside its config."""
        ids = self.dataset.columns["id"]
        return {
            "dataset": self.dataset.place,
            "dataset_checksum": self.dataset.checksum,
            "decisions": decision_counts(self.dataset),
            "teacher": self.teacher_record(),
            "method_file": custom_checksum(self.config.method),
            "classes": list(self.description.classes),
            "labeled": int(self.batches.labels.labeled.sum()),
            "unlabeled": int((~self.batches.labels.labeled).sum()),
            "left_out_without_modality": self.left_out,
            "with_teacher": self.batches.with_teacher,
            "training": ids[self.batches.clips].tolist(),
            "validation": ids[self.validation].tolist(),
        }

    def teacher_record(self) -> dict[str, Any] | None:
        """The features that the run learns from; None without a teacher."""
        required = teacher_requirement(self.config.method)
        if not required or self.config.teacher is None:
            return None
        return self.dataset.features_manifest(self.config.teacher, tokens=required.tokens)

    def check_data(self, recorded: Mapping[str, Any]) -> None:
        """Raise RunError unless dataset, decisions and features are those of the run's `data.json`."""
        if recorded["dataset_checksum"] != self.dataset.checksum:
            decided = "" if self.config.decisions is None else f" with the decisions of {self.config.decisions}"
            raise RunError(
                f"{self.run}: the dataset {self.dataset.folder}{decided} is no longer the one this run was started on"
            )
        try:
            check_same_features(self.dataset, recorded["teacher"], self.teacher_record())
        except DatasetError as error:
            raise RunError(f"{self.run}: cannot continue: {error}") from error


def check_method(run: Path, config: TrainConfig, recorded: Mapping[str, Any], trust_method: bool) -> None:
    """Check the file of a custom method before any of it is run; with `trust_method` it may then be run.

    Raises:
        RunError: it is not the one recorded in `data.json`.
    """
    found = custom_checksum(config.method)
    if recorded["method_file"] != found:
        raise RunError(f"{run}: cannot continue: the file of its method has changed since it was started")
    if trust_method:
        trust_file(found)


def check_same_features(dataset: ClipDataset, then: Mapping[str, Any] | None, now: Mapping[str, Any] | None) -> None:
    """Raise DatasetError where a teacher's features differ from those of an earlier `ClipDataset.features_manifest`.

    `then` is None for a run without a teacher, `now` if the features are gone.
    """
    if then is not None and then["files"] != (now or {}).get("files"):
        made_by = "nothing" if now is None else format_provenance(now["provenance"])
        raise DatasetError(
            f"{dataset.folder}: the features of teacher {then['name']!r} are no longer those that were learned from, "
            f"then by {format_provenance(then['provenance'])}, now by {made_by}: "
            "run `avdistill embed` with that teacher again, or start a new run"
        )


def load_method(
    run: str | os.PathLike[str], dataset: ClipDataset, *, trust_method: bool = False
) -> tuple[Method, StudentConfig]:
    """The method of a run from its last save, helpers and student, on the CPU and in evaluation mode.

    Args:
        run: the run folder.
        dataset: it holds the teacher that the run learned from.
        trust_method: run the file of a custom method, see `resume`.

    Raises:
        RunError: no run, nothing saved yet, or another file of a custom method than the run was started with.
        ConfigError: a custom method without `trust_method`.
        DatasetError: the dataset does not hold the run's teacher.
        CheckpointError: the saved tensors are damaged or do not fit.
    """
    run = Path(run)
    config = run_config(run)
    folder = saved_folder(run, "last")
    if folder is None:
        raise RunError(f"{run}: no saved state (last/ is missing)")
    recorded = data_manifest(run)
    check_method(run, config, recorded, trust_method)
    student, description = load_student(folder)
    teacher = None if config.teacher is None else dataset.teacher_features(config.teacher)
    context = _context(config, description.classes, teacher, len(recorded["training"]))
    method = build_method(config.method, student, context)
    load_tensors(method, folder / "helpers.safetensors", without="student.")
    return method.eval(), description


def _context(
    config: TrainConfig, classes: Sequence[str], teacher: TeacherFeatures | None, training_clips: int
) -> MethodContext:
    return MethodContext(
        num_classes=len(classes),
        teacher_dim=0 if teacher is None else teacher.embedding_dim,
        teacher_dims=() if teacher is None else tuple(each.embedding_dim for each in teacher.teachers),
        training_clips=training_clips,
        batch_size=config.batch_size,
        total_iterations=config.steps * config.gradient_accumulation_steps,
    )


def _describe(config: TrainConfig, dataset: ClipDataset, classes: tuple[str, ...], multi_label: bool) -> StudentConfig:
    return StudentConfig(
        model=config.student.model,
        classes=classes,
        view=config.student.view,
        fps=dataset.fps,
        sample_rate_hz=dataset.sample_rate_hz,
        multi_label=multi_label,
        options=dict(config.student.options),
        **dataset.video_reading,
    )


def _build_student(config: TrainConfig, dataset: ClipDataset, num_classes: int, begun: bool) -> StudentNetwork:
    """The student with the weights of the run's seed; refuses a model that does not fit the view or the dataset."""
    torch.manual_seed(config.seed)
    name, options = config.student.model, config.student.options
    if begun:  # saved weights replace those that would be downloaded
        options = {name: value for name, value in options.items() if name not in INITIAL_WEIGHTS}
    student = build_model(name, num_classes, options)
    if student.modality != config.student.view.modality:
        raise RunError(f"model {name} takes {student.modality}, its view is {config.student.view.modality}")
    expected_hz = getattr(student, "sample_rate_hz", dataset.sample_rate_hz)
    if expected_hz != dataset.sample_rate_hz:
        raise RunError(
            f"model {name} takes {expected_hz} Hz, {dataset.folder} holds {dataset.sample_rate_hz}: "
            "set its option sample_rate_hz, or prepare with --sample-rate"
        )
    frames = getattr(student, "frames", None)
    if frames not in (None, wanted := getattr(config.student.view, "frames", None)):
        raise RunError(f"model {name} takes {frames} frames, its view has {wanted}")
    return student


def _teacher_features(
    dataset: ClipDataset, training: np.ndarray, config: TrainConfig, classes: tuple[str, ...]
) -> TeacherFeatures | None:
    """What the method needs of the teacher, with logits in the order of the student's classes."""
    required = teacher_requirement(config.method)
    if not required:
        return None
    if config.teacher is None:
        raise RunError(
            f"method {config.method.name!r} needs a teacher: name one that `avdistill embed` put into the dataset"
        )
    teacher = dataset.teacher_features(config.teacher).with_classes(classes)
    if not teacher.valid[training].any():
        raise DatasetError(
            f"{dataset.folder}: method {config.method.name!r}: expected training clips with features of teacher "
            f"{config.teacher!r}, found none among {len(training)}"
        )
    if required.logits and not teacher.classes:
        raise RunError(
            f"method {config.method.name!r} needs logits in the dataset's classes; {config.teacher!r} has none"
        )
    if not required.each:
        teacher = teacher.without_teachers()
    if not required.tokens:
        return teacher.without_tokens()
    if not teacher.has_tokens:
        having = [name for name, entry in dataset.teachers.items() if entry.num_tokens]
        raise RunError(
            f"method {config.method.name!r} needs the teacher's tokens, which {config.teacher!r} has not put into the "
            f"dataset (teachers with tokens: {', '.join(having) or 'none'}; a mean of several has none); "
            "`avdistill embed --tokens` does where the teacher has any"
        )
    return teacher
