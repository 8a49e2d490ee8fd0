"""Put students of the UCF51 study into `checkpoints/`, each with its model card.

    python benchmarks/results/checkpoints.py --work DIR [METHOD ...]

DIR is the `--work` of `ucf51.py`. The student is that of the first split (test groups 03 to 07) and seed 0, all labels.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import shutil
from pathlib import Path

import ucf51
from avdistill.evaluation.statistics import interval
from avdistill.inference.predictor import Student
from avdistill.inputs import VideoInput
from ucf51_metrics import ALL_LABELS, PER_CLIP, Metrics, per_clip, signed

CHECKPOINTS = ucf51.RESULTS.parent / "checkpoints"
CARD = Path(__file__).with_name("model_card.md")


def write(method: str, work: Path, metrics: Metrics) -> None:
    """One checkpoint and its card."""
    cell = next(
        c for c in ucf51.cells() if (c.labels, c.mismatched, c.method, c.split, c.seed) == ("all", 0, method, 1, 0)
    )
    config = ucf51.configured(cell, work)
    student = Student.from_pretrained(config.out, "cpu")
    folder = CHECKPOINTS / f"ucf51_14_{method}"
    shutil.rmtree(folder, ignore_errors=True)
    student.save_pretrained(folder)
    runs, baseline = ({(1, 0): metrics.runs(ALL_LABELS, name)[1, 0]} for name in (method, "supervised"))
    only = Metrics([*runs.values(), *baseline.values()])
    lines: dict[str, str] = {}
    for of, name in zip(PER_CLIP, ("top1", "map"), strict=True):
        groups, values = per_clip(runs, [(1, 0)], of)
        found, ahead = interval(values, groups), only.difference(ALL_LABELS, method, "supervised", of)
        assert ahead is not None
        everywhere = metrics.difference(ALL_LABELS, method, "supervised", of)
        assert everywhere is not None
        lines[f"{name}_everywhere"] = signed(everywhere)
        lines |= {name: f"{found.mean:.3f} ({found.low:.3f} to {found.high:.3f})", f"{name}_ahead": signed(ahead)}
    about, view = student.config, student.config.view
    assert isinstance(view, VideoInput)
    card = CARD.read_text(encoding="utf-8").format(
        name=folder.name,
        parameters=sum(p.numel() for p in student.network.parameters()) / 1e6,
        method=method,
        setting=cell.setting,
        frames=view.frames,
        height=view.size[0],
        width=view.size[1],
        fps=about.fps,
        short_side=about.short_side,
        dim=student.network.embedding_dim,
        count=len(about.classes),
        classes=", ".join(about.classes),
        training=len(json.loads((config.out / "data.json").read_text(encoding="utf-8"))["training"]),
        steps=config.steps,
        batch=config.batch_size,
        seed=cell.seed,
        sha256=hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest(),
        tested=len(groups),
        videos=len(set(groups.tolist())),
        **lines,
    )
    (folder / "README.md").write_text(card, encoding="utf-8")
    print(folder)


def main() -> None:
    """Write those that were named."""
    parser = argparse.ArgumentParser(description="checkpoints/ from the UCF51 study")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("methods", nargs="*", default=["mnf_csc", "robust_csc"])
    a = parser.parse_args()
    metrics = Metrics.read(ucf51.TABLE)
    for method in a.methods:
        write(method, a.work, metrics)


if __name__ == "__main__":
    main()
