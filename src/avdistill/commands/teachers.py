"""Verbs about a teacher: `avdistill teacher train | probe | list`."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tyro

from avdistill.analysis.teacher_probe import dataset_features, npz_features
from avdistill.analysis.teacher_probe import probe as probe_features
from avdistill.commands.console import Printed, output, progress_bar, run_sub_verb
from avdistill.commands.train import train_teacher
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError
from avdistill.models.weights import CLASSES
from avdistill.teachers.convert import convert_teacher
from avdistill.teachers.registry import ANY_ENCODER, TEACHERS


@dataclass(frozen=True)
class _Probe(Printed):
    """Measure how well a teacher's embeddings predict the labels: linear probe, retrieval, identical embeddings."""

    features: tyro.conf.Positional[Path]
    """A dataset, or an .npz file with name, label, split and embedding."""
    teacher: str | None = None
    """Name of the features in the dataset; the default is its only teacher."""
    train_split: str | None = None
    """The split that trains the probe and is the gallery; the default is train or training."""
    split: str | None = None
    """The split that is evaluated; its clips are the queries; the default is test, or else validation."""
    seed: int = 0
    """Seed of the folds of the cross-validation."""


def probe(arguments: list[str]) -> None:
    """`avdistill teacher probe DATASET|FILE.npz`."""
    a = tyro.cli(_Probe, args=arguments, prog="avdistill teacher probe")
    if a.features.suffix == ".npz":
        if a.teacher is not None:
            raise ConfigError("--teacher: an .npz file holds one teacher only")
        features = npz_features(a.features)
    else:
        features = dataset_features(ClipDataset(a.features), a.teacher)
    with progress_bar("probe") as update:
        report = probe_features(features, train_split=a.train_split, split=a.split, seed=a.seed, on_progress=update)
    output({"features": features.source, **report}, _probe_lines(report), a.json)


def _probe_lines(report: dict[str, Any]) -> list[str]:
    found, same, silence = report["probe"], report["identical"], report["silence"]
    train, split = report["train_split"], report["split"]
    lines = [
        f"trained on {report['clips'][train]} clips of split {train!r}, evaluated on {report['clips'][split]} of "
        f"{split!r}; {report['classes']} classes",
        f"linear probe ({found['scaling']}, C {found['c']:g}, chosen on {train!r})",
    ]
    for part in ("probe", "retrieval"):
        for name, value in report.get(part, {}).items():
            if value is None or (isinstance(value, float) and name != "c"):
                lines.append(f"  {f'{part}.{name}':<28}{'undefined' if value is None else f'{value:.4f}'}")
    lines += [
        f"identical embeddings: {same['sets']} sets ({same['clips']} clips), {same['across_splits']} across splits, "
        f"{same['labels_differ']} with labels that differ",
        *(f"  {', '.join(row['ids'])} ({', '.join(row['splits'])})" for row in same["examples"]),
        ", ".join(f"{name.replace('_', ' ')}: {n}" for name, n in silence.items() if n is not None),
    ]
    return lines


@dataclass(frozen=True)
class _List(Printed):
    """List the pretrained teachers: input, size of the embedding, where the weights come from, license."""


def list_teachers(arguments: list[str]) -> None:
    """`avdistill teacher list`."""
    a = tyro.cli(_List, args=arguments, prog="avdistill teacher list")
    columns = ("modality", "embedding_dim", "input", "minimum_seconds", "weights", "license")
    teachers = {
        name: {column: getattr(spec, column) for column in columns} | {"available": spec.available()}
        for name, spec in TEACHERS.items()
    }
    lines = []
    for name, spec in TEACHERS.items():
        least = "" if spec.minimum_seconds is None else f"; at least {spec.minimum_seconds:g} s, else repeated"
        available = "available" if teachers[name]["available"] else "not available"
        lines += [
            f"{name:<20} {spec.modality:<8} {spec.embedding_dim:>5}-d  {available:<13} {spec.license}",
            f"  input: {spec.input}{least}",
            f"  weights: {spec.weights}",
        ]
    lines += ["", "and any encoder:", *(f"  {form:<34} {meaning}" for form, meaning in ANY_ENCODER.items())]
    output({"teachers": teachers, "any_encoder": ANY_ENCODER}, lines, a.json)


@dataclass(frozen=True)
class _Convert(Printed):
    """Write a pretrained audio teacher as one safetensors file, with class names and license in its header."""

    teacher: tyro.conf.Positional[str]
    """A pretrained audio teacher by name, such as yamnet or cnn14."""
    out: Path
    """The new file, which ends in .safetensors."""
    weights: Path | None = None
    """The file or folder of the teacher's weights, where it is not found; `random` gives random weights, for trials."""


def convert(arguments: list[str]) -> None:
    """`avdistill teacher convert NAME --out FILE.safetensors`."""
    a = tyro.cli(_Convert, args=arguments, prog="avdistill teacher convert")
    report = convert_teacher(a.teacher, a.out, weights=a.weights)
    lines = [f"{a.out}: {a.teacher}, {report['license']}", f"SHA-256 {report['sha256']}"]
    output({"out": str(a.out), **{k: v for k, v in report.items() if k != CLASSES}}, lines, a.json)


SUB_VERBS: dict[str, tuple[Callable[[list[str]], None], str]] = {
    "train": (train_teacher, "a supervised run on the labeled clips' audio: `teacher train DATASET --out RUN`"),
    "probe": (probe, "how well a teacher's embeddings predict the labels: `teacher probe DATASET`"),
    "convert": (convert, "a pretrained audio teacher as safetensors: `teacher convert yamnet --out FILE.safetensors`"),
    "list": (list_teachers, "the pretrained teachers by name, and where their weights come from"),
}


def teacher(arguments: list[str]) -> None:
    """`avdistill teacher SUB_VERB ...`."""
    run_sub_verb("teacher", SUB_VERBS, arguments)
