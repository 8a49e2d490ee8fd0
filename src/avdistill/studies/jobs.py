"""A study's runs, each done by a process of its own and written down at once."""

from __future__ import annotations

import multiprocessing
import os
import shutil
import statistics
import sys
import threading
import time
import traceback
from dataclasses import dataclass
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch

from avdistill.data.dataset import has_modality, labelled_clips
from avdistill.data.files import open_locked, write_json
from avdistill.data.store import Store, StoreError
from avdistill.decoding import ConfigError
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.retrieval import retrieve
from avdistill.inference import NotFiniteError
from avdistill.models.weights import load_student
from avdistill.studies.comparison_report import read_lines
from avdistill.training import TrainConfig, resume, train
from avdistill.training.checkpoint import RunError
from avdistill.types import View


@dataclass(frozen=True, eq=False)
class Job:
    """One run: what a worker process gets.

    Attributes:
        test_store: None for a trial, which is not tested.
        test_split: whose labelled clips are classified and looked up.
        gallery: split of the test store that they are looked up in; where it holds nothing to find, they are not.
        told: goes into the result as it is.
    """

    condition: str
    method: str
    run: str
    config: TrainConfig
    threads: int
    test_store: Path | None
    test_split: str
    told: dict[str, Any]
    gallery: str = "train"

    @property
    def figures(self) -> Path:
        """Where its result will be."""
        return self.config.out / "figures.json"


class Pool:
    """A process for each job: its peak memory is the run's own, and a crash is its own as well."""

    def __init__(self, workers: int) -> None:
        # A server that has imported everything forks the workers: nothing is imported twice.
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["avdistill.studies.jobs"])
        self.workers = workers
        self.processes: dict[Job, BaseProcess] = {}

    @property
    def free(self) -> bool:
        """Whether another job may start."""
        return len(self.processes) < self.workers

    @property
    def running(self) -> list[Job]:
        """Jobs under way."""
        return list(self.processes)

    def start(self, job: Job) -> None:
        """Begin a job."""
        process = self.context.Process(target=_do_job, args=(job,), daemon=True)
        process.start()
        self.processes[job] = process

    def collect(self) -> list[Job]:
        """Jobs that ended, after waiting a moment for one. Raises RunError for one that left no result."""
        wait([process.sentinel for process in self.processes.values()], timeout=1)
        ended = [job for job, process in self.processes.items() if not process.is_alive()]
        for job in ended:
            process = self.processes.pop(job)
            process.join()
            if not job.figures.is_file():
                log = beside(job.config.out, "error.txt")
                text = log.read_text(encoding="utf-8").strip().splitlines() if log.is_file() else []
                said = text[-1] if text else f"its process ended with code {process.exitcode}"
                raise RunError(f"{job.config.out}: {said}; the same command goes on")
        return ended

    def stop(self) -> None:
        """End what is under way; it goes on from its last save next time."""
        for process in self.processes.values():
            process.terminate()
        for process in self.processes.values():
            process.join()


def _do_job(job: Job) -> None:
    """Train one run (or take it up), evaluate it and write `figures.json`. Runs in a process of its own."""
    _end_with_parent()
    torch.set_num_threads(job.threads)
    job.config.out.parent.mkdir(parents=True, exist_ok=True)
    error_log = beside(job.config.out, "error.txt")
    # A killed study's worker may still be at this run for a moment: wait until it is gone.
    lock = beside(job.config.out, "lock")
    lock.mkdir(exist_ok=True)
    with open_locked(lock, wait=True):
        if job.figures.is_file():
            return
        error_log.unlink(missing_ok=True)
        try:
            result = _result(job)
            job.figures.parent.mkdir(exist_ok=True)  # a setting may be refused before there is a run
            write_json(job.figures, result)
        except BaseException:
            error_log.write_text(traceback.format_exc(), encoding="utf-8")
            sys.exit(1)
    shutil.rmtree(lock, ignore_errors=True)


def beside(run: Path, ending: str) -> Path:
    """A file next to a run's folder; a setting in the folder's name may hold a dot."""
    return run.with_name(f"{run.name}.{ending}")


def _end_with_parent() -> None:
    parent = os.getppid()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(0.5)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _result(job: Job) -> dict[str, Any]:
    out = job.config.out
    try:
        resume(out) if (out / "data.json").is_file() else train(job.config)
    except RunError as error:
        if not (out / "not_finite.json").is_file():
            raise
        # A loss that is not finite is a finding about the method, and the others can be compared all the same.
        return job.told | {"failed": str(error).replace(f"{out}: ", "")}
    except ConfigError as error:
        if job.test_store is not None:
            raise
        return job.told | {"failed": str(error)}  # a setting that this store does not allow loses its trial
    lines = read_lines(out / "metrics.jsonl")
    if not lines or lines[-1]["step"] < job.config.steps:  # told to end
        raise RunError("stopped before its last step")
    curve = [[line["step"], line["validation"]["top1"]] for line in lines if "validation" in line]
    row = job.told | {
        "validation": max(value for _, value in curve) if curve else None,
        "curve": curve,
        "losses": [[line["step"], line["losses"]] for line in lines if "losses" in line][-1][1],
        "step_seconds": statistics.median(line["step_seconds"] for line in lines if "step_seconds" in line),
        "peak_memory_bytes": _peak_memory(),
    }
    if job.test_store is not None:
        try:
            row |= _test(job, Store(job.test_store))
        except NotFiniteError as error:
            return job.told | {"failed": str(error)}
    else:
        for folder in ("last", "best"):  # of a trial only the figures are of use
            shutil.rmtree(out / folder, ignore_errors=True)
    return row


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # no such counter on this system
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def has_gallery(store: Store, splits: str, view: View) -> bool:
    """Whether a split, or several joined by "+", has a labelled clip that can be found by what the view looks at."""
    try:
        clips = labelled_clips(store, splits)
    except StoreError:
        return False
    return bool(has_modality(store, clips, view).any())


def _test(job: Job, store: Store) -> dict[str, Any]:
    """Figures on the test clips; `correct` is a 0 or 1 for each, in the order of `clips`, for paired statistics."""
    run, split, device = job.config.out, job.test_split, job.config.device
    result = evaluate(run, store, split=split, device=device)
    several = "top1" not in result.figures
    correct = [
        row["predicted_1"] in str(row["labels"]).split("|") if several else row["predicted"] == row["label"]
        for row in result.predictions
    ]
    keep = ("top1", "mean_class_accuracy", "calibration_error", "map", "auc", "d_prime")
    figures = {key: result.figures[key] for key in keep if key in result.figures}
    if not several and has_gallery(store, job.gallery, job.config.student.view):
        found = retrieve(run, store, queries=split, gallery=job.gallery, device=device).figures
        figures |= {"hit@1": found["hit@1"], "map": found["map"]}
    student, _ = load_student(run)
    return figures | {
        "test_clips": len(correct),
        "correct": "".join("1" if right else "0" for right in correct),
        "parameters": sum(p.numel() for p in student.parameters()),
    }


def steps_done(job: Job) -> int:
    """How far a run under way has come."""
    lines = read_lines(job.config.out / "metrics.jsonl")
    return int(lines[-1]["step"]) if lines else 0
