"""From a decoded frame to the image that a player shows: upright, cropped, of square pixels, in the requested size."""

from __future__ import annotations

import re
import struct
from collections.abc import Callable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.video.reformatter import VideoReformatter

from avdistill.errors import EmptySegmentError, UnreadableFileError
from avdistill.media.tone_mapping import hdr_name, tone_map

# Larger frames, and longer pixels, are those of a damaged file.
LARGEST_FRAME_PIXELS = 64 * 2**20
_LONGEST_PIXEL = 16
# Where the shorter side is scaled to a length, a strip of few pixels would become a frame of megabytes.
_LONGEST_FRAME = 16


def check_pixels(path: Path, width: int, height: int) -> None:
    """Raise UnreadableFileError for an implausibly large frame."""
    if width * height > LARGEST_FRAME_PIXELS:
        raise UnreadableFileError(f"{path}: a frame of {width}x{height} pixels")


@dataclass
class Scaler:
    """Crops and scales frames; see `read_clip`.

    Where the size of the frames changes, later ones keep their shape within that of the first, beside black bars.

    Attributes:
        pixel_aspect: width of a pixel over its height, asked for with every frame.
        crop: pixels of a frame that are not shown, at the left, right, top and bottom.
        notes: what was changed beyond the request.
    """

    short_side: int | None
    size: tuple[int, int] | None
    region: tuple[int, int, int, int] | None
    pixel_aspect: Callable[[], Fraction] = lambda: Fraction(1)
    crop: tuple[int, int, int, int] = (0, 0, 0, 0)
    notes: dict[str, None] = field(default_factory=dict)
    _first: tuple[int, int] | None = None  # (height, width) of the first frame, as displayed

    def __call__(self, frame: av.VideoFrame | np.ndarray, path: Path) -> np.ndarray:
        """A frame, decoded here or elsewhere (uint8 (H, W, 3)), as a uint8 (H, W, 3) image of the requested size.

        Raises:
            EmptySegmentError: the region reaches beyond the frame; the message names `path`.
            UnreadableFileError: the frame is implausibly large or long.
        """
        if isinstance(frame, np.ndarray):
            frame = _as_frame(frame)
        check_pixels(path, frame.width, frame.height)
        turn = _Turn.of(frame)
        if frame.interlaced_frame:
            self.notes["interlaced video, not deinterlaced"] = None
        left, right, top, bottom = self.crop
        if any(self.crop) and left + right < frame.width and top + bottom < frame.height:
            image = self._rgb(frame, frame.height, frame.width)
            frame = _as_frame(image[top : frame.height - bottom, left : frame.width - right])
        aspect, height, width = self.pixel_aspect(), frame.height, frame.width
        # An encoder that rounds a width to whole pixels states the rest as an aspect: 256:255 for 170 of 170.67 pixels.
        if width * abs(aspect.numerator - aspect.denominator) >= aspect.denominator:
            width = max(1, round(width * aspect))
        if self.region is not None:
            check_pixels(path, width, height)
            frame, turn = _as_frame(self._cut(turn(self._rgb(frame, height, width)), path)), _Turn()
            height, width = frame.height, frame.width
        if turn.transposed:
            height, width = width, height
        if (
            self.short_side is not None
            and self.region is None
            and max(height, width) > _LONGEST_FRAME * min(height, width)
        ):
            raise UnreadableFileError(
                f"{path}: expected a frame at most {_LONGEST_FRAME} times as long as wide, found {width}x{height}; "
                "give its size or a region"
            )
        target, canvas = self._target(height, width)
        check_pixels(path, canvas[1], canvas[0])
        image = turn(self._rgb(frame, *(reversed(target) if turn.transposed else target)))
        return image if target == canvas else _on_canvas(image, canvas)

    def _target(self, height: int, width: int) -> tuple[tuple[int, int], tuple[int, int]]:
        """(height, width) to scale a frame of this displayed size to, and of the whole image."""
        self._first = self._first or (height, width)
        canvas = self._canvas
        if (height, width) == self._first:
            return canvas, canvas
        first_height, first_width = self._first
        self.notes[f"frame size changes from {first_width}x{first_height} to {width}x{height}"] = None
        factor = min(Fraction(first_height, height), Fraction(first_width, width))
        parts = (height * factor / first_height, width * factor / first_width)
        return (max(1, round(canvas[0] * parts[0])), max(1, round(canvas[1] * parts[1]))), canvas

    @cached_property
    def _canvas(self) -> tuple[int, int]:
        """(height, width) of every image, that of the first frame."""
        if self.size is not None:
            return self.size
        assert self._first is not None
        factor = 1 if self.short_side is None else Fraction(self.short_side, min(self._first))
        return max(1, round(self._first[0] * factor)), max(1, round(self._first[1] * factor))

    def _rgb(self, frame: av.VideoFrame, height: int, width: int) -> np.ndarray:
        """uint8 (height, width, 3) in the orientation of the file."""
        # Bilinear in swscale widens its kernel when shrinking, so it does not alias.
        hdr = hdr_name(frame.color_trc)
        image = self._reformatter.reformat(
            frame, width=width, height=height, format="rgb48le" if hdr else "rgb24", interpolation="BILINEAR"
        ).to_ndarray()
        if hdr is None:
            return image
        self.notes[f"high dynamic range ({hdr}), tone-mapped"] = None
        return tone_map(image, frame.color_trc, frame.color_primaries)

    def _cut(self, image: np.ndarray, path: Path) -> np.ndarray:
        assert self.region is not None
        x, y, width, height = self.region
        if x + width > image.shape[1] or y + height > image.shape[0]:
            found = f"{image.shape[1]}x{image.shape[0]}"
            raise EmptySegmentError(f"{path}: region {self.region} reaches beyond the video of {found}")
        return image[y : y + height, x : x + width]

    @cached_property
    def _reformatter(self) -> VideoReformatter:
        """One for all frames, because each frame's own would be set up anew."""
        return VideoReformatter()


@dataclass(frozen=True)
class _Turn:
    """One of the eight orientations: rows and columns exchanged or not, then mirrored."""

    transposed: bool = False
    left_right: bool = False
    top_bottom: bool = False

    @classmethod
    def of(cls, frame: av.VideoFrame) -> _Turn:
        """The orientation that the display matrix gives (ISO/IEC 14496-12): x' = a x + c y, y' = b x + d y."""
        try:
            a, b, _, c, d = struct.unpack_from("5i", frame.side_data["DISPLAYMATRIX"])  # type: ignore[typeddict-item]
        except KeyError:
            return _UPRIGHT
        if abs(a) + abs(d) >= abs(b) + abs(c):
            return cls(False, a < 0, d < 0)
        return cls(True, c < 0, b < 0)

    def __call__(self, image: np.ndarray) -> np.ndarray:
        image = image.swapaxes(0, 1) if self.transposed else image
        return image[:: -1 if self.top_bottom else 1, :: -1 if self.left_right else 1]


_UPRIGHT = _Turn()


def pixel_aspect_of(stream: av.VideoStream) -> Callable[[], Fraction]:
    """The width of a pixel over its height: the container's, or what the codec says as soon as it changes."""
    stated, codec = _plausible(stream.sample_aspect_ratio), stream.codec_context
    first: list[Fraction | None] = []

    def now() -> Fraction:
        coded = codec.sample_aspect_ratio
        if not first:
            first.append(coded)
        return stated if coded == first[0] else _plausible(coded)

    return now


def _plausible(aspect: Fraction | None) -> Fraction:
    return aspect if aspect and 1 <= _LONGEST_PIXEL * aspect <= _LONGEST_PIXEL**2 else Fraction(1)


def crop_of(container: InputContainer, stream: av.VideoStream) -> tuple[int, int, int, int]:
    """What the container crops at the left, right, top and bottom: `clap` of MP4, PixelCrop of Matroska.

    PyAV has it only in the description that FFmpeg prints of the file.
    """
    if not container.format.name.startswith(("mov", "matroska")):
        return 0, 0, 0, 0
    level = av.logging.get_level()
    av.logging.set_level(av.logging.INFO)
    try:
        described = container.dumps_format()  # type: ignore[attr-defined]  # not in PyAV's stubs
    finally:
        av.logging.set_level(level)
    of_stream = re.search(rf"^  Stream #0:{stream.index}\b.*\n((?:    .*\n?)*)", described, re.MULTILINE)
    found = re.search(
        r"^      Frame Cropping: (\d+)/(\d+)/(\d+)/(\d+)$", of_stream[1] if of_stream else "", re.MULTILINE
    )
    left, right, top, bottom = (int(pixels) for pixels in found.groups()) if found else (0, 0, 0, 0)
    return left, right, top, bottom


def fit_frames(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Frames (T, H, W, 3), each in its own shape within an image of another size (height, width)."""
    scaler = Scaler(None, None, None, _first=size)
    return np.stack([scaler(frame, Path()) for frame in frames])


def _as_frame(image: np.ndarray) -> av.VideoFrame:
    return av.VideoFrame.from_ndarray(np.ascontiguousarray(image, dtype=np.uint8), format="rgb24")


def _on_canvas(image: np.ndarray, canvas: tuple[int, int]) -> np.ndarray:
    """An image in the middle of a larger black one."""
    whole = np.zeros((*canvas, 3), np.uint8)
    top, left = (canvas[0] - image.shape[0]) // 2, (canvas[1] - image.shape[1]) // 2
    whole[top : top + image.shape[0], left : left + image.shape[1]] = image
    return whole
