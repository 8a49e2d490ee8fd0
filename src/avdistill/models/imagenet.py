"""ImageNet's normalization of frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# ImageNet's statistics of RGB in [0, 1], as in the paper. torchvision's R3D, MC3 and R(2+1)D were trained on Kinetics
# with others (`renormalize_frames`); as students they are trained on, and get used to these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)


IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_frames(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) with ImageNet's mean and deviation, on the frames' device."""
    scale, shift = (
        torch.tensor(values, device=frames.device)[:, None, None, None]
        for values in (
            [1 / (255 * s) for s in IMAGENET_STD],
            [-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)],
        )
    )
    # Moved as bytes, a quarter of what the floats would be.
    return frames.permute(0, 4, 1, 2, 3).contiguous().float().mul_(scale).add_(shift)


def renormalize_frames(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """(B, 3, T, H, W) as `normalize_frames` makes it, with another mean and deviation of RGB in [0, 1] instead."""
    old_mean, old_std, new_mean, new_std = (
        torch.tensor(values, device=inputs.device)[:, None, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD, mean, std)
    )
    return (inputs * old_std + old_mean - new_mean) / new_std
