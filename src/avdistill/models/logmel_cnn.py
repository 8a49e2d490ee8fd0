"""A log-mel CNN: mono waveform (B, S) -> `StudentFeatures`, tokens in (time, frequency) order."""

import math
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.types import StudentFeatures, StudentNetwork


def mel_filters(*, bands: int, bins: int, sample_rate_hz: int, low_hz: float, high_hz: float) -> Tensor:
    """Triangular filters (bins, bands) on the HTK mel scale, 2595 log10(1 + f / 700), for a magnitude spectrum."""

    def to_mel(hz: float) -> float:
        return 2595 * math.log10(1 + hz / 700)

    edges = torch.linspace(to_mel(low_hz), to_mel(high_hz), bands + 2, dtype=torch.float64, device="cpu")
    edges = 700 * (10 ** (edges / 2595) - 1)
    frequencies = torch.linspace(0, sample_rate_hz / 2, bins, dtype=torch.float64, device="cpu")[:, None]
    return triangles(edges, frequencies).float()


def triangles(edges: Tensor, positions: Tensor) -> Tensor:
    """Triangular filters (bins, bands) of height 1 between the edges (bands + 2,), at the positions (bins, 1)."""
    rising = (positions - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - positions) / (edges[2:] - edges[1:-1])
    return torch.minimum(rising, falling).clamp(min=0)


class LogMel(nn.Module):
    """Waveform (B, S) -> log-mel spectrogram (B, frames, bands): 25 ms Hann windows every 10 ms, magnitude, log."""

    filters: Tensor
    window: Tensor

    def __init__(self, sample_rate_hz: int, bands: int) -> None:
        super().__init__()
        self.hop = sample_rate_hz // 100
        self.length = sample_rate_hz // 40
        self.points = 1 << (self.length - 1).bit_length()
        filters = mel_filters(
            bands=bands, bins=self.points // 2 + 1, sample_rate_hz=sample_rate_hz, low_hz=60, high_hz=sample_rate_hz / 2
        )
        # Derived from the constructor's arguments, so not part of the weights.
        self.register_buffer("filters", filters, persistent=False)
        self.register_buffer("window", torch.hann_window(self.length, device="cpu"), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform: float (B, S); audio shorter than one window is repeated."""
        if waveform.shape[1] < self.points:
            waveform = waveform.repeat(1, -(-self.points // waveform.shape[1]))
        spectrum = torch.stft(waveform, self.points, self.hop, self.length, self.window, return_complex=True)
        return torch.log(spectrum.abs().transpose(1, 2) @ self.filters + 1e-3)


class LogMelCNN(StudentNetwork):
    """A small convolutional network on a log-mel spectrogram, under 1 M parameters: a first audio teacher.

    Embeddings are means over a ReLU's output and thus non-negative, as those of PANNs' CNN14.
    """

    modality = "audio"

    def __init__(
        self,
        num_classes: int,
        embedding_dim: int = 128,
        sample_rate_hz: int = 16000,
        bands: int = 64,
        width: int = 32,
        spec_augment: bool = True,
        time_position: bool = False,
    ) -> None:
        """Build the network.

        Args:
            bands: mel bands.
            width: channels of the first block, doubled by the second and third.
            spec_augment: in training, mask two bands of frequencies and two of times (Park et al. 2019).
            time_position: add an input channel with each frame's position in the window, -1 to 1 (CoordConv, Liu et
                al. 2018): the mean over tokens loses the position, and a word in the middle is confused with others.
        """
        super().__init__()
        self.embedding_dim, self.sample_rate_hz = embedding_dim, sample_rate_hz
        self.spec_augment, self.time_position = spec_augment, time_position
        self.log_mel = LogMel(sample_rate_hz, bands)
        self.bands_norm = nn.BatchNorm2d(bands)
        widths = (2 if time_position else 1, width, 2 * width, 4 * width, embedding_dim)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(a, b, 3, padding=1, bias=False), nn.BatchNorm2d(b), nn.ReLU(inplace=True))
            for a, b in pairwise(widths)
        )
        self.classifier = nn.Linear(embedding_dim, num_classes)

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, S) mono in [-1, 1]; audio shorter than 32 ms is repeated."""
        x = self.log_mel(inputs)[:, None]  # (B, 1, time, bands)
        x = self.bands_norm(x.transpose(1, 3)).transpose(1, 3)
        if self.training and self.spec_augment:
            x = mask_bands(mask_bands(x, axis=2), axis=3)
        if self.time_position:
            place = torch.linspace(-1, 1, x.shape[2], device=x.device, dtype=x.dtype)
            x = torch.cat([x, place[None, None, :, None].expand_as(x)], 1)
        for index, block in enumerate(self.blocks):
            x = block(x)
            if index < 3:
                # Of short audio one frame may be left: the time axis is halved only while it is longer.
                x = F.avg_pool2d(x, (min(2, x.shape[2]), 2))
        tokens = x.flatten(2).transpose(1, 2)  # (B, time * frequency, D)
        embedding = tokens.mean(1)
        return StudentFeatures(embedding=embedding, logits=self.classifier(embedding), tokens=tokens)


def mask_bands(x: Tensor, axis: int, bands: int = 2, ratio: float = 0.15) -> Tensor:
    """SpecAugment: set `bands` random ranges of up to `ratio` of the axis to zero (the mean), drawn for each clip."""
    size = x.shape[axis]
    positions = torch.arange(size, device=x.device)
    keep = torch.ones(len(x), size, dtype=torch.bool, device=x.device)
    for _ in range(bands):
        length = torch.rand(len(x), 1, device=x.device) * ratio * size
        start = torch.rand(len(x), 1, device=x.device) * (size - length)
        keep &= (positions < start) | (positions >= start + length)
    return x * (keep[:, None, :, None] if axis == 2 else keep[:, None, None, :])
