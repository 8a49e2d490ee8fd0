"""What a corruption is: shares of clips whose audio is changed, and how many labels are kept."""

from __future__ import annotations

from dataclasses import dataclass, fields
from math import isfinite
from typing import Any

from avdistill.errors import ConfigError

_CHANGES = ("mismatched", "dropped", "time_shifted", "noisy")


_COUNTS = ("labeled_videos", "labeled_per_class")


@dataclass(frozen=True)
class Corruption:
    """What is done to a dataset. Shares are of the clips of `split` that have audio; a clip is changed in one way only.

    Attributes:
        mismatched: share that gets the audio of another clip with a different label. Where a label is not known, not
            even as `true_label`, the other clip is one of another video.
        dropped: share that loses its audio.
        time_shifted: share whose audio is rotated by a quarter to three quarters of its length.
        noisy: share whose audio is mixed with that of another clip (chosen as for `mismatched`) at `snr_db`.
        snr_db: 10 log10(mean own^2 / mean other^2) of noisy clips.
        label_fraction: share of the labeled clips that keep their labels, class by class, at least one of each
            class. Where
            clips have several labels, about this share of each class: a clip keeps all of its labels or none.
        labeled_videos: number of videos whose clips keep their labels, drawn among those with a labeled clip; the
            clips of all others lose theirs. A class may be left without any labeled clip, as where videos are labeled
            one by one. A smaller number is a subset of a larger one. 0 keeps all.
        labeled_per_class: number of labeled clips of each class that keep their labels; a class with fewer keeps all
            it has. Where clips have several labels it is at least this number, and more of the classes that come with
            rarer ones. A smaller number is a subset of a larger one. 0 keeps all.
        split: whose clips are changed; several splits are joined by "+", as in "train+teacher".
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
        """Raise ConfigError for shares that no dataset can have, and for more than one way to take labels."""
        shares = [getattr(self, name) for name in _CHANGES]
        if not all(0 <= share <= 1 for share in shares) or sum(shares) > 1 + 1e-9:
            raise ConfigError(f"corruption: {', '.join(_CHANGES)} must be shares that sum to at most 1, got {shares}")
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
        """What differs from the defaults, as `parse_corruption` reads it; "clean" where nothing does."""
        changed = [
            f"{each.name}={getattr(self, each.name):{'g' if each.type == 'float' else ''}}"
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        return ",".join(changed) or "clean"


def parse_corruption(text: str, split: str = "train") -> Corruption:
    """A corruption from "clean" or from pairs such as "mismatched=0.4,label_fraction=0.25".

    Args:
        text: what is done.
        split: whose clips are changed where the text does not say it.

    Raises:
        ConfigError: an unknown name, or a value that is no number.
    """
    kinds = {each.name: each.type for each in fields(Corruption)}
    values: dict[str, Any] = {"split": split}
    for pair in [] if text == "clean" else text.split(","):
        name, _, value = pair.partition("=")
        if name not in kinds or not value:
            raise ConfigError(f"corruption {text!r}: expected 'clean' or NAME=VALUE pairs of {', '.join(kinds)}")
        try:
            values[name] = {"float": float, "int": int, "str": str}[str(kinds[name])](value)
        except ValueError:
            kind = "whole number" if kinds[name] == "int" else "number"
            raise ConfigError(f"corruption {text!r}: {name} must be a {kind}, got {value!r}") from None
    return Corruption(**values)
