"""What a network of a modality is given of a clip: window, size, crop."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from avdistill.errors import ConfigError


@dataclass(frozen=True)
class VideoInput:
    """What a network that sees is shown of a clip.

    Attributes:
        frames: T, at the dataset's rate; a shorter clip loops its own frames.
        size: (height, width) in pixels.
        scale: range of the share of the video a training crop covers.
        ratio: range of its width over its height.
        hflip: mirror half of the training clips.
        resize: False leaves the images at the dataset's scale: `size` is cut out, anywhere in training and from the
            center otherwise; `scale` and `ratio` then have no say. By far the cheapest.
    """

    modality: Literal["video"] = "video"
    frames: int = 16
    size: tuple[int, int] = (112, 112)
    scale: tuple[float, float] = (0.25, 1.0)
    ratio: tuple[float, float] = (0.75, 4 / 3)
    hflip: bool = True
    resize: bool = True

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be looked at."""
        if self.frames < 1 or min(self.size) < 1:
            raise ConfigError(f"view: frames and size must be at least 1, got {self.frames} frames of {self.size}")
        for name, (low, high) in (("scale", self.scale), ("ratio", self.ratio)):
            if not 0 < low <= high or (name == "scale" and high > 1):
                raise ConfigError(f"view.{name}: expected a range above 0, got {low:g} to {high:g}")


@dataclass(frozen=True)
class AudioInput:
    """What a network that hears is given of a clip.

    Attributes:
        seconds: length of the window; shorter audio is repeated.
    """

    modality: Literal["audio"] = "audio"
    seconds: float = 2.0

    def __post_init__(self) -> None:
        """Raise ConfigError for what cannot be listened to."""
        if not 0 < self.seconds < float("inf"):
            raise ConfigError(f"view.seconds: must be above 0, got {self.seconds:g}")


View = VideoInput | AudioInput
