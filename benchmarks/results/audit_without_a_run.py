"""How well `correspondence` finds mismatched audio without labels or training: "without_a_run" of `results/audit.json`.

    python benchmarks/results/audit_without_a_run.py --videos DIR --cnn14 FILE.npz --grid DIR --synthetic DIR --work DIR

- UCF51 (`--videos`: the folders of 14 classes; `--cnn14`: the PANNs CNN14 embeddings of UCF51's clips by name): CNN14
  and EfficientNet-Lite0. Silent clips are left out, here and below.
- GRID (`--grid`: every second of the 700 clips of one speaker, whole; the mouth region): YAMNet and EfficientNet-Lite0.
- Synthetic (`--synthetic`: the dataset of `avdistill demo`, its clips with related audio): YAMNet and
  EfficientNet-Lite0.

EfficientNet-Lite0 looks at 5 frames of a clip, 160 pixels wide and high. A share of the clips gets the audio features
of another clip: one of another class, or of any other source video. Beside the AUROC stand what the encoders can tell
at most: the same score fitted on matched clips only, and an oracle that knows the classes,
minus the log probability of the clip's class by a logistic regression on the audio features (fitted on matched clips of
other source videos). Settings were looked at with other seeds of the corruption. Stopped, the same command goes on.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_auc_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torchvision.transforms.v2 import functional as resizing

from avdistill.analysis.audit.correspondence import Alignment, correspondence, folds
from avdistill.analysis.audit.dataset_audit import estimates
from avdistill.annotations import read_annotations
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.fsio import write_json
from avdistill.inputs import normalize_frames
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.teachers.extraction import embed
from avdistill.teachers.precomputed import embed_precomputed
from avdistill.teachers.registry import load_teacher
from avdistill.training.run_dir import machine

RESULTS = Path(__file__).resolve().parents[2] / "results" / "audit.json"
SHARES = (0.1, 0.2, 0.4, 0.6)
SEEDS = range(5)
FRAMES, SIDE = 5, 160
COMMAND = (
    "python benchmarks/results/audit_without_a_run.py --videos DIR --cnn14 FILE.npz --grid DIR --synthetic DIR "
    "--work DIR"
)


class Pairs:
    """Audio and video embeddings (N, D) of clips whose audio belongs to them, with class ("" if unknown) and group."""

    def __init__(self, audio: np.ndarray, video: np.ndarray, labels: np.ndarray, groups: np.ndarray) -> None:
        self.audio, self.video, self.labels, self.groups = audio, video, labels, groups
        self.parts = folds(groups)


def image_features(dataset: ClipDataset, clips: np.ndarray, path: Path) -> np.ndarray:
    """float32 (N, 1280): mean over 5 evenly spaced frames of each of the clips; kept in a file."""
    if not path.is_file():
        network = load_teacher("efficientnet_lite0").network
        rows = []
        for clip in clips.tolist():
            frames = dataset.frames(clip)
            middles = ((np.arange(FRAMES) + 0.5) * len(frames) / FRAMES).astype(int)
            chosen = middles if len(frames) >= FRAMES else np.arange(len(frames))
            images = torch.from_numpy(np.stack([frames[int(i)] for i in chosen])).permute(0, 3, 1, 2)
            images = resizing.resize(images, [SIDE, SIDE], antialias=True).permute(0, 2, 3, 1)[None]
            with torch.inference_mode():
                rows.append(network(normalize_frames(images)).embedding[0].numpy())
        np.save(path, np.stack(rows))
    found: np.ndarray = np.load(path)
    return found


def pairs_of(dataset: ClipDataset, audio: str, wanted: np.ndarray, path: Path) -> Pairs:
    """The clips of a dataset with `wanted`, audio features and audio that is not silent."""
    stored = dataset.features(audio)
    c = dataset.columns
    clips = np.flatnonzero(wanted & stored.valid & ~c["silent"].astype(bool) & c["has_video"].astype(bool))
    labels = np.array(["|".join(dataset.labels[i]) for i in clips])
    return Pairs(stored.embedding[clips], image_features(dataset, clips, path), labels, c["group"][clips].astype(str))


def ucf51(videos: Path, cnn14: Path, work: Path) -> Pairs:
    """14 classes of UCF51, one frame a second."""
    clips = read_annotations(videos, format="ucf51", videos=videos)
    dataset = prepare(clips, videos, work / "ucf51", PrepareConfig(fps=1.0, short_side=128), workers=1)
    if "cnn14" not in dataset.teachers:
        embed_precomputed(dataset, cnn14, "cnn14", "audio")
    return pairs_of(dataset, "cnn14", np.ones(len(dataset), bool), work / "ucf51-lite0.npy")


def grid(videos: Path, work: Path) -> Pairs:
    """GRID's clips as they are, the region of the mouth; the labels are unknown."""
    listed = work / "grid.csv"
    names = sorted(path.relative_to(videos).as_posix() for path in videos.rglob("*.mp4"))[::2]
    listed.write_text("\n".join(["path,label", *(f"{name}," for name in names)]), encoding="utf-8")
    config = PrepareConfig(fps=2.0, short_side=72, region=(96, 176, 128, 72))
    dataset = prepare(read_annotations(listed), videos, work / "grid", config, workers=1)
    if "yamnet" not in dataset.teachers:
        embed(dataset, load_teacher("yamnet"), "yamnet")
    return pairs_of(dataset, "yamnet", np.ones(len(dataset), bool), work / "grid-lite0.npy")


def synthetic(folder: Path, work: Path) -> Pairs:
    """The demo's clips with related audio, of the splits train and test, at most 350."""
    dataset = ClipDataset(folder)
    truth = [dict(row or ()) for row in dataset.table["extra"].to_pylist()]
    related = np.array([row.get("audio") == "related" for row in truth]) & (dataset.columns["split"] != "teacher")
    related[np.flatnonzero(related)[350:]] = False
    file = work / "synthetic-yamnet.npz"
    if not file.is_file():
        from avdistill.inference.runner import run_network
        from avdistill.teachers.extraction import Resampled

        teacher = load_teacher("yamnet")
        network = teacher.network
        if dataset.sample_rate_hz != teacher.sample_rate_hz:
            network = Resampled(network, dataset.sample_rate_hz, teacher.sample_rate_hz)
        clips = np.flatnonzero(related & ~dataset.columns["silent"].astype(bool))
        outputs = run_network(network, dataset, clips, teacher.view, multi_label=True, batch_size=32)
        np.savez(file, clips=clips, embedding=outputs.embedding.numpy())
    stored = np.load(file)
    clips = stored["clips"]
    labels = np.array([row.get("true_label") or "|".join(dataset.labels[i]) for i, row in enumerate(truth)])[clips]
    video = image_features(dataset, clips, work / "synthetic-lite0.npy")
    return Pairs(stored["embedding"], video, labels, dataset.columns["group"][clips].astype(str))


def replaced(pairs: Pairs, share: float, kind: str, seed: int) -> np.ndarray:
    """(N,) whose audio each clip has: its own, or for a share of the clips that of another class or source video."""
    rng = np.random.default_rng([seed, 99])
    key = pairs.labels if kind == "other_class" else pairs.groups
    source = np.arange(len(key))
    for clip in rng.permutation(len(key))[: round(share * len(key))]:
        source[clip] = rng.choice(np.flatnonzero(key != key[clip]))
    return source


def aligned_on_matched(pairs: Pairs, source: np.ndarray) -> np.ndarray:
    """`correspondence` with alignments that are fitted on matched clips only."""
    scores, matched = np.zeros(len(source)), source == np.arange(len(source))
    for part in np.unique(pairs.parts):
        inside = pairs.parts == part
        fit = Alignment.fit(pairs.audio[~inside & matched], pairs.video[~inside & matched])
        scores[inside] = fit.scores(pairs.audio[source[inside]], pairs.video[inside])
    return scores


def log_probabilities(pairs: Pairs) -> Callable[[np.ndarray], np.ndarray]:
    """The oracle's score of clips with the audio of `source`, by classifiers of clips whose audio is their own.

    A classifier is applied to clips and audio of other source videos than it was fitted on: that of the *audio's* part.
    """
    classes = np.unique(pairs.labels)
    table = np.zeros((len(pairs.labels), len(classes)))
    for part in np.unique(pairs.parts):
        inside = pairs.parts == part
        model = make_pipeline(StandardScaler(), LogisticRegression(C=0.01, max_iter=500))
        model.fit(np.log1p(pairs.audio[~inside]), pairs.labels[~inside])
        table[inside] = model.predict_log_proba(np.log1p(pairs.audio[inside]))
    column = np.searchsorted(classes, pairs.labels)
    return lambda source: -table[source, column]


def measured(data: str, encoders: str, pairs: Pairs) -> list[dict[str, Any]]:
    """A row per kind of replacement, share and seed."""
    known = bool((pairs.labels != "").all())
    oracle = log_probabilities(pairs) if known else None
    rows = []
    for kind in ("other_class", "other_video") if known else ("other_video",):
        for share in SHARES:
            for seed in SEEDS:
                source = replaced(pairs, share, kind, seed)
                wrong = source != np.arange(len(source))
                began = time.process_time()
                scores = correspondence(pairs.audio[source], pairs.video, pairs.groups)
                row: dict[str, Any] = {"data": data, "encoders": encoders, "replaced_by": kind, "share": share}
                row |= {"seed": seed, "clips": len(source), "processor_seconds": time.process_time() - began}
                row["auroc"] = roc_auc_score(wrong, scores)
                row |= {key: value for key, value in estimates(scores).items() if key != "thresholds"}
                if share == 0.4:
                    row["auroc_aligned_on_matched"] = roc_auc_score(wrong, aligned_on_matched(pairs, source))
                if oracle is not None:
                    row["auroc_oracle_with_labels"] = roc_auc_score(wrong, oracle(source))
                rows.append(row)
                print(data, kind, share, seed, f"{row['auroc']:.3f}", flush=True)
    return rows


def main() -> None:
    """All data that are given, one after the other; what is not given stays as it was."""
    parser = argparse.ArgumentParser(description='"without_a_run" of results/audit.json')
    for name in ("videos", "cnn14", "grid", "synthetic"):
        parser.add_argument(f"--{name}", type=Path)
    parser.add_argument("--work", type=Path, required=True)
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    lite = "EfficientNet-Lite0"
    new: list[dict[str, Any]] = []
    if a.videos and a.cnn14:
        new += measured("UCF51, 14 classes", f"CNN14, {lite}", ucf51(a.videos, a.cnn14, a.work))
    if a.grid:
        new += measured("GRID, one speaker", f"YAMNet, {lite}", grid(a.grid, a.work))
    if a.synthetic:
        new += measured("synthetic", f"YAMNet, {lite}", synthetic(a.synthetic, a.work))
    report = json.loads(RESULTS.read_text(encoding="utf-8"))
    fresh = {row["data"] for row in new}
    kept = [row for row in report.get("without_a_run", {}).get("rows", []) if row["data"] not in fresh]
    report["without_a_run"] = {"command": COMMAND, "environment": machine(), "rows": kept + new}
    write_json(RESULTS, report)


if __name__ == "__main__":
    main()
