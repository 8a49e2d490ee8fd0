"""Bilinear scaling of frames with antialiasing, by PyTorch or by NumPy to the same bytes.

Both compute as Pillow does: a row of weights per output pixel, rounded to whole numbers, across and then down, each
result rounded to a byte. PyTorch takes a twentieth of the time; an exported student is used without it.
"""

from __future__ import annotations

import sys
from functools import lru_cache
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from torch import Tensor


def resize_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (T, H, W, 3) as uint8 (T, height, width, 3), by PyTorch where it is imported, else by NumPy."""
    if frames.shape[1:3] == size:
        return frames
    if "torch" not in sys.modules:
        return resize_array(frames, size)
    import torch

    # Copied: the array may be a read-only view of the dataset's memory map.
    channels_first = torch.from_numpy(np.array(frames, order="C")).permute(0, 3, 1, 2)
    return np.asarray(resize_tensor(channels_first, size).permute(0, 2, 3, 1))


def resize_tensor(frames: Tensor, size: tuple[int, int]) -> Tensor:
    """uint8 (T, 3, H, W) scaled as torchvision's `resize` does it, whose import takes a second and 170 MB."""
    from torch.nn.functional import interpolate

    if tuple(frames.shape[2:]) == size:
        return frames
    return interpolate(frames, list(size), mode="bilinear", antialias=True)


def resize_array(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """uint8 (T, H, W, 3) as uint8 (T, height, width, 3), by NumPy."""
    for axis, length in ((2, size[1]), (1, size[0])):
        if frames.shape[axis] == length:
            continue
        inputs, weights, bits = _taps(frames.shape[axis], length)
        shape = [-1 if each == axis else 1 for each in range(4)]
        total = np.full(1, 1 << (bits - 1), np.int32)  # half of the last place
        for tap in range(inputs.shape[1]):
            total = total + frames.take(inputs[:, tap], axis) * weights[:, tap].reshape(shape)
        frames = (total >> bits).astype(np.uint8)
    return frames


@lru_cache(maxsize=64)
def _taps(inputs: int, outputs: int) -> tuple[np.ndarray, np.ndarray, int]:
    """For each output (outputs, K) input pixels, their int32 weights in units of 2**-bits, and bits.

    The weights are a triangle around the output's center, as wide as an output pixel, at least two input pixels.
    """
    scale = inputs / outputs
    support = max(scale, 1.0)
    center = scale * (np.arange(outputs) + 0.5)
    first = np.maximum((center - support + 0.5).astype(int), 0)
    end = np.minimum((center + support + 0.5).astype(int), inputs)
    pixels = first[:, None] + np.arange((end - first).max())
    weights = np.maximum(1 - np.abs(pixels - center[:, None] + 0.5) / support, 0) * (pixels < end[:, None])
    weights /= weights.sum(1, keepdims=True)
    # As many bits as let the largest weight fit into 16 with its sign.
    bits = next((bits for bits in range(22) if int(0.5 + weights.max() * (1 << (bits + 1))) >= 1 << 15), 22)
    return np.minimum(pixels, inputs - 1), np.floor(weights * (1 << bits) + 0.5).astype(np.int32), bits
