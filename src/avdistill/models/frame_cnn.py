"""Networks of 2-D convolutions over frames: stacked frames and temporal shift."""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from avdistill.models.r2plus1d import _PointConv2d
from avdistill.types import StudentFeatures, StudentNetwork


class StackedFrames(StudentNetwork):
    """A small 2-D residual network on T frames stacked as 3T channels: the cheapest student that models motion."""

    modality = "video"

    def __init__(self, num_classes: int, frames: int = 16, width: int = 48, embedding_dim: int = 128) -> None:
        """Args: num_classes: C; frames: T, fixed; width: channels of the first stage; embedding_dim: D."""
        super().__init__()
        self.frames, self.embedding_dim = frames, embedding_dim
        self.stem = _stem(3 * frames, width)
        widths = (width, width, 2 * width, embedding_dim)
        self.stages = nn.Sequential(
            *(_Block2D(a, b, stride) for (a, b), stride in zip(pairwise(widths), (1, 2, 2), strict=True))
        )
        self.classifier = nn.Linear(embedding_dim, num_classes)

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, 3, T, H, W), normalized, T = `frames`. Tokens: one position in time, stride 8 in space."""
        if inputs.shape[2] != self.frames:
            raise ValueError(f"stacked_frames: expected {self.frames} frames, found {inputs.shape[2]}")
        # Channels last: a sixth faster on CPUs, equal values. One copy, of pixels that lie (B, T, H, W, 3).
        stacked = inputs.permute(0, 3, 4, 1, 2).flatten(3).permute(0, 3, 1, 2)
        x = self.stages(self.stem(stacked.contiguous(memory_format=torch.channels_last)))
        tokens = x.flatten(2).transpose(1, 2)
        embedding = tokens.mean(1)
        return StudentFeatures(embedding=embedding, logits=self.classifier(embedding), tokens=tokens)


class ShiftedFrames(StudentNetwork):
    """A small 2-D residual network on each frame with temporal shift (Lin, Gan and Han, ICCV 2019).

    Before each block, an eighth of the channels moves to the next frame and an eighth to the previous one.
    """

    modality = "video"

    def __init__(self, num_classes: int, width: int = 16, embedding_dim: int = 128) -> None:
        """Args: num_classes: C; width: channels of the first stage, a multiple of 8; embedding_dim: D."""
        super().__init__()
        self.embedding_dim = embedding_dim
        self.stem = _stem(3, width)
        widths = (width, 2 * width, 4 * width, embedding_dim)
        self.stages = nn.ModuleList(_Block2D(a, b, 2) for a, b in pairwise(widths))
        self.classifier = nn.Linear(embedding_dim, num_classes)

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, 3, T, H, W), normalized; any T, H, W. Tokens have stride 1 in time and 16 in space."""
        B, _, T = inputs.shape[:3]
        frames = inputs.transpose(1, 2).flatten(0, 1).contiguous(memory_format=torch.channels_last)
        x = self.stem(frames)  # (B T, width, H / 2, W / 2)
        for stage in self.stages:
            x = stage(shift_channels(x, T))
        x = x.unflatten(0, (B, T)).transpose(1, 2)  # (B, D, T, h, w)
        tokens = x.flatten(2).transpose(1, 2)
        embedding = tokens.mean(1)
        return StudentFeatures(embedding=embedding, logits=self.classifier(embedding), tokens=tokens)


def _stem(inputs: int, width: int) -> nn.Sequential:
    conv = nn.Conv2d(inputs, width, 3, stride=2, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(width), nn.ReLU(inplace=True))


def shift_channels(x: Tensor, T: int) -> Tensor:
    """Shift the first eighth of the channels of (B T, channels, h, w) one frame forward, the second one frame back."""
    eighth = x.shape[1] // 8
    frames = x.permute(0, 2, 3, 1).unflatten(0, (-1, T))  # channels last, as they lie in memory
    # Channels first, then frames: in an exported graph each is a copy.
    forward = functional.pad(frames[..., :eighth][:, :-1], (0, 0, 0, 0, 0, 0, 1, 0))
    back = functional.pad(frames[..., eighth : 2 * eighth][:, 1:], (0, 0, 0, 0, 0, 0, 0, 1))
    shifted = torch.cat((forward, back, frames[..., 2 * eighth :]), dim=-1)
    return shifted.flatten(0, 1).permute(0, 3, 1, 2)


class _Block2D(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False),
            nn.BatchNorm2d(outputs),
            nn.ReLU(inplace=True),
            nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False),
            nn.BatchNorm2d(outputs),
        )
        self.shortcut = nn.Sequential()
        if stride > 1 or inputs != outputs:
            self.shortcut.extend([_PointConv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.shortcut(x) + self.body(x))
