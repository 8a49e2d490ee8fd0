"""Why released MNF + CSC loses on synthetic videos with 30% labels, a question a row: `results/why_mnf_csc.csv`.

    python benchmarks/results/why_mnf_csc.py --work DIR

Data, teacher and student are those of `methods.py` (`--work` may be its folder): 360 of 1200 clips labeled, clean
audio, 960 steps. Each experiment changes one thing. A row is appended as its run ends; the same command goes on.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import torch

import methods
from avdistill.annotations import read_annotations
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.retrieval import retrieve
from avdistill.methods import parse_method, teacher_requirement
from avdistill.preparation.prepare import prepare
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.teachers.transfer import transfer_features
from avdistill.training import train_to_end
from demo_choices import with_all_labels
from resumable import append_row, read_rows

TABLE = Path(__file__).resolve().parents[2] / "results" / "why_mnf_csc.csv"
SEEDS = (0, 1)
BASE = replace(methods.BASE, steps=960, val_fraction=0.0, eval_every=10_000)


@dataclass(frozen=True)
class Experiment:
    """One run: what it asks, its method, and what differs from the others."""

    question: str
    method: str
    labeled_per_batch: int | None = 12
    teacher: str = "audio"
    data: str = "30% labels"


EXPERIMENTS = (
    Experiment("no distillation", "supervised"),
    Experiment("the released method", "mnf_csc"),
    Experiment("without unlabeled clips in the batch: no distillation", "supervised", 24),
    Experiment("without unlabeled clips in the batch", "mnf_csc", 24),
    Experiment("the contrast alone off", "mnf_csc:calibration_weight=0"),
    Experiment("a weaker contrast", "mnf_csc:calibration_weight=0.1"),
    Experiment("unlabeled clips with the teacher's class", "mnf_csc:unlabeled=pseudo_label"),
    Experiment("a sharp temperature", "mnf_csc:temperature=fixed"),
    Experiment("both", "mnf_csc:temperature=fixed,unlabeled=pseudo_label"),
    Experiment("a teacher that knows little (40 training steps)", "mnf_csc", teacher="weak"),
    Experiment("every clip labeled: no distillation", "supervised", None, data="all labels"),
    Experiment("every clip labeled", "mnf_csc", None, data="all labels"),
    Experiment("the noise model of robust_csc", "robust_csc"),
)


def datasets(work: Path) -> dict[str, Path]:
    """The dataset with both teachers, and the same with every label."""
    dataset, _ = methods.make_data(work, workers=1)
    if "weak" not in dataset.teachers:
        run = work / "weak_teacher"
        train_to_end(replace(methods.TEACHER, dataset=dataset.folder, out=run, steps=40))
        embed(dataset, load_teacher(run), "weak")
        dataset = ClipDataset(dataset.folder)
    listed = read_annotations(with_all_labels(work / "data" / "annotations.csv"))
    every = prepare(listed, work / "data" / "videos", work / "dataset_all_labels", methods.PREPARE, workers=1)
    if "audio" not in every.teachers:
        transfer_features(dataset, every, "audio")
    return {"30% labels": dataset.folder, "all labels": every.folder}


def main() -> None:
    """Run what has no row yet."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--work", type=Path, required=True)
    work = parser.parse_args().work
    torch.set_num_threads(1)
    folders = datasets(work)
    done = {(row["question"], int(row["seed"])) for row in read_rows(TABLE)}
    for seed in SEEDS:
        for number, asked in enumerate(EXPERIMENTS):
            if (asked.question, seed) in done:
                continue
            method, folder = parse_method(asked.method), folders[asked.data]
            config = replace(
                BASE,
                dataset=folder,
                out=work / "why" / f"{number}-{seed}",
                method=method,
                teacher=asked.teacher if teacher_requirement(method) else None,
                labeled_per_batch=asked.labeled_per_batch,
                seed=seed,
            )
            run = train_to_end(config)
            tested = evaluate(run, ClipDataset(folder)).metrics.to_dict()
            found = retrieve(run, ClipDataset(folder)).metrics.to_dict()
            row = {"question": asked.question, "method": asked.method, "seed": seed}
            row |= {"top1_accuracy": round(tested["top1_accuracy"], 5), "map": round(found["map"], 5)}
            append_row(TABLE, row)


if __name__ == "__main__":
    main()
