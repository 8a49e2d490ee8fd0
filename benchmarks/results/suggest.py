"""What `suggest` is worth: accuracy with 50 suggested labels beside 50 random ones. `results/suggest.json`.

    python benchmarks/results/suggest.py --work DIR

DIR is the `--work` of `ucf51.py`: 14 classes of UCF51. The space is that of a frozen EfficientNet-Lite0 (feature
`lite0`), no clip is labeled at first, and the accuracy is that of logistic regression on the same features, trained on
the chosen clips alone (on test groups; C was chosen for random clips of split 0). `random` draws clips, `random_videos`
source videos and one clip of each: what a person would do who knows that clips of one upload look alike.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

import numpy as np
from sklearn.linear_model import LogisticRegression

from avdistill.analysis.suggest import choose
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_splits
from avdistill.fsio import write_json
from avdistill.training.run_dir import machine
from ucf51 import LITE0, RESULTS, TESTED, TRAINED, groups
from ucf51_features import embedding_of

COUNT, SEEDS, SPLITS = 50, range(5), (1, 2, 3)
SETTINGS = (0.1, 1.0, 10.0, 100.0)
WAYS = ("suggested", "random", "random_videos")


def chosen(way: str, embedding: np.ndarray, videos: np.ndarray, seed: int) -> np.ndarray:
    """Rows of the training clips to label."""
    if way == "suggested":
        return np.array(choose(embedding, np.zeros(len(videos), bool), videos, count=COUNT, seed=seed))
    rng = np.random.default_rng(seed)
    if way == "random":
        return rng.choice(len(videos), COUNT, replace=False)
    drawn = rng.choice(np.unique(videos), COUNT, replace=False)
    return np.array([rng.choice(np.flatnonzero(videos == video)) for video in drawn])


def main() -> None:
    """Choose C on split 0, then measure every way on the three splits."""
    parser = argparse.ArgumentParser(description="results/suggest.json")
    parser.add_argument("--work", type=Path, required=True)
    a = parser.parse_args()
    os.setpriority(os.PRIO_PROCESS, 0, 10)
    dataset = ClipDataset(a.work / "dataset")
    embedding = embedding_of(dataset, LITE0)
    embedding = embedding / np.linalg.norm(embedding, axis=1, keepdims=True)
    label = np.array([row[0] for row in dataset.labels])
    videos = dataset.columns["group"].astype(str)

    def measured(split: int, way: str, seed: int, c: float) -> dict[str, Any]:
        train, test = (clips_of_splits(dataset, groups(part[split])) for part in (TRAINED, TESTED))
        rows = train[chosen(way, embedding[train], videos[train], seed)]
        model = LogisticRegression(C=c, max_iter=1000).fit(embedding[rows], label[rows])
        return {
            "split": split,
            "seed": seed,
            "way": way,
            "labels": len(rows),
            "classes_labeled": len(set(label[rows])),
            "top1_accuracy": round(float((model.predict(embedding[test]) == label[test]).mean()), 5),
        }

    tried = {c: float(np.mean([measured(0, "random", s, c)["top1_accuracy"] for s in SEEDS])) for c in SETTINGS}
    c = max(tried, key=lambda value: tried[value])
    rows = [measured(split, way, seed, c) for split in SPLITS for way in WAYS for seed in SEEDS]
    means = {way: [r["top1_accuracy"] for r in rows if r["way"] == way] for way in WAYS}
    for way, values in means.items():
        print(f"{way:<14} {np.mean(values):.3f} +- {np.std(values):.3f}", flush=True)
    report = {"command": "python benchmarks/results/suggest.py --work DIR", "environment": machine(), "c": c}
    write_json(RESULTS / "suggest.json", report | {"c_tried_on_split_0": tried, "rows": rows})


if __name__ == "__main__":
    main()
