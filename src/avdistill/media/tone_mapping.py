"""High dynamic range to the range of other videos: PQ and HLG (ITU-R BT.2100) to BT.1886 with BT.709 primaries.

Diffuse white is at 203 cd/m² (ITU-R BT.2408). What is darker keeps its color; brighter highlights, up to 1000 cd/m²,
are compressed into the rest of the range, by the largest of a pixel's channels, so that hues remain.
"""

from functools import lru_cache

import numpy as np
from av.video.reformatter import ColorPrimaries, ColorTrc

_WHITE_NITS, _PEAK_NITS = 203.0, 1000.0
_KNEE = 0.85  # of diffuse white, linear
_GAMMA = 2.4
# From linear RGB of other primaries, all with white D65, to that of BT.709: products of the matrices that follow from
# their chromaticities, ITU-R BT.2087 for BT.2020.
_BT2020_TO_709 = np.array(
    [[1.660491, -0.587641, -0.072850], [-0.124550, 1.132900, -0.008349], [-0.018151, -0.100579, 1.118730]], np.float32
)
_P3_TO_709 = np.array(
    [[1.224940, -0.224940, 0.0], [-0.042057, 1.042057, 0.0], [-0.019638, -0.078636, 1.098274]], np.float32
)
_BT2020_LUMINANCE = np.array([0.2627, 0.6780, 0.0593], np.float32)


def hdr_name(transfer: int) -> str | None:
    """PQ or HLG for a frame's transfer characteristic; None if it has no high dynamic range."""
    return {ColorTrc.SMPTE2084: "PQ", ColorTrc.ARIB_STD_B67: "HLG"}.get(transfer)  # type: ignore[call-overload]


def tone_map(image: np.ndarray, transfer: int, primaries: int) -> np.ndarray:
    """uint16 (H, W, 3) RGB of full range, PQ or HLG, as uint8 (H, W, 3) RGB like that of a video without HDR."""
    light = _linear(transfer == ColorTrc.SMPTE2084)[image]  # of diffuse white, or of HLG's scene
    if transfer == ColorTrc.ARIB_STD_B67:  # the display's light, with the system gamma of 1000 cd/m²
        light *= _PEAK_NITS / _WHITE_NITS * (light @ _BT2020_LUMINANCE)[..., None] ** 0.2
    if primaries != ColorPrimaries.BT709:
        light = light @ (_P3_TO_709 if primaries == ColorPrimaries.SMPTE432 else _BT2020_TO_709).T
    light = np.maximum(light, 0)
    brightest = light.max(-1, keepdims=True)
    light *= _compressed(brightest) / np.maximum(brightest, 1e-6)
    return np.round(255 * np.minimum(light, 1) ** (1 / _GAMMA)).astype(np.uint8)


def _compressed(light: np.ndarray) -> np.ndarray:
    """The same below the knee; above it Reinhard's curve, which reaches 1 at the peak."""
    over = np.maximum(light - _KNEE, 0) / (1 - _KNEE)
    most = (_PEAK_NITS / _WHITE_NITS - _KNEE) / (1 - _KNEE)
    return np.minimum(light, _KNEE) + (1 - _KNEE) * np.minimum(over * (1 + over / most**2) / (1 + over), 1)


@lru_cache(maxsize=2)
def _linear(pq: bool) -> np.ndarray:
    """float32 (65536,): light of each value of a signal, PQ's relative to diffuse white, HLG's from 0 to 1."""
    signal = np.arange(65536) / 65535
    if pq:  # SMPTE ST 2084
        m1, m2, c1, c2, c3 = 1305 / 8192, 2523 / 32, 107 / 128, 2413 / 128, 2392 / 128
        root = signal ** (1 / m2)
        return (10000 / _WHITE_NITS * (np.maximum(root - c1, 0) / (c2 - c3 * root)) ** (1 / m1)).astype(np.float32)
    a, b, c = 0.17883277, 0.28466892, 0.55991073  # ARIB STD-B67
    return np.where(signal <= 0.5, signal**2 / 3, (np.exp((signal - c) / a) + b) / 12).astype(np.float32)
