"""An exported student on media files, by onnxruntime: no PyTorch is imported."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, Literal

import numpy as np

from avdistill.config_io import decode, read_json
from avdistill.errors import CheckpointError, ConfigError
from avdistill.fsio import regular_file
from avdistill.inference.prediction import FileStudent, reading_of
from avdistill.inputs import StudentConfig, VideoInput

MODEL, CONFIG = "model.onnx", "config.json"
INPUT, OUTPUTS = "inputs", ["embedding", "logits"]


class OnnxStudent(FileStudent):
    """A student that `export` wrote as ONNX. It needs numpy, onnxruntime and av, and not PyTorch.

        student = avdistill.OnnxStudent.from_exported("export")
        print(student.predict("video.mp4"))

    Attributes:
        config: classes, input and rates of the student.
        reading: how files are decoded for it.
        session: onnxruntime's, on the CPU.
    """

    def __init__(self, model: bytes, config: StudentConfig, threads: int | None = None) -> None:
        """Open a model.

        Args:
            model: the content of `model.onnx`.
            config: of the student.
            threads: that a window is computed by; None: as many as there are cores.

        Raises:
            CheckpointError: onnxruntime is missing, or cannot open the model, or the model takes other inputs.
        """
        self.config, self.reading = config, reading_of(config)
        self.session = _open(model, threads)
        view = config.view
        length = view.window_length(config.sample_rate_hz)
        shape = [length, *view.size, 3] if isinstance(view, VideoInput) else [length]
        found = {each.name: each.shape[1:] for each in self.session.get_inputs()}
        if found != {INPUT: shape} or [each.name for each in self.session.get_outputs()] != OUTPUTS:
            raise CheckpointError(f"{MODEL}: expected an input {INPUT!r} of (B, {str(shape)[1:-1]}), found {found}")

    @classmethod
    def from_exported(
        cls,
        folder: str | os.PathLike[str],
        *,
        short_side: int | None = None,
        size: tuple[int, int] | None = None,
        region: tuple[int, int, int, int] | Literal["whole"] | None = None,
        threads: int | None = None,
    ) -> OnnxStudent:
        """The student of a folder that `export` wrote as ONNX.

        Args:
            folder: with `model.onnx` and `config.json`.
            short_side, size, region: as in `Student.from_pretrained`.
            threads: that a window is computed by; None: as many as there are cores.

        Raises:
            CheckpointError: the folder holds no exported student, or a damaged one, or onnxruntime is missing.
            ConfigError: sizes that contradict each other.
        """
        folder = Path(folder)
        for name in (MODEL, CONFIG):
            if not (folder / name).is_file():
                raise CheckpointError(f"{folder}: no exported student here ({name} is missing)")
        try:
            config = decode(StudentConfig, read_json(folder / CONFIG), "student")
            student = cls(regular_file(folder / MODEL).read_bytes(), config, threads)
        except CheckpointError as error:
            raise CheckpointError(f"{folder}: {error}") from error
        except (ConfigError, ValueError) as error:
            raise CheckpointError(f"{folder / CONFIG}: {error}") from error
        student.reading = reading_of(config, short_side, size, region)
        return student

    def run(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Embeddings (B, D) and logits (B, C), float32, of uint8 (B, T, H, W, 3) or float32 (B, S)."""
        embedding, logits = self.session.run(OUTPUTS, {INPUT: windows})
        return embedding, logits

    def _run(self, windows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        embedding, logits = self.run(windows)
        if self.config.multi_label:
            return embedding, 1 / (1 + np.exp(-logits))
        probabilities = np.exp(logits - logits.max(1, keepdims=True))
        return embedding, probabilities / probabilities.sum(1, keepdims=True)


def is_exported(folder: str | os.PathLike[str]) -> bool:
    """Whether a folder holds a student that was exported as ONNX."""
    return (Path(folder) / MODEL).is_file()


def _open(model: bytes, threads: int | None) -> Any:
    try:
        import onnxruntime
    except ImportError:
        raise CheckpointError("onnxruntime must be there: install the extra 'onnx'") from None
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads or 0
    options.log_severity_level = 4  # what is wrong is the error's message
    try:
        # From memory: a model that refers to other files is refused.
        return onnxruntime.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime's own, a class for each of its codes
        raise CheckpointError(f"{MODEL}: {' '.join(str(error).split())[:200]}") from error
