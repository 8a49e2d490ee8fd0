"""Tables of the UCF51 study, of `distill` on its videos and of the checkpoints; each public function is one."""

from __future__ import annotations

import json
import math
from functools import cache
from typing import Any

import choosing
import ucf51_metrics
from avdistill.evaluation.statistics import interval
from avdistill.reporting.tables import markdown_table, summarize
from reading import ROOT, read, with_interval
from study_metrics import study_runs

#: a folder of `checkpoints/` begins with -> what its student does
CHECKPOINTS = {
    "grid_s1_lips": "video of a mouth to a word of GRID, one speaker",
    "ucf51_14_audio": "audio to an action of UCF51, 14 classes",
    "ucf51_14": "video to an action of UCF51, 14 classes",
}


def checkpoints() -> str:
    """Every student in `checkpoints/`: what it does, how large it is, how accurate, and what its teacher brought."""
    study, rows = ucf51_metrics.Metrics.read(ROOT / "results" / "ucf51.csv"), []
    written = (ROOT / "results" / "checkpoints.json").is_file()
    trained = {row["name"]: row for row in read("checkpoints")["rows"]} if written else {}
    for folder in sorted((ROOT / "checkpoints").iterdir()):
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        weights = folder / "model.safetensors"
        header = json.loads(weights.read_bytes()[8 : 8 + int.from_bytes(weights.read_bytes()[:8], "little")])
        shapes = [each["shape"] for name, each in header.items() if name != "__metadata__" and "running" not in name]
        row: dict[str, Any] = {
            "name": f"[{folder.name}](../checkpoints/{folder.name}/README.md)",
            "task": next(what for name, what in CHECKPOINTS.items() if folder.name.startswith(name)),
            "model": config["model"],
            "parameters": sum(math.prod(shape) for shape in shapes if shape) / 1e6,
            "megabytes": weights.stat().st_size / 1e6,
        }
        if folder.name in trained:
            of = trained[folder.name]
            row |= {"top1": with_interval(of["top1_accuracy"]), "map": with_interval(of["map"])}
            row |= {
                f"{name}_ahead": with_interval(of[f"{name}_ahead"], signed=True) for name in ("top1_accuracy", "map")
            }
        else:
            row |= _of_study(study, folder.name.removeprefix("ucf51_14_"))
        rows.append(row)
    columns = {"name": "checkpoint", "task": "what it does", "model": "network", "parameters": "M parameters"}
    columns |= {"megabytes": "MB", "top1": "top-1", "top1_accuracy_ahead": "top-1 over no teacher"}
    return markdown_table(rows, columns | {"map": "mAP of retrieval", "map_ahead": "mAP over no teacher"})


def _of_study(metrics: ucf51_metrics.Metrics, method: str) -> dict[str, str]:
    """What the card of a student of the UCF51 study says: split 1, seed 0."""
    condition = ucf51_metrics.ALL_LABELS
    runs = {name: {(1, 0): metrics.runs(condition, name)[1, 0]} for name in (method, "supervised")}
    only, found = ucf51_metrics.Metrics([row for each in runs.values() for row in each.values()]), {}
    for of, name in ucf51_metrics.PER_CLIP.items():
        videos, values = ucf51_metrics.per_clip(runs[method], [(1, 0)], of)
        found["top1" if name == "top1_accuracy" else name] = with_interval(vars(interval(values, videos)))
        ahead = only.difference(condition, method, "supervised", of)
        assert ahead is not None
        found[f"{name}_ahead"] = ucf51_metrics.signed(ahead)
    return found


@cache
def _ucf51() -> ucf51_metrics.Metrics:
    return ucf51_metrics.Metrics.read(ROOT / "results" / "ucf51.csv")


def ucf51_claim() -> str:
    """What distillation gains on real videos, and how much is left with other audio and without a teacher."""
    shown = {
        "10 labels a class": (ucf51_metrics.FEW_LABELS, ucf51_metrics.CONTROL_FEW, "robust_csc"),
        "Every clip labeled": (ucf51_metrics.ALL_LABELS, ucf51_metrics.CONTROL_ALL, "mnf_csc"),
    }
    lines = [
        f"- **{labels}** (`{method}`): {_gains(own, method)}. With the audio of another class in every clip: "
        f"{_gains(control, method)}. With a contrast of the labels and no teacher (`supcon`): {_gains(own, 'supcon')}."
        for labels, (own, control, method) in shown.items()
    ]
    splits = min(_splits(condition, method) for *conditions, method in shown.values() for condition in conditions)
    return "\n".join(
        [
            "What a small video student gains over the same training without audio, on 14 classes of UCF51 with the "
            f"paper's audio teacher, {splits} of UCF101's 3 splits, one run a split, intervals over source videos:",
            "",
            *lines,
        ]
    )


def ucf51_claim_pretrained() -> str:
    """The same of the student from ImageNet's weights, in a sentence."""
    gains = _gains(ucf51_metrics.PRETRAINED_FEW, "robust_csc")
    splits = _splits(ucf51_metrics.PRETRAINED_FEW, "robust_csc")
    return (
        f"In the study, with other labels and one seed a split, such a student gains {gains} ({splits} of UCF101's 3 "
        "splits)."
    )


def _gains(condition: ucf51_metrics.Condition, method: str) -> str:
    gains = [
        f"{100 * gain.mean:.1f} points of {name} (95% interval {100 * gain.low:.1f} to {100 * gain.high:.1f})"
        for of, name in {"correct": "top-1 accuracy", "average_precision": "retrieval mAP"}.items()
        if (gain := _ucf51().difference(condition, method, "supervised", of)) is not None
    ]
    return " and ".join(gains)


def _splits(condition: ucf51_metrics.Condition, method: str) -> int:
    return len({split for split, _ in _ucf51().runs(condition, method)})


def ucf51_gain() -> str:
    """What distillation from the audio gains, and what is left with other audio, in one sentence."""
    few, method = ucf51_metrics.FEW_LABELS, "robust_csc"
    gain, control = (
        _ucf51().difference(condition, method, "supervised", "correct")
        for condition in (few, ucf51_metrics.CONTROL_FEW)
    )
    if gain is None or control is None:
        return "No run has ended yet."
    return (
        "On real videos with 10 labels a class, distillation from the audio makes a small video network, trained from "
        f"scratch, {100 * gain.mean:.1f} points better in top-1 accuracy (95% interval {100 * gain.low:.1f} to "
        f"{100 * gain.high:.1f}) than the same training without audio; with the audio of another class in every clip, "
        f"{100 * control.mean:.1f} points ({100 * control.low:.1f} to {100 * control.high:.1f}). `{method}`, 14 "
        f"classes of UCF51, {_splits(few, method)} splits, [all runs](docs/results/ucf51.md)."
    )


def _ucf51_table(condition: ucf51_metrics.Condition) -> str:
    columns = {
        "method": "method",
        "n": "runs",
        "top1_accuracy": "top-1",
        "top1_accuracy_ahead": "top-1 over supervised",
    }
    columns |= {"mean_class_accuracy": "class mean", "hit@1": "hit@1", "map": "mAP", "map_ahead": "mAP over supervised"}
    return markdown_table(_ucf51().table(condition), columns | {"expected_calibration_error": "ECE"})


def ucf51_all() -> str:
    """UCF51, 14 classes: every clip labeled."""
    return _ucf51_table(ucf51_metrics.ALL_LABELS)


def ucf51_few() -> str:
    """UCF51, 14 classes: 10 labels a class, the other clips unlabeled."""
    return _ucf51_table(ucf51_metrics.FEW_LABELS)


def own_videos_made() -> str:
    """What `distill` found in a folder whose truth is known."""
    found = read("own_videos")["made"]
    same = "the same results" if all(found["same_after_kills"].values()) else "other results"
    return (
        f"In {found['seconds']} s on {found['environment']['cores']} cores: {found['unreadable_named']} of 2 "
        f"unreadable files, {found['copies_named']} of 10 re-uploads ({found['pairs_named']} pairs named), "
        f"{found['listed_wrong_audio']} of {found['wrong_audio']} clips with wrong audio among {found['listed']} "
        f"listed. With {found['test_clips']} test clips no student's gain can be shown. Killed "
        f"{len(found['killed_after_seconds'])} times at random moments and started again, it ended with {same}."
    )


def own_videos() -> str:
    """`distill` on UCF51's videos: the rows of its report, and how far ahead the delivered student is."""
    found = read("own_videos")["ucf51"]
    rows = [row | {"top1_accuracy": with_interval(row["top1_accuracy"])} for row in found["methods"]]
    columns = {"method": "method", "n": "seeds", "top1_accuracy": "top-1 (95% interval)", "map": "mAP"}
    ahead = ", ".join(
        f"{100 * each['mean']:+.1f} points over *{name}* (95% interval {100 * each['low']:.1f} to "
        f"{100 * each['high']:.1f})"
        for name, each in found["ahead_of"].items()
    )
    last = (
        f"`{found['delivered']}`: {ahead}; {found['test_clips']} test clips of {found['test_groups']} source videos in "
        f"{len(found['splits'])} of UCF101's 3 splits."
    )
    return markdown_table(rows, columns) + "\n\n" + last


def own_videos_gain() -> str:
    """How far ahead the student of `distill` is, in a sentence."""
    found = read("own_videos")["ucf51"]
    supervised = found["ahead_of"]["supervised"]
    name, probe = next((name, each) for name, each in found["ahead_of"].items() if name.endswith("(video)"))
    shown = [
        f"{100 * each['mean']:.1f} points (95% interval {100 * each['low']:.1f} to {100 * each['high']:.1f})"
        for each in (supervised, probe)
    ]
    seeds = next(row["n"] for row in found["methods"] if row["method"] == found["delivered"])
    return (
        "[`distill`](docs/tasks/own_videos.md) with its defaults, on these videos with 10 labels a class, delivers a "
        f"student from ImageNet's weights. Its top-1 accuracy is {shown[0]} ahead of the same training without audio, "
        f"and {shown[1]} ahead of a {name.removesuffix(' (video)').replace(', ', ' on the frozen ')} "
        f"({len(found['splits'])} splits, {seeds} seeds each)."
    )


def ucf51_pretrained() -> str:
    """The student from ImageNet's weights, every clip labeled."""
    return _ucf51_table(ucf51_metrics.PRETRAINED_ALL)


def ucf51_pretrained_few() -> str:
    """The student from ImageNet's weights, with 10 labels a class."""
    return _ucf51_table(ucf51_metrics.PRETRAINED_FEW)


def ucf51_small_frames() -> str:
    """The student from ImageNet's weights that the study began with."""
    conditions = {"all": ucf51_metrics.SMALL_FRAMES_ALL, "10": ucf51_metrics.SMALL_FRAMES_FEW}
    rows = [{"labels": labels} | row for labels, each in conditions.items() for row in _ucf51().table(each)]
    columns = {"labels": "labels a class", "method": "method", "n": "runs", "top1_accuracy": "top-1"}
    columns |= {"top1_accuracy_ahead": "top-1 over supervised", "map": "mAP", "map_ahead": "mAP over supervised"}
    return markdown_table(rows, columns)


def ucf51_probes() -> str:
    """UCF51, 14 classes: linear probes of frozen networks."""
    rows = [row | {"seed": row["split"]} for row in _ucf51().rows if row["method"] == "linear_probe"]
    columns = {"student": "frozen features", "labels": "labels a class", "n": "splits", "top1_accuracy": "top-1"}
    lines = summarize(rows, by=("student", "labels"), values=("top1_accuracy", "map"))
    return markdown_table(lines, columns | {"map": "mAP"})


def ucf51_mismatched() -> str:
    """UCF51, 14 classes: every clip labeled, 40% of the training clips with the audio of another class."""
    return _ucf51_table(ucf51_metrics.MISMATCHED)


def ucf51_few_mismatched() -> str:
    """UCF51, 14 classes: 10 labels a class, and 40% of the training clips with the audio of another class."""
    return _ucf51_table(ucf51_metrics.FEW_AND_MISMATCHED)


def ucf51_control() -> str:
    """Gains over supervised by the share of clips with the audio of another class, up to all of them."""
    columns = {"labels": "labels a class", "method": "method", "metric": "over supervised, in"}
    columns |= {"0%": "each clip's own audio", "40%": "40% mismatched", "100%": "all mismatched"}
    columns |= {"audio": "own audio over all mismatched", "supcon": "own audio over `supcon`"}
    return markdown_table(_ucf51().by_mismatch(), columns)


def ucf51_asked() -> str:
    """The criteria set before the study was run, and what came of them."""
    columns = {"condition": "condition", "asked": "criterion", "metric": "metric", "splits": "splits"}
    return markdown_table(_ucf51().asked(), columns | {"found": "difference (95% interval)", "met": "met"})


def ucf51_ranks() -> str:
    """Mean ranks over all conditions."""
    columns = {"method": "method", "rank": "mean rank", "contests": "contests"}
    return markdown_table(_ucf51().ranks(ucf51_metrics.CONDITIONS), columns)


def ucf51_trials() -> str:
    """The runs that settings were chosen by."""
    columns = {"labels": "labels a class", "mismatched": "mismatched", "student": "student", "setting": "method"}
    columns |= {"learning_rate": "learning rate", "top1_accuracy": "top-1", "map": "mAP"}
    return markdown_table(ucf51_metrics.Metrics.read(ROOT / "results" / "ucf51_tuning.csv").rows, columns)


def which_method() -> str:
    """Which methods are shown to help, in which situation."""
    return markdown_table(choosing.rows(study_runs(), _ucf51()), choosing.COLUMNS)
