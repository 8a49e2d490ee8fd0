"""Extraction: the features of a frozen teacher are computed and written into a dataset."""

import math
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from avdistill import distributed
from avdistill.dataset.clip_dataset import ClipDataset, TeacherEntry
from avdistill.dataset.splits import has_modality
from avdistill.dataset.stored_features import Provenance, format_provenance
from avdistill.errors import NoTokensError, TeacherError
from avdistill.inference.runner import check_rates, run_network
from avdistill.progress import OnProgress
from avdistill.teachers.base import Teacher
from avdistill.types import Features, Network


class Resampled(Network):
    """An audio network on audio of another rate: each window is resampled with scipy's polyphase filter."""

    modality = "audio"

    def __init__(self, network: Network, from_hz: int, to_hz: int) -> None:
        """Args: network: takes audio at `to_hz`; from_hz: sample rate of the inputs."""
        super().__init__()
        self.network, self.embedding_dim, self.from_hz, self.to_hz = network, network.embedding_dim, from_hz, to_hz

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, S) mono at `from_hz`; no gradient flows to it."""
        from scipy.signal import resample_poly

        shared = math.gcd(self.from_hz, self.to_hz)
        audio = resample_poly(inputs.detach().cpu().numpy(), self.to_hz // shared, self.from_hz // shared, axis=1)
        # Never a sample more than the window's duration: it would start another patch of YAMNet.
        length = max(1, inputs.shape[1] * self.to_hz // self.from_hz)
        return self.network(torch.from_numpy(audio[:, :length]).to(inputs))


def embed(
    dataset: ClipDataset,
    teacher: Teacher,
    name: str,
    *,
    batch_size: int = 32,
    windows: int | None = None,
    tokens: bool = False,
    head_split: str = "train",
    device: str = "auto",
    on_progress: OnProgress | None = None,
) -> TeacherEntry:
    """Compute a teacher's features of every clip, means over the clip's windows, and store them under `name`.

    Clips without the teacher's modality, and digitally silent clips for an audio teacher, get no features. Under
    torchrun the processes share the clips and process 0 writes.

    Args:
        dataset: gets the features.
        teacher: see `load_teacher`.
        name: of the features.
        batch_size: windows at a time.
        windows: evenly spaced windows per clip; None slides over the whole clip, which takes long for networks of
            images.
        tokens: store the tokens too, which the methods AT and NST need.
        head_split: whose labeled clips a linear head is fitted on (`linear_head.fit_head`), where the teacher's classes
            do not include the dataset's.
        device: "auto", "cpu", "cuda", ...
        on_progress: called after each batch.

    Raises:
        TeacherError: the dataset's frame or sample rate differs from the teacher's, no clip has its modality, or
            `tokens` of a teacher that has none.
        ConfigError: `windows` below 1.
    """
    network = at_dataset_rates(dataset, teacher, name)
    clips = _clips_for(dataset, teacher, name)
    with distributed.init_distributed(device) as own_device:
        try:
            outputs = run_network(
                network.to(own_device),
                dataset,
                clips,
                teacher.view,
                multi_label=teacher.multi_label,
                windows=windows,
                batch_size=batch_size,
                with_tokens=tokens,
                on_progress=on_progress,
            )
        except NoTokensError as error:
            raise TeacherError(
                f"teacher {name!r}: expected a network with a feature map for --tokens, found none in "
                f"{format_provenance(teacher.provenance)}"
            ) from error
        valid = outputs.present.numpy()
        if distributed.rank() == 0:
            add_features(
                dataset,
                name,
                modality=teacher.view.modality,
                provenance=provenance_on(dataset, teacher) | ({} if windows is None else {"windows": windows}),
                embedding=_rows(dataset, clips, valid, outputs.embedding, np.nan),
                logits=_rows(dataset, clips, valid, outputs.logits, np.nan) if teacher.classes else None,
                classes=teacher.classes,
                tokens=None if outputs.tokens is None else _rows(dataset, clips, valid, outputs.tokens, 0.0),
                head_split=head_split,
            )
        distributed.barrier()
    return ClipDataset(dataset.folder).teachers[name]


def _clips_for(dataset: ClipDataset, teacher: Teacher, name: str) -> np.ndarray:
    """Rows of the clips without those that are silent for an audio teacher. Raises TeacherError where none is left."""
    clips = np.arange(len(dataset))
    if teacher.view.silence is not None:
        clips = clips[~dataset.columns[teacher.view.silence].astype(bool)]
    if not has_modality(dataset, clips, teacher.view).any():
        silent = "" if teacher.view.silence is None else f" that is not {teacher.view.silence}"
        raise TeacherError(
            f"teacher {name!r}: expected clips with {teacher.view.modality}{silent}, found none among the "
            f"{len(dataset)} of {dataset.folder}"
        )
    return clips


def _rows(dataset: ClipDataset, clips: np.ndarray, valid: np.ndarray, values: Tensor, missing: float) -> np.ndarray:
    """float32 (N, ...) for all clips of the dataset: `values` (n, ...) at the `clips` with `valid`, else `missing`."""
    rows = np.full((len(dataset), *values.shape[1:]), missing, dtype=np.float32)
    rows[clips[valid]] = values.numpy()[valid]
    return rows


def at_dataset_rates(dataset: ClipDataset, teacher: Teacher, name: str) -> Network:
    """The network for inputs at the dataset's frame and sample rate."""
    fps = dataset.fps if teacher.any_fps else teacher.fps
    rate, network = teacher.sample_rate_hz, teacher.network
    if _is_resampled(dataset, teacher):
        network = Resampled(network, dataset.sample_rate_hz, rate)
        rate = dataset.sample_rate_hz
    check_rates(dataset, teacher.view, fps, rate, f"teacher {name!r}")
    return network


def provenance_on(dataset: ClipDataset, teacher: Teacher) -> Provenance:
    """The provenance that `embed` records for the teacher's features of this dataset."""
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
    """Store a teacher's features; where its classes do not include the dataset's, with the logits of a linear head.

    Args:
        dataset: gets the features; `dataset.json` records how the logits were made.
        name, modality, provenance, embedding, logits, classes, tokens: see `ClipDataset.add_features`.
        head_split: whose labeled clips a head is fitted on.
    """
    head: dict[str, int | float] = {}
    fitted = not set(dataset.classes) <= set(classes)
    if fitted:
        classes = dataset.classes
        from avdistill.teachers.linear_head import fit_head  # imports scikit-learn: 1 s of the start of every verb

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
