"""The configuration of a corruption: shares of clips whose audio is changed, and how many labels are kept."""

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from avdistill.errors import ConfigError

# The kinds of change, in the order in which they are assigned to clips; values of the truth column `audio`.
AUDIO_CHANGES = ("mismatched", "dropped", "time_shifted", "noisy")
_COUNTS = ("labeled_videos", "labeled_per_class")


@dataclass(frozen=True)
class Corruption:
    """Noisy correspondence and fewer labels. Shares are of the clips of `split` with audio; a clip has one change.

    Attributes:
        mismatched: share that gets the audio of another clip with a different label. Where a label is unknown, even as
            `true_label`, the other clip is from another source video.
        dropped: share that loses its audio.
        time_shifted: share whose audio is rotated by a quarter to three quarters of its length.
        noisy: share whose audio is mixed with that of another clip (chosen as for `mismatched`) at `snr_db`.
        snr_db: 10 log10(mean own^2 / mean other^2) of noisy clips.
        label_fraction: share of the labeled clips that keep their labels, class by class, at least one of each class.
            Multi-label clips keep all of their labels or none, about this share of each class.
        labeled_videos: number of source videos whose clips keep their labels, drawn among those with a labeled clip.
            A class may be left without labeled clips. A smaller number is a subset of a larger one. 0 keeps all.
        labeled_per_class: number of labeled clips of each class that keep their labels; a class with fewer keeps all.
            Of multi-label clips it is at least this number, and more for the classes that occur together with rarer
            ones. A smaller number is a subset of a larger one. 0 keeps all.
        split: the split that is changed; several are joined by "+", as in "train+teacher".
        seed: of all draws.
    """

    mismatched: float = 0.0
    dropped: float = 0.0
    time_shifted: float = 0.0
    noisy: float = 0.0
    snr_db: float = 0.0
    label_fraction: float = 1.0
    labeled_videos: int = 0
    labeled_per_class: int = 0
    split: str = "train"
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for impossible shares, and for more than one way to choose labels."""
        shares = [getattr(self, name) for name in AUDIO_CHANGES]
        if not all(0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
            names = ", ".join(AUDIO_CHANGES)
            raise ConfigError(f"corruption: {names} must be shares that sum to at most 1, got {shares}")
        if not 0 < self.label_fraction <= 1:
            raise ConfigError(f"corruption: label_fraction must lie in (0, 1], got {self.label_fraction}")
        if not isfinite(self.snr_db):
            raise ConfigError(f"corruption: snr_db must be a finite number, got {self.snr_db}")
        for name in (*_COUNTS, "seed"):
            if getattr(self, name) < 0:
                raise ConfigError(f"corruption: {name} must be at least 0, got {getattr(self, name)}")
        if (self.label_fraction != 1) + (self.labeled_videos != 0) + (self.labeled_per_class != 0) > 1:
            raise ConfigError(f"corruption: only one of label_fraction, {', '.join(_COUNTS)} can be given")

    @property
    def name(self) -> str:
        """The fields that differ from their defaults, as `parse_corruption` reads them; "clean" if none does."""
        changed = [
            f"{each.name}={getattr(self, each.name):{'g' if each.type is float else ''}}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return ",".join(changed) or "clean"


def parse_corruption(text: str, split: str = "train") -> Corruption:
    """Parse "clean" or pairs such as "mismatched=0.4,label_fraction=0.25"; `split` is used if the text names none.

    Raises:
        ConfigError: an unknown name, a value that is not a number, or a combination that `Corruption` refuses.
    """
    kinds: dict[str, Any] = {each.name: each.type for each in fields(Corruption)}
    values: dict[str, Any] = {"split": split}
    for pair in [] if text == "clean" else text.split(","):
        name, _, value = pair.partition("=")
        if name not in kinds or not value:
            raise ConfigError(f"corruption {text!r}: expected 'clean' or NAME=VALUE pairs of {', '.join(kinds)}")
        try:
            values[name] = kinds[name](value)
        except ValueError:
            kind = "whole number" if kinds[name] is int else "number"
            raise ConfigError(f"corruption {text!r}: {name} must be a {kind}, got {value!r}") from None
    return Corruption(**values)
