"""An audit as one HTML file that plays the most suspicious clips. No script, no network."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from avdistill.analysis.audit.audit import TRUTHS, Audit
from avdistill.analysis.audit.cards import Panel, card_sections, plot_scores
from avdistill.analysis.audit.scores import SCORES
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.reporting.page import Image, Section, write_page

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
    histogram = path.with_name("scores.png")
    plot_scores(histogram, _panels(result))
    sections = [_summary(result, histogram)]
    settings = result.settings
    modalities = {who: settings[f"{who}_modality"] for who in ("teacher", "student")}
    if result.metrics["truth"]:
        sections.append(_truth(result))
    names = {score: _NAMES[score] for score in SCORES}
    sections += card_sections(result, dataset, names, modalities, cards=cards, contrast=contrast)
    title = f"Audit of split {settings['split']}: {Path(settings['dataset']).name}"
    write_page(path, title=title, sections=sections, style="audit.css")


def _panels(result: Audit) -> list[Panel]:
    """The ranking score of labeled and of unlabeled clips."""
    score = result.settings["by"]
    panels = []
    for name, labeled in (("labeled", True), ("unlabeled", False)):
        if rows := [row for row in result.rows if row["rank"] and row["labeled"] is labeled]:
            made_of = result.metrics["mismatch_score_from"][name] if score == "mismatch_score" else score
            panels.append(Panel(name, _NAMES[made_of], rows, score))
    return panels


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
