"""What a clip is flagged with, whatever its score: names for what a person would notice first."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.preparation.duplicates import Duplicate, find_duplicates
from avdistill.progress import OnProgress

#: flag -> its meaning
FLAGS: dict[str, str] = {
    "no_audio": "the file has no audio",
    "silent": "every sample of the audio is below -80 dBFS",
    "no_video": "the file has no video",
    "still_video": "no part of the frame changes over the clip",
    "reupload": "a clip of another source video has the same video, with the same audio or other audio",
    "shared_audio": "a clip of another source video has the same audio, under other video",
    "speech_throughout": "an audio tagger gives speech a mean probability of at least 0.5",
    "music_throughout": "an audio tagger gives music a mean probability of at least 0.5",
}
_TAGS = {"speech_throughout": "Speech", "music_throughout": "Music"}
# A frame as GRID x GRID mean values: noise of a codec averages out, a moving mouth does not.
_GRID = 8
_FRAMES = 8
_STILL_LEVELS = 2.0


@dataclass(frozen=True)
class Flags:
    """The flags of clips.

    Attributes:
        of_clip: per clip its flags, in the order of `FLAGS`.
        not_looked_for: flags that could not be, and why.
    """

    of_clip: list[tuple[str, ...]]
    not_looked_for: dict[str, str]


def flag_clips(
    dataset: ClipDataset,
    clips: np.ndarray,
    *,
    duplicates: Sequence[Duplicate] | None = None,
    on_progress: OnProgress | None = None,
) -> Flags:
    """Look for every flag in the given rows of a dataset, near-duplicates of them among all clips; reads all of it.

    Speech and music need features whose logits are over AudioSet's classes, as YAMNet gives them for a dataset without
    labels of its own.

    Args:
        dataset: all clips.
        clips: (n,) rows.
        duplicates: of the dataset; None searches for them.
        on_progress: called after each clip of that search.
    """
    c = dataset.columns
    found = {name: np.zeros(len(clips), bool) for name in FLAGS}
    found["no_audio"] = ~c["has_audio"][clips].astype(bool)
    found["silent"] = c["silent"][clips].astype(bool) & ~found["no_audio"]
    found["no_video"] = ~c["has_video"][clips].astype(bool)
    for i in np.flatnonzero(~found["no_video"]):
        found["still_video"][i] = _is_still(dataset, int(clips[i]))
    if duplicates is None:
        duplicates = find_duplicates(dataset, on_progress=on_progress)
    for name, of_video in (("reupload", True), ("shared_audio", False)):
        copied = [clip for pair in duplicates if bool(pair.video) == of_video for clip in pair.clips]
        found[name] = np.isin(clips, copied)
    tagger = next((name for name, entry in dataset.teachers.items() if set(_TAGS.values()) <= set(entry.classes)), None)
    if tagger is not None:
        stored = dataset.features(tagger, tokens=False).with_classes(tuple(_TAGS.values()))
        assert stored.logits is not None
        probable = torch.from_numpy(stored.logits).sigmoid().numpy() >= 0.5
        for flag, column in zip(_TAGS, probable.T, strict=True):
            found[flag] = (column & stored.valid)[clips]
    why = "no features with logits over AudioSet's classes (YAMNet's, in a dataset without labels)"
    return Flags(
        [tuple(name for name in FLAGS if found[name][i]) for i in range(len(clips))],
        {} if tagger is not None else dict.fromkeys(_TAGS, why),
    )


def _is_still(dataset: ClipDataset, clip: int) -> bool:
    """Whether no cell of a coarse grid changes; a clip of one frame is not called still."""
    frames = dataset.frames(clip)
    chosen = np.unique(np.linspace(0, len(frames) - 1, _FRAMES).astype(int))
    if len(chosen) < 2:
        return False
    images = torch.stack([torch.from_numpy(np.array(frames[int(i)])) for i in chosen]).float().mean(3)
    cells = torch.nn.functional.adaptive_avg_pool2d(images[:, None], _GRID)[:, 0]
    return bool((cells.amax(0) - cells.amin(0)).max() < _STILL_LEVELS)
