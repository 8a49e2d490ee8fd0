"""The space that a run's student and its teacher share: both sides of the clips, and encoders of files into it."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import has_modality
from avdistill.errors import SearchError
from avdistill.inference.predictor import Student
from avdistill.inference.runner import run_network
from avdistill.methods import Method
from avdistill.search.columns import Column
from avdistill.search.encoders import Encoder
from avdistill.search.schema import SHARED, Space
from avdistill.types import Features, Network, StudentConfig


class SharedVectors:
    """Both sides of the space in which a run's method compares student and teacher (`Method.shares_space`)."""

    def __init__(self, method: Method, config: StudentConfig, teacher: str, batch_size: int = 32) -> None:
        """Args: method, config: of a run, as saved last; teacher: its name; batch_size: windows at a time."""
        self.method, self.config, self.teacher, self.batch_size = method, config, teacher, batch_size
        self._last: tuple[tuple[str, bytes], tuple[np.ndarray, np.ndarray]] | None = None

    def columns(self, run: Path, dataset: ClipDataset, files: Mapping[str, str]) -> list[Column]:
        """The columns RUN.student and RUN.teacher, named after the folder; `files` are the run's (`Column.files`)."""
        modalities = self.config.view.modality, dataset.teacher(self.teacher).modality
        student, teacher = self.vectors(dataset, np.arange(min(1, len(dataset))))
        found: list[Column] = []
        for side, modality, rows in zip(("student", "teacher"), modalities, (student, teacher), strict=True):
            space = Space(
                name=f"{run.name}.{side}",
                modality=modality,
                dim=rows.shape[1],
                shared=f"{SHARED}{run.name}",
                provenance={"name": self.method.config.name},
                model=str(run),
            )
            found.append(SharedColumn(space, self, side, files))
        return found

    def vectors(self, dataset: ClipDataset, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """float32 (n, D) twice; NaN where a clip lacks that side (or, for a filter's teacher, either side)."""
        key = str(dataset.folder), clips.tobytes()
        if self._last is None or self._last[0] != key:
            self._last = key, self._compute(dataset, clips)
        return self._last[1]

    def _compute(self, dataset: ClipDataset, clips: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        method, view = self.method, self.config.view
        tokens = method.uses_tokens
        D, K = method.student.embedding_dim, 1
        student = Features(torch.zeros(len(clips), D), tokens=torch.zeros(len(clips), K, D) if tokens else None)
        there = torch.from_numpy(has_modality(dataset, clips, view))
        if there.any():
            outputs = run_network(method.student, dataset, clips, view, batch_size=self.batch_size, with_tokens=tokens)
            student = Features(outputs.embedding, tokens=outputs.tokens)
        rows = torch.zeros(len(clips), method.context.teacher_dim)
        has_teacher = torch.zeros(len(clips), dtype=torch.bool)
        if dataset.has_teacher(self.teacher):
            teacher = dataset.teacher_features(self.teacher)
            rows, has_teacher = teacher.select(clips).embedding, torch.from_numpy(teacher.valid[clips])
        with torch.inference_mode():
            s, t = method.shared_embeddings(student, rows)
        both = has_teacher & there if tokens else has_teacher
        found = (s.masked_fill(~there[:, None], torch.nan), t.masked_fill(~both[:, None], torch.nan))
        return found[0].numpy(), found[1].numpy()


class SharedColumn(Column):
    """One side of `SharedVectors`."""

    rows = 1024

    def __init__(self, space: Space, both: SharedVectors, side: str, files: Mapping[str, str]) -> None:
        """Args: side: "student" or "teacher"."""
        super().__init__(space, files)
        self.both, self.side = both, side

    def vectors(self, dataset: ClipDataset, clips: np.ndarray) -> np.ndarray:
        """Of this side; computed together with the other."""
        student, teacher = self.both.vectors(dataset, clips)
        return student if self.side == "student" else teacher


class _Side(Network):
    """A network followed by what takes its embedding into the shared space; linear, so windows may be averaged."""

    def __init__(self, network: Network, method: Method, side: str) -> None:
        super().__init__()
        self.network, self.method, self.side = network, method, side
        self.modality = network.modality

    def forward(self, inputs: Tensor) -> Features:
        """As of the network."""
        features = self.network(inputs)
        D, rows = self.method.student.embedding_dim, len(inputs)
        other = torch.zeros(rows, self.method.context.teacher_dim)
        if self.side == "student":
            student = Features(features.embedding, tokens=getattr(features, "tokens", None))
            return Features(self.method.shared_embeddings(student, other)[0])
        return Features(self.method.shared_embeddings(Features(torch.zeros(rows, D)), features.embedding)[1])


def student_encoder(method: Method, config: StudentConfig) -> Encoder:
    """Of files into the shared space, by the student of a run (`training.setup.load_method`)."""
    return Encoder(
        _Side(method.student, method, "student").eval(), config.view, Student(method.student, config).reading
    )


def teacher_encoder(method: Method, teacher: Encoder) -> Encoder:
    """Of files into the shared space, by the teacher. Raises SearchError for a filter, which needs the student too."""
    if method.uses_tokens:
        wanted = "a method whose teacher needs no student beside it (cmc, crd)"
        raise SearchError(f"a file as the teacher's side: expected {wanted}, found {method.config.name}")
    return replace(teacher, network=_Side(teacher.network, method, "teacher").eval())
