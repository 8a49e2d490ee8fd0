"""Checks before a study begins: whatever would end its runs or make their metrics worthless is an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import (
    check_view_fits,
    clips_of_splits,
    encode_labels,
    evaluation_classes,
    has_modality,
    labeled_clips,
    split_names,
    training_classes,
)
from avdistill.dataset.teacher_mean import teacher_names
from avdistill.errors import ConfigError, DatasetError
from avdistill.inference.runner import check_rates
from avdistill.methods import MethodConfig, supports_multi_label, teacher_requirement
from avdistill.teachers.base import Teacher
from avdistill.teachers.transfer import check_teacher

if TYPE_CHECKING:
    from avdistill.analysis.benchmark.study import Study


def check_datasets(
    study: Study, dataset: ClipDataset, methods: Mapping[str, MethodConfig], teacher: Teacher | None
) -> None:
    """Raise DatasetError, ConfigError or TeacherError for what a study cannot do with `dataset`, to train on.

    Args:
        study: what is compared.
        dataset: its dataset, or that under a corruption.
        methods: of the study, by name.
        teacher: the network that made the features, where one is given.
    """
    test, view = ClipDataset(study.test_dataset or study.dataset), study.base.student.view
    trained = clips_of_splits(dataset, study.base.train_split)
    for_one = [name for name, config in methods.items() if not supports_multi_label(config)]
    if for_one and dataset.multi_label:
        raise ConfigError(
            f"study.methods: {', '.join(for_one)} need one label per clip; clips of {dataset.folder} have several"
        )
    clips = labeled_clips(test, study.test_split)
    encode_labels(test, clips, evaluation_classes(test, clips, training_classes(dataset, trained)), dataset.multi_label)
    check_rates(test, view, dataset.fps, dataset.sample_rate_hz, "the student")
    seen = clips[has_modality(test, clips, view)]
    if not len(seen):
        raise DatasetError(f"{test.folder}: no labeled clip of split {study.test_split!r} holds {view.modality}")
    check_view_fits(test, seen, view)
    _check_features(study, dataset, methods)
    if study.test_dataset is None or study.test_dataset.resolve() == study.dataset.resolve():
        _check_untouched(study, dataset, clips, trained)
    if teacher is not None and dataset.has_teacher(study.teacher):
        check_teacher(dataset, teacher_names(study.teacher), teacher)


def _check_features(study: Study, dataset: ClipDataset, methods: Mapping[str, MethodConfig]) -> None:
    """Raise DatasetError where a method needs features that are missing; too few labels leave a head without logits."""
    teacher = dataset.teacher(study.teacher) if dataset.has_teacher(study.teacher) else None
    for name, config in methods.items():
        required = teacher_requirement(config)
        if required and teacher is None:
            raise DatasetError(
                f"{dataset.folder}: method {name!r} needs teacher {study.teacher!r}: `avdistill embed` first"
            )
        if teacher and ((required.logits and not teacher.classes) or (required.tokens and not teacher.num_tokens)):
            hint = " (`avdistill embed --tokens`, of one teacher)" if required.tokens else ""
            raise DatasetError(f"{dataset.folder}: method {name!r} needs {required} of teacher {study.teacher!r}{hint}")


def _check_untouched(study: Study, dataset: ClipDataset, tested: np.ndarray, trained: np.ndarray) -> None:
    """Raise an error where a test clip is trained on, or a linear head is fitted on its label."""
    if both := np.intersect1d(tested, trained).size:
        raise ConfigError(
            f"study.test_split: {both} clips of split {study.test_split!r} are also those of "
            f"{study.base.train_split!r}, which is trained on"
        )
    teacher = dataset.teacher(study.teacher) if dataset.has_teacher(study.teacher) else None
    if teacher and teacher.fitted_head:
        fitted = np.isin(dataset.columns["split"], split_names(dataset, teacher.head_split))
        if fitted[tested].any():
            raise DatasetError(
                f"{dataset.folder}: the head of teacher {study.teacher!r} is fitted on split {teacher.head_split!r}, "
                f"with clips of {study.test_split!r}, which are tested"
            )
