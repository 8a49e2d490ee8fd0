"""Export of a student as ONNX or safetensors, with its preprocessing, and a comparison with the run."""

import os
import warnings
from collections.abc import Callable
from functools import singledispatch
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import check_view_fits, clips_of_splits, has_modality
from avdistill.dataset.windows import evaluation_window, spaced_starts
from avdistill.errors import ConfigError, DatasetError, ExportError
from avdistill.fsio import as_json, commit, file_checksum, follow_link, is_vacant, remove_tree, write_json, write_text
from avdistill.inference.onnx_student import CONFIG, INPUT, MODEL, OUTPUTS, OnnxStudent
from avdistill.inference.quantization import quantize
from avdistill.inference.runner import check_rates
from avdistill.inputs import IMAGENET_MEAN, IMAGENET_STD, AudioInput, VideoInput, View, normalize_frames
from avdistill.models.checkpoint import WEIGHTS, load_student, save_student, student_folder
from avdistill.models.hub import local_folder
from avdistill.types import StudentConfig, StudentNetwork

Format = Literal["onnx", "safetensors"]
# The largest difference of any embedding or logit between the exported file and the run's student.
TOLERANCE = 1e-4
# The share of clips whose most probable label int8 must keep.
SAME_LABEL = 0.9
_RANDOM_INPUTS = 4
_BATCH = 4
# Clips whose values set the ranges of int8, and as many others on which it is compared.
_CALIBRATION_CLIPS = 128
_PACKAGES = ("onnx", "onnxscript", "onnxruntime")

Runner = Callable[[Tensor], tuple[np.ndarray, np.ndarray]]


def export(
    run: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    format: Format = "onnx",  # noqa: A002  (the word for it)
    clips: ClipDataset | None = None,
    most_clips: int = 20,
    int8: bool = False,
    split: str = "train",
) -> dict[str, Any]:
    """Write the best student of a run into a new folder, load it again from there and compare it with the run.

    The folder holds `model.onnx`, which takes uint8 frames or a waveform, for `OnnxStudent.from_exported`, or
    `model.safetensors`, for `Student.from_pretrained`; `config.json`; and `preprocessing.json`, all that others need to
    feed it. Outputs are `embedding` (B, D) and `logits` (B, C).

    Args:
        run: run folder, or `hf://org/name@revision`.
        out: a new or empty folder, or a link to one.
        format: "onnx" or "safetensors".
        clips: a dataset whose clips are compared besides random inputs.
        most_clips: how many of them, evenly spread over the dataset.
        int8: after the comparison, quantize the ONNX model with ranges from clips of `clips`, and compare it with
            float32 on others.
        split: whose clips these are: of the training data, never those that the student is tested on.

    Returns:
        The content of `preprocessing.json`.

    Raises:
        FileExistsError: `out` is not empty.
        CheckpointError: there is no trained network.
        ConfigError: `int8` without clips or for another format.
        ExportError: the packages for ONNX are missing, or the exported student differs by more than 1e-4, or int8 gives
            more than a tenth of the clips another label; then there is no folder.
        DatasetError, TeacherError: no clip of the dataset can be fed to the student.
    """
    run, name, out = local_folder(run), out, follow_link(out)
    if not is_vacant(out):
        raise FileExistsError(f"{name}: exists already; name a new folder")
    _check_call(format, clips, int8)
    rows = clips_of_splits(clips, split) if int8 and clips is not None else None
    network, config = load_student(run)
    inputs = [_random_inputs(config)] + ([] if clips is None else [_clip_inputs(clips, config, most_clips)])

    partial = out.with_name(out.name + ".exporting")  # `.partial` may be hours of an interrupted `prepare`
    remove_tree(partial)
    partial.mkdir(parents=True)
    try:
        exported = (_write_onnx if format == "onnx" else _write_safetensors)(network, config, partial)
        parity = _compare(_Exported(network), exported, torch.cat(inputs))
        report = _describe(run, network, config, format) | {"parity": parity | {"clips": sum(map(len, inputs[1:]))}}
        if rows is not None and clips is not None:
            report["int8"] = {"split": split} | _make_int8(network, config, partial / MODEL, exported, clips, rows)
        write_json(partial / "preprocessing.json", report)
        commit(partial, out)
    finally:
        remove_tree(partial)  # renamed by now, if all is well
    return report


def _check_call(file_format: Format, clips: ClipDataset | None, int8: bool) -> None:
    """Raise ExportError for a missing package, and ConfigError for an int8 that cannot be made."""
    missing = [name for name in _PACKAGES if file_format == "onnx" and find_spec(name) is None]
    if missing:
        raise ExportError(f"to export ONNX {', '.join(missing)} must be there: install the extra 'onnx'")
    if int8 and (file_format != "onnx" or clips is None):
        raise ConfigError("int8: expected format onnx, and a dataset whose clips set its ranges")


class _Exported(nn.Module):
    """A student from uint8 frames (B, T, H, W, 3) or a float32 waveform (B, S) to (embedding, logits)."""

    def __init__(self, network: StudentNetwork) -> None:
        super().__init__()
        self.network = network

    def forward(self, inputs: Tensor) -> tuple[Tensor, Tensor]:
        video = self.network.modality == "video"
        features = self.network(normalize_frames(inputs) if video else inputs)
        return features.embedding, features.logits


def _write_onnx(network: StudentNetwork, config: StudentConfig, folder: Path) -> Runner:
    """Write model and config; returns how it answers."""
    example = _random_inputs(config)[:2]
    with warnings.catch_warnings():
        # The exporter's warnings are about its own code; the comparison that follows checks the file.
        warnings.simplefilter("ignore")
        try:
            torch.onnx.export(
                _Exported(network).eval(),
                (example,),
                str(folder / MODEL),
                input_names=[INPUT],
                output_names=OUTPUTS,
                dynamic_shapes={INPUT: {0: torch.export.Dim("batch")}},
                dynamo=True,
                external_data=False,
                verbose=False,
            )
        except torch.onnx.OnnxExporterError as error:
            raise ExportError(f"{config.model} cannot be exported as ONNX; safetensors takes any model") from error
    write_text(folder / CONFIG, as_json(encode(config)))
    return _onnx_runner(folder)


def _onnx_runner(folder: Path) -> Runner:
    student = OnnxStudent.from_exported(folder)
    return lambda inputs: student.run(inputs.numpy())


def _make_int8(
    network: StudentNetwork, config: StudentConfig, model: Path, exported: Runner, clips: ClipDataset, rows: np.ndarray
) -> dict[str, Any]:
    """Quantize a model in place; returns how it compares with float32 on clips that set no range."""
    windows = _clip_inputs(clips, config, 2 * _CALIBRATION_CLIPS, rows, first=False)
    calibration, others = windows[::2], windows[1::2] if len(windows) > 1 else windows
    quantize(model, {f"network.{name}" for name, _ in network.named_parameters()}, calibration)
    quantized = _onnx_runner(model.parent)
    pairs = [(exported(batch)[1], quantized(batch)[1]) for batch in others.split(_BATCH)]
    before, after = (np.concatenate(logits) for logits in zip(*pairs, strict=True))
    same = float((before.argmax(1) == after.argmax(1)).mean())
    if not same >= SAME_LABEL:
        raise ExportError(
            f"int8 keeps the label of {same:.0%} of {len(others)} clips, less than {SAME_LABEL:.0%}; export float32"
        )
    return {
        "calibration_clips": len(calibration),
        "clips": len(others),
        "same_label": same,
        "mean_difference_of_logits": float(np.abs(before - after).mean()),
    }


def _write_safetensors(network: StudentNetwork, config: StudentConfig, folder: Path) -> Runner:
    """Write weights and config; returns how a network built anew from them answers."""
    save_student(folder, network, config)
    again, _ = load_student(folder)
    return _runner(_Exported(again))


def _runner(module: nn.Module) -> Runner:
    def answer(inputs: Tensor) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            embedding, logits = module(inputs)
        return embedding.numpy(), logits.numpy()

    return answer


def _compare(module: nn.Module, exported: Runner, inputs: Tensor) -> dict[str, Any]:
    """The largest absolute differences; raises ExportError beyond the tolerance."""
    expected = _runner(module)
    largest = {"embedding": 0.0, "logits": 0.0}
    # The first alone, then several: the size of a batch must not matter.
    for batch in (inputs[:1], *inputs[1:].split(_BATCH)):
        for name, ours, theirs in zip(largest, expected(batch), exported(batch), strict=True):
            # Written so that NaN counts as a difference.
            difference = float(np.abs(ours - theirs).max())
            largest[name] = difference if not difference <= largest[name] else largest[name]
    for name, difference in largest.items():
        if not difference <= TOLERANCE:
            raise ExportError(
                f"the exported student's {name} differs by {difference:.2g} from the run's, more than {TOLERANCE:g}"
            )
    return {"inputs": len(inputs), "largest_difference": largest, "tolerance": TOLERANCE}


def _random_inputs(config: StudentConfig) -> Tensor:
    return config.view.random_inputs(_RANDOM_INPUTS, config.sample_rate_hz, np.random.default_rng(0))


def _clip_inputs(
    dataset: ClipDataset, config: StudentConfig, most: int, rows: np.ndarray | None = None, *, first: bool = True
) -> Tensor:
    """A window, the first or the middle one, of some clips of a dataset, or of those of its `rows`."""
    view, rate_hz = config.view, dataset.sample_rate_hz
    check_rates(dataset, view, config.fps, config.sample_rate_hz, "the student")
    rows = np.arange(len(dataset)) if rows is None else rows
    clips = rows[has_modality(dataset, rows, view)]
    if not len(clips):
        raise DatasetError(f"{dataset.folder}: no clip with {view.modality}")
    chosen = clips[np.linspace(0, len(clips) - 1, min(most, len(clips))).round().astype(int)]
    check_view_fits(dataset, chosen, view)
    length, windows = view.window_length(rate_hz), []
    for items in (dataset.read(int(clip), view) for clip in chosen):
        start = 0 if first else spaced_starts(len(items), length, 1)[0]
        windows.append(evaluation_window(items, view, rate_hz, start))
    return torch.stack(windows)


def _describe(run: Path, network: StudentNetwork, config: StudentConfig, file_format: Format) -> dict[str, Any]:
    """All that is needed to feed the exported student, JSON-ready."""
    length = config.view.window_length(config.sample_rate_hz)
    return {
        "version": 1,
        "file": f"model.{file_format}",
        "format": file_format,
        "modality": config.view.modality,
        **_describe_input(config.view, config, file_format),
        "outputs": {"embedding": ["B", network.embedding_dim], "logits": ["B", len(config.classes)]},
        "classes": list(config.classes),
        "probabilities": "sigmoid" if config.multi_label else "softmax",
        "windows": {
            "length": length,
            "stride": length,
            "short": "repeat the window's own items from their start",
            "last": (
                "the first window to reach the end, where it begins"
                if not config.view.aligned
                else "moved back to end where the audio ends"
            ),
            "average": "mean of the windows' probabilities",
        },
        "source": {
            "run": run.resolve().name,
            "model": config.model,
            "options": config.options,
            "sha256": file_checksum(student_folder(run) / WEIGHTS),
            "avdistill": version("avdistill"),
        },
    }


@singledispatch
def _describe_input(view: View, config: StudentConfig, file_format: Format) -> dict[str, Any]:
    """What goes into the exported student, and how it is made of frames or audio."""
    raise NotImplementedError


@_describe_input.register
def _(view: VideoInput, config: StudentConfig, file_format: Format) -> dict[str, Any]:
    inside = file_format == "onnx"
    height, width = view.size
    resize = "bilinear with antialiasing, by the factor max(height / H, width / W), rounded, never below the size"
    shape: list[str | int] = ["B", view.frames, height, width, 3] if inside else ["B", 3, view.frames, height, width]
    return {
        "input": {"name": "inputs", "type": "uint8" if inside else "float32", "shape": shape},
        "fps": config.fps,
        # How `prepare` decoded the training dataset's images, before `resize` and `crop` to `size`.
        "decoded": {name: getattr(config, name) for name in ("short_side", "region", "size")},
        "frames": view.frames,
        "size": [height, width],
        "channels": "RGB",
        "resize": resize if view.resize else "none: the size is cut out of the video as it was decoded",
        "crop": f"center; half a pixel {'to the even side' if view.resize else 'to the top and the left'}",
        "normalization": {
            "rule": "(pixel / 255 - mean) / std",
            "mean": list(IMAGENET_MEAN),
            "std": list(IMAGENET_STD),
            "done_by": "the file" if inside else "the caller",
        },
    }


@_describe_input.register
def _(view: AudioInput, config: StudentConfig, file_format: Format) -> dict[str, Any]:
    samples = view.window_length(config.sample_rate_hz)
    return {
        "input": {"name": "inputs", "type": "float32", "shape": ["B", samples]},
        "sample_rate_hz": config.sample_rate_hz,
        "seconds": samples / config.sample_rate_hz,
        "channels": "mono",
        "range": [-1, 1],
    }
