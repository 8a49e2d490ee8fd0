"""The page of an audit without a run: how many clips are suspicious, how sure that is, the flags, and the clips."""

from pathlib import Path
from typing import Any

from avdistill.analysis.audit.audit import TRUTHS, Audit
from avdistill.analysis.audit.cards import Panel, card_sections, plot_scores
from avdistill.analysis.audit.flags import FLAGS
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.stored_features import format_provenance
from avdistill.reporting.page import Image, Section, write_page

# AUROC where 40% of the clips got the audio of another video; `results/audit.json`, "without_a_run".
MEASURED = {"UCF51, 14 classes": 0.88, "synthetic": 0.92, "GRID, one speaker": 0.59}
# A median of the score above this is close to chance: the encoders say next to nothing of each other.
CLOSE_TO_CHANCE = 0.4


def write_dataset_audit_page(
    path: Path, result: Audit, dataset: ClipDataset, *, cards: int = 40, contrast: int = 8
) -> None:
    """Write the page, and the histogram as a PNG file beside it.

    Args:
        path: of the HTML file.
        result: what `audit_dataset` returned for `dataset`.
        dataset: holds the clips' frames and audio.
        cards: most suspicious clips to show, in rank order.
        contrast: least suspicious clips to show after them; a clip is shown once.
    """
    histogram = path.with_name("scores.png")
    ranked = [row for row in result.rows if row["rank"]]
    plot_scores(histogram, [Panel("all clips", "correspondence (0.5: chance)", ranked, "correspondence")])
    sections = [_summary(result, histogram), _certainty(result), _flags(result)]
    names = {"correspondence": "correspondence"}
    sections += card_sections(result, dataset, names, {}, cards=cards, contrast=contrast)
    title = f"Audit of {Path(result.settings['dataset']).name} without a run"
    write_page(path, title=title, sections=sections, style="audit.css")


def _summary(result: Audit, histogram: Path) -> Section:
    f, s = result.metrics, result.settings
    split = "all splits" if s["split"] is None else f"split {s['split']}"
    made_by = {which: format_provenance(s[f"{which}_provenance"]) for which in ("audio", "video")}
    return Section(
        "What was asked",
        [
            f"How badly the audio of a clip fits its video, from the features {s['audio_features']} "
            f"({made_by['audio']}) and {s['video_features']} ({made_by['video']}). No label was used and no network "
            f"trained. {f['scored']} of {f['clips']} clips of {split} have both and were scored; "
            f"{f['without_audio']} have no audio or features of it, {f['without_video']} no features of the video.",
            "The score is the share of other clips whose audio fits the video better than the clip's own, averaged "
            "with the share of other clips whose video fits its audio better: 0 is the best fit, 0.5 chance, 1 the "
            "worst.",
        ],
        images=[Image(histogram, "The score of the clips.", "histogram of the scores")],
    )


def _certainty(result: Audit) -> Section:
    f = result.metrics
    paragraphs = [
        f"Half of the clips score below {f['median_score']:.2f}. "
        + (
            "That is close to chance: these two encoders say next to nothing of each other on these clips, and the "
            "ranking is not to be relied on."
            if f["median_score"] > CLOSE_TO_CHANCE
            else "Mismatched audio scores like any audio, above 0.5 as often as below. So at most "
            f"{f['mismatched_share_at_most']:.0%} of the audio is mismatched."
        ),
        "Of the clips at or above a threshold some are matched: audio that is common to several classes, or rare. "
        "The table bounds how many are mismatched. One clip's score is no proof; watch it before it is dropped.",
    ]
    if f["truth"] is not None:
        truth = f["truth"]
        paragraphs.append(
            f"What is true of these clips is known, and was read only now: {truth['positives']} {TRUTHS[0]}, "
            f"{truth['negatives']} others. AUROC {truth['auroc']:.3f}, average precision "
            f"{truth['average_precision']:.3f}."
        )
    measured = "; ".join(f"{data}: {auroc:.2f}" for data, auroc in MEASURED.items())
    paragraphs.append(
        "Measured elsewhere, the AUROC with which the score finds audio of another video, given to 40% of the clips: "
        f"{measured}."
    )
    rows: list[dict[str, Any]] = [
        {key: value if value is not None else "" for key, value in row.items()} for row in f["thresholds"]
    ]
    columns = {"threshold": "Score of at least", "clips": "Clips", "mismatched_at_most": "Of them mismatched, at most"}
    return Section("How sure this is", paragraphs, rows=rows, columns=columns)


def _flags(result: Audit) -> Section:
    f = result.metrics
    rows = [
        {"flag": flag, "meaning": meaning, "clips": f["flags"].get(flag, 0)}
        for flag, meaning in FLAGS.items()
        if flag not in f["flags_not_looked_for"]
    ]
    missed = f["flags_not_looked_for"]
    paragraphs = [f"Not looked for: {', '.join(missed)}: {next(iter(missed.values()))}."] if missed else []
    return Section("Flags", paragraphs, rows=rows, columns={"flag": "Flag", "meaning": "Meaning", "clips": "Clips"})
