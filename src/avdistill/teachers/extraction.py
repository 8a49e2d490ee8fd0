"""Features of a frozen teacher, put into a dataset."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from avdistill import distributed
from avdistill.dataset.clip_dataset import ClipDataset, TeacherEntry
from avdistill.dataset.splits import has_modality
from avdistill.errors import NoTokensError, TeacherError
from avdistill.inference.compatibility import check_rates
from avdistill.inference.runner import run_network
from avdistill.progress import OnProgress
from avdistill.teachers.base import Teacher
from avdistill.teachers.linear_head import fit_head
from avdistill.types import Features, Network, Provenance, format_provenance


class Resampled(Network):
    """A network that hears, given audio of another rate: each window is resampled with scipy's polyphase filter."""

    modality = "audio"

    def __init__(self, network: Network, from_hz: int, to_hz: int) -> None:
        """Args: network: wants `to_hz`; from_hz: of the audio that is given; both in samples a second."""
        super().__init__()
        self.network, self.embedding_dim, self.from_hz, self.to_hz = network, network.embedding_dim, from_hz, to_hz

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, S) mono at `from_hz`; no gradient flows to it."""
        from scipy.signal import resample_poly

        shared = math.gcd(self.from_hz, self.to_hz)
        audio = resample_poly(inputs.detach().cpu().numpy(), self.to_hz // shared, self.from_hz // shared, axis=1)
        # Never a sample more than the window's time: one too many would begin another of YAMNet's patches.
        length = max(1, inputs.shape[1] * self.to_hz // self.from_hz)
        return self.network(torch.from_numpy(audio[:, :length]).to(inputs))


def embed(
    dataset: ClipDataset,
    teacher: Teacher,
    name: str,
    *,
    batch_size: int = 32,
    tokens: bool = False,
    head_split: str = "train",
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> TeacherEntry:
    """Put the teacher's mean embedding and logits of every clip into the dataset, under `name`.

    Where the teacher's classes are not the dataset's, the logits are those of a linear head
    (`teachers/linear_head.py`), fitted on the labeled clips of `head_split`.
    With `tokens` its last feature tokens are stored as well, for methods that look at them (AT, NST).
    Clips without the teacher's modality, and digitally silent ones for a teacher that hears, have no teacher. Under
    torchrun the processes share the clips and process 0 writes.

    Raises:
        TeacherError: the dataset's rate differs from what the teacher was trained at, no clip holds its modality, or
            `tokens` are asked of a teacher that has none.
    """
    network = _at_rates_of(dataset, teacher, name)
    clips = _clips_for(dataset, teacher, name)
    with distributed.init_distributed(device) as own_device:
        try:
            outputs = run_network(
                network.to(own_device),
                dataset,
                clips,
                teacher.view,
                multi_label=teacher.multi_label,
                batch_size=batch_size,
                with_tokens=tokens,
                on_progress=on_progress,
            )
        except NoTokensError as error:
            raise TeacherError(
                f"teacher {name!r}: expected a network with a feature map for --tokens, found none in "
                f"{format_provenance(teacher.provenance)}"
            ) from error
        present = outputs.present.numpy()
        if distributed.rank() == 0:
            add_features(
                dataset,
                name,
                modality=teacher.view.modality,
                provenance=provenance_on(dataset, teacher),
                embedding=_rows(dataset, clips, present, outputs.embedding, np.nan),
                logits=_rows(dataset, clips, present, outputs.logits, np.nan) if teacher.classes else None,
                classes=teacher.classes,
                tokens=None if outputs.tokens is None else _rows(dataset, clips, present, outputs.tokens, 0.0),
                head_split=head_split,
            )
        distributed.barrier()
    return ClipDataset(dataset.folder).teachers[name]


def _clips_for(dataset: ClipDataset, teacher: Teacher, name: str) -> np.ndarray:
    """Rows of the clips that may say something to a teacher. Raises TeacherError where none does."""
    clips = np.arange(len(dataset))
    if teacher.view.silence is not None:
        clips = clips[~dataset.columns[teacher.view.silence].astype(bool)]
    if not has_modality(dataset, clips, teacher.view).any():
        silent = "" if teacher.view.silence is None else f" that is not {teacher.view.silence}"
        raise TeacherError(
            f"teacher {name!r}: expected clips with {teacher.view.modality}{silent}, {dataset.folder} holds none among "
            f"its {len(dataset)} clips"
        )
    return clips


def _rows(dataset: ClipDataset, clips: np.ndarray, present: np.ndarray, values: Tensor, missing: float) -> np.ndarray:
    """A float32 row for every clip of the dataset: `values` (n, ...) where the n `clips` are present, else
    `missing`.
    """
    rows = np.full((len(dataset), *values.shape[1:]), missing, dtype=np.float32)
    rows[clips[present]] = values.numpy()[present]
    return rows


def _at_rates_of(dataset: ClipDataset, teacher: Teacher, name: str) -> Network:
    """The network as the dataset's clips may be given to it."""
    fps = dataset.fps if teacher.any_fps else teacher.fps
    rate, network = teacher.sample_rate_hz, teacher.network
    if _is_resampled(dataset, teacher):
        network = Resampled(network, dataset.sample_rate_hz, rate)
        rate = dataset.sample_rate_hz
    check_rates(dataset, teacher.view, fps, rate, f"teacher {name!r}")
    return network


def provenance_on(dataset: ClipDataset, teacher: Teacher) -> Provenance:
    """The provenance of the teacher's features of this dataset, as `embed` records it."""
    resampled = {"resampled_from_hz": dataset.sample_rate_hz} if _is_resampled(dataset, teacher) else {}
    return teacher.provenance | resampled


def _is_resampled(dataset: ClipDataset, teacher: Teacher) -> bool:
    return teacher.any_rate and teacher.sample_rate_hz != dataset.sample_rate_hz


def add_features(
    dataset: ClipDataset,
    name: str,
    *,
    modality: Literal["audio", "video"],
    provenance: Provenance,
    embedding: np.ndarray,
    logits: np.ndarray | None,
    classes: tuple[str, ...],
    tokens: np.ndarray | None = None,
    head_split: str = "train",
) -> TeacherEntry:
    """Put a teacher's features into the dataset; where its classes are not the dataset's, with the logits of a head.

    Args:
        dataset: gets the features; `dataset.json` says how the logits were made.
        name, modality, provenance, embedding, logits, classes, tokens: see `ClipDataset.add_features`.
        head_split: whose labeled clips a head is fitted on.
    """
    head: dict[str, int | float] = {}
    fitted = not set(dataset.classes) <= set(classes)
    if fitted:
        classes = dataset.classes
        logits, head = fit_head(dataset, embedding, split=head_split)
    return dataset.add_features(
        name,
        modality=modality,
        provenance=provenance,
        embedding=embedding,
        logits=logits,
        classes=classes,
        tokens=tokens,
        fitted_head=fitted,
        head_split=head_split if fitted else "train",
        head=head,
    )
