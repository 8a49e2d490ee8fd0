"""A trained network's folder, without the training: what `embed --teacher` takes."""

from __future__ import annotations

from pathlib import Path

import torch

from avdistill.inputs import AudioInput
from avdistill.models.checkpoint import save_student
from avdistill.models.registry import build_model
from avdistill.types import StudentConfig


def audio_teacher_run(folder: Path, classes: tuple[str, ...]) -> Path:
    """A small audio network of random weights at 16 kHz."""
    torch.manual_seed(0)
    options = {"width": 4, "embedding_dim": 8}
    folder.mkdir(parents=True)
    network = build_model("logmel_cnn", len(classes), options).eval()
    save_student(
        folder, network, StudentConfig("logmel_cnn", classes, AudioInput(seconds=0.5), None, 16000, options=options)
    )
    return folder
