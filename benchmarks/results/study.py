"""Where the audio helps, where it misleads, and what each method makes of it: `results/study.csv` and `audit.csv`.

    python benchmarks/results/study.py tune --grid DIR --work DIR
    python benchmarks/results/study.py run --grid DIR --boxes DIR --synthetic DIR --work DIR [--data grid] [--methods
    kd] python benchmarks/results/study.py report

`--grid` is the `--work` of `study_grid.py`, `--boxes` that of `actor_boxes.py`, `--synthetic` that of
`methods.py --data-only`.
Every run is written to `results/study/runs.jsonl` as it ends, with what is right and wrong of every test clip; the CSV
files are made from it, and what stands there is not run again, on this machine or another.

Settings are tuned under one corruption only (`TUNED_ON`), at full length on two seeds of their own, judged on the
images of the 160 clips that are the audio teacher's: no student is trained on them (but `supervised_plus`), and they
are not the test clips. Every method has four settings to choose from (`TRIALS`) but those that are what they are:
`mnf_csc` is the released form, and `supervised` and `supervised_plus` have no settings. `supervised` hears nothing: its
runs count for clean and swapped, and where every clip is labeled for the methods that differ from it on unlabeled
clips only (`FOR_UNLABELED`).
The last step's student is taken; with 20 labeled clips there is nothing to choose one by.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import statistics
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import methods as synthetic
from avdistill.analysis.audit.audit import audit
from avdistill.analysis.benchmark.jobs import PRELOAD, Job, check_ended, do_job
from avdistill.analysis.benchmark.report import read_lines
from avdistill.analysis.benchmark.study import folder_name
from avdistill.corruption import Corruption, corrupt, parse_corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_split, labeled_clips
from avdistill.executors.local import LocalExecutor
from avdistill.fsio import write_json
from avdistill.inputs import VideoInput
from avdistill.methods import parse_method, teacher_requirement
from avdistill.reporting.tables import summarize
from avdistill.teachers.transfer import transfer_features
from avdistill.training import ModelConfig, OptimizerConfig, TrainConfig
from avdistill.training.run_dir import machine

RESULTS = Path(__file__).resolve().parents[2] / "results" / "study"
SEEDS = (0, 1, 2, 3, 4)
TUNING_SEEDS = (1000, 1001)
TUNED_ON = ("labeled_videos=70", 0.4)

# Frames as channels in a 2-D network: nothing that sees motion is cheaper on two cores.
GRID = TrainConfig(
    dataset=Path(),
    out=Path(),
    student=ModelConfig(
        "stacked_frames",
        VideoInput(frames=16, size=(20, 36), hflip=False, resize=False),
        {"frames": 16, "width": 16, "embedding_dim": 128},
    ),
    val_fraction=0.0,
    steps=2400,
    batch_size=48,
    labeled_per_batch=16,
    optimizer=OptimizerConfig("adamw", 3e-3, 3e-2, "cosine", warmup_steps=100, max_grad_norm=5.0),
    eval_every=10_000,
)
BOXES = replace(
    GRID,
    student=ModelConfig(
        "stacked_frames",
        VideoInput(frames=24, size=(24, 32), scale=(1.0, 1.0), ratio=(4 / 3, 4 / 3)),
        {"frames": 24, "width": 16, "embedding_dim": 64},
    ),
    steps=1000,
    batch_size=32,
    labeled_per_batch=12,
)
SYNTHETIC = replace(synthetic.BASE, steps=960, val_fraction=0.0, eval_every=10_000)


@dataclass(frozen=True)
class Data:
    """A data set of the study: how a run is made, and `labels` (number of labeled clips -> corruption) x `wrong`.

    `every` is the number of labeled clips where no clip is without a label.
    """

    base: TrainConfig
    labels: dict[int, str]
    wrong: tuple[float, ...]
    every: int | None = None


DATA = {
    "grid": Data(GRID, {70: "labeled_videos=70", 20: "labeled_videos=20", 400: "clean"}, (0.0, 0.4), 400),
    "ucf51_actor_boxes": Data(BOXES, {678: "clean", 70: "labeled_per_class=10"}, (0.0,), 678),
    "synthetic": Data(SYNTHETIC, {360: "clean"}, (0.0, 0.2, 0.4, 0.6)),
}
#: method as the tables call it -> settings tried; "" is the published one. What stands after a comma is no method.
TRIALS = {
    "pseudo_label": ("", "confidence=0.5", "weight=3.0", "weight=0.3"),
    "kd": ("", "temperature=1.0", "temperature=2.0", "temperature=1.0,weight=3.0"),
    "robust": ("", "weight=3.0", "temperature=0.5", "temperature=2.0"),
    "mnf_csc": ("",),
    "mnf_csc, best temperature": (
        "temperature=sample",
        "temperature=fixed",
        "temperature=fixed,threshold=0.2",
        "temperature=fixed,unlabeled=pseudo_label",
    ),
    "fitnet": ("", "weight=0.1", "weight=0.3", "weight=3.0"),
    "ccl": ("", "weight=0.1", "weight=0.3", "temperature=0.1"),
    "c2kd": ("", "proxy_weight=0.3", "proxy_weight=0.1", "weight=0.3"),
}
#: `robust` on a dataset whose mismatched audio was removed: what perfect mismatch probabilities would give
TOLD = "robust, mismatched audio removed"
METHODS = ("supervised", *TRIALS, TOLD, "supervised_plus")
#: without an unlabeled clip these have no term but that of `supervised`: the same run, bit by bit, as a test says
FOR_UNLABELED = ("pseudo_label", "robust")
AUDITED = ("robust", "pseudo_label", "kd", "mnf_csc")


def make_dataset(base: ClipDataset, work: Path, labels: str, wrong: float, kind: str = "mismatched") -> ClipDataset:
    """The dataset under a corruption, with the teacher's features."""
    text = ",".join(part for part in (labels, f"{kind}={wrong:g}" if wrong else "clean") if part != "clean") or "clean"
    corruption = parse_corruption(text)
    if corruption == Corruption():
        return base
    made = corrupt(base, corruption, work / "datasets" / folder_name(corruption.name))
    transfer_features(base, made, "audio")
    return made


def make_job(
    name: str, setting: str, base: TrainConfig, dataset: ClipDataset, out: Path, seed: int, told: dict[str, Any]
) -> Job:
    """A run of a method; `told` says where it belongs. Tested on the base dataset's clips, which no corruption
    changes.
    """
    plain = {"supervised_plus": "supervised"}.get(name, name.partition(",")[0])
    method = parse_method(f"{plain}:{setting}" if setting else plain)
    config = replace(
        base,
        dataset=dataset.folder,
        out=out / f"{folder_name(name)}{'-' + folder_name(setting) if setting else ''}-{seed}",
        method=method,
        teacher="audio" if teacher_requirement(method) else None,
        train_split="train+teacher" if name == "supervised_plus" else "train",
        seed=seed,
    )
    split = "teacher" if "tuning" in told else "test"
    return Job("", name, "", config, 1, dataset.folder, split, told | {"setting": setting})


def key(row: dict[str, Any]) -> tuple[Any, ...]:
    """What makes a run of the study the same run."""
    return tuple(row[name] for name in ("data", "labeled_clips", "wrong_audio", "method", "seed"))


def work_through(jobs: Iterable[Job], workers: int) -> Iterator[Job]:
    """Yield the jobs as they end."""
    pool, waiting = LocalExecutor(workers, PRELOAD), list(jobs)
    try:
        while waiting or pool.running:
            while waiting and pool.free:
                if not (job := waiting.pop(0)).metrics.is_file():
                    pool.start(job, do_job, job)
                else:
                    yield job
            yield from map(check_ended, pool.collect())
    finally:
        pool.stop()


def finished(job: Job) -> dict[str, Any]:
    """A line of `runs.jsonl`; for a run with mismatched audio also the result of its audit."""
    metrics = json.loads(job.metrics.read_text(encoding="utf-8"))
    keep = (
        "setting",
        "top1_accuracy",
        "mean_class_accuracy",
        "expected_calibration_error",
        "hit@1",
        "map",
        "losses",
        "correct",
        "failed",
    )
    steps = read_lines(job.config.out / "metrics.jsonl")
    row = job.metadata | {name: metrics[name] for name in keep if name in metrics}
    row["steps"] = job.config.steps
    row["seconds"] = round(
        job.config.steps * statistics.median(s["step_seconds"] for s in steps if "step_seconds" in s), 1
    )
    if job.metadata["wrong_audio"] and job.method in AUDITED:
        row["audit"] = audit(job.config.out, ClipDataset(job.config.dataset)).metrics["truth"]
    return row


def tune(a: argparse.Namespace) -> None:
    """Try the settings of every method under one corruption; `results/study/tuning.json` holds metrics and choices."""
    labels, wrong = TUNED_ON
    dataset = make_dataset(ClipDataset(a.grid / "dataset"), a.work / "grid", labels, wrong)
    path = RESULTS / "tuning.json"
    rows = json.loads(path.read_text(encoding="utf-8"))["trials"] if path.is_file() else []
    done = {(row["method"], row["setting"], row["seed"]) for row in rows}
    jobs = [
        make_job(name, setting, GRID, dataset, a.work / "tuning", seed, {"tuning": True, "method": name, "seed": seed})
        for seed in TUNING_SEEDS
        for name in a.methods or TRIALS
        for setting in TRIALS[name]
        if (name, setting, seed) not in done
    ]
    for job in work_through(jobs, a.workers):
        metrics = json.loads(job.metrics.read_text(encoding="utf-8"))
        # A run that diverged has no figure.
        rows.append(
            {name: job.metadata[name] for name in ("method", "setting", "seed")}
            | {"top1_accuracy": metrics.get("top1_accuracy", 0.0)}
        )
        rows.sort(key=lambda r: (list(TRIALS).index(r["method"]), TRIALS[r["method"]].index(r["setting"]), r["seed"]))
        told = {
            "command": "python benchmarks/results/study.py tune --grid DIR --work DIR",
            "corruption": f"grid, {labels}, mismatched={wrong:g}; judged on the teacher's 160 clips",
            "steps": GRID.steps,
            "trials": rows,
            "chosen": best_settings(rows),
        }
        write_json(path, told)
        print(*job.metadata.values(), metrics.get("top1_accuracy"), file=sys.stderr, flush=True)


def best_settings(trials: list[dict[str, Any]]) -> dict[str, str]:
    """Of every method the setting with the best mean over the seeds; of equal ones the first tried."""
    means: dict[str, dict[str, float]] = {}
    for row in summarize(trials, by=("method", "setting")):
        means.setdefault(str(row["method"]), {})[str(row["setting"])] = cast(float, row["top1_accuracy"])
    return {name: max(of, key=lambda setting: of[setting]) for name, of in means.items()}


def run(a: argparse.Namespace) -> None:
    """Every run that is asked for and not yet in `runs.jsonl`."""
    chosen = json.loads((RESULTS / "tuning.json").read_text(encoding="utf-8"))["chosen"]
    bases = {
        "grid": a.grid and ClipDataset(a.grid / "dataset"),
        "ucf51_actor_boxes": a.boxes and ClipDataset(a.boxes / "dataset"),
        "synthetic": a.synthetic and ClipDataset(a.synthetic / "dataset"),
    }
    path = RESULTS / "runs.jsonl"
    done = {key(row) for row in read_lines(path, "method")}
    about = RESULTS / "test_clips.json"
    told = json.loads(about.read_text(encoding="utf-8")) if about.is_file() else {}
    write_json(about, told | {name: test_clips(bases[name], DATA[name], a.work / name) for name in a.data})
    jobs = []
    for seed in SEEDS:
        for name in a.data:
            for labeled, labels in DATA[name].labels.items():
                for wrong in DATA[name].wrong:
                    work = a.work / name
                    for method in a.methods or METHODS:
                        told = {
                            "data": name,
                            "labeled_clips": labeled,
                            "wrong_audio": wrong,
                            "method": method,
                            "seed": seed,
                        }
                        if key(told) in done or not wanted(method, name, labeled, wrong):
                            continue
                        if a.labeled and labeled not in a.labeled:
                            continue
                        kind = "dropped" if method == TOLD else "mismatched"
                        dataset = make_dataset(bases[name], work, labels, wrong, kind)
                        out = work / f"{labeled}-{wrong:g}"
                        setting = chosen.get("robust" if method == TOLD else method, "")
                        jobs.append(make_job(method, setting, DATA[name].base, dataset, out, seed, told))
    for number, job in enumerate(work_through(jobs, a.workers), 1):
        row = finished(job)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
            file.flush()
            os.fsync(file.fileno())
        report(a)
        print(f"{number} of {len(jobs)}:", *key(row), row.get("top1_accuracy"), file=sys.stderr, flush=True)


def wanted(method: str, data: str, labeled: int, wrong: float) -> bool:
    """Whether a run says anything new: what hears nothing hears nothing swapped, and TOLD needs something to remove."""
    if method == "supervised_plus":
        return data == "grid" and not wrong
    if labeled == DATA[data].every and method in (*FOR_UNLABELED, TOLD):
        return False
    return not wrong if method == "supervised" else bool(wrong) or method != TOLD


def test_clips(base: ClipDataset, data: Data, work: Path) -> dict[str, Any]:
    """What the `correct` of a run are of: video and label of each test clip, and which classes have labels."""
    clips = labeled_clips(base, "test")
    labels = [base.labels[i][0] for i in clips]
    known = {}
    for labeled, corruption in data.labels.items():
        dataset = make_dataset(base, work, corruption, 0.0)
        rows = clips_of_split(dataset, "train")
        known[str(labeled)] = sorted({name for i in rows for name in dataset.labels[i]})
    return {"video": base.columns["path"][clips].tolist(), "label": labels, "labeled_classes": known}


def study_rows(lines: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """The runs in the order of the tables; a run that is several methods' or corruptions' at once stands under each."""
    rows = []
    for line in lines:
        data, deaf = DATA[line["data"]], line["method"] in ("supervised", "supervised_plus")
        same = FOR_UNLABELED if line["method"] == "supervised" and line["labeled_clips"] == data.every else ()
        for wrong in data.wrong if deaf else (line["wrong_audio"],):
            corruption = {"wrong_audio": wrong, "corruption": "mismatched" if wrong else "clean"}
            rows += [line | corruption | {"method": method} for method in (line["method"], *same)]
    order = list(DATA), list(METHODS)
    return sorted(
        rows,
        key=lambda r: (
            order[0].index(r["data"]),
            r["labeled_clips"],
            r["wrong_audio"],
            order[1].index(r["method"]),
            r["seed"],
        ),
    )


def report(_: argparse.Namespace) -> None:
    """`study.csv` and `audit.csv` from the runs."""
    rows = study_rows(read_lines(RESULTS / "runs.jsonl", "method"))
    columns = (
        "data",
        "corruption",
        "labeled_clips",
        "wrong_audio",
        "method",
        "seed",
        "top1_accuracy",
        "mean_class_accuracy",
        "seconds",
    )
    _write_csv(RESULTS.parent / "study.csv", columns, rows)
    found = [
        {"data": row["data"], "labeled": "yes" if line["group"] == "labeled" else "no"}
        | {name: row[name] for name in ("wrong_audio", "method", "seed", "labeled_clips")}
        | {name: line[name] for name in ("score", "auroc", "average_precision")}
        for row in rows
        for line in row.get("audit", ())
        if line["score"] == "mismatch_score"
    ]
    of_audit = ("data", "labeled", "wrong_audio", "method", "seed", "auroc", "average_precision", "labeled_clips")
    _write_csv(RESULTS.parent / "audit.csv", of_audit, found)
    facts = machine()
    write_json(RESULTS / "environment.json", facts)


def _write_csv(path: Path, columns: tuple[str, ...], rows: list[dict[str, Any]]) -> None:
    temporary = path.with_suffix(".partial")
    with temporary.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, columns, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(rows)
    temporary.replace(path)


def main() -> None:
    """One of the three."""
    parser = argparse.ArgumentParser(description="the study of methods under clean and mismatched audio")
    parser.add_argument("what", choices=("tune", "run", "report"))
    parser.add_argument("--grid", type=Path)
    parser.add_argument("--boxes", type=Path)
    parser.add_argument("--synthetic", type=Path)
    parser.add_argument("--work", type=Path)
    parser.add_argument("--data", nargs="*", choices=list(DATA), default=list(DATA))
    parser.add_argument("--methods", nargs="*", choices=list(METHODS))
    parser.add_argument("--labeled", nargs="*", type=int, help="only these numbers of labeled clips")
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    RESULTS.mkdir(parents=True, exist_ok=True)
    {"tune": tune, "run": run, "report": report}[a.what](a)


if __name__ == "__main__":
    main()
