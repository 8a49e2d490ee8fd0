"""The model card of a student, generated from its run folder: what it is, how well it works, what it was made from."""

import csv
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from markupsafe import Markup, escape

from avdistill.config_io import read_json
from avdistill.errors import CheckpointError
from avdistill.fsio import error_message, file_checksum
from avdistill.inference.predictor import Student
from avdistill.inputs import VideoInput
from avdistill.models.checkpoint import PROVENANCE, WEIGHTS, student_folder
from avdistill.models.hub import HUB, TAG
from avdistill.reporting.page import render
from avdistill.reporting.tables import markdown_table
from avdistill.teachers.registry import TEACHERS
from avdistill.training.run_dir import data_manifest, run_config

_METRICS = {
    "top1_accuracy": "top-1 accuracy",
    "top5_accuracy": "top-5 accuracy",
    "mean_class_accuracy": "mean class accuracy",
    "expected_calibration_error": "expected calibration error",
    "map": "mean average precision",
    "auc": "area under the ROC curve",
    "d_prime": "d-prime",
    "hit@1": "hit@1",
    "hit@5": "hit@5",
}
_MOST_CLASSES = 40


@dataclass(frozen=True)
class CardOptions:
    """What a card says that no run records.

    Attributes:
        license: of the weights, as the hub names licenses; "" says that none was chosen.
        data: the training data and their license, in words.
        limits: further limits, one sentence each.
    """

    license: str = ""
    data: str = ""
    limits: tuple[str, ...] = ()


def model_card(run: Path, student: Student, name: str, weights_sha256: str, options: CardOptions | None = None) -> str:
    """The card as Markdown with the metadata that the hub reads.

    Only results of `evaluate` and `retrieve` that were computed with these weights are in it.

    Args:
        run: the run folder, what `distill` delivered, or an exported student.
        student: its best student.
        name: `org/name`.
        weights_sha256: of the published file.
        options: what no run records.

    Raises:
        CheckpointError: results that cannot be read.
        RunError, ConfigError: a damaged run.
    """
    options = options or CardOptions()
    source = _source_run(run)
    folders = [run] if source is None or source == run else [run, source]
    results = [each for folder in folders for each in _results(folder, run)]
    title = name.rpartition("/")[2]
    task = f"{student.config.view.modality}-classification"
    recorded = None if source is None else {"config": run_config(source), "data": data_manifest(source)}
    values = {
        "front_matter": Markup(_front_matter(title, task, options, results)),
        "title": title,
        "summary": _summary(student, recorded),
        "facts": [(key, Markup(_cell(value))) for key, value in _facts(student, recorded, weights_sha256)],
        "results": [
            {"heading": _heading(each), "table": Markup(_table(each)), "weakest": _weakest(each)} for each in results
        ],
        "data": _data(recorded, options),
        "audits": [line for file in _audit_files(folders, recorded) for line in _audit(file)],
        "address": HUB + name,
        "example": "video.mp4" if isinstance(student.config.view, VideoInput) else "audio.wav",
        "limits": [*_limits(student, results), *options.limits],
        "license": (
            f"The weights: {options.license}. What the licenses of the training data and of the teacher allow, is for "
            "whoever uses the weights to judge."
            if options.license
            else "No license was chosen for the weights."
        ),
    }
    return str(render("model_card.md", **values)).rstrip() + "\n"


def _front_matter(title: str, task: str, options: CardOptions, results: Sequence[Mapping[str, Any]]) -> str:
    """YAML, each value as JSON, which YAML contains."""
    entries: dict[str, Any] = {
        "library_name": TAG,
        "pipeline_tag": task,
        "tags": [TAG, "knowledge-distillation", "cross-modal"],
    }
    if options.license:
        entries["license"] = options.license
    found = [
        {
            "task": {"type": task},
            "dataset": {"name": each["dataset"], "type": each["dataset"], "split": each["split"]},
            "metrics": [
                {"type": "accuracy" if key == "top1_accuracy" else key, "value": each["metrics"][key], "name": label}
                for key, label in _METRICS.items()
                if isinstance(each["metrics"].get(key), float)
            ],
        }
        for each in results
    ]
    if found:
        entries["model-index"] = [{"name": title, "results": found}]
    return "\n".join(f"{key}: {json.dumps(value)}" for key, value in entries.items())


def _source_run(folder: Path) -> Path | None:
    """The run that a student is of: the folder, or of what `distill` delivered that run of its study; else None."""
    if (folder / "data.json").is_file():
        return folder
    runs = [each.parent for each in sorted((folder / "study" / "runs").rglob("data.json"))]
    return next((run for run in runs if _weights(run) == _weights(folder)), None)


def _weights(run: Path) -> str:
    """SHA-256 of a run's best student; "" without one."""
    file = student_folder(run) / WEIGHTS
    return file_checksum(file) if file.is_file() else ""


def _summary(student: Student, recorded: Mapping[str, Any] | None) -> str:
    modality, classes = student.config.view.modality, len(student.config.classes)
    text = f"A {modality} classifier of {classes} classes by avdistill, which takes the {modality} alone."
    if recorded is None or recorded["data"]["teacher"] is None:
        return text
    return f"{text} It learned from a teacher of the other modality by the method {recorded['config'].method.name}."


def _facts(student: Student, recorded: Mapping[str, Any] | None, weights_sha256: str) -> list[tuple[str, str]]:
    config, view = student.config, student.config.view
    parameters = sum(parameter.numel() for parameter in student.network.parameters())
    if isinstance(view, VideoInput):
        rate = "every frame" if config.fps is None else f"{config.fps:g} frames a second"
        taken = f"{view.frames} RGB frames of {view.size[0]} x {view.size[1]} pixels, {rate}"
    else:
        taken = f"{view.window_length(config.sample_rate_hz) / config.sample_rate_hz:g} s of mono audio at "
        taken += f"{config.sample_rate_hz} Hz"
    named = ", ".join(config.classes[:_MOST_CLASSES]) + (", ..." if len(config.classes) > _MOST_CLASSES else "")
    kind = "a probability of each class" if config.multi_label else "probabilities"
    facts = [
        ("network", f"`{config.model}`, {parameters / 1e6:.2f} M parameters"),
        ("input", f"{taken}; a longer file is cut into windows whose probabilities are averaged"),
        ("output", f"{student.network.embedding_dim}-d embedding; {kind} of {len(config.classes)} classes: {named}"),
    ]
    if recorded is not None:
        run, teacher = recorded["config"], recorded["data"]["teacher"]
        facts.append(("method", f"`{run.method.name}`, {run.steps} steps of {run.batch_size} clips, seed {run.seed}"))
        facts.append(("teacher", "none" if teacher is None else _teacher(teacher)))
    return [*facts, ("SHA-256 of the weights", f"`{weights_sha256}`")]


def _teacher(teacher: Mapping[str, Any]) -> str:
    """Names and licenses of the teacher's weights, or of each of several teachers."""
    provenance: Mapping[str, Any] = teacher["provenance"]
    parts = [str(value) for key, value in provenance.items() if key == "name" or key.endswith(".name")]
    named = []
    for part in parts or [str(teacher["name"])]:
        spec = TEACHERS.get(part.split(" ")[0])
        named.append(f"{part} (license of its weights: {'not recorded' if spec is None else spec.license})")
    return ", ".join(named)


def _results(place: Path, run: Path) -> list[dict[str, Any]]:
    """What `evaluate` and `retrieve` wrote into a folder about the weights of a run."""
    weights, found = _weights(run), []
    for folder in sorted(path.parent for path in place.glob(f"*/{PROVENANCE}")):
        kind, _, split = folder.name.partition("-")
        try:
            provenance, metrics = read_json(folder / PROVENANCE), read_json(folder / "metrics.json")
            if provenance["weights_sha256"] != weights:
                continue
            found.append(
                {"kind": kind, "split": split, "dataset": str(provenance["dataset"]), "metrics": dict(metrics)}
            )
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise CheckpointError(f"{folder}: expected metrics and {PROVENANCE}: {_short(error)}") from error
    return found


def _heading(result: Mapping[str, Any]) -> str:
    metrics = result["metrics"]
    if result["kind"] == "retrieval":
        counts = f"{metrics.get('queries')} queries in a gallery of {metrics.get('gallery')}"
        return f"Retrieval, split {result['split']} of the dataset {result['dataset']}: {counts}."
    counts = f"{metrics.get('clips')} labeled clips, {metrics.get('missing')} of them without the modality, as misses"
    return f"Classification, split {result['split']} of the dataset {result['dataset']}: {counts}."


def _table(result: Mapping[str, Any]) -> str:
    metrics, rows = result["metrics"], []
    for key, label in _METRICS.items():
        if key in metrics:
            bounds = metrics.get(f"{key}_interval")
            between = None if bounds is None else f"{bounds[0]:.3f} to {bounds[1]:.3f}"
            rows.append({"metric": label, "value": metrics[key], "interval": between})
    return markdown_table(rows, {"metric": "metric", "value": "value", "interval": "95% interval"})


def _weakest(result: Mapping[str, Any]) -> str:
    """The classes that are found least."""
    key = "average_precision" if "auc" in result["metrics"] else "recall"
    known = [row for row in result["metrics"].get("per_class", []) if row.get(key) is not None]
    lowest = sorted(known, key=lambda row: float(row[key]))[:3]
    named = ", ".join(f"{row['name']} ({row[key]:.2f} of {row['clips']} clips)" for row in lowest)
    return f"Lowest {key.replace('_', ' ')}: {named}." if len(known) > 3 else ""


def _data(recorded: Mapping[str, Any] | None, options: CardOptions) -> list[str]:
    lines = [options.data or "Its source and license: not stated by the publisher."]
    if recorded is None:
        return lines
    data = recorded["data"]
    lines.append(
        f"{len(data['training'])} clips to train ({data.get('labeled')} labeled, {data.get('unlabeled')} unlabeled), "
        f"{len(data.get('validation', ()))} to choose the best step; split {recorded['config'].train_split}."
    )
    if data["with_teacher"] is not None:
        lines.append(f"{data['with_teacher']} of the training clips have features of the teacher.")
    if decisions := data.get("decisions"):
        counts = ", ".join(f"{kind} {count}" for kind, count in decisions.items())
        lines.append(f"Decisions about clips, carried out before training: {counts}.")
    lines.append(f"Checksum of the dataset: `{data['dataset_checksum']}`.")
    return lines


def _audit_files(folders: Sequence[Path], recorded: Mapping[str, Any] | None) -> list[Path]:
    """Audits in the folders, and the one of the run's dataset beside that."""
    files = [file for folder in folders for file in sorted(folder.glob("audit*/audit.json"))]
    if recorded is not None:
        dataset = Path(str(recorded["data"].get("dataset", "")))
        files.append(dataset.with_name(f"{dataset.name}-audit") / "audit.json" if dataset.name else dataset)
    return [file for file in files if file.is_file()]


def _audit(file: Path) -> list[str]:
    """What an audit found, in sentences."""
    try:
        record = read_json(file)
        metrics, settings = record["metrics"], record["settings"]
        lines = [
            f"{file.parent.name}: {metrics['scored']} of {metrics['clips']} clips were scored by {settings['by']}."
        ]
        if isinstance(share := metrics.get("mismatched_share_at_most"), float):
            lines.append(f"At most {share:.0%} of the clips have unrelated audio, by the audit's estimate.")
        probabilities = _column(file.with_name("clips.csv"), "mismatch_probability")
        if probabilities:
            above = sum(value >= 0.5 for value in probabilities)
            lines.append(
                f"{above} of {len(probabilities)} clips have a probability of mismatched audio of at least 0.5."
            )
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{file}: expected an audit: {_short(error)}") from error
    return lines


def _column(file: Path, name: str) -> list[float]:
    if not file.is_file():
        return []
    with file.open(encoding="utf-8", newline="") as lines:
        values = [float(row[name]) for row in csv.DictReader(lines) if row.get(name)]
    return [value for value in values if math.isfinite(value)]


def _limits(student: Student, results: Sequence[Mapping[str, Any]]) -> list[str]:
    config = student.config
    lines = [
        "Classes other than those above are unknown to it."
        if config.multi_label
        else f"Every file is assigned to one of the {len(config.classes)} classes, also one that shows none of them.",
        "It inherits what its training data show, and what they lack. It was not tested for decisions about people.",
    ]
    if results:
        lines.append("The metrics hold for clips like those of the split they were computed on.")
    return lines


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {error_message(error):.160}"


def _cell(text: str) -> str:
    """A text in a cell of a Markdown table; HTML in it is text."""
    return " ".join(str(escape(text)).replace("|", "\\|").split())
