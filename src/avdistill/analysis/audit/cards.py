"""What the pages of audits share: the histogram of a score, and cards that play clips. Media are inside the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avdistill.analysis.audit.audit import TRUTHS, Audit
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.fsio import replacing
from avdistill.media.encoder import encode_image
from avdistill.reporting.clip_media import clip_items, encode_excerpt, encode_frames, waveform
from avdistill.reporting.page import Section, data_url, render
from avdistill.reporting.plots import PALETTE

# What a card plays of a longer clip, from its middle; the page's size does not grow with the length of the clips.
_PLAYED_SECONDS = 15.0
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
    frames, audio = clip_items(dataset, clip)
    wave = None if audio is None else waveform(audio, dataset.sample_rate_hz)
    card: dict[str, Any] = {"row": row, "wave": wave, "video": "", "audio": "", "thumbnails": [], "played": ""}
    excerpt = encode_excerpt(dataset, clip, _PLAYED_SECONDS)
    if excerpt is None:
        return card
    if excerpt.start_seconds:
        first, last = excerpt.start_seconds, excerpt.start_seconds + excerpt.seconds
        card["played"] = f"plays {first:.1f} to {last:.1f} of {excerpt.clip_seconds:.1f} s"
    player = data_url("video/webm", excerpt.content)
    if frames is None:
        return card | {"audio": player}
    thirds = [int((2 * third + 1) * len(frames) / 6) for third in range(3)]
    return card | {
        "video": player,
        "poster": data_url("image/jpeg", encode_image(frames[len(frames) // 2])),  # else it is black until it plays
        "thumbnails": [(alt, data_url("image/jpeg", image)) for alt, image in encode_frames(frames, thirds)],
    }
