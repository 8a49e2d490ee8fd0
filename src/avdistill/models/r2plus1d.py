"""Networks that see: normalized video (B, 3, T, H, W) -> `Features`, tokens in (time, height, width) order."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.types import Features, Network

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


def _every(x: Tensor, *strides: int) -> Tensor:
    """Every `stride`-th position along the last dimensions, for a convolution with a kernel of 1 to step over none.

    The gradient of such a step writes beyond its memory for fewer than 16 channels (oneDNN in PyTorch 2.14.1, AVX-512):
    from (16, 8, 56, 56) with stride 2 the process is killed.
    """
    for axis, stride in zip(range(-len(strides), 0), strides, strict=True):
        x = x if stride == 1 else x[(slice(None),) * (x.ndim + axis) + (slice(None, None, stride),)]
    return x


class _PointConv2d(nn.Conv2d):
    """A 2-D convolution with a kernel of 1."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(_every(x, *map(int, self.stride)), self.weight, self.bias)


class _FactoredConv(nn.Module):
    """A 3-D convolution as a spatial one, BN + ReLU, then a temporal one, with as many weights as the full kernel."""

    def __init__(self, inputs: int, outputs: int, kernel: tuple[int, int, int], stride: tuple[int, int, int]) -> None:
        super().__init__()
        t, d, _ = kernel
        middle = (t * d * d * inputs * outputs) // (d * d * inputs + t * outputs)
        self.spatial_conv = nn.Conv3d(
            inputs, middle, (1, d, d), stride=(1, *stride[1:]), padding=(0, d // 2, d // 2), bias=False
        )
        self.bn = nn.BatchNorm3d(middle)
        self.relu = nn.ReLU(inplace=True)
        self.temporal_conv = nn.Conv3d(
            middle, outputs, (t, 1, 1), stride=(stride[0], 1, 1), padding=(t // 2, 0, 0), bias=False
        )
        self.kernel, self.stride = (t, d), stride

    def forward(self, x: Tensor) -> Tensor:
        # Both are 2-D convolutions: over the video with time in the batch, and along time with a video's positions
        # in one row. A processor has fast kernels for those and for some widths none for the 3-D ones; of a tensor in
        # channels_last_3d neither change of shape moves a number.
        (t, d), (over_time, *over_frame) = self.kernel, self.stride
        if d == 1:
            x, over_frame = _every(x, *over_frame), [1, 1]
        y = x.transpose(1, 2).flatten(0, 1)
        y = F.conv2d(y, self.spatial_conv.weight[:, :, 0], None, over_frame, d // 2)
        y = self.relu(self.bn(y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)))
        if t == 1:
            y, over_time = _every(y, over_time, 1, 1), 1
        z = F.conv2d(y.flatten(3), self.temporal_conv.weight.flatten(3), None, (over_time, 1), (t // 2, 0))
        return z.unflatten(3, y.shape[3:])


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, downsample: bool) -> None:
        super().__init__()
        stride = (2, 2, 2) if downsample else (1, 1, 1)
        self.downsample = downsample
        if downsample:
            self.downsampleconv = _FactoredConv(inputs, outputs, (1, 1, 1), stride)
            self.downsamplebn = nn.BatchNorm3d(outputs)
        self.conv1 = _FactoredConv(inputs, outputs, (3, 3, 3), stride)
        self.bn1 = nn.BatchNorm3d(outputs)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _FactoredConv(outputs, outputs, (3, 3, 3), (1, 1, 1))
        self.bn2 = nn.BatchNorm3d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        y = self.bn2(self.conv2(self.relu(self.bn1(self.conv1(x)))))
        return self.relu((self.downsamplebn(self.downsampleconv(x)) if self.downsample else x) + y)


class _Stage(nn.Module):
    def __init__(self, inputs: int, outputs: int, blocks: int, downsample: bool) -> None:
        super().__init__()
        self.block1 = _Block(inputs, outputs, downsample)
        self.blocks = nn.ModuleList(_Block(outputs, outputs, False) for _ in range(blocks - 1))

    def forward(self, x: Tensor) -> Tensor:
        x = self.block1(x)
        for block in self.blocks:
            x = block(x)
        return x


class R2Plus1D(Network):
    """R(2+1)D as the released implementation builds it (METHOD: released student); parameter names follow its files.

    It differs from torchvision's in the stem (3x7x7, whose middle width follows the same formula as every other
    layer), and in the shortcut, which is factored like the rest.
    """

    modality = "video"

    def __init__(
        self, num_classes: int, widths: tuple[int, int, int, int, int], blocks: tuple[int, int, int, int]
    ) -> None:
        super().__init__()
        stem, *stages = widths
        self.embedding_dim = stages[-1]
        self.conv1 = _FactoredConv(3, stem, (3, 7, 7), (1, 2, 2))
        self.bn1 = nn.BatchNorm3d(stem)
        self.relu = nn.ReLU(inplace=True)
        self.conv2 = _Stage(stem, stages[0], blocks[0], downsample=False)
        self.conv3 = _Stage(stages[0], stages[1], blocks[1], downsample=True)
        self.conv4 = _Stage(stages[1], stages[2], blocks[2], downsample=True)
        self.conv5 = _Stage(stages[2], stages[3], blocks[3], downsample=True)
        self.cls = nn.Linear(stages[3], num_classes)

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, 3, T, H, W), normalized; any T, H, W. The map's stride: 8 in time, 16 in space."""
        x = inputs.contiguous(memory_format=torch.channels_last_3d)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        tokens = x.flatten(2).transpose(1, 2)  # (B, K, D)
        embedding = tokens.mean(1)
        return Features(embedding=embedding, logits=self.cls(embedding), tokens=tokens)


def r2plus1d_xia2023(num_classes: int, depth: int = 18, embedding_dim: int = 512) -> R2Plus1D:
    """The paper's student: 14.39 M parameters at 51 classes and depth 18.

    Args:
        num_classes: C.
        depth: 18 means one block per stage, 34 means (3, 4, 6, 3), the release's names for them.
        embedding_dim: D, the last stage's width.

    Raises:
        ValueError: another depth.
    """
    layouts = {18: (1, 1, 1, 1), 34: (3, 4, 6, 3)}
    if depth not in layouts:
        raise ValueError(f"depth must be 18 or 34, got {depth}")
    return R2Plus1D(num_classes, (64, 64, 128, 256, embedding_dim), layouts[depth])


def tiny_r2plus1d(num_classes: int, embedding_dim: int = 128) -> R2Plus1D:
    """The same network, narrow: under 1 M parameters, for two cores and an afternoon."""
    return R2Plus1D(num_classes, (16, 16, 32, 64, embedding_dim), (1, 1, 1, 1))


class StackedFrames(Network):
    """A small 2-D residual network that takes the T frames as 3T channels: the cheapest student that sees motion."""

    modality = "video"

    def __init__(self, num_classes: int, frames: int = 16, width: int = 48, embedding_dim: int = 128) -> None:
        """Args: num_classes: C; frames: T, fixed; width: channels of the first stage; embedding_dim: D."""
        super().__init__()
        self.frames, self.embedding_dim = frames, embedding_dim
        self.stem = nn.Sequential(
            nn.Conv2d(3 * frames, width, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(width),
            nn.ReLU(inplace=True),
        )
        widths = (width, width, 2 * width, embedding_dim)
        self.stages = nn.ModuleList(
            _Block2D(a, b, stride) for a, b, stride in zip(widths, widths[1:], (1, 2, 2), strict=False)
        )
        self.classifier = nn.Linear(embedding_dim, num_classes)

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, 3, T, H, W) with exactly `frames` frames; the map has stride 8, one position in time."""
        if inputs.shape[2] != self.frames:
            raise ValueError(f"this student takes {self.frames} frames, got {inputs.shape[2]}")
        # Channels last: a sixth faster on a CPU, the same numbers.
        x = self.stem(inputs.flatten(1, 2).contiguous(memory_format=torch.channels_last))
        for stage in self.stages:
            x = stage(x)
        tokens = x.flatten(2).transpose(1, 2)
        embedding = tokens.mean(1)
        return Features(embedding=embedding, logits=self.classifier(embedding), tokens=tokens)


class ShiftedFrames(Network):
    """A small 2-D residual network on every frame that hands an eighth of its channels to the next frame and an eighth
    to the previous one before each block (temporal shift: Lin, Gan and Han, ICCV 2019), so that motion is seen.
    """

    modality = "video"

    def __init__(self, num_classes: int, width: int = 16, embedding_dim: int = 128) -> None:
        """Args: num_classes: C; width: channels of the first stage, a multiple of 8; embedding_dim: D."""
        super().__init__()
        self.embedding_dim = embedding_dim
        self.stem = nn.Sequential(
            nn.Conv2d(3, width, 3, stride=2, padding=1, bias=False), nn.BatchNorm2d(width), nn.ReLU(inplace=True)
        )
        widths = (width, 2 * width, 4 * width, embedding_dim)
        self.stages = nn.ModuleList(_Block2D(a, b, 2) for a, b in pairwise(widths))
        self.classifier = nn.Linear(embedding_dim, num_classes)

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, 3, T, H, W), normalized; any T, H, W. The map's stride: 1 in time, 16 in space."""
        B, _, T = inputs.shape[:3]
        x = self.stem(inputs.transpose(1, 2).flatten(0, 1))  # (B T, width, H / 2, W / 2)
        for stage in self.stages:
            x = stage(_shift(x, T))
        x = x.unflatten(0, (B, T)).transpose(1, 2)  # (B, D, T, h, w)
        tokens = x.flatten(2).transpose(1, 2)
        embedding = tokens.mean(1)
        return Features(embedding=embedding, logits=self.classifier(embedding), tokens=tokens)


def _shift(x: Tensor, T: int) -> Tensor:
    """Move the first eighth of the channels of (B T, channels, h, w) one frame on, the second eighth one frame back."""
    eighth = x.shape[1] // 8
    frames = x.unflatten(0, (-1, T))
    shifted = torch.zeros_like(frames)
    shifted[:, 1:, :eighth] = frames[:, :-1, :eighth]
    shifted[:, :-1, eighth : 2 * eighth] = frames[:, 1:, eighth : 2 * eighth]
    shifted[:, :, 2 * eighth :] = frames[:, :, 2 * eighth :]
    return shifted.flatten(0, 1)


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
        same = stride == 1 and inputs == outputs
        self.shortcut = nn.Sequential(
            *([] if same else [_PointConv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs)])
        )
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.relu(self.shortcut(x) + self.body(x))


# Where each torchvision network keeps its last map, its classifier, and how the map lies: channels first or last.
_TORCHVISION = {
    "r3d_18": ("layer4", "fc", "first"),
    "mc3_18": ("layer4", "fc", "first"),
    "r2plus1d_18": ("layer4", "fc", "first"),
    "s3d": ("features", "classifier", "first"),
    "mvit_v1_b": ("norm", "head", "tokens"),
    "mvit_v2_s": ("norm", "head", "tokens"),
    "swin3d_t": ("norm", "head", "last"),
    "swin3d_s": ("norm", "head", "last"),
    "swin3d_b": ("norm", "head", "last"),
}


class _Outputs(list[Tensor]):
    """A forward hook that keeps outputs. Copied with its network, where a closure would fill the first one's."""

    def __call__(self, _module: nn.Module, _inputs: object, output: Tensor) -> None:
        self.append(output)


class TorchvisionVideo(Network):
    """A torchvision video network with a new classifier; its own last map becomes the tokens."""

    modality = "video"

    def __init__(self, num_classes: int, network: str, kinetics: bool = False) -> None:
        """Build `network`.

        Args:
            num_classes: C of the new linear classifier.
            network: a name of torchvision.models.video, such as "r2plus1d_18" or "mvit_v2_s".
            kinetics: start from the Kinetics-400 weights, which torchvision downloads once. Never without asking.

        Raises:
            ValueError: no such network.
        """
        super().__init__()
        import torchvision.models.video as networks

        if network not in _TORCHVISION:
            raise ValueError(
                f"torchvision has no video network {network!r} that we know; known: {', '.join(_TORCHVISION)}"
            )
        map_name, head_name, self._layout = _TORCHVISION[network]
        self.backbone: Any = getattr(networks, network)(weights="KINETICS400_V1" if kinetics else None)
        head = getattr(self.backbone, head_name)
        last = [m for m in head.modules() if isinstance(m, nn.Linear | nn.Conv3d)][-1]
        self.embedding_dim = int(last.in_features if isinstance(last, nn.Linear) else last.in_channels)
        setattr(self.backbone, head_name, nn.Identity())
        if network == "s3d":  # its pooling window is fixed to 224 pixels; the mean is the same there and works below
            self.backbone.avgpool = nn.AdaptiveAvgPool3d(1)
        self.classifier = nn.Linear(self.embedding_dim, num_classes)
        self._map = _Outputs()
        getattr(self.backbone, map_name).register_forward_hook(self._map)

    def forward(self, inputs: Tensor) -> Features:
        """inputs: float (B, 3, T, H, W), of the size the network was made for (MViT: 16 frames of 224x224)."""
        self._map.clear()
        embedding = self.backbone(inputs).flatten(1)
        x = self._map.pop()
        if self._layout == "first":
            tokens = x.flatten(2).transpose(1, 2)
        elif self._layout == "last":
            tokens = x.flatten(1, 3)
        else:
            tokens = x[:, 1:]  # MViT: the first is the class token
        return Features(embedding=embedding, logits=self.classifier(embedding), tokens=tokens)
