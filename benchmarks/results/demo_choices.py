"""What the demo's difficulty and settings were chosen from: other clips (data seed 1) and other seeds than the demo's.

    python benchmarks/results/demo_choices.py --out DIR [--workers 2]

First the difficulty, from supervised students and the teacher alone: the video must be hard with the few labels and
much better with all of them, the audio good where it is the thing's own. Only then settings of the methods.
Writes `results/demo_choices.json`; stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import csv
import json
import multiprocessing
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import replace
from pathlib import Path
from typing import Any

from avdistill.analysis.demo import DEMO_DATA, DEMO_DATASET
from avdistill.annotations import read_annotations
from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.classification import evaluate
from avdistill.executors.parent import end_with_parent
from avdistill.fsio import write_json
from avdistill.methods import MethodConfig, teacher_requirement
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.robust_csc import RobustCSCConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.preparation.prepare import prepare
from avdistill.synthetic.generator import synthesize
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training import TrainConfig
from avdistill.training.recipes import RECIPES
from avdistill.training.run_dir import machine
from grid import run

RESULTS = Path(__file__).resolve().parents[2] / "results" / "demo_choices.json"
DATA = replace(DEMO_DATA, seed=1)
SEEDS = (10, 11, 12)
SETTINGS: dict[str, MethodConfig] = {
    "": SupervisedConfig(),
    "T 4": KDConfig(),
    "T 2": KDConfig(temperature=2.0),
    "released": MNFCSCConfig(),
    "teacher's pseudo-labels": MNFCSCConfig(unlabeled="pseudo_label"),
    "contrast x 0.1": MNFCSCConfig(calibration_weight=0.1),
    "labeled clips only": MNFCSCConfig(unlabeled="unused"),
    "labeled clips only, contrast x 0.3": MNFCSCConfig(unlabeled="unused", calibration_weight=0.3),
    "labeled clips only, contrast x 0.1": MNFCSCConfig(unlabeled="unused", calibration_weight=0.1),
    "noise model": RobustCSCConfig(),
}


def row(config: TrainConfig, setting: str) -> dict[str, Any]:
    """One student."""
    top1_accuracy = evaluate(run(config), ClipDataset(config.dataset)).metrics.to_dict()["top1_accuracy"]
    return {"method": config.method.name, "setting": setting, "seed": config.seed, "top1_accuracy": top1_accuracy}


def audio(dataset: ClipDataset, predictions: list[dict[str, object]]) -> dict[str, float]:
    """Top-1 by what the clip's audio is."""
    kinds = dict(
        zip(dataset.columns["id"].tolist(), (dict(e)["audio"] for e in dataset.table["extra"].to_pylist()), strict=True)
    )
    right: dict[str, list[bool]] = {}
    for p in predictions:
        right.setdefault(kinds[p["id"]], []).append(p["label"] == p["predicted"])
    return {kind: sum(values) / len(values) for kind, values in right.items()}


def with_all_labels(annotations: Path) -> Path:
    """The same list with every training clip labeled by its truth."""
    path = annotations.with_name("all_labels.csv")
    with annotations.open(encoding="utf-8", newline="") as source, path.open("w", encoding="utf-8", newline="") as out:
        reader = csv.DictReader(source)
        writer = csv.DictWriter(out, reader.fieldnames or [])
        writer.writeheader()
        writer.writerows({**line, "label": line["true_label"]} for line in reader)
    return path


def difficulty(out: Path, few: ClipDataset, every: ClipDataset, pool: ProcessPoolExecutor) -> list[dict[str, Any]]:
    """Supervised with few and with all labels, and the teacher."""
    base = replace(RECIPES["demo_supervised"], seed=SEEDS[0])
    configs = [
        replace(base, dataset=few.folder, out=out / "supervised-few"),
        replace(base, dataset=every.folder, out=out / "supervised-all"),
    ]
    rows: list[dict[str, Any]] = []
    names = ("video student, few labels", "video student, all labels")
    for what, config, told in zip(names, configs, pool.map(row, configs, names), strict=True):
        labels = json.loads((config.out / "data.json").read_text(encoding="utf-8"))["labeled"]
        rows.append({"what": what, "labels": labels, "top1_accuracy": told["top1_accuracy"]})
    teacher = run(replace(RECIPES["demo_teacher"], dataset=few.folder, out=out / "teacher"))
    heard = evaluate(teacher, few)
    labels = json.loads((teacher / "data.json").read_text(encoding="utf-8"))["labeled"]
    rows.append(
        {
            "what": "audio teacher",
            "labels": labels,
            "top1_accuracy": heard.metrics.to_dict()["top1_accuracy"],
            **audio(few, heard.predictions),
        }
    )
    return rows


def main() -> None:
    """Difficulty first, then settings."""
    parser = argparse.ArgumentParser(description="what the demo was chosen from")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=2)
    a = parser.parse_args()
    a.out.mkdir(parents=True, exist_ok=True)
    annotations = synthesize(a.out / "data", DATA, workers=a.workers)
    videos = a.out / "data" / "videos"
    few, every = (
        prepare(read_annotations(listed), videos, a.out / name, DEMO_DATASET, workers=a.workers)
        for listed, name in ((annotations, "few"), (with_all_labels(annotations), "all"))
    )
    report: dict[str, Any] = {
        "command": "python benchmarks/results/demo_choices.py --out DIR",
        "environment": machine(),
        "data": encode(DATA),
        "difficulty": [],
        "students": [],
    }
    if RESULTS.is_file() and (earlier := json.loads(RESULTS.read_text(encoding="utf-8")))["data"] == report["data"]:
        report["students"] = earlier["students"]
    done = {(r["method"], r["setting"], r["seed"]) for r in report["students"]}
    with ProcessPoolExecutor(
        a.workers, mp_context=multiprocessing.get_context("spawn"), initializer=end_with_parent
    ) as pool:
        report["difficulty"] = difficulty(a.out, few, every, pool)
        write_json(RESULTS, report)
        print(json.dumps(report["difficulty"], indent=1), flush=True)
        if "audio" not in few.teachers:
            embed(few, load_teacher(a.out / "teacher"), "audio")
        futures = []
        for seed in SEEDS:
            for setting, method in SETTINGS.items():
                name = f"{method.name}-{setting}-{seed}".replace(" ", "_").replace("'", "")
                teacher = "audio" if teacher_requirement(method) else None
                config = replace(RECIPES["demo"], dataset=few.folder, out=a.out / name, method=method, teacher=teacher)
                config = replace(config, seed=seed)
                if (method.name, setting, seed) not in done:
                    futures.append(pool.submit(row, config, setting))
        order = list(SETTINGS)
        for future in as_completed(futures):
            report["students"].append(future.result())
            report["students"].sort(key=lambda r: (order.index(r["setting"]), r["seed"]))
            write_json(RESULTS, report)
            print(future.result(), flush=True)


if __name__ == "__main__":
    main()
