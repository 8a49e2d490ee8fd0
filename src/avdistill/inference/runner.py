"""Running a trained network over the clips of a dataset: windows in bounded batches, averaged per clip."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from avdistill import distributed
from avdistill.dataset.batches import EvaluationWindows
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import check_view_fits, has_modality
from avdistill.dataset.windows import check_windows
from avdistill.errors import ConfigError, DatasetError, NotFiniteError, NoTokensError, TeacherError
from avdistill.executors.prefetch import prefetch
from avdistill.inputs import View
from avdistill.progress import OnProgress, Progress
from avdistill.types import Network

# A GPU computes a batch while the outputs of the one before are copied and added up.
_BEHIND = 1
#: whose outputs are held at a time where they are not all needed
PART_CLIPS = 8192


@dataclass(frozen=True)
class Outputs:
    """Outputs of a network for N clips; rows where `present` is False are to be ignored.

    Attributes:
        embedding: float32 (N, D), mean over the clip's windows.
        logits: float32 (N, C), mean over the windows; (N, 0) for a network without a classifier.
        probabilities: float32 (N, C), mean over the windows of the softmax (of the sigmoid with several labels).
        present: bool (N,), whether the clip has the network's modality.
        tokens: float32 (N, K, D), mean over the windows, position by position; None where not asked for.
    """

    embedding: Tensor
    logits: Tensor
    probabilities: Tensor
    present: Tensor
    tokens: Tensor | None = None


def run_in_parts(
    network: Network,
    dataset: ClipDataset,
    clips: np.ndarray,
    view: View,
    *,
    part_clips: int = PART_CLIPS,
    on_progress: OnProgress | None = None,
    **options: Any,
) -> Iterator[tuple[np.ndarray, Outputs]]:
    """`run_network` on so many clips at a time, for what is too large to hold of all of them.

    Args:
        network, dataset, clips, view, options: see `run_network`.
        part_clips: how many at a time.
        on_progress: in clips.

    Yields:
        int64 (n,) positions among `clips`, of those with the network's modality, and the outputs of these.

    Raises:
        DatasetError: and the other errors of `run_network`.
    """
    rows = _rows_with(dataset, clips, view)
    for first in range(0, len(rows), part_clips):
        part = rows[first : first + part_clips]
        update = None if on_progress is None else in_clips(on_progress, first, len(part), len(rows))
        yield part, run_network(network, dataset, clips[part], view, on_progress=update, **options)


def in_clips(on_progress: OnProgress, first: int, clips: int, total: int) -> OnProgress:
    """Progress in the windows of `clips` clips from `first` on as progress in `total` clips."""
    return lambda part: on_progress(Progress(first + clips * part.done // (part.total or 1), total, part.note))


def _rows_with(dataset: ClipDataset, clips: np.ndarray, view: View) -> np.ndarray:
    """Positions of the clips with the modality of the view. Raises DatasetError where there are none."""
    rows = np.flatnonzero(has_modality(dataset, clips, view))
    if len(rows) == 0:
        raise DatasetError(f"{dataset.folder}: none of the {len(clips)} clips asked for holds {view.modality}")
    return rows


def run_network(
    network: Network,
    dataset: ClipDataset,
    clips: np.ndarray,
    view: View,
    *,
    multi_label: bool = False,
    windows: int | None = None,
    stride: int | None = None,
    batch_size: int = 32,
    workers: int = 2,
    precision: distributed.Precision = "auto",
    with_tokens: bool = False,
    on_progress: OnProgress | None = None,
) -> Outputs:
    """Mean embedding, logits and probabilities of each clip; processes share the clips and get all results.

    Args:
        network: on its device; evaluation mode is set for the time of the call.
        clips: (N,) rows of the dataset.
        multi_label: sigmoid instead of softmax.
        windows: this many evenly spaced windows; None slides over the whole clip without skipping anything.
        stride: of the sliding windows, at most a window's length; None is a window's length.
        batch_size, on_progress: in windows.
        workers: threads that read ahead; 0 reads each batch when it is needed.
        precision: of the forward pass; "auto" is bfloat16 on GPUs that compute it natively, else float32.
        with_tokens: keep the tokens as well, which take far more memory than all else.

    Raises:
        NoTokensError: `with_tokens`, and the network has no feature map.
        NotFiniteError: outputs are infinite or NaN.
        ConfigError: `batch_size` or `windows` below 1, `workers` below 0, windows and a stride, or a stride that would
            skip something.
        DatasetError: no clip has the network's modality, or frames are smaller than a view that does not resize.
    """
    check_windows(view.window_length(dataset.sample_rate_hz), stride, batch_size=batch_size, windows=windows)
    if workers < 0:
        raise ConfigError(f"workers: expected at least 0, found {workers}")
    rows = _rows_with(dataset, clips, view)
    present = torch.zeros(len(clips), dtype=torch.bool)
    present[rows] = True
    check_view_fits(dataset, clips[rows], view)
    shared = len(rows) >= distributed.world_size()  # fewer than a clip for each: every process does them all
    rows = distributed.shard_by_rank(rows) if shared else rows
    device = _device_of(network)
    data = EvaluationWindows(dataset, clips[rows], view, windows=windows, stride=stride)
    sums: list[Tensor] | None = None
    counts = torch.zeros(len(clips))
    finished = 0
    training = network.training
    network.eval()
    try:
        with torch.inference_mode():
            batches = prefetch(
                lambda first: _read(data, first, batch_size, device), range(0, len(data), batch_size), workers
            )
            forward = partial(_forward, network, view, multi_label=multi_label, with_tokens=with_tokens)
            for positions, kept in _outputs(batches, forward, device, precision):
                if sums is None:
                    with torch.inference_mode(False):
                        sums = [torch.zeros(len(clips), *x.shape[1:]) for x in kept]
                index = torch.from_numpy(rows)[positions]
                for total, value in zip(sums, kept, strict=True):
                    total.index_add_(0, index, value)
                counts.index_add_(0, index, torch.ones(len(index)))
                finished += len(index)
                if on_progress is not None:
                    on_progress(Progress(finished, len(data)))
    finally:
        network.train(training)
    assert sums is not None
    if shared:
        for total in (*sums, counts):
            distributed.all_reduce_sum(total)
    # In place: a second copy may not fit into memory.
    for total in sums:
        total.div_(counts.clamp(min=1).view(-1, *[1] * (total.ndim - 1)))
    embedding, logits, probabilities = sums[:3]
    if len(wrong := (~(embedding.isfinite().all(1) & probabilities.isfinite().all(1))).nonzero()):
        ids = dataset.columns["id"][clips[wrong[:, 0].numpy()]].tolist()
        raise NotFiniteError(
            f"{dataset.folder}: the output of {len(ids)} clips, such as {ids[0]!r}, is not finite", ids
        )
    return Outputs(embedding, logits, probabilities, present, sums[3] if with_tokens else None)


def _device_of(network: Network) -> torch.device:
    """Where a network computes; a teacher need not have parameters."""
    return next((each.device for each in chain(network.parameters(), network.buffers())), torch.device("cpu"))


def _read(data: EvaluationWindows, first: int, size: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Windows and the positions of their clips; pinned for a GPU, which then copies them while it computes."""
    positions, inputs = data.batch(first, size)
    return positions, inputs.pin_memory() if device.type == "cuda" else inputs


def _forward(network: Network, view: View, inputs: Tensor, *, multi_label: bool, with_tokens: bool) -> list[Tensor]:
    """Embedding, logits, probabilities and, where they are asked for, tokens of some windows."""
    features = network(view.network_input(inputs))
    logits = features.embedding[:, :0] if features.logits is None else features.logits
    probabilities = logits.sigmoid() if multi_label else logits.softmax(1)
    kept = [features.embedding, logits, probabilities]
    if with_tokens:
        if features.tokens is None:
            raise NoTokensError("this network has no feature map")
        kept.append(features.tokens)
    return kept


def _outputs(
    batches: Iterable[tuple[Tensor, Tensor]],
    forward: Callable[[Tensor], list[Tensor]],
    device: torch.device,
    precision: distributed.Precision,
) -> Iterator[tuple[Tensor, list[Tensor]]]:
    """float32 outputs of each batch in host memory, in order; on a GPU a batch behind what it computes."""
    waiting: deque[tuple[Tensor, list[Tensor], torch.cuda.Event | None]] = deque()
    for positions, inputs in batches:
        with distributed.autocast(precision, device):
            kept = forward(inputs.to(device, non_blocking=True))
        # To pinned memory, since the copy does not block: the values are there once the event has happened.
        copies = [value.float().to("cpu", non_blocking=True) for value in kept]
        copied = torch.cuda.Event() if device.type == "cuda" else None
        if copied is not None:
            copied.record()
        waiting.append((positions, copies, copied))
        while len(waiting) > (0 if copied is None else _BEHIND):
            yield _arrived(*waiting.popleft())
    while waiting:
        yield _arrived(*waiting.popleft())


def _arrived(positions: Tensor, copies: list[Tensor], copied: torch.cuda.Event | None) -> tuple[Tensor, list[Tensor]]:
    if copied is not None:
        copied.synchronize()
    return positions, copies


def check_rates(dataset: ClipDataset, view: View, fps: float | None, sample_rate_hz: int, who: str) -> None:
    """Raise TeacherError where the dataset has another rate than a network was trained at."""
    expected, found = {"fps": fps, "sample_rate_hz": sample_rate_hz}[view.rate], getattr(dataset, view.rate)
    if expected != found:
        raise TeacherError(
            f"{dataset.folder}: expected {view.rate} {expected}, at which {who} was trained, found {found}"
        )
