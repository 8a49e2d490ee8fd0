"""Many methods, seeds and corruptions on one dataset, compared alike: the same steps and the same trials for each.

A study is a folder. Every run has a process of its own, which writes its result at once; finished runs are not
repeated, so a killed study continues with the next run and ends with the same tables:

    study.json                          what is compared; another study is refused
    datasets/<corruption>/              the dataset under a corruption (links, see corruption/apply.py)
    runs/<corruption>/<method>/trial-0   tuning: judged by the clips set aside for validation, on a seed of their own
    runs/<corruption>/<method>/seed-0    the chosen setting: run folder and metrics.json
    results.json, *.csv, *.md, *.png, report.html   (report.py)
"""

import json
import os
import re
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.analysis.benchmark.checks import check_datasets
from avdistill.analysis.benchmark.jobs import PRELOAD, Job, check_ended, do_job, has_gallery, read_result, steps_done
from avdistill.analysis.benchmark.report import write_study_report
from avdistill.analysis.benchmark.trials import LEARNING_RATES, Setting, method_label, settings_to_try
from avdistill.config_io import encode, read_json
from avdistill.corruption import Corruption, corrupt, parse_corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import decision_counts, open_dataset
from avdistill.dataset.splits import clips_of_splits, labeled_clips
from avdistill.dataset.teacher_mean import teacher_names
from avdistill.errors import ConfigError, DatasetError
from avdistill.executors.executor import Executor
from avdistill.executors.local import LocalExecutor
from avdistill.fsio import own_folder, write_json
from avdistill.methods import METHODS, MethodConfig, custom_checksum, parse_method, teacher_requirement
from avdistill.progress import OnProgress, Progress
from avdistill.teachers.base import Teacher
from avdistill.teachers.transfer import transfer_features
from avdistill.training import TrainConfig
from avdistill.training.run_dir import environment, machine
from avdistill.training.setup import check_same_features

_MOST_NAMED = 4


@dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
        dataset: a prepared dataset with a teacher's features; no file of it is touched.
        out: the study's folder.
        base: of every run: student, steps, optimizer, batch. Its dataset, out, method, teacher and seed are not used.
        methods: names of `METHODS` or "FILE.py:Class", each optionally with settings: "crd:negatives=batch".
        corruptions: as `parse_corruption` reads them; where one names no split, it is about the clips trained on.
        seeds: of the runs that count.
        trials: settings tried for each method under each corruption; 1 takes the published one. Trial 0 is the
            published setting; the others are drawn from what the method declares and `LEARNING_RATES`.
        trial_steps: of a trial's run; None: as many as a run that counts.
        tuning_seed: of the trials' runs and draws; none of `seeds`.
        teacher: name of the features; of several teachers joined by "+".
        test_dataset: whose split `test_split` is classified; None is `dataset`, without any corruption.
        test_split: see `test_dataset`. Where the test dataset has labeled clips of the split trained on, those of
            this one are also looked up among them.
    """

    dataset: Path
    out: Path
    base: TrainConfig
    methods: tuple[str, ...] = tuple(sorted(METHODS))
    corruptions: tuple[str, ...] = ("clean",)
    seeds: tuple[int, ...] = (0, 1, 2)
    trials: int = 1
    trial_steps: int | None = None
    tuning_seed: int = 1000
    teacher: str = "audio"
    test_dataset: Path | None = None
    test_split: str = "test"

    def __post_init__(self) -> None:
        """Raise ConfigError for what no study can be."""
        for name in ("methods", "corruptions", "seeds"):
            values = getattr(self, name)
            if not values or len(set(values)) != len(values):
                raise ConfigError(f"study.{name}: expected at least one, each once, got {' '.join(map(str, values))}")
        if len({method_label(text) for text in self.methods}) != len(self.methods):
            raise ConfigError("study.methods: two files of the same name; rename one")
        if len({self.corruption(text) for text in self.corruptions}) != len(self.corruptions):
            raise ConfigError("study.corruptions: two are the same")
        if not 1 <= self.trials <= len(LEARNING_RATES):  # all that supervised has: every method gets as many
            raise ConfigError(f"study.trials: must lie in [1, {len(LEARNING_RATES)}], got {self.trials}")
        if self.trials > 1 and not self.base.val_fraction:
            raise ConfigError("study.trials: tuning needs clips to judge by: base.val_fraction above 0")
        if self.tuning_seed in self.seeds:
            raise ConfigError(f"study.tuning_seed: {self.tuning_seed} is one of the seeds that count")

    def corruption(self, text: str) -> Corruption:
        """What one of `corruptions` means."""
        return parse_corruption(text, self.base.train_split)

    def open(self, folder: Path) -> ClipDataset:
        """A dataset to train on, as the decisions of `base` leave it."""
        return open_dataset(folder, self.base.decisions)

    def run_folder(self, corruption: str, method: str, run: str) -> Path:
        """Where a run lies: "seed-0" or "trial-0" of a method, as in `methods`, under one of `corruptions`."""
        return own_folder(self.out, f"runs/{folder_name(corruption)}/{folder_name(method_label(method))}/{run}")

    def corruption_dataset(self, text: str) -> Path:
        """Where the dataset under one of `corruptions` lies."""
        corruption = self.corruption(text)
        if corruption == self.corruption("clean"):
            return self.dataset
        return own_folder(self.out, f"datasets/{folder_name(corruption.name)}")


def run_study(
    study: Study,
    *,
    workers: int = 1,
    threads: int | None = None,
    executor: Executor | None = None,
    teacher: Teacher | None = None,
    on_progress: OnProgress | None = None,
) -> list[dict[str, Any]]:
    """Do every run of a study that is not done yet; returns a row for each, as in their `metrics.json`.

    Args:
        study: what is compared.
        workers: runs at a time, without an executor.
        threads: of each run; None shares the cores between the workers, with an executor it is 1.
        executor: runs the runs, on machines that share the study's folder and its datasets; the caller stops it. None:
            processes of this machine.
        teacher: the network that made the features of `study.teacher`; needed for corruptions that make new audio.
        on_progress: called with the optimizer steps of all runs and the names of those that are running.

    Raises:
        ConfigError: an unknown method or corruption, or the folder holds another study.
        DatasetError, TeacherError: a dataset lacks what is needed, `teacher` is another network, or the teacher's
            features are no longer those that the study was begun with.
        RunError: a run failed for a reason that is not its own.
    """
    if workers < 1 or (threads is not None and threads < 1):
        raise ConfigError(f"workers and threads must be at least 1, got {workers} and {threads}")
    methods = {name: parse_method(name) for name in study.methods}
    _open_folder(study, methods, teacher)
    datasets = _corruption_datasets(study, methods, teacher)
    threads = threads or (1 if executor is not None else max(1, (os.cpu_count() or 1) // workers))
    pool = executor or LocalExecutor(workers, PRELOAD)
    test_dataset = (study.test_dataset or study.dataset).resolve()
    waiting = [
        _MethodSweep(study, corruption, name, config, datasets[corruption], threads, test_dataset)
        for corruption in study.corruptions
        for name, config in methods.items()
    ]
    try:
        finished = _work_through(waiting, pool, len(waiting) * _steps_of_a_method(study), on_progress)
    finally:
        if executor is None:
            pool.stop()
    rows = [read_result(job) for job in finished]
    order = {(c, m): i for i, (c, m) in enumerate(product(study.corruptions, map(method_label, study.methods)))}
    return sorted(rows, key=lambda row: (order[row["corruption"], row["method"]], row["run"]))


def _work_through(
    sweeps: list["_MethodSweep"], pool: Executor, total: int, on_progress: OnProgress | None
) -> list[Job]:
    """Do every job of the sweeps that is not done yet; returns all of them.

    Args:
        sweeps: their trials and seeds.
        pool: runs the jobs.
        total: the optimizer steps of all.
        on_progress: as for `run_study`.
    """
    waiting, finished = list(sweeps), list[Job]()
    while waiting or pool.running:
        for sweep in list(waiting):
            while pool.free and (job := sweep.next_job()) is not None:
                if not job.metrics.is_file():
                    pool.start(job, do_job, job, gpu=job.config.device != "cpu")
                else:
                    finished.append(job)
            if sweep.exhausted:
                waiting.remove(sweep)
        finished += map(check_ended, pool.collect())
        if on_progress is not None:
            running = [job for job in pool.running if isinstance(job, Job)]
            steps = sum(job.config.steps for job in finished) + sum(map(steps_done, running))
            on_progress(Progress(steps, total, _names(running)))
    return finished


def _names(jobs: list[Job]) -> str:
    """Of the jobs under way, the first few: a cluster has many."""
    more = f" and {len(jobs) - _MOST_NAMED} more" if len(jobs) > _MOST_NAMED else ""
    return ", ".join(f"{job.method} {job.run}" for job in jobs[:_MOST_NAMED]) + more


def _steps_of_a_method(study: Study) -> int:
    """Under one corruption."""
    of_trials = (study.trial_steps or study.base.steps) * (study.trials if study.trials > 1 else 0)
    return study.base.steps * len(study.seeds) + of_trials


class _MethodSweep:
    """One method under one corruption: first its trials, then the seeds with the trial that validated best."""

    def __init__(
        self,
        study: Study,
        corruption: str,
        name: str,
        published: MethodConfig,
        dataset: Path,
        threads: int,
        test_dataset: Path,
    ) -> None:
        self.study, self.corruption, self.name = study, corruption, method_label(name)
        self.dataset, self.threads, self.test_dataset = dataset, threads, test_dataset
        self.trials: list[Job] = []
        self.settings = [Setting(published)]
        if study.trials > 1:
            self.settings = settings_to_try(self.name, published, study.trials, study.tuning_seed)
            self.trials = [
                self._job(f"trial-{i}", setting, study.tuning_seed, test_dataset=None)
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
        if not self.seeds or not all(job.metrics.is_file() for job in self.trials):
            return None
        seed = self.seeds.pop(0)
        return self._job(f"seed-{seed}", self._chosen(), seed, test_dataset=self.test_dataset)

    def _chosen(self) -> Setting:
        """The setting whose trial validated best; of equals the first, and the published one where all failed."""
        metrics = [read_result(job).get("validation") for job in self.trials]
        scores = [-1.0 if value is None else value for value in metrics]
        return self.settings[scores.index(max(scores))] if scores else self.settings[0]

    def _job(self, run: str, setting: Setting, seed: int, test_dataset: Path | None) -> Job:
        study = self.study
        optimizer = study.base.optimizer
        config = replace(
            study.base,
            dataset=self.dataset,
            out=study.run_folder(self.corruption, self.name, run).absolute(),
            method=setting.method,
            teacher=study.teacher if teacher_requirement(setting.method) else None,
            optimizer=replace(optimizer, learning_rate=optimizer.learning_rate * setting.learning_rate_scale),
            seed=seed,
            steps=study.base.steps if run.startswith("seed") else study.trial_steps or study.base.steps,
        )
        metadata = {"corruption": self.corruption, "method": self.name, "run": run, "seed": seed}
        metadata["setting"] = setting.overrides()
        return Job(
            self.corruption,
            self.name,
            run,
            config,
            self.threads,
            test_dataset,
            study.test_split,
            metadata,
            gallery=study.base.train_split,
            method_file=custom_checksum(setting.method),
        )


def folder_name(text: str) -> str:
    """A corruption or method as the name of a folder."""
    return re.sub(r"[^\w=.,-]+", "_", text)


def _open_folder(study: Study, methods: Mapping[str, MethodConfig], network: Teacher | None) -> None:
    """Write what the study is, or compare with what was written."""
    dataset = study.open(study.dataset)
    check_datasets(study, dataset, methods, network)
    required = [teacher_requirement(config) for config in methods.values()]
    features = None
    if any(required) and dataset.has_teacher(study.teacher):
        features = dataset.features_manifest(study.teacher, tokens=any(each.tokens for each in required))
    record = encode(study) | {
        "dataset": str(study.dataset.resolve()),
        "test_dataset": str((study.test_dataset or study.dataset).resolve()),
        "dataset_checksum": dataset.checksum,
    }
    if study.test_dataset is not None:
        record["test_dataset_checksum"] = ClipDataset(study.test_dataset).checksum
    if files := {name: sum_ for name, config in methods.items() if (sum_ := custom_checksum(config))}:
        record["method_files"] = files
    record = json.loads(json.dumps({key: value for key, value in record.items() if key != "out"}))
    path = study.out / "study.json"
    if path.is_file():
        try:
            recorded = dict(read_json(path))
            recorded["teacher_features"]
        except (ValueError, TypeError, KeyError) as error:
            raise ConfigError(f"{path}: not the record of a study: {error!r:.80}") from error
        differing = [key for key in record if recorded.get(key) != record[key]]
        if differing:
            raise ConfigError(f"{study.out}: holds another study: {', '.join(differing)} differ")
        try:
            check_same_features(dataset, recorded["teacher_features"], features)
        except DatasetError as error:
            raise DatasetError(f"{study.out}: cannot continue: {error}") from error
        return
    if study.out.exists() and any(study.out.iterdir()):
        raise ConfigError(f"{study.out}: already there, and no study")
    study.out.mkdir(parents=True, exist_ok=True)
    write_json(path, record | {"teacher_features": features})
    write_json(study.out / "environment.json", environment())


def _corruption_datasets(study: Study, methods: Mapping[str, MethodConfig], teacher: Teacher | None) -> dict[str, Path]:
    base = ClipDataset(study.dataset)
    datasets = {}
    for text in study.corruptions:
        folder = study.corruption_dataset(text)
        datasets[text] = folder.resolve()
        if folder != study.dataset:
            made = corrupt(base, study.corruption(text), folder)
            if base.has_teacher(study.teacher):
                for name in teacher_names(study.teacher):
                    transfer_features(base, made, name, teacher=teacher)
            check_datasets(study, study.open(folder), methods, None)
    return datasets


def write_report(study: Study, rows: list[dict[str, Any]], *, title: str = "avdistill compare") -> dict[str, Any]:
    """Tables, plots and page of a study's finished runs (`report.py`); returns what `results.json` holds.

    Args:
        study: what was compared.
        rows: as `run_study` returned them.
        title: of the page.
    """
    dataset = ClipDataset(study.test_dataset or study.dataset)
    clips = labeled_clips(dataset, study.test_split)
    groups = np.unique(dataset.columns["group"][clips], return_inverse=True)[1].tolist()
    base = encode(study.base)
    keep = ("steps", "batch_size", "labeled_per_batch", "val_fraction", "student", "optimizer")
    record = {
        "methods": [method_label(text) for text in study.methods],
        "corruptions": list(study.corruptions),
        "seeds": list(study.seeds),
        "trials": study.trials,
        "trial_steps": study.trial_steps or study.base.steps,
        "tuning_seed": study.tuning_seed,
        "teacher": study.teacher,
        "base": {key: base[key] for key in keep},
        "dataset_checksum": study.open(study.dataset).checksum,
        "decisions": decision_counts(study.open(study.dataset)),
        "environment": machine(),
    }
    facts = [_dataset_summary(study, text) for text in study.corruptions]
    facts.append(f"{len(clips)} test clips of {len(set(groups))} videos.")
    if not has_gallery(dataset, study.base.train_split, study.base.student.view):
        facts.append(
            f"There are no metrics of retrieval: the test dataset has no labeled clips of split "
            f"{study.base.train_split!r} to look them up in."
        )
    return write_study_report(study.out, record, rows, groups, facts, title=title)


def _dataset_summary(study: Study, text: str) -> str:
    dataset = study.open(study.corruption_dataset(text))
    rows = clips_of_splits(dataset, study.base.train_split)
    labeled = sum(bool(dataset.labels[i]) for i in rows)
    counts = Counter(dict(dataset.table["extra"][int(i)].as_py() or ()).get("audio", "as recorded") for i in rows)
    audio = ", ".join(f"{count} {kind}" for kind, count in counts.most_common())
    return f"{text}: {len(rows)} training clips, {labeled} of them labeled; their audio: {audio}."
