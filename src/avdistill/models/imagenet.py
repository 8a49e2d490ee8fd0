"""ImageNet's normalization of frames."""

from collections.abc import Sequence

import torch
from torch import Tensor

from avdistill.inputs import IMAGENET_MEAN, IMAGENET_STD


def renormalize_frames(inputs: Tensor, mean: Sequence[float], std: Sequence[float]) -> Tensor:
    """Output of `normalize_frames`, (B, 3, T, H, W), with another mean and standard deviation of RGB in [0, 1]."""
    old_mean, old_std, new_mean, new_std = (
        torch.tensor(values, device=inputs.device)[:, None, None, None]
        for values in (IMAGENET_MEAN, IMAGENET_STD, mean, std)
    )
    return (inputs * old_std + old_mean - new_mean) / new_std
