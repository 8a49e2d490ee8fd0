"""What the pages of audits share: the histogram of a score, and cards that play clips. Media are inside the page."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.analysis.audit.audit import TRUTHS, Audit
from avdistill.dataset.clip_dataset import SILENCE_PEAK, ClipDataset
from avdistill.dataset.shards import JpegFrames
from avdistill.fsio import replacing
from avdistill.media.encoder import encode_clip, encode_image
from avdistill.reporting.page import Section, data_url, render
from avdistill.reporting.plots import PALETTE

# What a card plays of a longer clip, from its middle; the page's size does not grow with the length of the clips.
_PLAYED_SECONDS = 15.0
_WAVE_BINS = 240
_COLORS = dict(zip(TRUTHS, (PALETTE[1], PALETTE[0], *PALETTE[2:]), strict=True)) | {"": "#888888"}


@dataclass(frozen=True)
class Panel:
    """One histogram: a title, the score's name for people, and its values by row."""

    title: str
    label: str
    rows: Sequence[Mapping[str, Any]]
    score: str


def plot_scores(path: Path, panels: Sequence[Panel]) -> None:
    """Histograms side by side, stacked by truth where it is known."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 3), layout="constrained")
    for axes, panel in zip(figure.subplots(1, len(panels), squeeze=False)[0], panels, strict=True):
        kinds = [kind for kind in (*TRUTHS, "") if any(row["audio"] == kind for row in panel.rows)]
        axes.hist(
            [[row[panel.score] for row in panel.rows if row["audio"] == kind] for kind in kinds],
            bins=min(30, 5 + len(panel.rows) // 10),
            stacked=True,
            color=[_COLORS[kind] for kind in kinds],
            label=[kind or "unknown" for kind in kinds],
        )
        axes.set_title(f"{panel.title} (n = {len(panel.rows)})", loc="left", fontsize=10)
        axes.set_xlabel(panel.label, fontsize=9)
        axes.spines[["top", "right"]].set_visible(False)
        if kinds != [""]:
            axes.legend(frameon=False, fontsize=8)
    figure.axes[0].set_ylabel("clips", fontsize=9)
    with replacing(path, "xb") as file:
        figure.savefig(file, format="png", dpi=150)


def card_sections(
    result: Audit,
    dataset: ClipDataset,
    names: Mapping[str, str],
    modalities: Mapping[str, str],
    *,
    cards: int,
    contrast: int,
) -> list[Section]:
    """The most suspicious clips in rank order, and some of the least suspicious ones; a clip is shown once.

    Args:
        names: score -> its name for people, of the scores that a card lists.
        modalities: of "teacher" and "student", whose predictions a card lists where a row has them.
    """
    ranked = [(row, clip) for row, clip in zip(result.rows, result.clips, strict=True) if row["rank"]]
    first, last = ranked[:cards], ranked[cards:][-contrast:] if contrast else []
    sections = []
    for heading, shown in (("Most suspicious", first), ("Least suspicious, for contrast", last)):
        if shown:
            listed = [_card(row, clip, dataset) for row, clip in shown]
            markup = render("audit_cards.html", cards=listed, modalities=modalities, names=names)
            sections.append(Section(heading, markup=markup))
    return sections


def _card(row: dict[str, Any], clip: int, dataset: ClipDataset) -> dict[str, Any]:
    """What the template shows of a clip; media are inside the page."""
    frames = dataset.frames(clip) if dataset.columns["has_video"][clip] else None
    audio = dataset.audio(clip) if dataset.columns["has_audio"][clip] else None
    wave = None if audio is None else _waveform(audio, dataset.sample_rate_hz)
    card: dict[str, Any] = {"row": row, "wave": wave, "video": "", "audio": "", "thumbnails": [], "played": ""}
    if frames is None and audio is None:  # a teacher's features may come from elsewhere
        return card
    rate_hz = dataset.sample_rate_hz
    fps = None if frames is None else _rate(frames, audio, row, dataset)
    lengths = [0.0 if frames is None or not fps else len(frames) / fps, 0.0 if audio is None else len(audio) / rate_hz]
    start = max(0.0, (max(lengths) - _PLAYED_SECONDS) / 2)
    if start:
        card["played"] = f"plays {start:.1f} to {start + _PLAYED_SECONDS:.1f} of {max(lengths):.1f} s"
    player = encode_clip(_excerpt(frames, fps, start), fps, _excerpt(audio, rate_hz, start), rate_hz)
    if frames is None:
        return card | {"audio": data_url("video/webm", player)}
    thirds = [int((2 * third + 1) * len(frames) / 6) for third in range(3)]
    return card | {
        "video": data_url("video/webm", player),
        "poster": data_url("image/jpeg", encode_image(frames[len(frames) // 2])),  # else it is black until it plays
        "thumbnails": [
            (f"frame {i + 1} of {len(frames)}", data_url("image/jpeg", encode_image(frames[i]))) for i in thirds
        ],
    }


def _excerpt(items: np.ndarray | JpegFrames | None, rate: float | None, start: float) -> np.ndarray | None:
    """Frames or samples of the seconds that are played from `start` on."""
    if items is None or rate is None:
        return None
    return np.asarray(items[round(start * rate) : round((start + _PLAYED_SECONDS) * rate)])


def _rate(
    frames: np.ndarray | JpegFrames, audio: np.ndarray | None, row: Mapping[str, Any], dataset: ClipDataset
) -> float:
    """Frames a second; where the dataset took every frame, those of the clip over its length, or its audio's."""
    if dataset.fps is not None:
        return dataset.fps
    if row["end_seconds"] is not None:
        return len(frames) / (row["end_seconds"] - row["start_seconds"])
    return 25.0 if audio is None else len(frames) * dataset.sample_rate_hz / len(audio)


def _waveform(audio: np.ndarray, sample_rate_hz: int) -> dict[str, Any]:
    """The envelope of the audio for inline SVG: lowest and highest sample of each of some slices."""
    slices = np.array_split(audio, min(_WAVE_BINS, len(audio)))
    high, low = [max(0.0, s.max() / 32767) for s in slices], [min(0.0, s.min() / 32767) for s in slices]
    loudest = float(max(*high, *(-value for value in low)))
    level = f"peak {20 * math.log10(loudest):.0f} dBFS" if loudest > SILENCE_PEAK else "silent"
    scale = 19 / max(loudest, 0.05)  # quiet audio is drawn large, silence stays a line
    points = [(i, 20 - scale * v) for i, v in enumerate(high)] + [(i, 20 - scale * v) for i, v in enumerate(low)][::-1]
    return {
        "width": len(slices) - 1 or 1,
        "points": " ".join(f"{x},{y:.1f}" for x, y in points),
        "text": f"waveform, {len(audio) / sample_rate_hz:.1f} s, {level}",
    }
