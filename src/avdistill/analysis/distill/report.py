"""What `distill` leaves to read: `report.html`, `results.json`, and the student that is delivered."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.analysis.audit.audit import Audit
from avdistill.analysis.benchmark.report import correct_matrix
from avdistill.analysis.benchmark.study import Study, write_report
from avdistill.analysis.distill.baselines import baseline_rows
from avdistill.analysis.distill.config import TEST, TRAIN
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import clips_of_split, labeled_clips
from avdistill.dataset.teacher_mean import teacher_names
from avdistill.errors import RunError
from avdistill.evaluation.statistics import Estimate, interval
from avdistill.fsio import result_folder, write_json
from avdistill.inference.predictor import Student
from avdistill.preparation.duplicates import Duplicate
from avdistill.preparation.journal import Skip
from avdistill.reporting.page import Image, Section, render, write_page
from avdistill.reporting.plots import plot_estimates
from avdistill.reporting.tables import markdown_table

_MOST_LISTED = 100
COLUMNS = {
    "method": "method",
    "n": "seeds",
    "top1_accuracy": "top-1",
    "interval": "95% interval",
    "difference": "over supervised",
    "difference_interval": "95% interval of the difference",
    "mean_class_accuracy": "class mean",
    "hit@1": "hit@1",
    "map": "mAP",
}


@dataclass(frozen=True)
class Findings:
    """What was found before any student was trained.

    Attributes:
        labeled: whether the classes are labels, not clusters.
        left_out: files that are no videos, in one line.
        skipped: files that could not be read.
        copies: pairs of clips with the same video or audio.
        audit: of the correspondence of audio and video; None where that could not be computed.
        threshold: of the audit's score, from which on clips are listed.
        plan: of the training runs, in one line.
    """

    labeled: bool
    left_out: str
    skipped: Sequence[Skip]
    copies: Sequence[Duplicate]
    audit: Audit | None
    threshold: float
    plan: str

    def suspicious(self) -> list[dict[str, Any]]:
        """The audit's rows at or above the threshold, most suspicious first."""
        rows = [] if self.audit is None else self.audit.rows
        return [row for row in rows if row["rank"] and row["correspondence"] >= self.threshold]


def write_results(
    out: Path, study: Study, rows: list[dict[str, Any]], dataset: ClipDataset, found: Findings
) -> dict[str, Any]:
    """Write it all; returns what `results.json` holds.

    Args:
        out: the folder.
        study: of the students.
        rows: of its runs.
        dataset: of the study.
        found: see there.

    Raises:
        RunError: no method's first run ended well.
    """
    working = [row["method"] for row in rows if row["seed"] == study.seeds[0] and "failed" not in row]
    if not working:
        raise RunError(f"{study.out}: every run failed: {rows[0]['failed']}")
    delivered = max(working, key=study.methods.index)
    with result_folder(out / "best") as fresh:
        Student.from_pretrained(study.run_folder("clean", delivered, f"seed-{study.seeds[0]}")).save_pretrained(fresh)
    table = write_report(study, rows, title="avdistill distill: the study")["table"]
    clips = labeled_clips(dataset, TEST)
    groups = dataset.columns["group"][clips]
    # Clusters of the teacher's embeddings are found in them by any classifier.
    frozen = baseline_rows(
        dataset,
        [name for name in sorted(dataset.teachers) if found.labeled or name not in teacher_names(study.teacher)],
    )
    estimates = _estimates([*(row for row in rows if "failed" not in row), *frozen], groups)
    for row in frozen:
        estimate = estimates[row["method"]]
        table.append(row | {"n": 1, "interval": f"{estimate.low:.3f} to {estimate.high:.3f}"})
    plot = study.out / "estimates.png"
    plot_estimates({"top-1 accuracy": {m: (e.mean, e.low, e.high) for m, e in estimates.items()}}, plot)
    shown = [{key: row[key] for key in (*COLUMNS, "clearly") if row.get(key) is not None} for row in table]
    result = _result(dataset, clips, found) | {"methods": shown, "delivered": delivered}
    result["table"] = markdown_table(shown, COLUMNS)
    sections = [_outcome(result, plot), _files(result), _correspondence(found)]
    sections += [] if found.labeled else [_clusters(dataset)]
    write_page(out / "report.html", title="avdistill distill", sections=[*sections, _next(out)])
    write_json(out / "results.json", result)
    return result


def _estimates(rows: Sequence[dict[str, Any]], groups: np.ndarray) -> dict[str, Estimate]:
    """Method -> its top-1 accuracy over all its runs."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return {name: interval(correct_matrix([row for row in rows if row["method"] == name]), groups) for name in methods}


def _result(dataset: ClipDataset, clips: np.ndarray, found: Findings) -> dict[str, Any]:
    """What `results.json` holds beside the methods; `clips` are the test clips."""
    ids = dataset.columns["id"].tolist()
    return {
        "labels": "given" if found.labeled else "clusters",
        "clips": len(dataset),
        "labeled": sum(bool(row) for row in dataset.labels),
        "test_clips": len(clips),
        "test_groups": len(set(dataset.columns["group"][clips].tolist())),
        "chance": _largest_class(dataset, clips),
        "plan": found.plan,
        "skipped": [{"clip": each.clip, "file": each.file, "reason": each.reason} for each in found.skipped],
        "left_out": found.left_out,
        "copies": [{"clips": [ids[i] for i in each.clips], "same": each.same} for each in found.copies],
        "audit": None if found.audit is None else found.audit.metrics,
        "suspicious": [row["id"] for row in found.suspicious()],
    }


def _largest_class(dataset: ClipDataset, clips: np.ndarray) -> float:
    """The accuracy of who always names the test clips' most frequent class."""
    names = [dataset.labels[i][0] for i in clips]
    return max(map(names.count, set(names))) / len(names)


def _outcome(result: dict[str, Any], plot: Path) -> Section:
    line = next(row for row in result["methods"] if row["method"] == result["delivered"])
    ahead = ""
    if "difference" in line:
        verdict = {
            1: "The interval lies above zero: the other modality helped.",
            0: "The interval includes zero: on so few test clips no gain is shown.",
            -1: "The interval lies below zero: training without the other modality is better here.",
        }[line["clearly"]]
        ahead = (
            f"{result['delivered']} is {100 * abs(line['difference']):.1f} points of top-1 "
            f"{'behind' if line['difference'] < 0 else 'ahead of'} supervised (95% interval of the difference "
            f"{line['difference_interval']}). {verdict} "
        )
    what = (
        f"{result['clips']} clips were read, {result['labeled']} of them labeled."
        if result["labels"] == "given"
        else f"{result['clips']} clips were read; none has a label. So no number below is an accuracy of anything that "
        "a person named: the classes are clusters of the teacher's embeddings, and top-1 is how often a student names "
        "the cluster of a clip that it was not trained on from its own modality alone. hit@1 and mAP measure what such "
        "a student is for, to find clips that are alike to the teacher."
    )
    return Section(
        "What was done, and what came of it",
        paragraphs=(
            f"{what} {result['test_clips']} clips of {result['test_groups']} source videos were held out for the test; "
            "no clip of these videos, and no copy of them that was found, was trained on. Who always names the most "
            f"frequent class reaches {result['chance']:.3f}.",
            f"{ahead}The student that is delivered is the first of {result['delivered']}, whatever the test says.",
            "The linear probes and nearest centroids classify the features of frozen networks, which are larger than "
            "the student. A test clip without the modality counts as wrong.",
            f"The {result['plan']}.",
        ),
        rows=result["methods"],
        columns={key: name for key, name in COLUMNS.items() if any(key in row for row in result["methods"])},
        table_caption="Metrics on the test clips, means over seeds; intervals over seeds and source videos.",
        images=(Image(plot, "Top-1 accuracy on the test clips, with 95% intervals.", "bars of top-1 accuracy"),),
    )


def _files(result: dict[str, Any]) -> Section:
    skipped, copies = result["skipped"], result["copies"]
    paragraphs = [
        f"{len(skipped)} files could not be read." if skipped else "Every file could be read.",
        f"{len(copies)} pairs of clips have the same video or the same audio (docs/formats/dataset.md). Clips with the "
        "same video count as one source video, so that none is in the training and another in the test. The same "
        "audio under other video is no copy: it may be music.",
    ]
    if result["left_out"]:
        paragraphs.append(result["left_out"])
    rows = [{"what": each["reason"], "clips": each["file"]} for each in skipped[:_MOST_LISTED]]
    rows += [{"what": f"same {each['same']}", "clips": ", ".join(each["clips"])} for each in copies[:_MOST_LISTED]]
    return Section("The files", paragraphs, rows, {"what": "what", "clips": "clips"} if rows else {})


def _correspondence(found: Findings) -> Section:
    heading = "Does the audio fit the video?"
    if found.audit is None:
        return Section(
            heading, ("Not known: that needs frozen networks of both modalities and 20 clips (docs/teachers.md).",)
        )
    metrics, listed = found.audit.metrics, found.suspicious()
    return Section(
        heading,
        paragraphs=(
            f"{metrics['scored']} clips were scored by features {found.audit.settings['audio_features']!r} and "
            f"{found.audit.settings['video_features']!r}, without labels; {metrics['without_audio']} have no audio. At "
            f"most {metrics['mismatched_share_at_most']:.0%} of the audio is mismatched, by the distribution of the "
            f"scores. {len(listed)} clips score {found.threshold:g} or more, as about two of three with unrelated "
            "audio do. They are candidates; docs/audit.md says how sure that is. Watch them on audit/audit.html. A new "
            "call with --decisions audit/decisions.csv and another --out leaves their audio out.",
        ),
        rows=[{"rank": row["rank"], "clip": row["id"], "score": row["correspondence"], "flags": row["flags"]}
              for row in listed[:_MOST_LISTED]],
        columns={"rank": "rank", "clip": "clip", "score": "score", "flags": "flags"},
    )  # fmt: skip


def _clusters(dataset: ClipDataset) -> Section:
    train = set(clips_of_split(dataset, TRAIN).tolist())
    rows = []
    for name in dataset.classes:
        members = [i for i, row in enumerate(dataset.labels) if name in row]
        some = ", ".join(dataset.columns["id"][members[:5]].tolist())
        rows.append({"cluster": name, "clips": len(members), "trained": len(train & set(members)), "some": some})
    columns = {"cluster": "cluster", "clips": "clips", "trained": "for training", "some": "the first"}
    return Section("Clusters", ("Clips whose embeddings by the teacher are alike.",), rows, columns)


def _next(out: Path) -> Section:
    lines = (
        f"avdistill predict {out} VIDEO.mp4",
        f"avdistill export {out} --out student --format onnx",
        f"avdistill audit {out / 'dataset'} --audio-features audio --video-features video",
        f"avdistill evaluate {out} OTHER_DATASET",
    )
    return Section("What to do with the student", markup=render("commands.html", lines=lines))
