"""Tables of docs/performance.md and of what follows from its rates; each public function is one."""

from __future__ import annotations

from typing import Any

from avdistill.reporting.tables import markdown_table
from reading import read, read_list, with_interval

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
    "two_parts": "two parts with `join`, each kept on a core of its own, against one preparation kept on one",
}
#: USD, assumed
CORE_HOUR = 0.04


def _performance() -> dict[str, dict[str, Any]]:
    rows: dict[str, dict[str, Any]] = {}
    families = "training students loading preparation retrieval growth scale serve small_models latency peers"
    for family in families.split():
        rows |= {row["name"]: row for row in read_list(f"performance/{family}")}
    return rows


def search() -> str:
    """The forms of an index, and faiss, at a million clips."""
    names = {"exact": "exact", "lance": "LanceDB, IVF-PQ", "faiss_flat": "faiss, flat", "faiss_ivf": "faiss, IVF"}
    rows = []
    for found in read("performance/search")["forms"]:
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
    rows = read("performance/profile")["step"]["operators"]
    return markdown_table(rows, columns | {"gigabytes_per_second": "GB/s"})


def performance_clip() -> str:
    """What a prepared clip's time goes into."""
    rows = read("performance/profile")["clip"]["parts"]
    return markdown_table(rows, {"part": "part", "seconds": "s", "share": "share"})


def performance_limits() -> str:
    """The machine, and what was tried and is not used."""
    told = read("performance/profile")
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
    rows += [
        {"what": f"convolutions' share of `embed`, {network}", "figure": row["convolution_share"]}
        for network, name in (("YAMNet", "embed_yamnet"), ("PANNs CNN14", "embed_cnn14"))
        for row in read_list("performance/peers")
        if row["name"] == name
    ]
    return markdown_table(rows, {"what": "", "figure": f"on {told['processor']}"})


def _small_models(*, measured: bool) -> list[dict[str, Any]]:
    """Rows of exported students: of checkpoints, whose accuracy was measured, or of networks with random weights."""
    rows = []
    for row in read_list("performance/small_models"):
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
            rows[-1] |= {name: with_interval(row["top1_accuracy"][name]) for name in ("float32", "int8")}
            rows[-1]["difference"] = with_interval(row["difference"], signed=True)
    return rows


def small_models() -> str:
    """Exported checkpoints: accuracy, size and time of float32 and int8."""
    columns = {"name": "checkpoint", "float32": "top-1, float32", "int8": "top-1, int8", "difference": "difference"}
    columns |= {"mb_float32": "MB, float32", "mb_int8": "MB, int8"}
    columns |= {"one_torch": "ms, PyTorch", "one_float32": "ms, float32", "one_int8": "ms, int8"}
    columns |= {"one_ratio": "float32 / int8, one core", "all_ratio": "float32 / int8, two cores"}
    return markdown_table(_small_models(measured=True), columns)


def int8_ucf51_14_mnf_csc() -> str:
    """On the card of that checkpoint."""
    return _int8("ucf51_14_mnf_csc")


def int8_ucf51_14_robust_csc() -> str:
    """On the card of that checkpoint."""
    return _int8("ucf51_14_robust_csc")


def _int8(checkpoint: str) -> str:
    """Accuracy, size and time by PyTorch and by onnxruntime."""
    row = next(each for each in _small_models(measured=True) if each["name"] == checkpoint)
    rows = [
        {"form": form, "top1": row.get(name), "mb": row.get(f"mb_{name}"), "ms": row[f"one_{name}"]}
        for name, form in (("torch", "PyTorch"), ("float32", "ONNX, float32"), ("int8", "ONNX, int8"))
    ]
    columns = {"form": "form", "top1": "top-1", "mb": "MB", "ms": "ms a window, one core"}
    said = f"int8 over float32: top-1 {row['difference']}; {row['all_ratio']:.2f} times as fast on two cores."
    how = "([How it was measured](../../docs/performance.md#exported-students).)"
    return f"{markdown_table(rows, columns)}\n\n{said} {how}"


def small_families() -> str:
    """A network of every family as ONNX and int8: size and time."""
    columns = {"name": "network, random weights", "window": "window", "parameters": "M parameters"}
    columns |= {"mb_float32": "MB, float32", "mb_int8": "MB, int8"}
    columns |= {"one_torch": "ms, PyTorch", "one_float32": "ms, float32", "one_int8": "ms, int8"}
    columns |= {"one_ratio": "float32 / int8, one core", "all_ratio": "float32 / int8, two cores"}
    return markdown_table(_small_models(measured=False), columns)


def million() -> str:
    """A million clips from what one costs; prices are assumptions, named on the page."""
    found = read("million")
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
