"""Networks by name. Each may serve as student or as teacher; each returns `Features` with tokens."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

from torch import nn

from avdistill.models.audio import LogMelCNN
from avdistill.models.video import StackedFrames, TorchvisionVideo, released_r2plus1d, tiny_r2plus1d

__all__ = ["MODELS", "build_model"]

Option = int | float | bool | str

MODELS: dict[str, Callable[..., nn.Module]] = {
    "logmel_cnn": LogMelCNN,
    "released_r2plus1d": released_r2plus1d,
    "stacked_frames": StackedFrames,
    "tiny_r2plus1d": tiny_r2plus1d,
    **{
        f"torchvision:{name}": partial(TorchvisionVideo, network=name)
        for name in ("r3d_18", "mc3_18", "r2plus1d_18", "s3d", "mvit_v1_b", "mvit_v2_s", "swin3d_t", "swin3d_s", "swin3d_b")
    },
}


def build_model(name: str, num_classes: int, options: Mapping[str, Option] | None = None) -> nn.Module:
    """A network of `MODELS` for `num_classes` classes.

    Raises:
        ValueError: an unknown name, or options that the network does not take.
    """
    if name not in MODELS:
        raise ValueError(f"unknown model {name!r}; known: {', '.join(sorted(MODELS))}")
    try:
        return MODELS[name](num_classes=num_classes, **dict(options or {}))
    except TypeError as error:
        raise ValueError(f"model {name!r}: {error}") from error
