"""Write the tables and images of the documents from `results/`, or check that they are those.

    python benchmarks/results/tables.py [--check] [README.md docs/results.md ...]

Without names: every document, and the images in `docs/images`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; NAME is a function of this file.
"""

from __future__ import annotations

import argparse
import json
import math
import re
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import choosing
import plots
import study
import ucf51_metrics
from avdistill.analysis.benchmark.report import COLUMNS as STUDY_COLUMNS
from avdistill.analysis.benchmark.report import read_lines
from avdistill.evaluation.statistics import interval
from avdistill.reporting.tables import markdown_table, summarize
from study_metrics import Metrics

ROOT = Path(__file__).resolve().parents[2]
#: name of a row in `results/performance` -> what it is
SPEED_METRICS = {
    "step_8x56": "step of the released student with MNF + CSC, 8 clips of 8 x 56 x 56, against the literal one",
    "step_16x112": "the same, 4 clips of 16 x 112 x 112",
    "method_overhead": "step of MNF + CSC over a supervised one, limit 1.03 (at 16 x 112 x 112)",
    "cheap_student": "training speed of the fastest student that keeps 90% of the released one's top-1",
    "step_torchdistill_kd": "step of `kd`, the small student of UCF51, against torchdistill's KDLoss in a plain loop",
    "step_torchdistill_crd": "step of `crd`, as many negatives, against torchdistill's CRDLoss in a plain loop",
    "teacher_in_loop": "step of `kd` with stored features against YAMNet run in the loop on 10 s a clip",
    "pretrained_step": "step of EfficientNet-Lite0 on 8 frames of 112 x 112, against timm's",
    "load_0_workers": "clips from the dataset to normalized batches, against the literal procedure",
    "load_2_workers": "the same with two reading threads, against two processes",
    "load_jpeg": "the same as the first from a dataset of JPEG",
    "prepare_vs_decode": "the slowest of three files (constant, variable rate, 1080p) over decoding alone, limit 1.3",
    "prepare_vs_chain": "the same against FFmpeg's `minterpolate`, JPEG and HDF5",
    "prepare_torchcodec": "six files to frames and audio with two processes, against torchcodec",
    "prepare_decord_like": "the same against OpenCV and a pipe from ffmpeg",
    "embed_yamnet": "audio embedded by YAMNet, against the plain model on a clip at a time",
    "embed_cnn14": "the same by PANNs CNN14",
    "prepare_memory": "peak memory on an hour of video, limit 1 GB",
    "open_100k": "100,000 clips opened and the first batch, limits 2 s and 300 MB",
    "retrieval_loop": "hit@k and mAP, 1,944 queries in 4,892: share of the bare products' speed",
    "retrieval_100k": "the 20 nearest among 100,000 over the bare products, limits 1.5 and 2 GB",
    "search_1m": "one exact search in 1,000,000 clips of 512 dimensions over the bare product, limit 1.2",
    "serve_library": "p95 of a page of the library, 100,000 clips, 50 clients for 60 s, limit 0.15 s",
    "serve_search": "p95 of a search in 100,000 clips of 512 dimensions by the same clients, limit 0.1 s",
    "serve_uploads": "memory for 100 uploads at once, each answered or refused, limit 1 GB",
    "help": "`avdistill --help` over a bare interpreter, limit 0.3 s",
    "flat_growth": "a clip among 100,000 over one among 1,000, limit 1.2",
    "write_once": "bytes that `prepare` writes over those of the dataset, limit 1.1, raw or JPEG",
    "open_2m": "memory of a rank that opens 2,000,000 clips with 2048-d features, limit 500 MB",
    "embed_memory": "peak of `embed` at 20,000 clips over that at 2,000, limit 1.15",
    "evaluate_1m": "memory of `evaluate` of 1,000,000 test clips over that of the library, limit 1 GB",
    "audit_1m": "scores of an audit without a run of 1,000,000 clips, limits 10 min and 4 GB",
    "corrupt_1m": "`corrupt` of 1,000,000 clips over 100,000, limit 12",
    "crd_200k": "step of CRD with 200,000 clips over one with 2,000, limit 1.1",
    "int8_ucf51_14_mnf_csc": "a window of the UCF51 student in int8 against float32, both by onnxruntime on two cores",
    "predict_latency": "`predict` of a 10 s file of 720p over decoding alone, limit 1.25",
    "start": "`avdistill --help` and `import avdistill` over a bare interpreter, limit 0.3 s",
    "start_training": "the first training step after the command over importing PyTorch, limit 6 s",
    "two_parts": "two parts on two cores with `join`, against one preparation on one",
}
#: USD, assumed
CORE_HOUR = 0.04
#: a folder of `checkpoints/` begins with -> what its student does
CHECKPOINTS = {
    "grid_s1_lips": "video of a mouth to a word of GRID, one speaker",
    "ucf51_14_audio": "audio to an action of UCF51, 14 classes",
    "ucf51_14": "video to an action of UCF51, 14 classes",
}
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


def _read(name: str) -> dict[str, Any]:
    return dict(json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8")))


def _read_list(name: str) -> list[dict[str, Any]]:
    return list(json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8")))


def _students(name: str) -> str:
    told = _read(name)
    teacher = {"method": "teacher (audio)", "n": 1, **told["teacher"]}
    return markdown_table([*summarize(told["students"], values=METRICS), teacher], COLUMNS)


def demo() -> str:
    """The demo's students, and how far each method is ahead of no distillation."""
    return _demo(_read("demo"))


def demo_scalar() -> str:
    """The same with the last digits of another machine."""
    return _demo(_read("demo")["instructions"]["scalar"])


def _demo(told: Any) -> str:
    teacher = {"method": "teacher (audio)", "n": 1, **told["teacher"]}
    rows = [*summarize(told["students"], values=METRICS), teacher]
    for row in rows:
        ahead = told["differences"].get(row["method"])
        row["ahead"] = ahead and "{mean:+.3f} ({low:+.3f} to {high:+.3f})".format(**ahead)
    return markdown_table(rows, COLUMNS | {"ahead": "top-1 over supervised (95% interval)"})


def grid() -> str:
    """GRID, every method."""
    return _students("grid")


def demo_difficulty() -> str:
    """Supervised students and the teacher, from which the demo's difficulty was fixed."""
    told = _read("demo_choices")
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
    rows = summarize(_read("demo_choices")["students"], by=("method", "setting"), values=("top1_accuracy",))
    columns = {
        "method": "method",
        "setting": "setting",
        "n": "seeds",
        "top1_accuracy": "top-1",
        "top1_accuracy_std": "± (seeds)",
    }
    return markdown_table(rows, columns)


def faults() -> str:
    """What really happened to every fault of the list."""
    told = _read("faults")
    columns = {"fault": "fault", "command": "command", "promise": "promise", "what_happened": "what happened"}
    return markdown_table(told["faults"], columns)


def reverse() -> str:
    """Audio student, video teacher: every single-label task, every method."""
    rows = [row for row in _read("reverse")["students"] if "top1_accuracy" in row]
    columns = {
        "task": "task",
        "method": "method",
        "n": "seeds",
        "top1_accuracy": "top-1",
        "top1_accuracy_std": "± (seeds)",
    }
    return markdown_table(summarize(rows, by=("task", "method"), values=("top1_accuracy",)), columns)


def _methods(corruption: str) -> str:
    lines = [line for line in _read("methods")["table"] if line["corruption"] == corruption]
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
    rows = [{**line, "data": row["data"]} for row in _read("audit")["students"] for line in row["truth"]]
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
    rows = [row for row in _read("audit").get("without_a_run", {}).get("rows", []) if row["share"] == 0.4]
    by = ("data", "encoders", "replaced_by")
    for row in rows:
        row["replaced_by"] = row["replaced_by"].removeprefix("other_")
        row.setdefault("auroc_oracle_with_labels", math.nan)  # the labels of GRID's sentences are not known
    lines = summarize(rows, by=by, values=tuple(columns)[3:])
    return markdown_table([{k: None if v != v else v for k, v in line.items()} for line in lines], columns)


def suggest() -> str:
    """Accuracy with 50 suggested labels beside 50 random ones."""
    names = {
        "suggested": "`suggest`",
        "random": "random clips",
        "random_videos": "random source videos, a clip of each",
    }
    rows = [row | {"way": names[row["way"]], "seed": (row["split"], row["seed"])} for row in _read("suggest")["rows"]]
    columns = {"way": "50 labels", "n": "splits x seeds", "top1_accuracy": "top-1", "top1_accuracy_std": "±"}
    return markdown_table(summarize(rows, by=("way",), values=("top1_accuracy",)), columns)


def _study() -> Metrics:
    runs = study.study_rows(read_lines(study.RESULTS / "runs.jsonl", "method"))
    return Metrics(runs, json.loads((study.RESULTS / "test_clips.json").read_text(encoding="utf-8")))


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
    return markdown_table(_study().accuracy(data), columns | {"mean_class_accuracy": "class mean", "map": "mAP"})


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
    return markdown_table(_study().asked(), columns)


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
    return markdown_table(_study().means(cells), {name: name for name in ("method", *cells)})


def study_gap() -> str:
    """What is closed of the gap between few and all labels."""
    rows = [row for few in (20, 70) for row in _study().gap_closed("grid", few, 400)]
    columns = {"labeled_clips": "labeled clips", "method": "method", "few": "supervised", "top1_accuracy": "method"}
    columns |= {"every": "supervised, all 400", "closed": "fraction of the gap closed"}
    return markdown_table(rows, columns | {"top1_accuracy": "method, same labels"})


def study_kept() -> str:
    """What is left of the gain with 40% mismatched audio."""
    rows = [row for few in (20, 70) for row in _study().gain_kept("grid", few, 0.4)]
    columns = {"labeled_clips": "labeled clips", "method": "method", "clean": "gain, matched audio"}
    return markdown_table(rows, columns | {"wrong": "gain, 40% mismatched", "kept": "fraction kept"})


def study_robust() -> str:
    """`robust` against no distillation and the two closest to it."""
    rows = _study().against("robust", ["supervised", "pseudo_label", "kd"])
    columns = {"data": "data", "labeled_clips": "labeled clips", "wrong_audio": "mismatched audio"}
    columns |= {"against": "baseline", "difference": "difference", "interval": "95% interval", "seeds": "seeds"}
    return markdown_table(rows, columns | {"verdict": "verdict"})


def study_found() -> str:
    """How well the runs find the mismatched audio."""
    columns = {"data": "data", "labeled_clips": "labeled clips", "wrong_audio": "mismatched audio", "method": "method"}
    columns |= {"clips": "clips", "seeds": "seeds", "auroc": "AUROC", "average_precision": "average precision"}
    return markdown_table(_study().found(), columns)


def study_tuning() -> str:
    """Settings tried, on the teacher's clips."""
    told = _read("study/tuning")
    rows = summarize(told["trials"], by=("method", "setting"))
    for row in rows:
        row["chosen"] = "chosen" if told["chosen"][row["method"]] == row["setting"] else ""
    columns = {
        "method": "method",
        "setting": "setting",
        "n": "seeds",
        "top1_accuracy": "top-1",
        "top1_accuracy_std": "± (seeds)",
    }
    return markdown_table(rows, columns | {"chosen": ""})


def study_apart() -> str:
    """Test words of classes that have a labeled clip, and of those that have none."""
    rows = [row for row in _study().accuracy("grid") if "top1_other_classes" in row]
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
    told = _read("ablation")
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


def _performance() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    families = "training students loading preparation retrieval growth scale serve small_models latency peers"
    for family in families.split():
        rows |= {row["name"]: row for row in _read_list(f"performance/{family}")}
    return rows


def search() -> str:
    """The forms of an index, and faiss, at a million clips."""
    names = {"exact": "exact", "lance": "LanceDB, IVF-PQ", "faiss_flat": "faiss, flat", "faiss_ivf": "faiss, IVF"}
    rows = []
    for found in _read("performance/search")["forms"]:
        row = {"form": names[found["form"]], "build": round(found["build_seconds"])}
        row["open"] = round(found["open_seconds"])
        for name in ("build_memory", "memory", "disk"):
            row[name] = found[f"{name}_bytes"] / 1e9
        for name in ("all", "where"):
            for key, value in found.get(name, {}).items():
                row[f"{name}_{key}"] = round(value) if key.endswith("ms") else value
        rows.append(row)
    columns = {
        "form": "form", "build": "build, s", "build_memory": "its memory, GB", "disk": "disk, GB", "open": "open, s",
        "memory": "memory, GB", "all_p50_ms": "p50, ms", "all_p95_ms": "p95, ms", "all_recall_at_10": "recall@10",
        "where_p50_ms": "p50 with condition, ms", "where_recall_at_10": "recall@10 with it",
    }  # fmt: skip
    return markdown_table(rows, columns)


def performance() -> str:
    """Every figure with a bar."""
    rows = [
        {"name": f"`{name}`", "what": what, "ratio": row["ratio"], "bar": row["bar"]}
        | {"verdict": "met" if row["ratio"] >= row["bar"] else "**not met**"}
        for name, what in SPEED_METRICS.items()
        if (row := _performance().get(name))
    ]
    columns = {"name": "name", "what": "what is measured", "ratio": "ratio", "bar": "bar", "verdict": ""}
    return markdown_table(rows, columns)


def performance_students() -> str:
    """Students beside the released one."""
    rows = [
        row | {f"top1_{data}": top1_accuracy for data, top1_accuracy in row["top1_accuracy"].items()}
        for name, row in _performance().items()
        if "share_of_accuracy" in row and name != "cheap_student"
    ]
    columns = {"name": "student", "grid": "times as fast, GRID", "synthetic": "times as fast, synthetic"}
    columns |= {"top1_grid": "top-1, GRID", "top1_synthetic": "top-1, synthetic"}
    return markdown_table(rows, columns | {"share_of_accuracy": "of the released student's top-1, at least"})


def performance_step() -> str:
    """The operators that a training step spends its time in."""
    columns = {"operator": "operator", "seconds": "s", "share": "share", "gflops": "GFLOP/s"}
    rows = _read("performance/profile")["step"]["operators"]
    return markdown_table(rows, columns | {"gigabytes_per_second": "GB/s"})


def performance_clip() -> str:
    """What a prepared clip's time goes into."""
    rows = _read("performance/profile")["clip"]["parts"]
    return markdown_table(rows, {"part": "part", "seconds": "s", "share": "share"})


def performance_limits() -> str:
    """The machine, and what was tried and is not used."""
    told = _read("performance/profile")
    rows = [
        {"what": "product of two 4096 x 4096 matrices, GFLOP/s", "figure": told["limits"]["gflops"]},
        {"what": "copy in memory, GB/s read and written", "figure": told["limits"]["gigabytes_per_second"]},
        *(
            {"what": f"{name} without a profiler, GB/s", "figure": figure}
            for name, figure in told["moving_alone"].items()
        ),
        {"what": "compiled student: step over the plain one's", "figure": told["compiled"]["times"]},
    ]
    if "torchcodec" in told:
        every, some = told["torchcodec"]["every_frame"], told["torchcodec"]["at_4_fps_full_size"]
        rows.append(
            {"what": "torchcodec, every frame to RGB, over PyAV's decoding of video and audio", "figure": every}
        )
        rows.append({"what": "torchcodec, 4 frames a second without audio, over `read_clip` with it", "figure": some})
    return markdown_table(rows, {"what": "", "figure": f"on {told['processor']}"})


def _small_models(*, measured: bool) -> list[dict[str, Any]]:
    """Rows of exported students: of checkpoints, whose accuracy was measured, or of networks with random weights."""
    rows = []
    for row in _read_list("performance/small_models"):
        if ("difference" in row) != measured:
            continue
        cores = f"milliseconds_{row['cores']}_cores"
        one = row["milliseconds_1_core"]
        rows.append(
            {"name": row["name"].removeprefix("int8_"), "parameters": row["parameters"] / 1e6}
            | {f"mb_{name}": size for name, size in row["megabytes"].items()}
            | {f"all_{name}": row[cores][name] for name in ("torch", "float32", "int8")}
            | {f"one_{name}": one[name] for name in ("torch", "float32", "int8")}
            | {"all_ratio": row[cores]["ratio"], "one_ratio": one["ratio"]}
            | {"window": " x ".join(map(str, row["window"][1:-1] if len(row["window"]) > 2 else row["window"][1:]))}
        )
        if measured:
            rows[-1] |= {name: _interval(row["top1_accuracy"][name]) for name in ("float32", "int8")}
            rows[-1]["difference"] = _interval(row["difference"], signed=True)
    return rows


def small_models() -> str:
    """Exported checkpoints: accuracy, size and time of float32 and int8."""
    columns = {"name": "checkpoint", "float32": "top-1, float32", "int8": "top-1, int8", "difference": "difference"}
    columns |= {"mb_float32": "MB, float32", "mb_int8": "MB, int8"}
    columns |= {"one_torch": "ms, PyTorch", "one_float32": "ms, float32", "one_int8": "ms, int8"}
    columns |= {"one_ratio": "float32 / int8, one core", "all_ratio": "float32 / int8, two cores"}
    return markdown_table(_small_models(measured=True), columns)


def small_families() -> str:
    """A network of every family as ONNX and int8: size and time."""
    columns = {"name": "network, random weights", "window": "window", "parameters": "M parameters"}
    columns |= {"mb_float32": "MB, float32", "mb_int8": "MB, int8"}
    columns |= {"one_torch": "ms, PyTorch", "one_float32": "ms, float32", "one_int8": "ms, int8"}
    columns |= {"one_ratio": "float32 / int8, one core", "all_ratio": "float32 / int8, two cores"}
    return markdown_table(_small_models(measured=False), columns)


def checkpoints() -> str:
    """Every student in `checkpoints/`: what it does, how large it is, how accurate, and what its teacher brought."""
    study, rows = ucf51_metrics.Metrics.read(ROOT / "results" / "ucf51.csv"), []
    written = (ROOT / "results" / "checkpoints.json").is_file()
    trained = {row["name"]: row for row in _read("checkpoints")["rows"]} if written else {}
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
            row |= {"top1": _interval(of["top1_accuracy"]), "map": _interval(of["map"])}
            row |= {f"{name}_ahead": _interval(of[f"{name}_ahead"], signed=True) for name in ("top1_accuracy", "map")}
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
        found["top1" if name == "top1_accuracy" else name] = _interval(vars(interval(values, videos)))
        ahead = only.difference(condition, method, "supervised", of)
        assert ahead is not None
        found[f"{name}_ahead"] = ucf51_metrics.signed(ahead)
    return found


def _interval(found: dict[str, float], *, signed: bool = False) -> str:
    """A value with its interval, as a table shows it."""
    return ("{mean:+.3f} ({low:+.3f} to {high:+.3f})" if signed else "{mean:.3f} ({low:.3f} to {high:.3f})").format(
        **found
    )


def yamnet() -> str:
    """The classes that YAMNet predicts for mixed clips."""
    return markdown_table(
        _read("named_teachers")["yamnet"]["clips"], {"clip": "clip", "heard": "top classes (mean score)"}
    )


def named_teachers() -> str:
    """GRID's words with teachers by name."""
    columns = {"teacher": "teacher", "method": "method", "top1_accuracy": "top-1", "clips": "test words"}
    return markdown_table(_read("named_teachers")["students"], columns)


def tagging() -> str:
    """Audio tagging of clips with two events."""
    rows = [row for row in _read("reverse")["students"] if "top1_accuracy" not in row]
    columns = {"method": "method", "n": "seeds", "map": "mAP", "auc": "AUC", "d_prime": "d-prime"}
    return markdown_table(summarize(rows, values=("map", "auc", "d_prime")), columns)


@cache
def _ucf51() -> ucf51_metrics.Metrics:
    return ucf51_metrics.Metrics.read(ROOT / "results" / "ucf51.csv")


def ucf51_claim() -> str:
    """What audio gains on real videos, in two sentences."""
    said = []
    for condition, method in ((ucf51_metrics.FEW_LABELS, "robust_csc"), (ucf51_metrics.ALL_LABELS, "mnf_csc")):
        gains = [
            f"{100 * gain.mean:.1f} points of {name} (95% interval {100 * gain.low:.1f} to {100 * gain.high:.1f})"
            for of, name in {"correct": "top-1 accuracy", "average_precision": "retrieval mAP"}.items()
            if (gain := _ucf51().difference(condition, method, "supervised", of)) is not None
        ]
        splits = len({split for split, _ in _ucf51().runs(condition, method)})
        said.append(f"{' and '.join(gains)} ({splits} of UCF101's 3 splits)")
    few, every = said
    return (
        f"With 10 labels a class, a small video student gains {few} from the audio (`robust_csc` over the same "
        f"training without audio). With every clip labeled, the paper's method `mnf_csc` gains {every}. Fourteen "
        "classes of UCF51, the paper's audio teacher, one run a split; intervals over source videos."
    )


def ucf51_gain() -> str:
    """What the audio gains, in one sentence."""
    gain = _ucf51().difference(ucf51_metrics.FEW_LABELS, "robust_csc", "supervised", "correct")
    if gain is None:
        return "No run has ended yet."
    splits = len({split for split, _ in _ucf51().runs(ucf51_metrics.FEW_LABELS, "robust_csc")})
    return (
        "On real videos with 10 labels a class, the audio makes a small video network, trained from scratch, "
        f"{100 * gain.mean:.1f} points better in top-1 accuracy (95% interval {100 * gain.low:.1f} to "
        f"{100 * gain.high:.1f}; `robust_csc` over the same training without audio, 14 classes of UCF51, {splits} "
        "splits, [all runs](docs/results/ucf51.md))."
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
    found = _read("own_videos")["made"]
    return (
        f"In {found['seconds']} s on {found['environment']['cores']} cores: {found['unreadable_named']} of 2 "
        f"unreadable files, {found['copies_named']} of 10 re-uploads ({found['pairs_named']} pairs named), "
        f"{found['listed_wrong_audio']} of {found['wrong_audio']} clips with wrong audio among {found['listed']} "
        f"listed. With {found['test_clips']} test clips no student's gain can be shown."
    )


def own_videos() -> str:
    """`distill` on UCF51's videos: the rows of its report, and how far ahead the delivered student is."""
    found = _read("own_videos")["ucf51"]
    columns = {"method": "method", "n": "seeds", "top1_accuracy": "top-1", "interval": "95% interval", "map": "mAP"}
    names = {"supervised": "supervised", "linear_probe": "the linear probe on the teacher"}
    ahead = ", ".join(
        f"{100 * each['mean']:+.1f} points over {names[name]} (95% interval {100 * each['low']:.1f} to "
        f"{100 * each['high']:.1f})"
        for name, each in found["ahead_of"].items()
    )
    last = f"`{found['delivered']}`: {ahead}; {found['test_clips']} test clips of {found['test_groups']} source videos."
    return markdown_table(found["methods"], columns) + "\n\n" + last


def ucf51_pretrained() -> str:
    """The student from ImageNet's weights, every clip labeled."""
    return _ucf51_table(ucf51_metrics.PRETRAINED_ALL)


def ucf51_pretrained_few() -> str:
    """The student from ImageNet's weights, with 10 labels a class."""
    return _ucf51_table(ucf51_metrics.PRETRAINED_FEW)


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


def ucf51_ranks() -> str:
    """Mean ranks over all conditions."""
    columns = {"method": "method", "rank": "mean rank", "contests": "contests"}
    return markdown_table(_ucf51().ranks(ucf51_metrics.CONDITIONS), columns)


def ucf51_trials() -> str:
    """The runs that settings were chosen by."""
    columns = {"labels": "labels a class", "mismatched": "mismatched", "student": "student", "setting": "method"}
    columns |= {"learning_rate": "learning rate", "top1_accuracy": "top-1", "map": "mAP"}
    return markdown_table(ucf51_metrics.Metrics.read(ROOT / "results" / "ucf51_tuning.csv").rows, columns)


def million() -> str:
    """A million clips from what one costs; prices are assumptions, named on the page."""
    found = json.loads((ROOT / "results" / "million.json").read_text(encoding="utf-8"))
    rows = {row["step"]: row for row in found["rows"]}
    names = {
        "prepare": "`prepare`: decode, scale, JPEG",
        "embed_yamnet": "`embed`, YAMNet on all the audio",
        "embed_cnn14": "`embed`, PANNs CNN14 on all the audio",
        "embed_frames": "`embed`, EfficientNet-Lite0 on 5 frames",
        "train": "`train`, the small student of UCF51, ten epochs",
        "evaluate": "`evaluate` or `retrieve`, one window",
    }
    times = {"train": 10}
    lines = []
    for step, name in names.items():
        seconds = rows[step]["processor_seconds"] * times.get(step, 1)
        hours, gigabytes = seconds * 1e6 / 3600, rows[step]["bytes"] * 1e6 / 1e9
        lines.append(
            {
                "step": name,
                "seconds": f"{seconds:.3f}",
                "hours": f"{hours:,.0f}",
                "wall": f"{hours / 64:.1f}",
                "price": f"{hours * CORE_HOUR:,.0f}",
                "disk": f"{gigabytes:,.0f}" if gigabytes else None,
            }
        )
    source = rows["prepare"]["source_bytes"] * 1e6 / 1e12
    head = {
        "step": "step",
        "seconds": "core seconds a clip",
        "hours": "core hours",
        "wall": "hours on 64 cores",
        "price": "USD",
        "disk": "GB on the disk",
    }
    return f"{markdown_table(lines, head)}\n\nThe videos themselves take {source:.1f} TB."


def which_method() -> str:
    """Which methods are shown to help, in which situation."""
    return markdown_table(choosing.rows(_study(), _ucf51()), choosing.COLUMNS)


TABLES: dict[str, Callable[[], str]] = {
    "ablation_boxes": ablation_boxes,
    "ablation_grid": ablation_grid,
    "audit": audit,
    "audit_without_a_run": audit_without_a_run,
    "checkpoints": checkpoints,
    "demo": demo,
    "demo_scalar": demo_scalar,
    "demo_choices": demo_choices,
    "demo_difficulty": demo_difficulty,
    "faults": faults,
    "grid": grid,
    "methods_clean": methods_clean,
    "methods_unrelated": methods_unrelated,
    "reverse": reverse,
    "performance": performance,
    "performance_clip": performance_clip,
    "performance_limits": performance_limits,
    "performance_step": performance_step,
    "performance_students": performance_students,
    "search": search,
    "small_families": small_families,
    "small_models": small_models,
    "study_apart": study_apart,
    "study_asked": study_asked,
    "study_boxes": study_boxes,
    "study_found": study_found,
    "study_gap": study_gap,
    "study_grid": study_grid,
    "study_kept": study_kept,
    "study_means_grid": study_means_grid,
    "study_means_others": study_means_others,
    "study_robust": study_robust,
    "study_synthetic": study_synthetic,
    "study_tuning": study_tuning,
    "named_teachers": named_teachers,
    "suggest": suggest,
    "tagging": tagging,
    "ucf51_all": ucf51_all,
    "ucf51_claim": ucf51_claim,
    "ucf51_few": ucf51_few,
    "ucf51_gain": ucf51_gain,
    "ucf51_few_mismatched": ucf51_few_mismatched,
    "ucf51_mismatched": ucf51_mismatched,
    "own_videos": own_videos,
    "own_videos_made": own_videos_made,
    "million": million,
    "ucf51_pretrained": ucf51_pretrained,
    "ucf51_pretrained_few": ucf51_pretrained_few,
    "ucf51_probes": ucf51_probes,
    "ucf51_ranks": ucf51_ranks,
    "ucf51_trials": ucf51_trials,
    "which_method": which_method,
    "yamnet": yamnet,
}


def filled(text: str) -> str:
    """The document with every table made anew."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description="tables and images of the documents, from results/")
    parser.add_argument("documents", nargs="*")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where something differs")
    arguments = parser.parse_args()
    documents = [ROOT / name for name in arguments.documents] or [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    differing = [] if arguments.documents else plots.differing(write=not arguments.check)
    for path in documents:
        text = path.read_text(encoding="utf-8")
        fresh = filled(text)
        if fresh != text:
            differing.append(str(path.relative_to(ROOT)))
            if not arguments.check:
                path.write_text(fresh, encoding="utf-8")
    if differing and arguments.check:
        print(
            f"{', '.join(differing)}: not what is in results/; run `python benchmarks/results/tables.py`",
            file=sys.stderr,
        )
    return int(bool(differing) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
