"""Real audio beside real motion: the actors' boxes of 943 UCF51 clips and their CNN14 embeddings, as a dataset.

    python benchmarks/results/actor_boxes.py --boxes FILE --work DIR [--workers 1]

FILE is an .npz with `name`, `label`, `split` ("training", "validation": UCF51's own, groups 01 to 07 are the latter),
`offset`, `frames` (uint8, the annotated boxes drawn as 24x32 masks at 6.25 frames a second) and `embedding` (the audio
of the same clip). The clips of a UCF group (v_Class_gNN_cMM: same class, same NN) come from one source video. Their
masks become one video file too, one clip after the other, so that whatever goes by file (a head's folds, a validation
share) parts no group; a list of segments makes clips of them again. The files have no audio: what was heard is known
from the embedding alone. Here the audio is the weaker of the two, the case in which careless distillation hurts.
Stopped, the same command goes on where it was.
"""

from __future__ import annotations

import argparse
import csv
import json
from collections import Counter, defaultdict
from fractions import Fraction
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import av
import numpy as np

from avdistill.annotations import read_annotations
from avdistill.corruption import corrupt, parse_corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.teachers.precomputed import embed_precomputed
from avdistill.teachers.transfer import transfer_features

FPS = Fraction(25, 4)
PREPARE = PrepareConfig(fps=float(FPS), short_side=None)
SPLITS = {"training": "train", "validation": "test"}
TEACHER = "audio"
FEW_LABELS = "labeled_per_class=10"


def prepare_boxes(boxes: Path, work: Path, workers: int = 1) -> ClipDataset:
    """The dataset `work`/dataset, its rows in the order of the .npz, with the teacher "audio" and a fitted head's
    logits.

    Args:
        boxes: the .npz.
        work: gets videos/, clips.csv and dataset/; what is there already is kept.
        workers: processes that decode.
    """
    content = _read(boxes)
    (videos := work / "videos").mkdir(parents=True, exist_ok=True)
    rows = {}
    for group, clips in _groups(content).items():
        path, first = videos / f"{group}.mkv", 0
        if not path.is_file():
            _write_video(path, np.concatenate([_masks(content, clip) for clip in clips]))
        for clip in clips:
            name, label, split = (str(content[key][clip]) for key in ("name", "label", "split"))
            end = first + len(_masks(content, clip))
            rows[clip] = (name, label, SPLITS[split], path.name, float(first / FPS), float(end / FPS))
            first = end
    with (listed := work / "clips.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "label", "split", "path", "start_seconds", "end_seconds"])
        writer.writerows(rows[clip] for clip in sorted(rows))
    dataset = prepare(read_annotations(listed), videos, work / "dataset", PREPARE, workers=workers, strict=True)
    if TEACHER not in dataset.teachers:
        embed_precomputed(dataset, boxes, TEACHER)
    return dataset


def _read(boxes: Path) -> dict[str, np.ndarray]:
    with np.load(boxes, allow_pickle=False) as content:
        return {key: content[key] for key in content.files}


def _groups(content: dict[str, np.ndarray]) -> dict[str, list[int]]:
    """The clips of each source video, by its name (v_Class_gNN), in the order of their names."""
    groups = defaultdict(list)
    for clip in np.argsort(content["name"]).tolist():
        groups[str(content["name"][clip]).rpartition("_c")[0]].append(clip)
    return dict(groups)


def _masks(content: dict[str, np.ndarray], clip: int) -> np.ndarray:
    """uint8 (T, 24, 32) of a clip."""
    first, end = content["offset"][clip : clip + 2]
    return content["frames"][first:end]


def _write_video(path: Path, masks: np.ndarray) -> None:
    """Write masks as RGB without loss; as grey images a decoder may take them for another range of values."""
    temporary = path.with_name(f"{path.name}.tmp")
    with av.open(str(temporary), "w", format="matroska", options={"fflags": "+bitexact"}) as container:
        stream = container.add_stream("ffv1", rate=FPS, options={"threads": "1"})
        stream.height, stream.width, stream.pix_fmt = *masks.shape[1:], "bgr0"
        for number, mask in enumerate(masks):
            image = av.VideoFrame.from_ndarray(np.repeat(mask[:, :, None], 3, axis=2), format="rgb24")
            image.pts, image.time_base = number, 1 / FPS
            container.mux(stream.encode(image))
        container.mux(stream.encode(None))
    temporary.replace(path)


def differing(boxes: Path, dataset: ClipDataset) -> list[str]:
    """Names of the clips whose images in the dataset are not the file's masks, pixel by pixel."""
    content = _read(boxes)
    rows = {str(name): row for row, name in enumerate(dataset.columns["id"])}
    return [
        name
        for clip, name in enumerate(content["name"].tolist())
        if name not in rows
        or not np.array_equal(dataset.frames(rows[name]), np.repeat(_masks(content, clip)[..., None], 3, axis=3))
    ]


def heard_top1(dataset: ClipDataset, split: str) -> float | None:
    """Share of a split's labeled clips that the fitted head names, in "train" out of fold; None without logits."""
    stored = dataset.features(TEACHER)
    logits, present = stored.logits, stored.valid
    clips = [i for i in np.flatnonzero(dataset.columns["split"] == split) if dataset.labels[i]]
    if logits is None:
        return None
    return float(np.mean([present[i] and dataset.classes[logits[i].argmax()] == dataset.labels[i][0] for i in clips]))


def main() -> None:
    """The dataset, how good its teacher is, and the same with ten labeled clips of each class."""
    parser = argparse.ArgumentParser(description="actor boxes and audio embeddings of UCF51 clips as a dataset")
    parser.add_argument("--boxes", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--workers", type=int, default=1)
    a = parser.parse_args()
    dataset = prepare_boxes(a.boxes, a.work, a.workers)
    if wrong := differing(a.boxes, dataset):
        raise SystemExit(f"{len(wrong)} clips differ from their masks, such as {wrong[0]}")
    counts = Counter(zip(dataset.columns["split"].tolist(), [row[0] for row in dataset.labels], strict=True))
    report: dict[str, Any] = {"clips": {f"{split} {label}": n for (split, label), n in sorted(counts.items())}}
    report["dataset"] = dataset.describe()
    with TemporaryDirectory(dir=a.work) as folder:
        few = corrupt(dataset, parse_corruption(FEW_LABELS), Path(folder) / "dataset")
        transfer_features(dataset, few, TEACHER)
        for name, each in (("all labels", dataset), (FEW_LABELS, few)):
            top1_accuracy = {split: heard_top1(each, split) for split in ("train", "test")}
            report[name] = {"teacher_top1": top1_accuracy, "teacher": each.describe()["teachers"][TEACHER]}
    print(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
