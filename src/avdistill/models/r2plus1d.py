"""R(2+1)D: normalized video (B, 3, T, H, W) -> `StudentFeatures`, tokens in (time, height, width) order."""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.types import StudentFeatures, StudentNetwork


def _every(x: Tensor, *strides: int) -> Tensor:
    """Every `stride`-th position along the last dimensions: a strided convolution with a kernel of 1 needs no more.

    The gradient of such a strided convolution writes out of bounds for fewer than 16 channels (oneDNN in PyTorch
    2.14.1, AVX-512): from (16, 8, 56, 56) with stride 2 the process is killed.
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
        # Both run as 2-D convolutions: over space with the frames in the batch, and over time with the positions of a
        # frame in one row. CPUs lack fast 3-D kernels for some widths; in channels_last_3d both reshapes are views.
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
        self.blocks = nn.Sequential(*(_Block(outputs, outputs, False) for _ in range(blocks - 1)))

    def forward(self, x: Tensor) -> Tensor:
        return self.blocks(self.block1(x))


class R2Plus1D(StudentNetwork):
    """R(2+1)D as in the released implementation, with its parameter names.

    It differs from torchvision's in the stem (3 x 7 x 7, with a middle width by the same formula as all other layers)
    and in the shortcut, which is factored as well (Tran et al. 2018, arXiv 1711.11248).
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

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, 3, T, H, W), normalized; any T, H, W. Tokens have stride 8 in time and 16 in space."""
        x = inputs.contiguous(memory_format=torch.channels_last_3d)
        x = self.relu(self.bn1(self.conv1(x)))
        x = self.conv5(self.conv4(self.conv3(self.conv2(x))))
        tokens = x.flatten(2).transpose(1, 2)  # (B, K, D)
        embedding = tokens.mean(1)
        return StudentFeatures(embedding=embedding, logits=self.cls(embedding), tokens=tokens)


def r2plus1d_xia2023(num_classes: int, depth: int = 18, embedding_dim: int = 512) -> R2Plus1D:
    """The student of Xia et al. 2023: 14.39 M parameters at 51 classes and depth 18.

    Args:
        depth: 18 means one block per stage, 34 means (3, 4, 6, 3), as the release names them.
        embedding_dim: D, the last stage's width.

    Raises:
        ValueError: another depth.
    """
    layouts = {18: (1, 1, 1, 1), 34: (3, 4, 6, 3)}
    if depth not in layouts:
        raise ValueError(f"depth: expected 18 or 34, found {depth}")
    return R2Plus1D(num_classes, (64, 64, 128, 256, embedding_dim), layouts[depth])


def tiny_r2plus1d(num_classes: int, embedding_dim: int = 128) -> R2Plus1D:
    """The same network with narrow stages: under 1 M parameters, to be trained on a CPU."""
    return R2Plus1D(num_classes, (16, 16, 32, 64, embedding_dim), (1, 1, 1, 1))
