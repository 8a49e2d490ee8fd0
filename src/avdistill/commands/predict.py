"""Verbs that use a trained student: predict, export."""

import csv
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from io import TextIOWrapper
from pathlib import Path
from typing import IO, Any, Literal

import tyro

from avdistill.commands.console import Printed, output, printable, progress_bar, region_of, say
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, MediaError, NotFiniteError
from avdistill.fsio import commit, create_file
from avdistill.inference.onnx_student import OnnxStudent, is_exported
from avdistill.inference.prediction import SEGMENT_COLUMNS, FileStudent, Prediction
from avdistill.preparation.clip_reader import IsolatedReader


@dataclass(frozen=True)
class _Predict:
    """Label video or audio files with a student: labels of the whole file, and of its segments with times."""

    model: tyro.conf.Positional[str]
    """A run folder, whose best student is taken, an exported folder (one with model.onnx needs no PyTorch), or
    hf://org/name@revision on the Hugging Face hub."""
    files: tyro.conf.Positional[tuple[Path, ...]]
    """Video or audio files."""
    top: int = 5
    """Number of labels for each file and segment."""
    windows: int | None = None
    """Evenly spaced windows per file; by default windows slide over the whole file."""
    stride: int | None = None
    """Stride of the sliding windows in frames or samples; the default is the length of a window."""
    short_side: int | None = None
    """Pixels of the shorter side, as in `prepare`; the default is the scale of the training dataset."""
    size: tuple[int, int] | None = None
    """Height and width instead of --short-side, as in `prepare`."""
    region: str | None = None
    """The region x,y,width,height in pixels to crop before scaling, or `whole`; by default the dataset's."""
    batch_size: int = 32
    """Windows per batch."""
    time_limit: float = 1800.0
    """The seconds that decoding one file may take before it counts as unreadable; 0 sets no limit."""
    csv: Path | None = None
    """A new file that gets a row per segment; `-` is standard output."""
    json: bool = False
    """Print one JSON object per file, each on a line."""


def predict(arguments: list[str]) -> None:
    """`avdistill predict MODEL FILE ...`."""
    a = tyro.cli(_Predict, args=arguments, prog="avdistill predict")
    table_on_output = a.csv == Path("-")
    if not a.files:
        raise ConfigError("FILE: expected at least one file, found none")
    for file in a.files:
        if file.is_dir():
            raise ConfigError(f"{file}: expected a file, found a folder; pass the files in it")
    if a.json and table_on_output:
        raise ConfigError("--json and --csv -: both would be written to standard output; choose one")
    if a.csv is not None and a.csv.exists():  # perhaps a video: `--csv a.mp4 b.mp4`
        raise FileExistsError(f"--csv: {a.csv}: exists already; name a new file")
    region: Any = "whole" if a.region == "whole" else region_of(a.region)
    student = _load(a.model, short_side=a.short_side, size=a.size, region=region)
    failed = 0
    with _table(a.csv) as write_row, IsolatedReader(time_limit_seconds=a.time_limit or None) as reader:
        for file in a.files:
            try:
                with progress_bar(file.name) as update:
                    prediction = student.predict(
                        file,
                        top=a.top,
                        windows=a.windows,
                        stride=a.stride,
                        batch_size=a.batch_size,
                        reader=reader,
                        on_progress=update,
                    )
            except (MediaError, NotFiniteError, OSError) as error:
                say(f"avdistill: {error}")
                failed += 1
                continue
            write_row(prediction)
            if not table_on_output:
                output(prediction.describe(), [str(prediction)], a.json)
    if failed:
        raise MediaError(f"{failed} of {len(a.files)} files could not be predicted")


def _load(model: str, **reading: Any) -> FileStudent:
    """A student that takes files."""
    if is_exported(model):
        return OnnxStudent.from_exported(model, **reading)
    from avdistill.inference.predictor import Student  # imports PyTorch, which takes seconds

    return Student.from_pretrained(model, **reading)


@contextmanager
def _table(out: Path | None) -> Iterator[Callable[[Prediction], None]]:
    """Writes predictions as rows of a CSV; an unfinished file ends in `.partial`."""
    if out is None:
        yield lambda prediction: None
    elif out == Path("-"):
        if isinstance(sys.stdout, TextIOWrapper):  # a file name that is not valid text is written as its bytes
            sys.stdout.reconfigure(errors="surrogateescape")
        yield _row_writer(sys.stdout, printable if sys.stdout.isatty() else str)
    else:
        out.parent.mkdir(parents=True, exist_ok=True)
        partial = out.with_name(out.name + ".partial")
        with create_file(partial, newline="", encoding="utf-8", errors="surrogateescape") as file:
            yield _row_writer(file)
        commit(partial, out)


def _row_writer(file: IO[str], text: Callable[[str], str] = str) -> Callable[[Prediction], None]:
    writer = csv.writer(file, lineterminator="\n")
    writer.writerow(SEGMENT_COLUMNS)

    def write(prediction: Prediction) -> None:
        for file_name, start, end, label, probability in prediction.rows():
            writer.writerow((text(file_name), start, end, text(label), probability))
        file.flush()

    return write


@dataclass(frozen=True)
class _Export(Printed):
    """Export the best student of a run with its preprocessing, and compare its outputs with the run's."""

    run: tyro.conf.Positional[str]
    """A run folder, or hf://org/name@revision on the Hugging Face hub."""
    out: Path
    """The folder to make."""
    format: Literal["onnx", "safetensors"] = "onnx"
    """The format: onnx takes frames or a waveform in onnxruntime; safetensors holds the weights for PyTorch."""
    clips: Path | None = None
    """A dataset, 20 clips of which are compared besides random inputs."""
    int8: bool = False
    """Quantize the ONNX model to int8, with ranges from 128 clips of --clips, and compare it on 128 others."""
    split: str = "train"
    """The split of --clips whose clips set the ranges of int8."""


def export(arguments: list[str]) -> None:
    """`avdistill export RUN --out DIR`."""
    a = tyro.cli(_Export, args=arguments, prog="avdistill export")
    from avdistill.inference.export import export as export_student  # imports PyTorch, which `predict` may not need

    clips = None if a.clips is None else ClipDataset(a.clips)
    report = export_student(a.run, a.out, format=a.format, clips=clips, int8=a.int8, split=a.split)
    parity = report["parity"]
    lines = [
        f"{a.out / report['file']}: agrees with {a.run} on {parity['inputs']} inputs, {parity['clips']} of them clips",
        *(f"largest difference of {name:<9} {value:.2g}" for name, value in parity["largest_difference"].items()),
        *_int8_lines(report.get("int8")),
        f"how to feed it: {a.out / 'preprocessing.json'}",
    ]
    output({"out": str(a.out), **report}, lines, a.json)


def _int8_lines(compared: dict[str, Any] | None) -> list[str]:
    if compared is None:
        return []
    return [f"int8: the same label as float32 for {compared['same_label']:.1%} of {compared['clips']} other clips"]
