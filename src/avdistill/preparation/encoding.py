"""A clip as a dataset stores it: what worker processes make of it, and the writing process only copies."""

import io
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from avdistill.dataset.clip_dataset import SILENCE_PEAK
from avdistill.media import Clip
from avdistill.media.spool import Spool, SpooledArray, blocks

# Of spool files: frames as they are decoded, JPEG images, audio.
SPOOL_SUFFIXES = (".frames", ".images", ".audio")


@dataclass(frozen=True)
class EncodedClip:
    """Frames and audio in the bytes of the shards, in memory or in spool files.

    Attributes:
        frames: uint8 (T, H, W, 3), or JPEG images one after the other, uint8 (bytes,); None without video.
        frame_shape: (H, W, 3); empty without video.
        image_bytes: int64 (T,), of each JPEG image; None for raw frames.
        audio: int16 (S,); None without audio.
        silent: whether the audio is.
        notes: irregularities of the file.
    """

    frames: np.ndarray | SpooledArray | None
    frame_shape: tuple[int, ...]
    image_bytes: np.ndarray | None
    audio: np.ndarray | SpooledArray | None
    silent: bool
    notes: tuple[str, ...]


def encode_clip(
    clip: Clip, jpeg_quality: int | None, *, spool: Path | None = None, memory_bytes: int = 0
) -> EncodedClip:
    """Encode a decoded clip.

    Args:
        clip: its frames may be a memory map of a whole file.
        jpeg_quality: None leaves the frames as they are.
        spool: path without suffix of the files that take what is larger than `memory_bytes`; None: memory takes all.
        memory_bytes: of the frames and of the audio.

    Raises:
        SpoolError: a spool file cannot be written.
        OSError: Pillow cannot encode frames of this size.
    """
    frames, image_bytes = None, None
    if clip.frames is not None:
        decoded = _decoded(clip.frames, spool)
        if jpeg_quality is not None:
            target = Spool(spool and spool.with_suffix(".images"), memory_bytes)
            sizes = [_write_image(target, image, jpeg_quality) for block in blocks(decoded) for image in block]
            image_bytes = np.array(sizes, np.int64)
            frames = target.result(np.uint8, (sum(sizes),))
            if isinstance(decoded, SpooledArray):
                decoded.path.unlink(missing_ok=True)  # the disk need not hold both until the clip is written
        elif isinstance(decoded, SpooledArray):
            frames = decoded
        else:
            frames = _collect(
                blocks(decoded), spool and spool.with_suffix(".frames"), memory_bytes, "|u1", decoded.shape
            )
    audio, peak = None, 0.0
    if clip.waveform is not None:
        waveform = clip.waveform.astype(np.float32, casting="same_kind", copy=False)
        peak = max((float(np.abs(block).max()) for block in blocks(waveform)), default=0.0)
        samples = (np.round(np.clip(block, -1, 1) * 32767).astype("<i2") for block in blocks(waveform))
        audio = _collect(samples, spool and spool.with_suffix(".audio"), memory_bytes, "<i2", waveform.shape)
    shape = () if clip.frames is None else clip.frames.shape[1:]
    return EncodedClip(frames, shape, image_bytes, audio, audio is not None and peak < SILENCE_PEAK, clip.notes)


def _decoded(frames: np.ndarray, spool: Path | None) -> np.ndarray | SpooledArray:
    """The frames, or the spool file that they are a memory map of."""
    if spool is not None and isinstance(frames, np.memmap) and frames.filename is not None:
        file = spool.with_suffix(".frames")
        if Path(frames.filename) == file.resolve():
            return SpooledArray(file, "|u1", frames.shape)
    return frames.astype(np.uint8, casting="same_kind", copy=False)


def _collect(
    parts: Iterable[np.ndarray], file: Path | None, memory_bytes: int, dtype: str, shape: tuple[int, ...]
) -> np.ndarray | SpooledArray:
    """The parts as one array, in memory or in the file."""
    target = Spool(file, memory_bytes)
    for part in parts:
        target.write(part)
    return target.result(dtype, shape)


def _write_image(target: Spool, image: np.ndarray, quality: int) -> int:
    """Encode uint8 (H, W, 3) as JPEG; returns its number of bytes."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=quality)
    target.write(buffer.getvalue())
    return buffer.tell()
