"""The images in `docs/images`, from `results/`: a digest of what each shows stands in its metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

import study
import ucf51_metrics
from avdistill.analysis.benchmark.panels import plot_panels
from avdistill.analysis.benchmark.report import curves_digest, plot_learning_curves, read_lines
from avdistill.reporting.plots import plot_estimates

ROOT = Path(__file__).resolve().parents[2]
IMAGES = ROOT / "docs" / "images"
#: name of an image -> what it shows
UCF51 = {
    "ucf51-all": (ucf51_metrics.ALL_LABELS, "14 classes of UCF51, every clip labeled"),
    "ucf51-few": (ucf51_metrics.FEW_LABELS, "14 classes of UCF51, 10 labels a class"),
}
Panels = dict[str, dict[str, tuple[float, float, float]]]
Curves = dict[str, list[list[tuple[float, float]]]]


def images() -> dict[str, tuple[str, Callable[[Path], None]]]:
    """Name -> (digest, what draws it)."""
    drawn: dict[str, tuple[str, Callable[[Path], None]]] = {}
    told = _read("methods.json")
    for corruption in told["corruptions"]:
        drawn[f"curves-{corruption}"] = _learning(corruption, told["runs"])
    for data, part in _read("ablation.json").items():
        if isinstance(part, dict) and "runs" in part:
            drawn[f"ablation-{data}"] = _learning("clean", part["runs"])
    real = ucf51_metrics.Metrics.read(ROOT / "results" / "ucf51.csv")
    for name, (condition, title) in UCF51.items():
        panels = real.panels(condition)
        if not panels:  # its runs have not begun
            continue
        digest = hashlib.sha256(json.dumps([title, panels]).encode()).hexdigest()
        drawn[name] = (digest, partial(_estimates, panels, title, digest))
    for (data, labeled), curves in study_curves().items():
        digest = hashlib.sha256(json.dumps(curves).encode()).hexdigest()
        drawn[f"study-{data}-{labeled}"] = (
            digest,
            partial(
                plot_panels,
                curves,
                reference="supervised",
                xlabel="share of mismatched audio among the training clips",
                ylabel="top-1 accuracy on the test clips",
                source=digest,
            ),
        )
    return drawn


def _estimates(panels: Panels, title: str, digest: str, path: Path) -> None:
    plot_estimates(panels, path, title=title, source=digest)


def study_curves() -> dict[tuple[str, int], Curves]:
    """(data, labeled clips) -> method -> for every seed its top-1 over the share of wrong audio."""
    curves: dict[tuple[str, int], Curves] = {}
    seen: dict[tuple[str, int, str, int], list[tuple[float, float]]] = {}
    for row in study.study_rows(read_lines(study.RESULTS / "runs.jsonl", "method")):
        key = row["data"], row["labeled_clips"], row["method"], row["seed"]
        about = study.DATA[row["data"]]
        if "top1_accuracy" in row and len(about.wrong) > 1 and row["labeled_clips"] != about.every:
            seen.setdefault(key, []).append((row["wrong_audio"], row["top1_accuracy"]))
    for (data, labeled, method, _), points in seen.items():
        if len(points) == len(study.DATA[data].wrong):
            curves.setdefault((data, labeled), {}).setdefault(method, []).append(points)
    return {key: methods for key, methods in curves.items() if len(methods) > 1}


def differing(write: bool) -> list[str]:
    """Images that do not show what is in `results/`; made anew where `write`."""
    names = []
    for name, (digest, draw) in images().items():
        path = IMAGES / f"{name}.png"
        if not path.is_file() or Image.open(path).text.get("Source") != digest:  # type: ignore[attr-defined]
            names.append(path.name)
            if write:
                draw(path)
    return names


def _learning(corruption: str, runs: list[dict[str, Any]]) -> tuple[str, Callable[[Path], None]]:
    return curves_digest(corruption, runs), lambda path: plot_learning_curves(path, corruption, runs)


def _read(name: str) -> dict[str, Any]:
    path = ROOT / "results" / name
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
