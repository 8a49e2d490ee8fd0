"""A network of images applied to every frame of a video."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from avdistill.inputs import IMAGENET_MEAN, IMAGENET_STD
from avdistill.types import Features, Network


class Renormalized(Network):
    """A network on frames with its own normalization instead of ImageNet's."""

    modality = "video"

    def __init__(self, network: nn.Module, embedding_dim: int, mean: Sequence[float], std: Sequence[float]) -> None:
        """Args: network: returns Features; mean, std: of RGB in [0, 1], its own normalization."""
        super().__init__()
        self.network, self.embedding_dim, self.mean, self.std = network, embedding_dim, tuple(mean), tuple(std)

    def renormalized(self, inputs: Tensor) -> Tensor:
        """Output of `normalize_frames`, (B, 3, T, H, W), with the network's mean and standard deviation."""
        old_mean, old_std, new_mean, new_std = (
            torch.tensor(values, device=inputs.device)[:, None, None, None]
            for values in (IMAGENET_MEAN, IMAGENET_STD, self.mean, self.std)
        )
        return (inputs * old_std + old_mean - new_mean) / new_std


class EachFrame(Renormalized):
    """A network of images (N, 3, H, W) applied to every frame: embedding and logits are means over the frames."""

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, 3, T, H, W), normalized. Tokens, if any, in (time, height, width) order."""
        B, _, T = inputs.shape[:3]
        # Channels last: depthwise convolutions take half the time on CPUs, with equal values.
        frames = self.renormalized(inputs).transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        per_frame = self.network(frames).map(lambda values: values.unflatten(0, (B, T)))
        return Features(
            embedding=per_frame.embedding.mean(1),
            logits=None if per_frame.logits is None else per_frame.logits.mean(1),
            tokens=None if per_frame.tokens is None else per_frame.tokens.flatten(1, 2),
        )
