"""An audit as one HTML file that plays: what the most suspicious clips look and audio like. No script, no network."""

from __future__ import annotations

import base64
import html
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.analysis.audit.audit import TRUTHS, Audit
from avdistill.analysis.audit.scores import SCORES
from avdistill.dataset.clip_dataset import SILENCE_PEAK, ClipDataset
from avdistill.media.encoder import encode_clip, encode_image
from avdistill.reporting.page import Image, Section, write_page
from avdistill.reporting.plots import PALETTE
from avdistill.reporting.tables import format_value

_VERBS = {"audio": "hears", "video": "sees"}
_NAMES = {
    "mismatch_score": "mismatch_score",
    "gate": "1 − mean gate",
    "similarity": "1 − cos(v, a′)",
    "calibration": "calibration's pull",
    "teacher_nll": "−log p(label) of the teacher",
    "disagreement": "−log p(both agree)",
    "mismatch_probability": "1 − p(both belong together)",
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
    ranked = [_Shown(row, clip) for row, clip in zip(result.rows, result.clips, strict=True) if row["rank"]]
    first, last = ranked[:cards], ranked[cards:][-contrast:] if contrast else []
    histogram = path.with_name("scores.png")
    _plot_scores(histogram, result)
    sections = [_summary(result, histogram)]
    settings = result.settings
    if result.metrics["truth"]:
        sections.append(_truth(result))
    for heading, shown in (("Most suspicious", first), ("Least suspicious, for contrast", last)):
        if shown:
            players = "\n".join(_card(each, dataset, settings) for each in shown)
            sections.append(Section(heading, markup=f'<div class="cards">\n{players}\n</div>'))
    title = f"Audit of split {settings['split']}: {Path(settings['dataset']).name}"
    write_page(path, title=title, sections=sections, style=_STYLE)


@dataclass(frozen=True)
class _Shown:
    """A row of the audit and where its clip lies in the dataset."""

    row: dict[str, Any]
    clip: int


# Text


def _summary(result: Audit, histogram: Path) -> Section:
    f, s = result.metrics, result.settings
    teacher, student = _VERBS[s["teacher_modality"]], _VERBS[s["student_modality"]]
    by = s["by"] if s["by"] != "mismatch_score" else "mismatch_score: " + _made_of(f["mismatch_score_from"])
    paragraphs = [
        f"Which clips' {s['teacher_modality']} says little about their {s['student_modality']}? Teacher {s['teacher']} "
        f"{teacher}, the student ({s['method']}) {student}. {f['scored']} of {f['clips']} clips have both and were "
        f"scored: {f['labeled']} labeled, {f['unlabeled']} unlabeled. {f['without_teacher']} have no teacher, "
        f"{f['without_student']} nothing that the student looks at.",
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
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, format="png", dpi=150)


_COLORS = dict(zip(TRUTHS, (PALETTE[1], PALETTE[0], *PALETTE[2:]), strict=True)) | {"": "#888888"}


def _kind(row: Mapping[str, Any]) -> str:
    return row["audio"]


# Cards


def _card(shown: _Shown, dataset: ClipDataset, settings: Mapping[str, Any]) -> str:
    row, clip = shown.row, shown.clip
    frames = np.asarray(dataset.frames(clip)) if dataset.columns["has_video"][clip] else None
    audio = dataset.audio(clip) if dataset.columns["has_audio"][clip] else None
    label = f"labeled <b>{html.escape(row['label'])}</b>" if row["labeled"] else "unlabeled"
    said = "".join(
        f"<li>{who} {_VERBS[settings[f'{who}_modality']]} <b>{html.escape(row[f'{who}_class'])}</b> "
        f"{row[f'{who}_probability']:.2f}</li>"
        for who in ("teacher", "student")
        if row[f"{who}_class"] is not None
    )
    scores = "".join(
        f"<div><dt>{html.escape(_NAMES[score])}</dt><dd>{html.escape(format_value(row[score]))}</dd></div>"
        for score in SCORES
        if row[score] is not None
    )
    player = _player(frames, audio, row, dataset)
    return (
        f'<article class="card" data-rank="{row["rank"]}" data-id="{html.escape(row["id"])}">\n'
        f'<h3><span class="rank">{row["rank"]}</span> {html.escape(row["id"])}</h3>\n'
        f"{player}\n{_thumbnails(frames)}{_waveform(audio, dataset.sample_rate_hz)}"
        f'<ul class="said"><li>{label}</li>{said}</ul>\n{_told(row)}<dl>{scores}</dl>\n</article>'
    )


def _told(row: Mapping[str, Any]) -> str:
    if not row["audio"]:
        return ""
    source = f" ({row['audio_source']})" if row["audio_source"] else ""
    label = f", a {row['true_label']}" if row["true_label"] else ""
    wrong = " wrong" if row["audio"] == TRUTHS[0] else ""
    return f'<p class="truth{wrong}">truth: {html.escape(row["audio"] + source + label)}</p>\n'


def _player(frames: np.ndarray | None, audio: np.ndarray | None, row: Mapping[str, Any], dataset: ClipDataset) -> str:
    name = html.escape(f"clip {row['id']}")
    if frames is None and audio is None:  # a teacher's features may come from elsewhere
        return '<p class="nothing">neither frames nor audio in the dataset</p>'
    fps = None if frames is None else _rate(frames, audio, row, dataset)
    source = _data("video/webm", encode_clip(frames, fps, audio, dataset.sample_rate_hz))
    if frames is None:
        return f'<audio controls preload="metadata" aria-label="{name}" src="{source}"></audio>'
    poster = _data("image/jpeg", encode_image(frames[len(frames) // 2]))  # else it is black until it plays
    return (
        f'<video controls playsinline preload="metadata" poster="{poster}" aria-label="{name}" src="{source}"></video>'
    )


def _rate(frames: np.ndarray, audio: np.ndarray | None, row: Mapping[str, Any], dataset: ClipDataset) -> float:
    """Frames a second; where the dataset took every frame, those of the clip over its length, or its audio's."""
    if dataset.fps is not None:
        return dataset.fps
    if row["end_seconds"] is not None:
        return len(frames) / (row["end_seconds"] - row["start_seconds"])
    return 25.0 if audio is None else len(frames) * dataset.sample_rate_hz / len(audio)


def _thumbnails(frames: np.ndarray | None) -> str:
    """Three frames: in the middle of the clip's thirds."""
    if frames is None:
        return ""
    chosen = [int((2 * third + 1) * len(frames) / 6) for third in range(3)]
    images = "".join(
        f'<img src="{_data("image/jpeg", encode_image(frames[i]))}" alt="frame {i + 1} of {len(frames)}">'
        for i in chosen
    )
    return f'<div class="frames">{images}</div>\n'


def _waveform(audio: np.ndarray | None, sample_rate_hz: int, *, bins: int = 240) -> str:
    """The envelope of the audio, lowest and highest sample of each of `bins` slices, as inline SVG."""
    if audio is None:
        return '<p class="nothing">no audio in the dataset</p>\n'
    values = np.asarray(audio, np.float64) / 32767
    slices = np.array_split(values, min(bins, len(values)))
    high, low = [max(0.0, s.max()) for s in slices], [min(0.0, s.min()) for s in slices]
    loudest = float(np.abs(values).max())
    level = f"peak {20 * math.log10(loudest):.0f} dBFS" if loudest > SILENCE_PEAK else "silent"
    scale = 19 / max(loudest, 0.05)  # quiet audio is drawn large, silence stays a line
    points = [(i, 20 - scale * v) for i, v in enumerate(high)] + [(i, 20 - scale * v) for i, v in enumerate(low)][::-1]
    path = " ".join(f"{x},{y:.1f}" for x, y in points)
    text = f"waveform, {len(values) / sample_rate_hz:.1f} s, {level}"
    return (
        f'<svg class="wave" viewBox="0 0 {len(slices) - 1 or 1} 40" preserveAspectRatio="none" role="img" '
        f'aria-label="{text}"><title>{text}</title><polygon points="{path}"/></svg>\n'
    )


def _data(kind: str, content: bytes) -> str:
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


_STYLE = """
.cards { display: grid; grid-template-columns: repeat(auto-fill, minmax(min(100%, 17rem), 1fr)); gap: 1.25rem; }
.card { font: 0.85rem/1.45 system-ui, "Helvetica Neue", Arial, sans-serif; border: 1px solid #d8d8d8;
  border-radius: 6px; padding: 0.8rem; display: flex; flex-direction: column; gap: 0.55rem; min-width: 0; }
.card h3 { margin: 0; font-size: 0.95rem; overflow-wrap: anywhere; }
.card .rank { display: inline-block; min-width: 1.5em; margin-right: 0.3em; padding: 0 0.35em; border-radius: 3px;
  background: #1a1a1a; color: #fff; text-align: center; font-variant-numeric: tabular-nums; }
.card video { width: 100%; aspect-ratio: 4 / 3; object-fit: contain; background: #111; border-radius: 3px; }
.card audio { width: 100%; }
.frames { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0.3rem; }
.frames img { width: 100%; display: block; border-radius: 2px; }
.wave { width: 100%; height: 2.5rem; background: #f4f4f4; border-radius: 3px; }
.wave polygon { fill: #0072B2; stroke: #0072B2; stroke-width: 0.6; vector-effect: non-scaling-stroke; }
.card ul { list-style: none; margin: 0; padding: 0; overflow-wrap: anywhere; }
.card p { margin: 0; }
.card .truth { border-left: 3px solid #009E73; padding-left: 0.5rem; overflow-wrap: anywhere; }
.card .truth.wrong { border-left-color: #D55E00; }
.card .nothing { color: #666; font-style: italic; }
.card dl { margin: auto 0 0; padding-top: 0.45rem; border-top: 1px solid #e4e4e4; font-size: 0.8rem; color: #444; }
.card dl div { display: flex; justify-content: space-between; gap: 1rem; }
.card dt, .card dd { margin: 0; }
.card dd { font-variant-numeric: tabular-nums; }
@media print { .card { break-inside: avoid; } }
"""
