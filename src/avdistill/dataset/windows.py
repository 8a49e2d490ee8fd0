"""Windows of a clip and what is done to them, on uint8 frames; casting and normalising happen after collation."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avdistill.dataset.shards import JpegFrames
from avdistill.inputs import AudioInput, VideoInput


def sliding_starts(count: int, length: int, stride: int, *, align_last: bool = False) -> list[int]:
    """Starts of windows over `count` items so that none is skipped; the first window to reach the end is the last.

    Frames follow the paper's test protocol: the last window may be short and is completed by looping (`take_window`).
    Audio is aligned instead, the last window ending where the audio ends: an encoder's few samples of padding, looped
    to a window's length, would be a tone of their own with the weight of a whole window.

    Raises:
        ValueError: an empty clip, or a stride that would skip items.
    """
    if count < 1 or not 1 <= stride <= length:
        raise ValueError(
            f"need count >= 1 and 1 <= stride <= length, got count {count}, length {length}, stride {stride}"
        )
    starts = [0]
    while starts[-1] + length < count:
        starts.append(starts[-1] + stride)
    if align_last:
        starts[-1] = max(0, count - length)
    return starts


def spaced_starts(count: int, length: int, windows: int) -> list[int]:
    """Starts of `windows` windows spread evenly over `count` items (METHOD: validation); fewer where they coincide."""
    last = max(0, count - length)
    return sorted({round(i * last / max(1, windows - 1)) for i in range(windows)}) if windows > 1 else [last // 2]


def take_window(items: np.ndarray | JpegFrames, start: int, length: int) -> np.ndarray:
    """`length` items from `start` on; where the clip ends sooner, the window repeats its own items from their start."""
    there = min(length, len(items) - start)
    if there == length:
        return items[start : start + length]
    return items[start + np.arange(length) % there]


def training_window(
    items: np.ndarray | JpegFrames, view: VideoInput | AudioInput, sample_rate_hz: int, rng: np.random.Generator
) -> Tensor:
    """A random window as the network is shown it in training.

    Args:
        items: uint8 (T, H, W, 3) frames or int16 (S,) audio of the clip.
        view: of the same modality.
        sample_rate_hz: of the audio.
        rng: the only source of chance.

    Returns:
        uint8 (frames, height, width, 3), or float32 (samples,).
    """
    length = window_length(view, sample_rate_hz)
    start = int(rng.integers(max(1, len(items) - length + 1)))
    window = take_window(items, start, length)
    if isinstance(view, AudioInput):
        return _waveform(window)
    top, left, height, width = _random_crop(window.shape[1], window.shape[2], view, rng)
    frames = _channels_first(window[:, top : top + height, left : left + width])
    if view.hflip and rng.random() < 0.5:
        frames = frames.flip(3)
    if view.resize:
        frames = _resized(frames, view.size)
    return frames.permute(0, 2, 3, 1).contiguous()


def evaluation_window(
    items: np.ndarray | JpegFrames, view: VideoInput | AudioInput, sample_rate_hz: int, start: int
) -> Tensor:
    """The window at `start`, scaled so that the view just fits and cut from the center; shapes as `training_window`."""
    window = take_window(items, start, window_length(view, sample_rate_hz))
    if isinstance(view, AudioInput):
        return _waveform(window)
    H, W = window.shape[1:3]
    if not view.resize:
        check_fits(H, W, view)
        top, left = (H - view.size[0]) // 2, (W - view.size[1]) // 2
        return torch.from_numpy(np.array(window[:, top : top + view.size[0], left : left + view.size[1]], order="C"))
    factor = max(view.size[0] / H, view.size[1] / W)
    height, width = max(view.size[0], round(H * factor)), max(view.size[1], round(W * factor))
    frames = _resized(_channels_first(window), (height, width))
    # The center as torchvision finds it: half a pixel rounds to the even side.
    top, left = round((height - view.size[0]) / 2), round((width - view.size[1]) / 2)
    frames = frames[:, :, top : top + view.size[0], left : left + view.size[1]]
    return frames.permute(0, 2, 3, 1).contiguous()


def window_length(view: VideoInput | AudioInput, sample_rate_hz: int) -> int:
    """Frames or samples of one window."""
    return view.frames if isinstance(view, VideoInput) else max(1, round(view.seconds * sample_rate_hz))


def _channels_first(window: np.ndarray) -> Tensor:
    # Copied: the array may be a read-only view of the dataset's memory map.
    return torch.from_numpy(np.array(window, order="C")).permute(0, 3, 1, 2)


def _resized(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (T, 3, H, W) scaled as torchvision's `resize` does it, whose import takes a second and 170 MB."""
    if tuple(frames.shape[2:]) == size:
        return frames
    return F.interpolate(frames, list(size), mode="bilinear", antialias=True)


def _waveform(window: np.ndarray) -> Tensor:
    return torch.from_numpy(window.astype(np.float32) / 32767)


def _random_crop(H: int, W: int, view: VideoInput, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """(top, left, height, width) of a crop of random area and shape; the center where ten tries do not fit.

    At the dataset's scale: of the view's size, anywhere.
    """
    if not view.resize:
        check_fits(H, W, view)
        height, width = view.size
        return int(rng.integers(H - height + 1)), int(rng.integers(W - width + 1)), height, width
    for _ in range(10):
        area = H * W * rng.uniform(*view.scale)
        ratio = math.exp(rng.uniform(math.log(view.ratio[0]), math.log(view.ratio[1])))
        height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
        if 0 < height <= H and 0 < width <= W:
            return int(rng.integers(H - height + 1)), int(rng.integers(W - width + 1)), height, width
    ratio = min(max(W / H, view.ratio[0]), view.ratio[1])
    height, width = min(H, round(W / ratio)), min(W, round(H * ratio))
    return (H - height) // 2, (W - width) // 2, height, width


def check_fits(H: int, W: int, view: VideoInput) -> None:
    """Raise ValueError where a view that does not resize is larger than the images."""
    if not view.resize and (view.size[0] > H or view.size[1] > W):
        raise ValueError(
            f"images of {H}x{W} pixels (height x width) hold no window of {view.size[0]}x{view.size[1]}, "
            "and the view's `resize` is off"
        )
