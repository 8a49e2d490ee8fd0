"""Windows of a clip: where they start, and their items. Crops and normalization are those of `inputs.py`."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from avdistill.dataset.shards import JpegFrames
from avdistill.errors import ConfigError
from avdistill.inputs import View

if TYPE_CHECKING:
    from torch import Tensor


def sliding_starts(count: int, length: int, stride: int, *, align_last: bool = False) -> list[int]:
    """Starts of windows over `count` items so that none is skipped; the first window to reach the end is the last.

    Frames follow the paper's test protocol: a short last window is completed by repetition (`take_window`). With
    `align_last` (audio) the last window ends with the clip: a few samples of an encoder's padding, repeated to a
    window's length, would be a tone with the weight of a whole window.

    Raises:
        ValueError: an empty clip, or a stride that would skip items.
    """
    if count < 1 or not 1 <= stride <= length:
        raise ValueError(
            f"need count >= 1 and 1 <= stride <= length, got count {count}, length {length}, stride {stride}"
        )
    starts = list(range(0, max(1, count - length + stride), stride))
    if align_last:
        starts[-1] = max(0, count - length)
    return starts


def spaced_starts(count: int, length: int, windows: int) -> list[int]:
    """Starts of `windows` windows spread evenly over `count` items; fewer where they coincide."""
    last = max(0, count - length)
    return sorted({round(i * last / max(1, windows - 1)) for i in range(windows)}) if windows > 1 else [last // 2]


def check_windows(length: int, stride: int | None, **counts: int | None) -> None:
    """Raise ConfigError for counts below 1, `windows` with a stride, or a stride that would skip a part of `length`."""
    for name, number in counts.items():
        if number is not None and number < 1:
            raise ConfigError(f"{name}: expected at least 1, found {number}")
    if stride is not None and counts.get("windows") is not None:
        raise ConfigError("give windows or stride, not both")
    if stride is not None and not 1 <= stride <= length:
        raise ConfigError(f"stride: expected 1 to {length}, a window's length, found {stride}")


def take_window(items: np.ndarray | JpegFrames, start: int, length: int) -> np.ndarray:
    """`length` items from `start` on; where the clip ends sooner, the window repeats its own items from their start."""
    there = min(length, len(items) - start)
    if there == length:
        return items[start : start + length]
    return items[start + np.arange(length) % there]


def training_window(
    items: np.ndarray | JpegFrames, view: View, sample_rate_hz: int, rng: np.random.Generator
) -> Tensor:
    """A random window of a clip for training.

    Args:
        items: uint8 (T, H, W, 3) frames or int16 (S,) audio of the clip.
        view: of the same modality.
        sample_rate_hz: of the audio.
        rng: the only source of randomness.

    Returns:
        uint8 (frames, height, width, 3), or float32 (samples,).
    """
    length = view.window_length(sample_rate_hz)
    start = int(rng.integers(max(1, len(items) - length + 1)))
    return view.training_crop(take_window(items, start, length), rng)


def evaluation_window(items: np.ndarray | JpegFrames, view: View, sample_rate_hz: int, start: int) -> Tensor:
    """The window at `start`; arguments and shapes as in `training_window`."""
    from torch import from_numpy  # here: the windows of a file are cut without PyTorch

    return from_numpy(view.evaluation_crop(take_window(items, start, view.window_length(sample_rate_hz))))
