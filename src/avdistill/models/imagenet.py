"""ImageNet's normalization of frames."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

# Of RGB in [0, 1], as in the paper. torchvision's R3D, MC3 and R(2+1)D were trained on Kinetics with other values
# (`renormalize_frames`); as students they are trained further and adapt to these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


def normalize_frames(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) by ImageNet's mean and standard deviation, same device."""
    scale, shift = (
        torch.tensor(values, device=frames.device)[:, None, None, None]
        for values in (
            [1 / (255 * s) for s in IMAGENET_STD],
            [-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)],
        )
    )
    # Transposed as bytes: a quarter of the memory traffic of floats.
    return frames.permute(0, 4, 1, 2, 3).contiguous().float().mul_(scale).add_(shift)


def renormalize_frames(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Output of `normalize_frames`, (B, 3, T, H, W), with another mean and standard deviation of RGB in [0, 1]."""
    old_mean, old_std, new_mean, new_std = (
        torch.tensor(values, device=inputs.device)[:, None, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD, mean, std)
    )
    return (inputs * old_std + old_mean - new_mean) / new_std
