"""YAMNet (Google 2019): MobileNet-v1 on log-mel patches of 0.96 s, trained on AudioSet, in plain PyTorch.

After tensorflow/models, research/audioset/yamnet; with the published weights its outputs agree to 1e-3.
"""

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from avdistill.models.logmel_cnn import triangles
from avdistill.types import StudentFeatures, StudentNetwork

YAMNET_CLASSES = 521
SAMPLE_RATE_HZ = 16000
_WINDOW, _HOP, _POINTS, _BANDS = 400, 160, 512, 64  # 25 ms every 10 ms
_PATCH_FRAMES, _PATCH_HOP_FRAMES = 96, 48
# The shortest waveform that fills a patch, 0.975 s, and what each further patch adds, 0.48 s.
PATCH_SAMPLES = (_PATCH_FRAMES - 1) * _HOP + _WINDOW
_PATCH_HOP_SAMPLES = _PATCH_HOP_FRAMES * _HOP


def mel_linear_filters() -> Tensor:
    """Filters (257, 64) from 125 to 7500 Hz on the HTK mel scale, triangular over mel, not over hertz."""

    def to_mel(hz: Tensor) -> Tensor:
        return 1127 * torch.log1p(hz / 700)

    limits = to_mel(torch.tensor([125.0, 7500.0], dtype=torch.float64, device="cpu"))
    edges = torch.linspace(limits[0].item(), limits[1].item(), _BANDS + 2, dtype=torch.float64, device="cpu")
    mels = to_mel(torch.linspace(0, SAMPLE_RATE_HZ / 2, _POINTS // 2 + 1, dtype=torch.float64, device="cpu"))[:, None]
    return triangles(edges, mels).float()


class LogMelPatches(nn.Module):
    """Waveform (B, S) at 16 kHz -> log-mel patches (B, patches, 96, 64), each 0.96 s, one every 0.48 s."""

    filters: Tensor
    window: Tensor

    def __init__(self) -> None:
        super().__init__()
        # Constants, so not part of the weights.
        self.register_buffer("filters", mel_linear_filters(), persistent=False)
        self.register_buffer("window", torch.hann_window(_WINDOW, device="cpu"), persistent=False)

    def forward(self, waveform: Tensor) -> Tensor:
        """waveform: float (B, S), padded with silence to a whole number of patches, as the reference does."""
        further = max(0, -(-(waveform.shape[1] - PATCH_SAMPLES) // _PATCH_HOP_SAMPLES))
        missing = PATCH_SAMPLES + further * _PATCH_HOP_SAMPLES - waveform.shape[1]
        # The STFT centers the window in its 512 points: with the same margin at both ends of the waveform, frame i
        # begins at sample 160 i.
        margin = (_POINTS - _WINDOW) // 2
        waveform = F.pad(waveform, (margin, missing + margin))
        spectrum = torch.stft(waveform, _POINTS, _HOP, _WINDOW, self.window, center=False, return_complex=True)
        log_mel = torch.log(spectrum.abs().transpose(1, 2) @ self.filters + 1e-3)
        return log_mel.unfold(1, _PATCH_FRAMES, _PATCH_HOP_FRAMES).transpose(2, 3)


class YAMNet(StudentNetwork):
    """MobileNet-v1 on patches of 0.96 s.

    The sigmoid of the logits is YAMNet's score of the clip: the mean of the patches' sigmoids. Tokens are the 3 x 2
    positions of each patch's last feature map, patches in time order; the embedding is their mean.
    """

    modality = "audio"
    embedding_dim = 1024
    sample_rate_hz = SAMPLE_RATE_HZ

    def __init__(self, num_classes: int = YAMNET_CLASSES) -> None:
        """Args: num_classes: C."""
        super().__init__()
        self.patches = LogMelPatches()
        widths = (32, 64, 128, 128, 256, 256, 512, 512, 512, 512, 512, 512, 1024, 1024)
        layers = [_convolution(1, 32, stride=2)]
        for a, b in pairwise(widths):
            # Every change of width but the first halves the feature map.
            layers += [_convolution(a, a, stride=2 if a != b and a > 32 else 1, groups=a), _convolution(a, b, kernel=1)]
        self.layers = nn.Sequential(*layers)
        self.classifier = nn.Linear(self.embedding_dim, num_classes)

    def forward(self, inputs: Tensor) -> StudentFeatures:
        """inputs: float (B, S) mono in [-1, 1] at 16 kHz; the last patch is padded with silence."""
        patches = self.patches(inputs)
        B, P = patches.shape[:2]
        maps = self.layers(patches.flatten(0, 1)[:, None]).unflatten(0, (B, P))  # (B, P, D, 3, 2)
        tokens = maps.flatten(3).transpose(2, 3).flatten(1, 2)  # (B, P * 6, D)
        logits = self.classifier(maps.mean((3, 4)))  # (B, P, C)
        # Log of the mean probability minus log of the mean of its complement, computed in logarithms.
        logits = F.logsigmoid(logits).logsumexp(1) - F.logsigmoid(-logits).logsumexp(1)
        return StudentFeatures(embedding=tokens.mean(1), logits=logits, tokens=tokens)


def _convolution(inputs: int, outputs: int, *, kernel: int = 3, stride: int = 1, groups: int = 1) -> nn.Sequential:
    """Convolution, BatchNorm (without gamma in the published weights: it stays 1) and ReLU.

    TensorFlow's "same" padding of an even axis at stride 2 is (0, 1).
    """
    padding: list[nn.Module] = [nn.ZeroPad2d((0, 1, 0, 1))] if stride == 2 else []
    conv = nn.Conv2d(inputs, outputs, kernel, stride, 0 if padding else kernel // 2, groups=groups, bias=False)
    return nn.Sequential(*padding, conv, nn.BatchNorm2d(outputs, eps=1e-4), nn.ReLU(inplace=True))
