"""Many methods, seeds and conditions on one store, compared fairly: the same steps, the same trials for each.

A study is a folder. Every run is a job that a process of its own does and writes down at once; what is on disk is not
done again, so a killed study goes on where it was and ends with the same tables:

    study.json                          what is compared; another study is refused
    stores/<condition>/                 the store under a condition (links, see data/conditions.py)
    runs/<condition>/<method>/trial-0   tuning: judged by the clips set aside for validation, on a seed of their own
    runs/<condition>/<method>/seed-0    the chosen setting: run folder and figures.json
    results.json, *.csv, *.md, *.png, report.html   (comparison_report.py)
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.data.conditions import Condition, apply_condition, parse_condition
from avdistill.data.dataset import clips_of_splits, labelled_clips, videos_of
from avdistill.data.files import write_json
from avdistill.data.store import Store, StoreError
from avdistill.decoding import ConfigError, encode
from avdistill.methods import METHODS, MethodConfig, method_class, own_checksum, parse_method
from avdistill.studies.comparison_checks import check_stores
from avdistill.studies.comparison_report import write_study_report
from avdistill.studies.jobs import Job, Pool, has_gallery, steps_done
from avdistill.studies.trials import LEARNING_RATES, Setting, method_label, settings_to_try
from avdistill.teachers.base import Teacher
from avdistill.teachers.carrying import carry_features
from avdistill.training import TrainConfig
from avdistill.training.checkpoint import environment
from avdistill.training.session import check_same_features

OnProgress = Callable[[int, int, str], None]


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        store: a prepared store with a teacher's features; no file of it is touched.
        out: the study's folder.
        base: of every run: student, steps, optimizer, batch. Its store, out, method, teacher and seed are not used.
        methods: names of `METHODS` or "FILE.py:Class", each optionally with settings: "crd:negatives=batch".
        conditions: as `parse_condition` reads them; where one names no split, it is about the clips trained on.
        seeds: of the runs that count.
        trials: settings tried for each method under each condition; 1 takes the published one. Trial 0 is the
            published setting; the others are drawn from what the method declares and `LEARNING_RATES`.
        trial_steps: of a trial's run; None: as many as a run that counts.
        tuning_seed: of the trials' runs and draws; none of `seeds`.
        teacher: name of the features.
        test_store: whose split `test_split` is classified; None is `store`, without any condition.
        test_split: see `test_store`. Where the test store has labelled clips of the split trained on, those of this one
            are also looked up among them.
    """

    store: Path
    out: Path
    base: TrainConfig
    methods: tuple[str, ...] = tuple(sorted(METHODS))
    conditions: tuple[str, ...] = ("clean",)
    seeds: tuple[int, ...] = (0, 1, 2)
    trials: int = 1
    trial_steps: int | None = None
    tuning_seed: int = 1000
    teacher: str = "sound"
    test_store: Path | None = None
    test_split: str = "test"

    def __post_init__(self) -> None:
        """Raise ConfigError for what no study can be."""
        for name in ("methods", "conditions", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"study.{name}: expected at least one, each once, got {' '.join(map(str, values))}")
        if len({method_label(text) for text in self.methods}) != len(self.methods):
            raise ConfigError("study.methods: two files of the same name; rename one")
        if len({self.condition(text) for text in self.conditions}) != len(self.conditions):
            raise ConfigError("study.conditions: two are the same")
        if not 1 <= self.trials <= len(LEARNING_RATES):  # all that supervised has: every method gets as many
            raise ConfigError(f"study.trials: must lie in [1, {len(LEARNING_RATES)}], got {self.trials}")
        if self.trials > 1 and not self.base.validation_fraction:
            raise ConfigError("study.trials: tuning needs clips to judge by: base.validation_fraction above 0")
        if self.tuning_seed in self.seeds:
            raise ConfigError(f"study.tuning_seed: {self.tuning_seed} is one of the seeds that count")

    def condition(self, text: str) -> Condition:
        """What one of `conditions` means."""
        return parse_condition(text, self.base.train_split)

    def condition_store(self, text: str) -> Path:
        """Where the store under one of `conditions` lies."""
        condition = self.condition(text)
        if condition == self.condition("clean"):
            return self.store
        return self.out / "stores" / folder_name(condition.name)


def run_study(
    study: Study,
    *,
    workers: int = 1,
    threads: int | None = None,
    teacher: Teacher | None = None,
    on_progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """Do every run of a study that is not done yet; returns a row for each, as in their `figures.json`.

    Args:
        study: what is compared.
        workers: runs at a time.
        threads: of each run; None shares the cores between the workers.
        teacher: the network that made the features of `study.teacher`; needed for conditions that make new sound.
        on_progress: called with (steps done, steps of all runs, what is going on).

    Raises:
        ConfigError: an unknown method or condition, or the folder holds another study.
        StoreError, TeacherError: a store lacks what is needed, `teacher` is another network, or the teacher's features
            are no longer those that the study was begun with.
        RunError: a run failed for a reason that is not its own.
    """
    if workers < 1 or (threads is not None and threads < 1):
        raise ConfigError(f"workers and threads must be at least 1, got {workers} and {threads}")
    methods = {name: parse_method(name) for name in study.methods}
    _open_folder(study, methods, teacher)
    stores = _condition_stores(study, methods, teacher)
    threads = threads or max(1, (os.cpu_count() or 1) // workers)
    pool = Pool(workers)
    test_store = (study.test_store or study.store).resolve()
    rows: list[dict[str, Any]] = []
    waiting = [
        _Contest(study, condition, name, config, stores[condition], threads, test_store)
        for condition in study.conditions
        for name, config in methods.items()
    ]
    total = len(waiting) * _steps_of_a_method(study)
    finished: list[Job] = []
    try:
        while waiting or pool.running:
            for contest in list(waiting):
                while pool.free and (job := contest.next_job()) is not None:
                    if not job.figures.is_file():
                        pool.start(job)
                    else:
                        finished.append(job)
                if contest.exhausted:
                    waiting.remove(contest)
            finished += pool.collect()
            if on_progress is not None:
                steps = sum(job.config.steps for job in finished) + sum(steps_done(job) for job in pool.running)
                on_progress(steps, total, ", ".join(f"{j.method} {j.run}" for j in pool.running))
    finally:
        pool.stop()
    for job in finished:
        rows.append(json.loads(job.figures.read_text(encoding="utf-8")))
    order = {(c, m): i for i, (c, m) in enumerate(product(study.conditions, map(method_label, study.methods)))}
    return sorted(rows, key=lambda row: (order[row["condition"], row["method"]], row["run"]))


def _steps_of_a_method(study: Study) -> int:
    """Under one condition."""
    of_trials = (study.trial_steps or study.base.steps) * (study.trials if study.trials > 1 else 0)
    return study.base.steps * len(study.seeds) + of_trials


class _Contest:
    """One method under one condition: first its trials, then the seeds with the trial that validated best."""

    def __init__(
        self,
        study: Study,
        condition: str,
        name: str,
        published: MethodConfig,
        store: Path,
        threads: int,
        test_store: Path,
    ) -> None:
        self.study, self.condition, self.name = study, condition, method_label(name)
        self.store, self.threads, self.test_store = store, threads, test_store
        self.trials: list[Job] = []
        self.settings = [Setting(published)]
        if study.trials > 1:
            self.settings = settings_to_try(self.name, published, study.trials, study.tuning_seed)
            self.trials = [
                self._job(f"trial-{i}", setting, study.tuning_seed, test_store=None)
                for i, setting in enumerate(self.settings)
            ]
        self.pending = list(self.trials)
        self.seeds = list(study.seeds)

    @property
    def exhausted(self) -> bool:
        """Whether every job was handed out."""
        return not self.pending and not self.seeds

    def next_job(self) -> Job | None:
        """The next run, or None while there is nothing to do (yet)."""
        if self.pending:
            return self.pending.pop(0)
        if not self.seeds or not all(job.figures.is_file() for job in self.trials):
            return None
        seed = self.seeds.pop(0)
        return self._job(f"seed-{seed}", self._chosen(), seed, test_store=self.test_store)

    def _chosen(self) -> Setting:
        """The setting whose trial validated best; of equals the first, and the published one where all failed."""
        figures = [json.loads(job.figures.read_text(encoding="utf-8")).get("validation") for job in self.trials]
        scores = [-1.0 if value is None else value for value in figures]
        return self.settings[scores.index(max(scores))] if scores else self.settings[0]

    def _job(self, run: str, setting: Setting, seed: int, test_store: Path | None) -> Job:
        study = self.study
        optimizer = study.base.optimizer
        config = replace(
            study.base,
            store=self.store,
            out=study.out / "runs" / folder_name(self.condition) / folder_name(self.name) / run,
            method=setting.method,
            teacher=study.teacher if method_class(setting.method).needs else None,
            optimizer=replace(optimizer, learning_rate=optimizer.learning_rate * setting.learning_rate_scale),
            seed=seed,
            steps=study.base.steps if run.startswith("seed") else study.trial_steps or study.base.steps,
        )
        told = {"condition": self.condition, "method": self.name, "run": run, "seed": seed, "setting": setting.told()}
        return Job(
            self.condition,
            self.name,
            run,
            config,
            self.threads,
            test_store,
            study.test_split,
            told,
            gallery=study.base.train_split,
        )


def folder_name(text: str) -> str:
    """A condition or method as the name of a folder."""
    return re.sub(r"[^\w=.,-]+", "_", text)


def _open_folder(study: Study, methods: Mapping[str, MethodConfig], network: Teacher | None) -> None:
    """Write what the study is, or compare with what was written."""
    store = Store(study.store)
    check_stores(study, store, methods, network)
    teacher = store.teachers.get(study.teacher)
    needed = {method_class(config).needs for config in methods.values()} - {""}
    features = store.teacher_record(study.teacher, tokens="tokens" in needed) if needed and teacher else None
    told = encode(study) | {
        "store": str(study.store.resolve()),
        "test_store": str((study.test_store or study.store).resolve()),
        "store_checksum": store.checksum,
    }
    if study.test_store is not None:
        told["test_store_checksum"] = Store(study.test_store).checksum
    if files := {name: sum_ for name, config in methods.items() if (sum_ := own_checksum(config))}:
        told["method_files"] = files
    if study.base.train_split != "train":
        # Older versions changed, and searched, the split "train" whatever was trained on: such a study cannot go on.
        told["changed_and_searched"] = study.base.train_split
    told = json.loads(json.dumps({key: value for key, value in told.items() if key != "out"}))
    path = study.out / "study.json"
    if path.is_file():
        recorded = json.loads(path.read_text(encoding="utf-8"))
        for key in ("test_store_checksum", "method_files"):  # earlier versions wrote none
            recorded.setdefault(key, told.get(key))
        differing = [key for key in told if recorded.get(key) != told[key]]
        if differing:
            raise ConfigError(f"{study.out}: holds another study: {', '.join(differing)} differ")
        try:
            check_same_features(store, recorded.get("teacher_features"), features)
        except StoreError as error:
            raise StoreError(f"{study.out}: cannot go on: {error}") from error
        return
    if study.out.exists() and any(study.out.iterdir()):
        raise ConfigError(f"{study.out}: already there, and no study")
    study.out.mkdir(parents=True, exist_ok=True)
    write_json(path, told | {"teacher_features": features})
    write_json(study.out / "environment.json", environment())


def _condition_stores(study: Study, methods: Mapping[str, MethodConfig], teacher: Teacher | None) -> dict[str, Path]:
    base = Store(study.store)
    stores = {}
    for text in study.conditions:
        folder = study.condition_store(text)
        stores[text] = folder.resolve()
        if folder != study.store:
            made = apply_condition(base, study.condition(text), folder)
            if study.teacher in base.teachers:
                carry_features(base, made, study.teacher, teacher=teacher)
            check_stores(study, Store(folder), methods, None)
    return stores


def write_report(study: Study, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """Tables, plots and page of a study's finished runs (`comparison_report.py`); returns what `results.json` holds."""
    store = Store(study.test_store or study.store)
    clips = labelled_clips(store, study.test_split)
    groups = np.unique(videos_of(store, clips), return_inverse=True)[1].tolist()
    base = encode(study.base)
    keep = ("steps", "batch_size", "labelled_per_batch", "validation_fraction", "student", "optimizer")
    record = {
        "methods": [method_label(text) for text in study.methods],
        "conditions": list(study.conditions),
        "seeds": list(study.seeds),
        "trials": study.trials,
        "trial_steps": study.trial_steps or study.base.steps,
        "tuning_seed": study.tuning_seed,
        "teacher": study.teacher,
        "base": {key: base[key] for key in keep},
        "store_checksum": Store(study.store).checksum,
        "environment": {k: v for k, v in environment().items() if k != "command"},
    }
    facts = [_facts(study, text) for text in study.conditions]
    facts.append(f"{len(clips)} test clips of {len(set(groups))} videos.")
    if not has_gallery(store, study.base.train_split, study.base.student.view):
        facts.append(
            f"There are no figures of retrieval: the test store has no labelled clips of split "
            f"{study.base.train_split!r} to look them up in."
        )
    return write_study_report(study.out, record, rows, groups, facts)


def _facts(study: Study, text: str) -> str:
    store = Store(study.condition_store(text))
    rows = clips_of_splits(store, study.base.train_split)
    labelled = sum(bool(store.labels[i]) for i in rows)
    sounds = Counter(dict(store.table["extra"][int(i)].as_py() or ()).get("sound", "as recorded") for i in rows)
    told = ", ".join(f"{count} {sound}" for sound, count in sounds.most_common())
    return f"{text}: {len(rows)} training clips, {labelled} of them labelled; their sound: {told}."
