"""What would end the runs of a study, or make their figures worthless, is told before the first of them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

import numpy as np

from avdistill.data.dataset import (
    check_view_fits,
    clips_of_splits,
    encode_labels,
    has_modality,
    labelled_clips,
    split_names,
)
from avdistill.data.store import Store, StoreError
from avdistill.decoding import ConfigError
from avdistill.methods import MethodConfig, method_class
from avdistill.teachers.base import Teacher, check_rates
from avdistill.teachers.carrying import check_teacher

if TYPE_CHECKING:
    from avdistill.studies.comparison import Study


def check_stores(study: Study, store: Store, methods: Mapping[str, MethodConfig], teacher: Teacher | None) -> None:
    """Raise StoreError, ConfigError or TeacherError for what a study cannot do with `store`, to train on.

    Args:
        study: what is compared.
        store: its store, or that under a condition.
        methods: of the study, by name.
        teacher: the network that made the features, where one is given.
    """
    test, view = Store(study.test_store or study.store), study.base.student.view
    trained = clips_of_splits(store, study.base.train_split)
    for_one = [name for name, config in methods.items() if not method_class(config).several_labels]
    if for_one and store.multi_label:
        raise ConfigError(
            f"study.methods: {', '.join(for_one)} need one label per clip; clips of {store.folder} have several"
        )
    clips = labelled_clips(test, study.test_split)
    encode_labels(test, clips, store.classes, store.multi_label)
    check_rates(test, view, store.fps, store.sample_rate_hz, "the student")
    seen = clips[has_modality(test, clips, view)]
    if not len(seen):
        raise StoreError(f"{test.folder}: no labelled clip of split {study.test_split!r} holds {view.modality}")
    check_view_fits(test, seen, view)
    _check_features(study, store, methods)
    if study.test_store is None or study.test_store.resolve() == study.store.resolve():
        _check_untouched(study, store, clips, trained)
    if teacher is not None and study.teacher in store.teachers:
        check_teacher(store, [study.teacher], teacher)


def _check_features(study: Study, store: Store, methods: Mapping[str, MethodConfig]) -> None:
    """What the methods need of the teacher must be there; a head finds no logits where too few labels are left."""
    teacher = store.teachers.get(study.teacher)
    for name, config in methods.items():
        needs = method_class(config).needs
        if needs and teacher is None:
            raise StoreError(
                f"{store.folder}: method {name!r} needs teacher {study.teacher!r}: `avdistill embed` first"
            )
        if teacher and (needs, True) in {("logits", not teacher.classes), ("tokens", not teacher.positions)}:
            hint = " (`avdistill embed --maps`)" if needs == "tokens" else ""
            raise StoreError(f"{store.folder}: method {name!r} needs {needs} of teacher {study.teacher!r}{hint}")


def _check_untouched(study: Study, store: Store, tested: np.ndarray, trained: np.ndarray) -> None:
    """No test clip may be trained on, nor a head be fitted on its label."""
    if both := np.intersect1d(tested, trained).size:
        raise ConfigError(
            f"study.test_split: {both} clips of split {study.test_split!r} are also those of "
            f"{study.base.train_split!r}, which is trained on"
        )
    teacher = store.teachers.get(study.teacher)
    if teacher and teacher.fitted_head:
        fitted = np.isin(store.columns["split"], split_names(store, teacher.head_split))
        if fitted[tested].any():
            raise StoreError(
                f"{store.folder}: the head of teacher {study.teacher!r} is fitted on split {teacher.head_split!r}, "
                f"with clips of {study.test_split!r}, which are tested"
            )
