"""An audit as one HTML file that plays the most suspicious clips. No script, no network."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.analysis.audit.audit import TRUTHS, Audit
from avdistill.analysis.audit.scores import SCORES
from avdistill.dataset.clip_dataset import SILENCE_PEAK, ClipDataset
from avdistill.fsio import replacing
from avdistill.media.encoder import encode_clip, encode_image
from avdistill.reporting.page import Image, Section, data_url, render, write_page
from avdistill.reporting.plots import PALETTE

_NAMES = {
    "mismatch_score": "mismatch_score",
    "gate": "1 − mean gate",
    "similarity": "1 − cos(v, a′)",
    "calibration": "gradient weight in the calibration",
    "teacher_nll": "−log p(label) of the teacher",
    "disagreement": "−log p(both agree)",
    "mismatch_probability": "p(mismatched)",
}


def write_audit_page(path: Path, result: Audit, dataset: ClipDataset, *, cards: int = 40, contrast: int = 8) -> None:
    """Write the page, and the histogram as a PNG file beside it.

    Args:
        path: of the HTML file.
        result: what `audit` returned for `dataset`.
        dataset: holds the clips' frames and audio.
        cards: most suspicious clips to show, in rank order.
        contrast: least suspicious clips to show after them; a clip is shown once.
    """
    ranked = [(row, clip) for row, clip in zip(result.rows, result.clips, strict=True) if row["rank"]]
    first, last = ranked[:cards], ranked[cards:][-contrast:] if contrast else []
    histogram = path.with_name("scores.png")
    _plot_scores(histogram, result)
    sections = [_summary(result, histogram)]
    settings = result.settings
    modalities = {who: settings[f"{who}_modality"] for who in ("teacher", "student")}
    if result.metrics["truth"]:
        sections.append(_truth(result))
    for heading, shown in (("Most suspicious", first), ("Least suspicious, for contrast", last)):
        if shown:
            listed = [_card(row, clip, dataset) for row, clip in shown]
            names = {score: _NAMES[score] for score in SCORES}
            markup = render("audit_cards.html", cards=listed, modalities=modalities, names=names)
            sections.append(Section(heading, markup=markup))
    title = f"Audit of split {settings['split']}: {Path(settings['dataset']).name}"
    write_page(path, title=title, sections=sections, style="audit.css")


# Text


def _summary(result: Audit, histogram: Path) -> Section:
    f, s = result.metrics, result.settings
    source, target = s["teacher_modality"], s["student_modality"]
    by = s["by"] if s["by"] != "mismatch_score" else "mismatch_score: " + _made_of(f["mismatch_score_from"])
    paragraphs = [
        f"Clips whose {source} does not match their {target}. The {source} teacher is {s['teacher']}, the "
        f"{target} student was trained by {s['method']}. {f['scored']} of {f['clips']} clips have "
        f"both and were scored: {f['labeled']} "
        f"labeled, {f['unlabeled']} unlabeled. {f['without_teacher']} have no teacher, {f['without_student']} lack the "
        "student's modality.",
        f"Ranked by {by}. Every score is higher for a clip that is more suspicious."
        + (
            " Labeled and unlabeled clips are ranked each among themselves and merged by percentile, because the two "
            "scores have different scales."
            if f["merged_by_percentile"]
            else ""
        ),
    ]
    if s["teacher_head_fitted_on_this_dataset"]:
        paragraphs.append(
            "The teacher's logits come from a head fitted on the labeled clips of this dataset, wrong pairs among them "
            "(a training clip's own logits from the folds without it): it knows less than one fitted on clean pairs."
        )
    caption = "The score that ranks, over the scored clips" + (
        ", by what is true of their audio." if _known(f) else "."
    )
    return Section("What was asked", paragraphs, images=[Image(histogram, caption, "histogram of the scores")])


def _made_of(mismatch_score_from: Mapping[str, str]) -> str:
    names = {group: _NAMES[score] for group, score in mismatch_score_from.items()}
    if len(set(names.values())) == 1:
        return names["labeled"]
    return " and ".join(f"{name} for {group} clips" for group, name in names.items())


def _truth(result: Audit) -> Section:
    counts = [
        f"{group}: " + ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        for group, kinds in result.metrics["known_truth"].items()
        if kinds
    ]
    return Section(
        "Against the truth",
        paragraphs=[
            f"What is true of these clips is known ({'; '.join(counts)}). It was read only now. Positives are clips "
            f"whose audio is {TRUTHS[0]}; chance is an AUROC of 0.5, and an average precision of the positives' share."
        ],
        rows=[row | {"score": _NAMES[row["score"]]} for row in result.metrics["truth"]],
        columns={
            "group": "Clips",
            "score": "Score",
            "positives": "Positives",
            "negatives": "Negatives",
            "auroc": "AUROC",
            "average_precision": "Average precision",
        },
        table_caption="How well each score finds mismatched audio.",
    )


def _known(metrics: Mapping[str, Any]) -> bool:
    return bool(metrics["known_truth"])


# The histogram


def _plot_scores(path: Path, result: Audit) -> None:
    """The ranking score's histogram, labeled and unlabeled clips side by side, stacked by truth where it is known."""
    from matplotlib.figure import Figure

    score = result.settings["by"]
    ranked = [row for row in result.rows if row["rank"]]
    groups = {
        name: [row for row in ranked if row["labeled"] is labeled]
        for name, labeled in (("labeled", True), ("unlabeled", False))
    }
    groups = {name: rows for name, rows in groups.items() if rows}
    figure = Figure(figsize=(7.5, 3), layout="constrained")
    for axes, (name, rows) in zip(figure.subplots(1, len(groups), squeeze=False)[0], groups.items(), strict=True):
        kinds = [kind for kind in (*TRUTHS, "") if any(_kind(row) == kind for row in rows)]
        made_of = result.metrics["mismatch_score_from"][name] if score == "mismatch_score" else score
        axes.hist(
            [[row[score] for row in rows if _kind(row) == kind] for kind in kinds],
            bins=min(30, 5 + len(rows) // 10),
            stacked=True,
            color=[_COLORS[kind] for kind in kinds],
            label=[kind or "unknown" for kind in kinds],
        )
        axes.set_title(f"{name} (n = {len(rows)})", loc="left", fontsize=10)
        axes.set_xlabel(_NAMES[made_of], fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if kinds != [""]:
            axes.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("clips", fontsize=9)
    with replacing(path, "xb") as file:
        figure.savefig(file, format="png", dpi=150)


_COLORS = dict(zip(TRUTHS, (PALETTE[1], PALETTE[0], *PALETTE[2:]), strict=True)) | {"": "#888888"}


def _kind(row: Mapping[str, Any]) -> str:
    return row["audio"]


# Cards


def _card(row: dict[str, Any], clip: int, dataset: ClipDataset) -> dict[str, Any]:
    """What the template shows of a clip; media are inside the page."""
    frames = np.asarray(dataset.frames(clip)) if dataset.columns["has_video"][clip] else None
    audio = dataset.audio(clip) if dataset.columns["has_audio"][clip] else None
    wave = None if audio is None else _waveform(audio, dataset.sample_rate_hz)
    card: dict[str, Any] = {"row": row, "wave": wave, "video": "", "audio": "", "thumbnails": []}
    if frames is None and audio is None:  # a teacher's features may come from elsewhere
        return card
    fps = None if frames is None else _rate(frames, audio, row, dataset)
    player = data_url("video/webm", encode_clip(frames, fps, audio, dataset.sample_rate_hz))
    if frames is None:
        return card | {"audio": player}
    thirds = [int((2 * third + 1) * len(frames) / 6) for third in range(3)]
    return card | {
        "video": player,
        "poster": data_url("image/jpeg", encode_image(frames[len(frames) // 2])),  # else it is black until it plays
        "thumbnails": [
            (f"frame {i + 1} of {len(frames)}", data_url("image/jpeg", encode_image(frames[i]))) for i in thirds
        ],
    }


def _rate(frames: np.ndarray, audio: np.ndarray | None, row: Mapping[str, Any], dataset: ClipDataset) -> float:
    """Frames a second; where the dataset took every frame, those of the clip over its length, or its audio's."""
    if dataset.fps is not None:
        return dataset.fps
    if row["end_seconds"] is not None:
        return len(frames) / (row["end_seconds"] - row["start_seconds"])
    return 25.0 if audio is None else len(frames) * dataset.sample_rate_hz / len(audio)


def _waveform(audio: np.ndarray, sample_rate_hz: int, *, bins: int = 240) -> dict[str, Any]:
    """The envelope of the audio for inline SVG: lowest and highest sample of each of `bins` slices."""
    values = np.asarray(audio, np.float64) / 32767
    slices = np.array_split(values, min(bins, len(values)))
    high, low = [max(0.0, s.max()) for s in slices], [min(0.0, s.min()) for s in slices]
    loudest = float(np.abs(values).max())
    level = f"peak {20 * math.log10(loudest):.0f} dBFS" if loudest > SILENCE_PEAK else "silent"
    scale = 19 / max(loudest, 0.05)  # quiet audio is drawn large, silence stays a line
    points = [(i, 20 - scale * v) for i, v in enumerate(high)] + [(i, 20 - scale * v) for i, v in enumerate(low)][::-1]
    return {
        "width": len(slices) - 1 or 1,
        "points": " ".join(f"{x},{y:.1f}" for x, y in points),
        "text": f"waveform, {len(values) / sample_rate_hz:.1f} s, {level}",
    }
