"""A frozen teacher: what it is, where it comes from, and how its features get into a store."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from avdistill import distributed
from avdistill.data.dataset import has_modality
from avdistill.data.files import file_checksum
from avdistill.data.store import Store, TeacherEntry
from avdistill.inference import NoMapError, run_network
from avdistill.models.weights import load_student, student_folder
from avdistill.teachers.head import add_features
from avdistill.types import Features, Network, PictureView, View


class TeacherError(Exception):
    """A teacher that cannot be used on a store; the message says what was expected and found, in one line."""


@dataclass(frozen=True)
class Teacher:
    """A frozen network.

    Attributes:
        network: in evaluation mode; returns `Features`.
        view: what it is shown; its modality is the teacher's.
        classes: names of the logits' columns.
        multi_label: whether its probabilities are sigmoids.
        fps: frames a second it was trained at; None: every frame.
        sample_rate_hz: of the sound it was trained on.
        source: what made it, for the record in the store.
        any_fps: whether it may be shown frames of any store, whatever their rate (networks of single pictures).
        any_rate: whether sound of another rate is resampled for it rather than refused.
    """

    network: Network
    view: View
    classes: tuple[str, ...]
    multi_label: bool
    fps: float | None
    sample_rate_hz: int
    source: str
    any_fps: bool = False
    any_rate: bool = False


@dataclass(frozen=True)
class TeacherKind:
    """A teacher that goes by a name: what `avdistill teacher list` tells, and how to get it.

    Attributes:
        modality: "sound" or "picture".
        width: D of its embedding.
        takes: what it is given, in words ("16000 Hz", "224 x 224, each frame").
        minimum_seconds: the shortest input; shorter ones are repeated. None for a picture.
        weights: where they come from, in words.
        licence: of the weights.
        load: from a file or folder of weights (None: found by itself or, where that is stated, downloaded once) to the
            teacher; raises TeacherError or WeightsError in one line that says what was expected and found.
        present: whether `load(None)` needs nothing that is not on this machine.
    """

    modality: Literal["sound", "picture"]
    width: int
    takes: str
    minimum_seconds: float | None
    weights: str
    licence: str
    load: Callable[[Path | None], Teacher]
    present: Callable[[], bool]


class Resampled(Network):
    """A network that hears, given sound of another rate: each window is resampled with scipy's polyphase filter."""

    modality = "sound"

    def __init__(self, network: Network, from_hz: int, to_hz: int) -> None:
        """Args: network: wants `to_hz`; from_hz: of the sound that is given; both in samples a second."""
        super().__init__()
        self.network, self.embedding_dim, self.from_hz, self.to_hz = network, network.embedding_dim, from_hz, to_hz

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, S) mono at `from_hz`; no gradient flows to it."""
        from scipy.signal import resample_poly

        shared = math.gcd(self.from_hz, self.to_hz)
        sound = resample_poly(inputs.detach().cpu().numpy(), self.to_hz // shared, self.from_hz // shared, axis=1)
        # Never a sample more than the window's time: one too many would begin another of YAMNet's patches.
        length = max(1, inputs.shape[1] * self.to_hz // self.from_hz)
        return self.network(torch.from_numpy(sound[:, :length]).to(inputs))


def load_run(run: str | Path) -> Teacher:
    """A teacher from a run folder: an ordinary supervised run's best student.

    Raises:
        WeightsError: there is no trained network.
    """
    folder = Path(run)
    network, description = load_student(folder)
    weights = student_folder(folder) / "student.safetensors"
    return Teacher(
        network=network,
        view=description.view,
        classes=description.classes,
        multi_label=description.multi_label,
        fps=description.fps,
        sample_rate_hz=description.sample_rate_hz,
        source=f"{description.model} of run {folder.name}, sha256 {file_checksum(weights)[:16]}",
    )


def embed(
    store: Store,
    teacher: Teacher,
    name: str,
    *,
    batch_size: int = 32,
    maps: bool = False,
    head_split: str = "train",
    device: str = "auto",
    on_batch: Callable[[int, int], None] | None = None,
) -> TeacherEntry:
    """Put the teacher's mean embedding and logits of every clip into the store, under `name`.

    Where the teacher's classes are not the store's, the logits are those of a linear head (`teachers/head.py`),
    fitted on the labelled clips of `head_split`.
    With `maps` its last feature maps are stored as well, for methods that look at them (AT, NST).
    Clips without the teacher's modality, and digitally silent ones for a teacher that hears, have no teacher. Under
    torchrun the processes share the clips and process 0 writes.

    Raises:
        TeacherError: the store's rate differs from what the teacher was trained at, no clip holds its modality, or
            `maps` are asked of a teacher that has none.
    """
    network, source = _at_rates_of(store, teacher, name)
    clips = _clips_for(store, teacher, name)
    with distributed.joined(device) as own_device:
        try:
            outputs = run_network(
                network.to(own_device),
                store,
                clips,
                teacher.view,
                multi_label=teacher.multi_label,
                batch_size=batch_size,
                with_tokens=maps,
                on_batch=on_batch,
            )
        except NoMapError as error:
            raise TeacherError(
                f"teacher {name!r}: expected a network with a feature map, which --maps stores, found none in {source}"
            ) from error
        present = outputs.present.numpy()
        if distributed.rank() == 0:
            add_features(
                store,
                name,
                modality=teacher.view.modality,
                source=source,
                embedding=_rows(store, clips, present, outputs.embedding, np.nan),
                logits=_rows(store, clips, present, outputs.logits, np.nan) if teacher.classes else None,
                classes=teacher.classes,
                tokens=None if outputs.tokens is None else _rows(store, clips, present, outputs.tokens, 0.0),
                head_split=head_split,
            )
        distributed.wait_for_all()
    return Store(store.folder).teachers[name]


def _clips_for(store: Store, teacher: Teacher, name: str) -> np.ndarray:
    """Rows of the clips that may say something to a teacher. Raises TeacherError where none does."""
    clips = np.arange(len(store))
    if teacher.view.modality == "sound":
        clips = clips[~store.columns["silent"].astype(bool)]
    if not has_modality(store, clips, teacher.view).any():
        expected = "a picture" if teacher.view.modality == "picture" else "sound that is not silent"
        raise TeacherError(
            f"teacher {name!r}: expected clips with {expected}, {store.folder} holds none among its {len(store)} clips"
        )
    return clips


def _rows(store: Store, clips: np.ndarray, present: np.ndarray, values: Tensor, missing: float) -> np.ndarray:
    """A float32 row for every clip of the store: `values` (n, ...) where the n `clips` are present, else `missing`."""
    rows = np.full((len(store), *values.shape[1:]), missing, dtype=np.float32)
    rows[clips[present]] = values.numpy()[present]
    return rows


def _at_rates_of(store: Store, teacher: Teacher, name: str) -> tuple[Network, str]:
    """The network as the store's clips may be given to it, and what made it, in words."""
    fps = store.fps if teacher.any_fps else teacher.fps
    rate, network = teacher.sample_rate_hz, teacher.network
    if _is_resampled(store, teacher):
        network = Resampled(network, store.sample_rate_hz, rate)
        rate = store.sample_rate_hz
    check_rates(store, teacher.view, fps, rate, f"teacher {name!r}")
    return network, source_on(store, teacher)


def source_on(store: Store, teacher: Teacher) -> str:
    """What makes a teacher's features of the store's clips, in words, as `embed` writes it down."""
    resampled = f", resampled from {store.sample_rate_hz} Hz" if _is_resampled(store, teacher) else ""
    return teacher.source + resampled


def _is_resampled(store: Store, teacher: Teacher) -> bool:
    return teacher.any_rate and teacher.sample_rate_hz != store.sample_rate_hz


def check_rates(store: Store, view: View, fps: float | None, sample_rate_hz: int, who: str) -> None:
    """Raise TeacherError where a network would see or hear the store at another speed than it was trained at."""
    if isinstance(view, PictureView):
        if fps != store.fps:
            raise TeacherError(f"{who} was trained at {fps} frames a second, {store.folder} holds {store.fps}")
    elif sample_rate_hz != store.sample_rate_hz:
        raise TeacherError(
            f"{who} was trained on sound at {sample_rate_hz} Hz, {store.folder} holds {store.sample_rate_hz}"
        )
