"""`avdistill distill` on a folder of tiny videos, with a few steps a run; also as a program, to be killed."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from avdistill.analysis.distill import encoders, plan
from avdistill.cli import main
from avdistill.training.recipes import RECIPES
from support.media_files import write_video

RATE = 16000
# Twelve videos in two folders with odd names, two in three labeled, and a re-upload of the second.
NAMES = [f"{folder}/clip {i}{ending}" for i, (folder, ending) in enumerate([("Ünï ☃", ".mp4"), ("b #1", ".avi")] * 6)]
COPY, BROKEN = "b #1/again.mp4", "broken.mp4"
LABELED = {name: ("bell", "dog")[i % 2] for i, name in enumerate(NAMES) if i % 3}


def make_videos(folder: Path) -> Path:
    """The videos, a file that is none, and `labels.csv` beside the folder, which is returned."""
    videos = folder / "videos"
    for i, name in enumerate(NAMES):
        rng = np.random.default_rng(i)
        frames = rng.integers(0, 255, (4, 3, 4, 3)).repeat(5, 0).repeat(12, 1).repeat(12, 2).astype(np.uint8)
        t = np.arange(RATE // 10) / RATE
        tones = [0.3 * np.sin(2 * np.pi * hz * t) for hz in rng.uniform(200, 1000, 20) + 2000 * (i % 2)]
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        write_video(videos / name, frames=frames, waveform=np.concatenate(tones))
        if i == 1:
            write_video(videos / COPY, frames=frames[:, ::2, ::2], waveform=0.5 * np.concatenate(tones))
    (videos / BROKEN).write_bytes(bytes(2000))
    rows = [f'"{name}",{label}' for name, label in LABELED.items()]
    (folder / "labels.csv").write_text("\n".join(["path,label", *rows]), encoding="utf-8")
    return videos


def make_small(setattr_=setattr) -> None:
    """Four steps for each training, and no pretrained network: `setattr_` is `monkeypatch.setattr`, to be undone."""
    recipes = {name: replace(recipe, steps=4) for name, recipe in RECIPES.items()}
    setattr_(plan, "RECIPES", recipes)
    setattr_(encoders, "RECIPES", recipes)
    setattr_(plan, "SEEDS", (0,))
    setattr_(encoders, "_INSTALLED", {"audio": (), "video": ()})


if __name__ == "__main__":
    make_small()
    sys.exit(main(sys.argv[1:]))
