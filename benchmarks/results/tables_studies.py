"""Tables of all other studies, the demo, the audits and the fault list; each public function is one."""

from __future__ import annotations

import math
from typing import Any

from avdistill.analysis.benchmark.report import COLUMNS as STUDY_COLUMNS
from avdistill.reporting.tables import markdown_table, summarize
from reading import ROOT, read, with_interval
from resumable import read_rows
from study_metrics import study_runs

METRICS = ("top1_accuracy", "mean_class_accuracy", "hit@1", "map")
COLUMNS = {
    "method": "method",
    "n": "seeds",
    "top1_accuracy": "top-1",
    "top1_accuracy_std": "± (seeds)",
    "mean_class_accuracy": "class mean",
    "hit@1": "hit@1",
    "map": "mAP",
}
SETTING_COLUMNS = {
    "method": "method",
    "setting": "setting",
    "n": "seeds",
    "top1_accuracy": "top-1",
    "top1_accuracy_std": "± (seeds)",
}


def _students(name: str) -> str:
    told = read(name)
    teacher = {"method": "teacher (audio)", "n": 1, **told["teacher"]}
    return markdown_table([*summarize(told["students"], values=METRICS), teacher], COLUMNS)


def demo() -> str:
    """The demo's students, and how far each method is ahead of no distillation."""
    return _demo(read("demo"))


def demo_scalar() -> str:
    """The same with the last digits of another machine."""
    return _demo(read("demo")["instructions"]["scalar"])


def _demo(told: Any) -> str:
    teacher = {"method": "teacher (audio)", "n": 1, **told["teacher"]}
    rows = [*summarize(told["students"], values=METRICS), teacher]
    for row in rows:
        ahead = told["differences"].get(row["method"])
        row["ahead"] = ahead and with_interval(ahead, signed=True)
    return markdown_table(rows, COLUMNS | {"ahead": "top-1 over supervised (95% interval)"})


def grid() -> str:
    """GRID, every method."""
    return _students("grid")


def demo_difficulty() -> str:
    """Supervised students and the teacher, from which the demo's difficulty was fixed."""
    told = read("demo_choices")
    columns = {
        "what": "network",
        "labels": "labeled clips",
        "top1_accuracy": "top-1",
        "related": "top-1, related audio",
        "noisy": "top-1, noisy audio",
    }
    return markdown_table(told["difficulty"], columns)


def demo_choices() -> str:
    """Settings tried on other data and seeds than the demo's."""
    rows = summarize(read("demo_choices")["students"], by=("method", "setting"), values=("top1_accuracy",))
    return markdown_table(rows, SETTING_COLUMNS)


def why_mnf_csc() -> str:
    """What makes the paper's method lose with few labels, one change a row."""
    rows = read_rows(ROOT / "results" / "why_mnf_csc.csv")
    runs = [row | {key: float(row[key]) for key in ("top1_accuracy", "map")} for row in rows]
    columns = {
        "question": "experiment",
        "method": "method",
        "n": "seeds",
        "top1_accuracy": "top-1",
        "top1_accuracy_std": "± (seeds)",
        "map": "mAP",
    }
    return markdown_table(summarize(runs, by=("question", "method"), values=("top1_accuracy", "map")), columns)


def faults() -> str:
    """What really happened to every fault of the list."""
    told = read("faults")
    columns = {"fault": "fault", "command": "command", "promise": "promise", "what_happened": "what happened"}
    return markdown_table(told["faults"], columns)


def reverse() -> str:
    """Audio student, video teacher: every single-label task, every method."""
    rows = [row for row in read("reverse")["students"] if "top1_accuracy" in row]
    columns = {
        "task": "task",
        "method": "method",
        "n": "seeds",
        "top1_accuracy": "top-1",
        "top1_accuracy_std": "± (seeds)",
    }
    return markdown_table(summarize(rows, by=("task", "method"), values=("top1_accuracy",)), columns)


def _methods(corruption: str) -> str:
    lines = [line for line in read("methods")["table"] if line["corruption"] == corruption]
    wanted = ("method", "n", "top1_accuracy", "std", "difference", "difference_interval", "map", "rank", "setting")
    return markdown_table(lines, {key: STUDY_COLUMNS[key] for key in wanted})


def methods_clean() -> str:
    """Every method on synthetic videos with matched audio."""
    return _methods("clean")


def methods_unrelated() -> str:
    """Every method with 40% mismatched audio."""
    return _methods("mismatched=0.4")


def audit() -> str:
    """How well each score finds mismatched audio."""
    rows = [{**line, "data": row["data"]} for row in read("audit")["students"] for line in row["truth"]]
    columns = {"data": "data", "group": "clips", "score": "score", "positives": "mismatched", "negatives": "matched"}
    return markdown_table(rows, columns | {"auroc": "AUROC", "average_precision": "average precision"})


def audit_without_a_run() -> str:
    """AUROC of `correspondence`, 40% of the audio replaced, mean of the draws."""
    columns = {
        "data": "data",
        "encoders": "encoders",
        "replaced_by": "audio of another",
        "auroc": "AUROC",
        "auroc_aligned_on_matched": "fitted on matched clips",
        "auroc_oracle_with_labels": "oracle with labels",
    }
    rows = [row for row in read("audit").get("without_a_run", {}).get("rows", []) if row["share"] == 0.4]
    by = ("data", "encoders", "replaced_by")
    for row in rows:
        row["replaced_by"] = row["replaced_by"].removeprefix("other_")
        row.setdefault("auroc_oracle_with_labels", math.nan)  # the labels of GRID's sentences are not known
    lines = summarize(rows, by=by, values=tuple(columns)[3:])
    return markdown_table([{k: None if v != v else v for k, v in line.items()} for line in lines], columns)


def decisions() -> str:
    """The demo's students with and without the audio that an audit found suspicious, no label seen."""
    found = read("decisions")
    rows = [row | {"gain": with_interval(row | {"mean": row["difference"]}, signed=True)} for row in found["methods"]]
    columns = {"method": "method", "top1_without": "top-1 with all audio", "top1_with": "with decisions"}
    said = (
        f"Of {found['audited']} training clips with audio, {found['mismatched']} have another video's; the threshold "
        f"{found['threshold']} drops the audio of {found['dropped']}, {found['dropped_mismatched']} of them rightly."
    )
    return markdown_table(rows, columns | {"gain": "difference"}) + "\n\n" + said


def suggest() -> str:
    """Accuracy with 50 suggested labels beside 50 random ones."""
    names = {
        "suggested": "`suggest`",
        "random": "random clips",
        "random_videos": "random source videos, a clip of each",
    }
    rows = [row | {"way": names[row["way"]], "seed": (row["split"], row["seed"])} for row in read("suggest")["rows"]]
    columns = {"way": "50 labels", "n": "splits x seeds", "top1_accuracy": "top-1", "top1_accuracy_std": "±"}
    return markdown_table(summarize(rows, by=("way",), values=("top1_accuracy",)), columns)


def _study_accuracy(data: str) -> str:
    columns = {
        "labeled_clips": "labeled clips",
        "wrong_audio": "mismatched audio",
        "method": "method",
        "seeds": "seeds",
    }
    columns |= {
        "top1_accuracy": "top-1",
        "top1_accuracy_std": "± (seeds)",
        "difference": "vs supervised",
        "interval": "95% interval",
    }
    return markdown_table(study_runs().accuracy(data), columns | {"mean_class_accuracy": "class mean", "map": "mAP"})


def study_grid() -> str:
    """GRID's words: every method, few and many labels, matched and mismatched audio."""
    return _study_accuracy("grid")


def study_boxes() -> str:
    """Actor boxes of UCF51, whose audio knows less than the video."""
    return _study_accuracy("ucf51_actor_boxes")


def study_synthetic() -> str:
    """Synthetic videos with an increasing fraction of mismatched audio."""
    return _study_accuracy("synthetic")


def study_asked() -> str:
    """What was asked of the methods, and what came of it."""
    columns = {"asked": "criterion", "labeled_videos": "labeled videos", "found": "result", "met": "met"}
    return markdown_table(study_runs().asked(), columns)


def study_means_grid() -> str:
    """Top-1 of every method on GRID."""
    shares = (("videos", 0.0), ("videos, 40% mismatched", 0.4))
    return _study_means({f"{few} {what}": ("grid", few, wrong) for few in (20, 70, 400) for what, wrong in shares})


def study_means_others() -> str:
    """Top-1 of every method on the other two data sets."""
    cells = {"boxes, 10 per class": ("ucf51_actor_boxes", 70, 0.0), "boxes, all": ("ucf51_actor_boxes", 678, 0.0)}
    for wrong in (0.0, 0.2, 0.4, 0.6):
        cells[f"synthetic, {wrong:.0%} mismatched"] = ("synthetic", 360, wrong)
    return _study_means(cells)


def _study_means(cells: dict[str, tuple[str, int, float]]) -> str:
    return markdown_table(study_runs().means(cells), {name: name for name in ("method", *cells)})


def study_gap() -> str:
    """What is closed of the gap between few and all labels."""
    rows = [row for few in (20, 70) for row in study_runs().gap_closed("grid", few, 400)]
    columns = {"labeled_clips": "labeled clips", "method": "method", "few": "supervised", "top1_accuracy": "method"}
    columns |= {"every": "supervised, all 400", "closed": "fraction of the gap closed"}
    return markdown_table(rows, columns | {"top1_accuracy": "method, same labels"})


def study_kept() -> str:
    """What is left of the gain with 40% mismatched audio."""
    rows = [row for few in (20, 70) for row in study_runs().gain_kept("grid", few, 0.4)]
    columns = {"labeled_clips": "labeled clips", "method": "method", "clean": "gain, matched audio"}
    return markdown_table(rows, columns | {"wrong": "gain, 40% mismatched", "kept": "fraction kept"})


def study_robust() -> str:
    """`robust` against no distillation and the two closest to it."""
    rows = study_runs().against("robust", ["supervised", "pseudo_label", "kd"])
    columns = {"data": "data", "labeled_clips": "labeled clips", "wrong_audio": "mismatched audio"}
    columns |= {"against": "baseline", "difference": "difference", "interval": "95% interval", "seeds": "seeds"}
    return markdown_table(rows, columns | {"verdict": "verdict"})


def study_found() -> str:
    """How well the runs find the mismatched audio."""
    columns = {"data": "data", "labeled_clips": "labeled clips", "wrong_audio": "mismatched audio", "method": "method"}
    columns |= {"clips": "clips", "seeds": "seeds", "auroc": "AUROC", "average_precision": "average precision"}
    return markdown_table(study_runs().found(), columns)


def study_tuning() -> str:
    """Settings tried, on the teacher's clips."""
    told = read("study/tuning")
    rows = summarize(told["trials"], by=("method", "setting"))
    for row in rows:
        row["chosen"] = "chosen" if told["chosen"][row["method"]] == row["setting"] else ""
    return markdown_table(rows, SETTING_COLUMNS | {"chosen": ""})


def study_apart() -> str:
    """Test words of classes that have a labeled clip, and of those that have none."""
    rows = [row for row in study_runs().accuracy("grid") if "top1_other_classes" in row]
    columns = {
        "labeled_clips": "labeled clips",
        "wrong_audio": "mismatched audio",
        "method": "method",
        "seeds": "seeds",
    }
    return markdown_table(
        rows,
        columns
        | {
            "top1_labeled_classes": "top-1, classes with a labeled clip",
            "top1_other_classes": "top-1, classes without",
        },
    )


def _ablation(data: str) -> str:
    told = read("ablation")
    rows = [{**line, "variant": told["variants"][line["method"]]} for line in told[data]["table"]]
    rows.sort(key=lambda row: list(told["variants"]).index(row["method"]))
    names = ("n", "top1_accuracy", "std", "difference", "difference_interval", "map")
    columns = {key: STUDY_COLUMNS[key] for key in names}
    return markdown_table(rows, {"variant": "", **columns})


def ablation_grid() -> str:
    """GRID's words, each part of MNF + CSC changed alone."""
    return _ablation("grid")


def ablation_boxes() -> str:
    """Actor boxes, each part of MNF + CSC changed alone."""
    return _ablation("ucf51_actor_boxes")


def yamnet() -> str:
    """The classes that YAMNet predicts for mixed clips."""
    return markdown_table(
        read("named_teachers")["yamnet"]["clips"], {"clip": "clip", "heard": "top classes (mean score)"}
    )


def named_teachers() -> str:
    """GRID's words with teachers by name."""
    columns = {"teacher": "teacher", "method": "method", "top1_accuracy": "top-1", "clips": "test words"}
    return markdown_table(read("named_teachers")["students"], columns)


def tagging() -> str:
    """Audio tagging of clips with two events."""
    rows = [row for row in read("reverse")["students"] if "top1_accuracy" not in row]
    columns = {"method": "method", "n": "seeds", "map": "mAP", "auc": "AUC", "d_prime": "d-prime"}
    return markdown_table(summarize(rows, values=("map", "auc", "d_prime")), columns)
