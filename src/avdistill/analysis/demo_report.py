"""What the page of the demo shows before that of its study: results, clips that play, and what to do next."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.analysis.audit.audit import audit, write_audit
from avdistill.analysis.benchmark.report import correct_matrix, read_lines
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import labeled_clips
from avdistill.evaluation.classification import ClassificationResult, evaluate
from avdistill.evaluation.statistics import Estimate, interval, paired_difference
from avdistill.fsio import own_folder
from avdistill.media.encoder import encode_image
from avdistill.reporting.page import Image, Section, data_url, render
from avdistill.reporting.plots import method_styles, plot_confusion, plot_curves, plot_estimates
from avdistill.synthetic.generator import SyntheticConfig

COLUMNS = {
    "method": "method",
    "n": "seeds",
    "top1_accuracy": "top-1",
    "top1_accuracy_std": "± (seeds)",
    "hit@1": "hit@1",
    "map": "mAP",
}
CARDS = 8
OWN_VIDEOS = (
    "avdistill distill VIDEOS --out distilled",
    "",
    "avdistill prepare VIDEOS --out dataset",
    "avdistill embed dataset --teacher yamnet --name audio",
    "avdistill train tiny --dataset dataset --out run",
    "avdistill evaluate run dataset",
    "avdistill audit run dataset",
    "avdistill predict run VIDEO.mp4",
)


def differences(rows: Sequence[Mapping[str, Any]], groups: np.ndarray) -> dict[str, dict[str, float]]:
    """How far the students of each method are ahead of the supervised ones in top-1, with a paired 95% interval.

    Args:
        rows: of the runs: `method`, `seed`, and `correct` of the test clips.
        groups: (N,) source video of each test clip.
    """
    correct = _correct(rows)
    found: dict[str, dict[str, float]] = {}
    for method, values in correct.items():
        if method != "supervised":
            ahead = paired_difference(values, correct["supervised"], groups)
            found[method] = {"mean": ahead.mean, "low": ahead.low, "high": ahead.high}
    return found


def sections(
    rows: Sequence[Mapping[str, Any]],
    runs: Mapping[str, Sequence[Path]],
    result: Mapping[str, Any],
    dataset: ClipDataset,
    videos: Path,
    data: SyntheticConfig,
    images: Path,
) -> list[Section]:
    """The sections.

    Args:
        rows: of the runs, `method` as in `runs`.
        runs: method -> its run folders, seed by seed.
        result: what the demo returns.
        dataset, videos, data: the clips, their files, and what they were made with.
        images: a folder for the plots.
    """
    tested = {method: evaluate(folders[0], dataset) for method, folders in runs.items()}
    best = max(result["summary"], key=lambda row: row["top1_accuracy"])["method"]
    plot_confusion(tested[best].confusion or [], tested[best].classes, images / "confusion.png")
    return [
        _results(rows, result, dataset, data, images / "top1.png"),
        _students(tested, best, dataset, videos),
        _mismatched(runs["robust_csc"][0], dataset, videos),
        Section(
            f"What {best} confuses",
            images=(Image(images / "confusion.png", f"Test clips by class, {best}, first seed.", "confusion matrix"),),
        ),
        _training(runs, images / "curves.png"),
        Section(
            "The same on your own videos",
            paragraphs=(
                "VIDEOS is a folder with a folder of videos per class. The first command does all; the others are the "
                "same by hand. Training decides what the audio is worth; the audit lists the clips whose audio does "
                "not match.",
            ),
            markup=render("commands.html", lines=OWN_VIDEOS),
        ),
    ]


def _results(
    rows: Sequence[Mapping[str, Any]],
    result: Mapping[str, Any],
    dataset: ClipDataset,
    data: SyntheticConfig,
    image: Path,
) -> Section:
    counts, groups = dataset.describe(), dataset.columns["group"][labeled_clips(dataset, "test")]
    estimates: dict[str, Estimate] = {m: interval(values, groups) for m, values in _correct(rows).items()}
    plot_estimates({"top-1 accuracy": {m: (e.mean, e.low, e.high) for m, e in estimates.items()}}, image)
    ahead = result["differences"]
    best = max(ahead, key=lambda method: ahead[method]["mean"])
    gain = {name: 100 * value for name, value in ahead[best].items()}
    train = counts["splits"]["train"]
    return Section(
        "What was done, and what came of it",
        paragraphs=(
            f"{counts['clips']} short videos of {counts['classes']} kinds of objects were made; of the {train} "
            f"training clips {data.labeled_clips} have a label, and {data.mismatched:.0%} have other audio. "
            "An audio network was trained as the teacher, and the same small video network was trained once without "
            "the audio (supervised) and once with each method that learns from it, with the same steps and seeds. "
            f"On {result['test_clips']} test clips, of which the students get the video alone, {best} is ahead of "
            f"supervised by {gain['mean']:.1f} points of top-1 accuracy (95% interval {gain['low']:.1f} to "
            f"{gain['high']:.1f}).",
            f"The teacher's own top-1 accuracy on the audio of the test clips is "
            f"{result['teacher']['top1_accuracy']:.3f}. Synthetic videos show that the pipeline works; how the methods "
            "do on real videos is in docs/results.md.",
        ),
        rows=result["summary"],
        columns=COLUMNS,
        images=(Image(image, "Top-1 accuracy with 95% intervals over seeds and test clips.", "bars of top-1"),),
    )


def _students(tested: Mapping[str, ClassificationResult], best: str, dataset: ClipDataset, videos: Path) -> Section:
    """Test clips that play: where the best student is right alone, then where both are, then where it is wrong."""
    said = {method: {str(p["id"]): p for p in result.predictions} for method, result in tested.items()}
    right = {method: {id_: p["predicted"] == p["label"] for id_, p in of.items()} for method, of in said.items()}
    files = _playable(dataset, videos)
    alone, both, wrong = (
        [id_ for id_ in said[best] if id_ in files and (right[best][id_], right["supervised"][id_]) in kinds]
        for kinds in ({(True, False)}, {(True, True)}, {(False, True), (False, False)})
    )
    cards = [
        files[id_].card(
            str(said[best][id_]["label"]),
            [f"{m}: {of[id_]['predicted']}{'' if right[m][id_] else ' (wrong)'}" for m, of in said.items()],
        )
        for id_ in (*alone[: CARDS // 2], *both[: CARDS // 4], *wrong[: CARDS // 4])
    ]
    return Section(
        "What the students say of test videos",
        paragraphs=(f"Half of these are chosen because {best} is right and supervised is wrong.",),
        markup=render("clip_cards.html", cards=cards),
    )


def _mismatched(run: Path, dataset: ClipDataset, videos: Path) -> Section:
    """Training clips whose audio the audit finds mismatched, most suspicious first."""
    found, files = audit(run, dataset), _playable(dataset, videos)
    write_audit(own_folder(run, "audit-train"), found)  # for the review in `avdistill serve`
    shown = [row for row in found.rows if row["rank"] and row["id"] in files][:CARDS]
    cards = [
        files[row["id"]].card(
            f"rank {row['rank']}",
            [
                f"probability of a mismatch: {row['mismatch_probability']:.2f}",
                f"truth: {row['true_label']}, audio {row['audio']} ({row['audio_source']})",
            ],
        )
        for row in shown
    ]
    aurocs = [line for line in found.metrics["truth"] if line["score"] == "mismatch_probability"]
    measured = ", ".join(f"{line['auroc']:.2f} for {line['group']} clips" for line in aurocs)
    return Section(
        "Mismatched audio that was found",
        paragraphs=(
            f"The training clips that robust_csc holds most likely to have the audio of something else. Against the "
            f"truth, which training never reads, its AUROC is {measured}.",
        ),
        markup=render("clip_cards.html", cards=cards),
    )


def _training(runs: Mapping[str, Sequence[Path]], image: Path) -> Section:
    curves = {method: [_losses(run) for run in folders] for method, folders in runs.items()}
    plot_curves(
        curves,
        image,
        xlabel="step",
        ylabel="classification loss (labeled training clips)",
        title="Training",
        styles=method_styles(runs),
    )
    caption = "Classification loss in training: mean and range over seeds."
    return Section("Training", images=(Image(image, caption, "loss curves"),))


def _losses(run: Path) -> list[tuple[float, float]]:
    lines = [line for line in read_lines(run / "metrics.jsonl") if "losses" in line]
    return [(line["step"], line["losses"]["classification"]) for line in lines]


def _correct(rows: Sequence[Mapping[str, Any]]) -> dict[str, np.ndarray]:
    """Method -> (seeds, test clips), 1 where right."""
    methods = dict.fromkeys(row["method"] for row in rows)
    return {method: correct_matrix([row for row in rows if row["method"] == method]) for method in methods}


@dataclass(frozen=True)
class _Playable:
    """A clip whose file is an MP4, which browsers play: `clip` is its row of the dataset."""

    dataset: ClipDataset
    clip: int
    file: Path

    def card(self, title: str, lines: list[str]) -> dict[str, object]:
        """What `clip_cards.html` shows of it."""
        frames = self.dataset.frames(self.clip)
        return {
            "id": self.dataset.columns["id"][self.clip],
            "title": title,
            "video": data_url("video/mp4", self.file.read_bytes()),
            "poster": data_url("image/jpeg", encode_image(frames[len(frames) // 2])),  # else it is black until it plays
            "lines": lines,
        }


def _playable(dataset: ClipDataset, videos: Path) -> dict[str, _Playable]:
    """By clip id."""
    paths = enumerate(zip(dataset.columns["id"].tolist(), dataset.columns["path"].tolist(), strict=True))
    return {id_: _Playable(dataset, i, videos / path) for i, (id_, path) in paths if path.endswith(".mp4")}
