"""The runs of a study: each has a process of its own, and its result is written as soon as it ends."""

import shutil
import statistics
import sys
import traceback
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from avdistill.analysis.benchmark.report import read_lines
from avdistill.config_io import read_json
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import has_modality, labeled_clips
from avdistill.errors import ConfigError, DatasetError, NotFiniteError, RunError
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.multilabel import MultilabelMetrics
from avdistill.evaluation.retrieval import retrieve
from avdistill.executors.executor import Ended, describe
from avdistill.fsio import error_message, open_lock, replace_text, write_json
from avdistill.inputs import View
from avdistill.methods import trust_file
from avdistill.models.checkpoint import load_student
from avdistill.training import TrainConfig, resume, train

# What every run imports. An optimizer imports torch's compiler when it is made, which takes seconds.
PRELOAD = ("avdistill.analysis.benchmark.jobs", "torch._dynamo")


@dataclass(frozen=True, eq=False)
class Job:
    """One run: what a worker process gets.

    Attributes:
        test_dataset: None for a trial, which is not tested.
        test_split: whose labeled clips are classified and looked up.
        gallery: split of the test dataset that they are looked up in; where it holds nothing to find, they are not.
        metadata: copied into the result.
        method_file: SHA-256 of a custom method's file, which the study was given and the worker may run.
    """

    corruption: str
    method: str
    run: str
    config: TrainConfig
    threads: int
    test_dataset: Path | None
    test_split: str
    metadata: dict[str, Any]
    gallery: str = "train"
    method_file: str | None = None

    @property
    def metrics(self) -> Path:
        """Where its result will be."""
        return self.config.out / "metrics.json"


def do_job(job: Job) -> None:
    """Train one run (or take it up), evaluate it and write `metrics.json`: a task, in a process of its own.

    A failure is raised, with its traceback in a file beside the run.
    """
    torch.set_num_threads(job.threads)
    try:
        _finish_job(job)
    except BaseException:
        with suppress(OSError):  # a full disk has no room for it
            replace_text(sibling_path(job.config.out, "error.txt"), traceback.format_exc())
        raise


def check_ended(ended: Ended) -> Job:
    """The job of a task that has ended. Raises RunError where it left no result."""
    job = ended.key
    assert isinstance(job, Job)
    if not job.metrics.is_file():
        reason = "it left no result" if ended.error is None else describe(ended.error)
        raise RunError(
            f"{job.config.out}: {reason.removeprefix(f'{job.config.out}: ')}; the same command continues"
        ) from ended.error
    return job


def _finish_job(job: Job) -> None:
    trust_file(job.method_file)
    job.config.out.parent.mkdir(parents=True, exist_ok=True)
    # A killed study's worker may still be at this run for a moment: wait until it is gone.
    lock = sibling_path(job.config.out, "lock")
    lock.mkdir(exist_ok=True)
    with open_lock(lock, wait=True):
        if job.metrics.is_file():
            return
        sibling_path(job.config.out, "error.txt").unlink(missing_ok=True)
        result = _result(job)
        job.metrics.parent.mkdir(exist_ok=True)  # a setting may be refused before there is a run
        write_json(job.metrics, result)
    shutil.rmtree(lock, ignore_errors=True)


def read_result(job: Job) -> dict[str, Any]:
    """What `metrics.json` of a finished job holds. Raises RunError where it is damaged or of another job."""
    try:
        row = read_json(job.metrics)
        if not isinstance(row, dict) or any(row[key] != value for key, value in job.metadata.items()):
            raise ValueError("it is of another run")
        if "failed" not in row and not {"validation", "curve", "losses", "step_seconds"} <= row.keys():
            raise ValueError("it is not whole")
    except (OSError, ValueError, KeyError) as error:
        raise RunError(f"{job.metrics}: damaged: {error_message(error):.160}; remove it to repeat the run") from error
    return row


def sibling_path(run: Path, ending: str) -> Path:
    """A file next to a run's folder; a setting in the folder's name may hold a dot."""
    return run.with_name(f"{run.name}.{ending}")


def _result(job: Job) -> dict[str, Any]:
    out = job.config.out
    try:
        resume(out) if (out / "data.json").is_file() else train(job.config)
    except (RunError, ConfigError) as error:
        # A setting that the dataset does not allow loses its trial. A loss that is not finite is a finding about the
        # method: the others can be compared all the same.
        refused = job.test_dataset is None and not (out / "data.json").is_file()
        if not refused and not (out / "not_finite.json").is_file():
            raise
        return job.metadata | {"failed": str(error).replace(f"{out}: ", "")}
    lines = read_lines(out / "metrics.jsonl")
    if not lines or lines[-1]["step"] < job.config.steps:  # stopped by a signal
        raise RunError("stopped before its last step")
    curve = [[line["step"], line["validation"]["top1_accuracy"]] for line in lines if "validation" in line]
    row = job.metadata | {
        "validation": max(value for _, value in curve) if curve else None,
        "curve": curve,
        "losses": [[line["step"], line["losses"]] for line in lines if "losses" in line][-1][1],
        "step_seconds": statistics.median(line["step_seconds"] for line in lines if "step_seconds" in line),
        "peak_memory_bytes": _peak_memory(),
    }
    if job.test_dataset is not None:
        try:
            row |= _test(job, ClipDataset(job.test_dataset))
        except NotFiniteError as error:
            return job.metadata | {"failed": str(error)}
    else:
        for folder in ("last", "best"):  # of a trial only the metrics are of use
            shutil.rmtree(out / folder, ignore_errors=True)
    return row


def _peak_memory() -> int | None:
    try:
        import resource
    except ImportError:  # no such counter on this system
        return None
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def has_gallery(dataset: ClipDataset, splits: str, view: View) -> bool:
    """Whether a split, or several joined by "+", has a labeled clip that can be found by what the view looks at."""
    try:
        clips = labeled_clips(dataset, splits)
    except DatasetError:
        return False
    return bool(has_modality(dataset, clips, view).any())


def _test(job: Job, dataset: ClipDataset) -> dict[str, Any]:
    """Metrics on the test clips; `correct` is a 0 or 1 for each, in the order of `clips`, for paired statistics."""
    run, split, device = job.config.out, job.test_split, job.config.device
    searched = has_gallery(dataset, job.gallery, job.config.student.view)
    result = evaluate(run, dataset, split=split, device=device, keep_embedding=searched)
    several = isinstance(result.metrics, MultilabelMetrics)
    correct = [
        row["predicted_1"] in str(row["labels"]).split("|") if several else row["predicted"] == row["label"]
        for row in result.predictions
    ]
    keep = ("top1_accuracy", "mean_class_accuracy", "expected_calibration_error", "map", "auc", "d_prime")
    metrics = {key: value for key, value in result.metrics.to_dict().items() if key in keep}
    if not several and searched:
        found = retrieve(
            run, dataset, query_split=split, gallery_split=job.gallery, device=device, query_embedding=result.embedding
        ).metrics
        metrics |= {"hit@1": found.hit[1], "map": found.map}
    student, _ = load_student(run)
    return metrics | {
        "test_clips": len(correct),
        "correct": "".join("1" if right else "0" for right in correct),
        "parameters": sum(p.numel() for p in student.parameters()),
    }


def steps_done(job: Job) -> int:
    """How far a run under way has come; 0 where its lines are damaged, which it writes anew when it is resumed."""
    try:
        lines = read_lines(job.config.out / "metrics.jsonl")
    except RunError:
        return 0
    return int(lines[-1]["step"]) if lines else 0
