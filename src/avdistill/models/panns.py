"""PANNs (Kong et al. 2020, arXiv 1912.10211): networks trained on AudioSet, in plain PyTorch.

After the authors' qiuqiangkong/audioset_tagging_cnn; parameters have the names of the published checkpoints.
"""

import math
from collections.abc import Mapping
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.models.logmel_cnn import mask_bands, triangles
from avdistill.types import StudentFeatures, StudentNetwork

AUDIOSET_CLASSES = 527
# Five halvings of the time axis need this many frames.
_MINIMUM_FRAMES = 32


def slaney_mel_filters(*, bands: int, bins: int, sample_rate_hz: int, low_hz: float, high_hz: float) -> Tensor:
    """Triangular filters (bins, bands) of unit area on Slaney's mel scale, as `librosa.filters.mel` makes them.

    The scale is linear below 1000 Hz (200/3 Hz a mel) and logarithmic above (27 mel for a factor of 6.4).
    """

    def to_mel(hz: float) -> float:
        return 3 * hz / 200 if hz < 1000 else 15 + 27 * math.log(hz / 1000) / math.log(6.4)

    mels = torch.linspace(to_mel(low_hz), to_mel(high_hz), bands + 2, dtype=torch.float64, device="cpu")
    edges = torch.where(mels < 15, 200 * mels / 3, 1000 * 6.4 ** ((mels - 15) / 27))
    frequencies = torch.linspace(0, sample_rate_hz / 2, bins, dtype=torch.float64, device="cpu")[:, None]
    return (triangles(edges, frequencies) * 2 / (edges[2:] - edges[:-2])).float()


class PowerLogMel(nn.Module):
    """Waveform (B, S) -> log-mel power in decibels (B, frames, 64): 32 ms Hann windows every 10 ms, 50 to 14000 Hz.

    At 16000 and 8000 Hz the window, the hop and the highest frequency are those of PANNs' Cnn14_16k and Cnn14_8k.
    """

    filters: Tensor
    window: Tensor

    def __init__(self, sample_rate_hz: int) -> None:
        super().__init__()
        if sample_rate_hz not in (8000, 16000, 32000):
            raise ValueError(f"sample_rate_hz: expected 8000, 16000 or 32000, found {sample_rate_hz}")
        self.length, self.hop = sample_rate_hz * 32 // 1000, sample_rate_hz // 100
        bins, high_hz = self.length // 2 + 1, min(14000, sample_rate_hz / 2)
        filters = slaney_mel_filters(bands=64, bins=bins, sample_rate_hz=sample_rate_hz, low_hz=50, high_hz=high_hz)
        # Derived from the constructor's arguments, so not part of the weights.
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(self.length, device="cpu"), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform: float (B, S); audio shorter than 0.31 s is repeated."""
        minimum = (_MINIMUM_FRAMES - 1) * self.hop
        if waveform.shape[1] < minimum:
            waveform = waveform.repeat(1, -(-minimum // waveform.shape[1]))
        spectrum = torch.stft(waveform, self.length, self.hop, window=self.window, return_complex=True)
        power = spectrum.abs().square().transpose(1, 2) @ self.filters
        return 10 * torch.log10(power.clamp(min=1e-10))


class ConvBlock(nn.Module):
    """(B, in, time, bands) -> (B, out, time / 2, bands / 2): two 3 x 3 convolutions or one 5 x 5, average pooling."""

    def __init__(self, in_channels: int, out_channels: int, *, kernel: int = 3, pool: int = 2) -> None:
        super().__init__()
        self.pool = pool
        self.conv1 = nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2, bias=False)
        self.bn1 = nn.BatchNorm2d(out_channels)
        self.two = kernel == 3
        if self.two:
            self.conv2 = nn.Conv2d(out_channels, out_channels, kernel, padding=kernel // 2, bias=False)
            self.bn2 = nn.BatchNorm2d(out_channels)

    def forward(self, x: Tensor) -> Tensor:
        """x: (B, in, time, bands)."""
        x = F.relu_(self.bn1(self.conv1(x)))
        if self.two:
            x = F.relu_(self.bn2(self.conv2(x)))
        return F.dropout(F.avg_pool2d(x, self.pool), 0.2, self.training)


class PANN(StudentNetwork):
    """A network of the PANNs family: log-mel, convolutions, fc1, classifier.

    The embedding is PANNs' `embedding`, relu(fc1(max + mean over time of the feature map's mean over frequency)),
    without the dropout of PANNs' training code. The feature map has another width, so a token is
    relu(fc1(2 x position)): it lies in the embedding's space, and tokens of a constant map equal the embedding, because
    max + mean doubles such a map.
    """

    modality = "audio"

    def __init__(
        self,
        body: Mapping[str, nn.Module],
        map_channels: int,
        num_classes: int,
        embedding_dim: int,
        sample_rate_hz: int,
        spec_augment: bool,
    ) -> None:
        """Args: body: name -> module, in order: (B, 1, time, 64) -> (B, map_channels, time, bands); others: `cnn14`."""
        super().__init__()
        self.embedding_dim, self.sample_rate_hz, self.spec_augment = embedding_dim, sample_rate_hz, spec_augment
        self.log_mel = PowerLogMel(sample_rate_hz)
        self.bn0 = nn.BatchNorm2d(64)
        self.body = tuple(body)
        for name, part in body.items():
            self.add_module(name, part)
        self.fc1 = nn.Linear(map_channels, embedding_dim)
        self.fc_audioset = nn.Linear(embedding_dim, num_classes)
        for module in self.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.xavier_uniform_(module.weight)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, S) mono in [-1, 1]; shorter than 0.31 s is repeated. Logits are before the sigmoid."""
        x = self.log_mel(inputs)[:, None]  # (B, 1, time, bands)
        x = self.bn0(x.transpose(1, 3)).transpose(1, 3)
        if self.training and self.spec_augment:
            x = mask_bands(mask_bands(x, axis=2), axis=3)
        for name in self.body:
            x = self.get_submodule(name)(x)
        times = x.mean(3)  # (B, channels, time)
        pooled = F.dropout(times.amax(2) + times.mean(2), 0.5, self.training)
        embedding = F.relu(self.fc1(pooled))
        tokens = F.relu(self.fc1(2 * x.flatten(2).transpose(1, 2)))  # (B, time * frequency, D)
        return StudentFeatures(embedding=embedding, logits=self.fc_audioset(embedding), tokens=tokens)


def cnn14(
    num_classes: int = AUDIOSET_CLASSES,
    embedding_dim: int = 2048,
    sample_rate_hz: int = 32000,
    spec_augment: bool = True,
) -> PANN:
    """PANNs' Cnn14, 81 M parameters; an `embedding_dim` of 512, 128 or 32 gives Cnn14_emb512, _emb128 and _emb32.

    Args:
        sample_rate_hz: of the waveforms: 32000, 16000 or 8000.
        spec_augment: in training, mask two bands of frequencies and two of times (Park et al. 2019).
    """
    widths = (1, 64, 128, 256, 512, 1024, 2048)
    body = {f"conv_block{i + 1}": ConvBlock(widths[i], widths[i + 1], pool=1 if i == 5 else 2) for i in range(6)}
    return PANN(body, 2048, num_classes, embedding_dim, sample_rate_hz, spec_augment)


def cnn10(num_classes: int = AUDIOSET_CLASSES, sample_rate_hz: int = 32000, spec_augment: bool = True) -> PANN:
    """PANNs' Cnn10, 5 M parameters, D = 512. Arguments as those of `cnn14`."""
    return _four_blocks(3, num_classes, sample_rate_hz, spec_augment)


def cnn6(num_classes: int = AUDIOSET_CLASSES, sample_rate_hz: int = 32000, spec_augment: bool = True) -> PANN:
    """PANNs' Cnn6, 5 M parameters, D = 512. Arguments as those of `cnn14`."""
    return _four_blocks(5, num_classes, sample_rate_hz, spec_augment)


def _four_blocks(kernel: int, num_classes: int, sample_rate_hz: int, spec_augment: bool) -> PANN:
    widths = (1, 64, 128, 256, 512)
    body = {f"conv_block{i + 1}": ConvBlock(widths[i], widths[i + 1], kernel=kernel) for i in range(4)}
    return PANN(body, 512, num_classes, 512, sample_rate_hz, spec_augment)


def panns_mobilenet_v1(
    num_classes: int = AUDIOSET_CLASSES, sample_rate_hz: int = 32000, spec_augment: bool = True
) -> PANN:
    """PANNs' MobileNetV1, 5 M parameters, D = 1024. Arguments as those of `cnn14`."""
    first = nn.Sequential(
        nn.Conv2d(1, 32, 3, padding=1, bias=False), nn.AvgPool2d(2), nn.BatchNorm2d(32), nn.ReLU(inplace=True)
    )
    widths = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
    # Every change of width but the first halves the feature map.
    rest = [_separable(a, b, 2 if a != b and a > 32 else 1) for a, b in pairwise(widths)]
    return PANN({"features": nn.Sequential(first, *rest)}, 1024, num_classes, 1024, sample_rate_hz, spec_augment)


def _separable(in_channels: int, out_channels: int, pool: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(in_channels, in_channels, 3, padding=1, groups=in_channels, bias=False),
        nn.AvgPool2d(pool),
        nn.BatchNorm2d(in_channels),
        nn.ReLU(inplace=True),
        nn.Conv2d(in_channels, out_channels, 1, bias=False),
        nn.BatchNorm2d(out_channels),
        nn.ReLU(inplace=True),
    )
