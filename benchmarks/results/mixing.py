"""Copies of video files with other files' audio mixed in at a known ratio; the video is not touched."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from avdistill.media import read_clip
from avdistill.synthetic.audio import scale_to_snr

RATE = 16000


def read_audio(path: Path) -> np.ndarray:
    """float32 (S,) mono at 16 kHz. Raises ValueError where the file has none."""
    waveform = read_clip(path, fps=0.1, size=(1, 1), sample_rate_hz=RATE).waveform
    if waveform is None:
        raise ValueError(f"{path}: no audio")
    return waveform


def mix(own: np.ndarray, others: list[np.ndarray], snr_db: float) -> np.ndarray:
    """float32 (S,): `own` plus the sum of the others, which is repeated or cut to its length.

    10 log10(mean own^2 / mean noise^2) over the whole clip is `snr_db`; a sum beyond full scale is turned down whole.
    """
    noise = np.sum([np.resize(other, len(own)) for other in others], axis=0)
    mixed = own + scale_to_snr(own.astype(np.float64), noise.astype(np.float64), snr_db)
    return (mixed / max(1.0, float(np.abs(mixed).max()))).astype(np.float32)


def write_with_audio(source: Path, waveform: np.ndarray, out: Path) -> None:
    """Copy the video stream of `source` packet by packet into a Matroska file with this mono audio at 16 kHz."""
    with av.open(str(source)) as origin, av.open(str(out), "w", format="matroska") as copy:
        stream = origin.streams.video[0]
        video = copy.add_stream_from_template(stream)
        audio = copy.add_stream("pcm_s16le", rate=RATE)
        assert isinstance(audio, av.AudioStream)
        audio.layout = "mono"
        for packet in origin.demux(stream):
            if packet.dts is not None:
                packet.stream = video
                copy.mux(packet)
        samples = np.round(waveform * 32767).astype(np.int16)[None]
        frame = av.AudioFrame.from_ndarray(samples, format="s16", layout="mono")
        frame.sample_rate, frame.pts, frame.time_base = RATE, 0, Fraction(1, RATE)
        copy.mux(audio.encode(frame))
        copy.mux(audio.encode(None))
