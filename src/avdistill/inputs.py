"""What a network of a modality gets of a clip. The only place that distinguishes video from audio.

Both classes have the same members, so that a dataset, a file and a batch are read in one way:

    reader, presence, column    where the data lies: the method of `ClipDataset` and field of `Batch`, the column of the
                                clip table with whether a clip has it, and the first part of its other columns
    silence                     the column with whether a teacher learns nothing from it, where there is one
    rate, aligned               the rate by which positions are times; whether the last window of a clip ends with it
    window_length(...)          items of a window
    short_side                  how files are decoded for this input alone
    fits_all, check_fits(...)   whether a window of any size can be cut
    training_crop(...), network_input(...), random_inputs(...)    tensors
    evaluation_crop(...)        an array, which also feeds a student that was exported
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar, Literal

import numpy as np

from avdistill.errors import ConfigError
from avdistill.resizing import resize_frames, resize_tensor

# PyTorch is imported where a tensor is made: an exported student cuts its windows without it.
if TYPE_CHECKING:
    from torch import Tensor

# ImageNet's statistics of RGB in [0, 1], as in the paper. torchvision's R3D, MC3 and R(2+1)D were trained on Kinetics
# with others (`teachers/video.py`); as students they are trained on, and adapt to these.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
# A config that asks for more was not written for this machine, or not in good faith.
LARGEST_WINDOW_BYTES = 2**30


@dataclass(frozen=True)
class VideoInput:
    """The frames that a video network gets of a clip.

    Attributes:
        frames: The number of frames T, at the dataset's rate; a shorter clip repeats its own frames.
        size: The height and width in pixels.
        scale: The range of the fraction of the frame's area that a training crop covers.
        ratio: The range of the crop's width over its height.
        hflip: Mirror half of the training clips.
        resize: Resize crops to `size`; otherwise `size` is cut out at the dataset's scale, at random in training and
            from the center in evaluation, without `scale` and `ratio`, which is by far the cheapest.
    """

    reader: ClassVar[str] = "frames"
    presence: ClassVar[str] = "has_video"
    column: ClassVar[str] = "frame"
    silence: ClassVar[str | None] = None
    rate: ClassVar[str] = "fps"
    aligned: ClassVar[bool] = False

    modality: Literal["video"] = "video"
    frames: int = 16
    size: tuple[int, int] = (112, 112)
    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: bool = True
    resize: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for impossible values."""
        if self.frames < 1 or min(self.size) < 1:
            raise ConfigError(f"view: frames and size must be at least 1, got {self.frames} frames of {self.size}")
        if self.window_bytes > LARGEST_WINDOW_BYTES:
            raise ConfigError(f"view: expected at most 1 GiB per window, got {self.frames} frames of {self.size}")
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise ConfigError(f"view.{name}: expected a range above 0, got {low:g} to {high:g}")

    def window_length(self, sample_rate_hz: int) -> int:
        """Frames of a window."""
        return self.frames

    @property
    def window_bytes(self) -> int:
        """Bytes of a window's frames."""
        return self.frames * self.size[0] * self.size[1] * 3

    @property
    def short_side(self) -> int | None:
        """Pixels of the shorter side of frames that are decoded for this input alone: enough to cover `size`."""
        return max(self.size)

    @property
    def fits_all(self) -> bool:
        """Whether frames of any size will do."""
        return self.resize

    def check_fits(self, shape: tuple[int, ...]) -> None:
        """Raise ValueError where frames of shape (T, H, W, 3) are smaller than a window that is not resized."""
        H, W = shape[1:3]
        if not self.resize and (self.size[0] > H or self.size[1] > W):
            raise ValueError(
                f"frames of {H}x{W} pixels (height x width) hold no window of {self.size[0]}x{self.size[1]}, "
                "and the view's `resize` is off"
            )

    def training_crop(self, window: np.ndarray, rng: np.random.Generator) -> Tensor:
        """A random crop of uint8 (T, H, W, 3), scaled to uint8 (T, *size, 3), mirrored in half of the cases."""
        top, left, height, width = self._random_crop(window.shape, rng)
        frames = _channels_first(window[:, top : top + height, left : left + width])
        if self.hflip and rng.random() < 0.5:
            frames = frames.flip(3)
        if self.resize:
            frames = resize_tensor(frames, self.size)
        return frames.permute(0, 2, 3, 1).contiguous()

    def evaluation_crop(self, window: np.ndarray) -> np.ndarray:
        """The center of uint8 (T, H, W, 3), scaled so that `size` just fits, as uint8 (T, *size, 3)."""
        H, W = window.shape[1:3]
        if not self.resize:
            self.check_fits(window.shape)
            top, left = (H - self.size[0]) // 2, (W - self.size[1]) // 2
            return np.array(window[:, top : top + self.size[0], left : left + self.size[1]], order="C")
        factor = max(self.size[0] / H, self.size[1] / W)
        height, width = max(self.size[0], round(H * factor)), max(self.size[1], round(W * factor))
        frames = resize_frames(window, (height, width))
        # The center as torchvision finds it: half a pixel rounds to the even side.
        top, left = round((height - self.size[0]) / 2), round((width - self.size[1]) / 2)
        return np.array(frames[:, top : top + self.size[0], left : left + self.size[1]], order="C")

    @staticmethod
    def network_input(inputs: Tensor) -> Tensor:
        """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W), normalized with ImageNet's statistics."""
        return normalize_frames(inputs)

    def random_inputs(self, count: int, sample_rate_hz: int, rng: np.random.Generator) -> Tensor:
        """Noise as a batch of windows, uint8 (count, T, *size, 3)."""
        import torch

        return torch.from_numpy(rng.integers(0, 256, (count, self.frames, *self.size, 3), dtype=np.uint8))

    def _random_crop(self, shape: tuple[int, ...], rng: np.random.Generator) -> tuple[int, int, int, int]:
        """(top, left, height, width) of a crop of random area and ratio; the center where ten tries do not fit.

        Without `resize`: of `size`, anywhere.
        """
        H, W = shape[1:3]
        if not self.resize:
            self.check_fits(shape)
            height, width = self.size
            return int(rng.integers(H - height + 1)), int(rng.integers(W - width + 1)), height, width
        for _ in range(10):
            area = H * W * rng.uniform(*self.scale)
            ratio = math.exp(rng.uniform(math.log(self.ratio[0]), math.log(self.ratio[1])))
            height, width = round(math.sqrt(area / ratio)), round(math.sqrt(area * ratio))
            if 0 < height <= H and 0 < width <= W:
                return int(rng.integers(H - height + 1)), int(rng.integers(W - width + 1)), height, width
        ratio = min(max(W / H, self.ratio[0]), self.ratio[1])
        height, width = min(H, round(W / ratio)), min(W, round(H * ratio))
        return (H - height) // 2, (W - width) // 2, height, width


@dataclass(frozen=True)
class AudioInput:
    """The waveform that an audio network gets of a clip.

    Attributes:
        seconds: The length of the window in seconds; shorter audio is repeated.
    """

    reader: ClassVar[str] = "audio"
    presence: ClassVar[str] = "has_audio"
    column: ClassVar[str] = "audio"
    silence: ClassVar[str | None] = "silent"
    rate: ClassVar[str] = "sample_rate_hz"
    aligned: ClassVar[bool] = True
    fits_all: ClassVar[bool] = True
    short_side: ClassVar[int | None] = None

    modality: Literal["audio"] = "audio"
    seconds: float = 2.0

    def __post_init__(self) -> None:
        """Raise ConfigError for an impossible length."""
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"view.seconds: must be above 0, got {self.seconds:g}")
        if self.window_bytes > LARGEST_WINDOW_BYTES:
            raise ConfigError(f"view.seconds: expected at most 1 GiB per window, got {self.seconds:g}")

    def window_length(self, sample_rate_hz: int) -> int:
        """Samples of a window."""
        if self.seconds * sample_rate_hz * 4 > LARGEST_WINDOW_BYTES:
            raise ConfigError(f"view.seconds: expected at most 1 GiB per window, got {self.seconds:g}")
        return max(1, round(self.seconds * sample_rate_hz))

    @property
    def window_bytes(self) -> int:
        """Bytes of a window's samples at 48 kHz."""
        return round(self.seconds * 48000 * 4)

    def check_fits(self, shape: tuple[int, ...]) -> None:
        """Audio of any length fits."""

    def training_crop(self, window: np.ndarray, rng: np.random.Generator) -> Tensor:
        """The whole of int16 (S,), as float32 in [-1, 1]."""
        import torch

        return torch.from_numpy(self.evaluation_crop(window))

    def evaluation_crop(self, window: np.ndarray) -> np.ndarray:
        """The whole of int16 (S,), as float32 in [-1, 1]."""
        return window.astype(np.float32) / 32767

    @staticmethod
    def network_input(inputs: Tensor) -> Tensor:
        """float32 (B, S) as it is."""
        return inputs

    def random_inputs(self, count: int, sample_rate_hz: int, rng: np.random.Generator) -> Tensor:
        """Noise as a batch of windows, float32 (count, S)."""
        import torch

        audio = 0.2 * rng.standard_normal((count, self.window_length(sample_rate_hz)))
        return torch.from_numpy(audio.clip(-1, 1).astype(np.float32))


View = VideoInput | AudioInput
INPUTS: dict[str, type[VideoInput] | type[AudioInput]] = {"video": VideoInput, "audio": AudioInput}
Option = int | float | bool | str


@dataclass(frozen=True)
class StudentConfig:
    """What is needed to build a trained network again and to feed it; stored beside its weights.

    Attributes:
        model: a name of `MODELS`.
        options: arguments of the model beyond the number of classes.
        classes: names of the logits' columns.
        multi_label: whether a clip may have several labels (probabilities are then sigmoids).
        view: what it was trained on.
        fps: frames a second of the dataset; None where every frame was taken.
        sample_rate_hz: of the dataset's audio.
        short_side, size, region: how the dataset's frames were cut and scaled from the files, as in `PrepareConfig`;
            all None if unknown.
    """

    model: str
    classes: tuple[str, ...]
    view: View
    fps: float | None
    sample_rate_hz: int
    multi_label: bool = False
    options: dict[str, Option] = field(default_factory=dict)
    short_side: int | None = None
    size: tuple[int, int] | None = None
    region: tuple[int, int, int, int] | None = None


def normalize_frames(frames: Tensor) -> Tensor:
    """uint8 (B, T, H, W, 3) -> float32 (B, 3, T, H, W) with ImageNet's mean and deviation, on the frames' device.

    The pixels stay where they lie, channels last, as our networks take them.
    """
    import torch

    W = frames.shape[3]
    scale = torch.tensor([1 / (255 * s) for s in IMAGENET_STD], device=frames.device)
    shift = torch.tensor([-m / s for m, s in zip(IMAGENET_MEAN, IMAGENET_STD, strict=True)], device=frames.device)
    # By rows of pixels: on a CPU, products by three channels are slow, in onnxruntime 20 times.
    rows = frames.flatten(3).float().mul_(scale.repeat(W)).add_(shift.repeat(W))
    return rows.unflatten(3, (W, 3)).permute(0, 4, 1, 2, 3)


def _channels_first(window: np.ndarray) -> Tensor:
    import torch

    # Copied: the array may be a read-only view of the dataset's memory map.
    return torch.from_numpy(np.array(window, order="C")).permute(0, 3, 1, 2)
