"""Reading a video stored as JPEG images in an HDF5 file, the format of the released implementation.

Such a file holds one dataset, `video`: a row per frame, each the bytes of one JPEG. It has no audio and no clock.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from avdistill.annotations import Annotation
from avdistill.errors import EmptySegmentError, UnreadableFileError
from avdistill.media import Clip
from avdistill.media.scaler import Scaler

if TYPE_CHECKING:  # a worker process reads without PyTorch
    from avdistill.preparation.prepare import PrepareConfig


def read_hdf5_clip(path: Path, annotation: Annotation, config: PrepareConfig) -> Clip:
    """Every frame of one file, the first included; a `Reader` for `prepare`.

    Gray images become RGB. The video is cut and scaled by the rule of `read_clip`; a frame of another size than
    the first is scaled to the first one's.

    Args:
        path: the file. It is one clip: the annotation's times are ignored, as in the release.
        annotation: not used.
        config: `fps` is the rate at which the frames were taken; frame k is at k / fps seconds.

    Raises:
        ValueError: the config has no fps.
        FileNotFoundError: there is no such file.
        UnreadableFileError: not HDF5, no list of images in it, or a frame does not decode; names file and frame.
        EmptySegmentError: no frame in it, or the config's region lies outside the video.
    """
    if config.fps is None:
        raise ValueError("an HDF5 file has no clock: its frames a second (fps) must be given")
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file")
    scaler = Scaler(config.short_side, config.size, config.region)
    frames: list[np.ndarray] = []
    for number, content in enumerate(_images(path)):
        image = _decode(content, f"{path}: frame {number}")
        frames.append(scaler(image, path))
    if not frames:
        raise EmptySegmentError(f"{path}: no frame in it")
    return Clip(
        frames=np.stack(frames),
        frame_times_seconds=np.arange(len(frames)) / config.fps,
        fps=config.fps,
        waveform=None,
        sample_rate_hz=config.sample_rate_hz,
        notes=tuple(scaler.notes),
    )


def _images(path: Path) -> list[bytes]:
    """The bytes of each frame, whether stored as arrays of uint8, as opaque values or as byte strings."""
    import h5py

    try:
        with h5py.File(path, "r") as file:
            if not isinstance(file.get("video", getlink=True), h5py.HardLink | type(None)):
                raise UnreadableFileError(f"{path}: expected 'video' in this file, found a link")
            video = file.get("video")
            if isinstance(video, h5py.Dataset) and (video.external or video.is_virtual):
                raise UnreadableFileError(f"{path}: expected 'video' in this file, found data in other files")
            if not isinstance(video, h5py.Dataset) or video.ndim != 1 or video.dtype.kind not in "OSV":
                raise UnreadableFileError(f"{path}: expected a dataset 'video' with a JPEG per row")
            return [row if isinstance(row, bytes) else row.tobytes() for row in video[:]]
    except (OSError, RuntimeError) as error:
        raise UnreadableFileError(f"{path}: not a readable HDF5 file ({str(error).splitlines()[0]})") from error


def _decode(content: bytes, where: str) -> np.ndarray:
    """One JPEG -> uint8 (H, W, 3)."""
    from PIL import Image

    try:
        with Image.open(io.BytesIO(content), formats=["JPEG"]) as image:
            return np.asarray(image.convert("RGB"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UnreadableFileError(f"{where} does not decode as JPEG") from error
