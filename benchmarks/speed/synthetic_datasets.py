"""Datasets of made-up clips, of any number, for the metrics of speed: no videos are decoded for them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from PIL import Image

from avdistill.annotations import Annotation
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.media import Clip
from avdistill.preparation.encoding import encode_clip
from avdistill.preparation.journal import Journal, remove_journal

CLASSES = 51


def draw_image(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """uint8 (height, width, 3): soft colors with a little grain, about as hard to compress as a photograph."""
    coarse = Image.fromarray(rng.integers(0, 256, (6, 8, 3), dtype=np.uint8))
    soft = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC)).astype(np.int16)
    return np.clip(soft + rng.integers(-6, 7, soft.shape), 0, 255).astype(np.uint8)


def made_clip(number: int, frames: int, height: int, width: int) -> np.ndarray:
    """uint8 (frames, height, width, 3): a window that moves over a draw_image."""
    rng = np.random.default_rng(number)
    whole = draw_image(rng, height + frames, width + frames)
    return np.stack([whole[i : i + height, i : i + width] for i in range(frames)])


def synthetic_dataset(
    folder: Path,
    clips: int,
    frames: int,
    height: int,
    width: int,
    *,
    jpeg_quality: int | None = None,
    different: int = 50,
) -> ClipDataset:
    """A dataset of labeled training clips with silent audio, the `different` made clips over and over; kept if
    there.
    """
    if (folder / "dataset.json").is_file():
        return ClipDataset(folder)
    settings = {
        "config": {
            "fps": 4.0,
            "short_side": min(height, width),
            "size": None,
            "region": None,
            "sample_rate_hz": 16000,
            "jpeg_quality": jpeg_quality,
        },
        "annotations": f"made up: {clips} clips",
    }
    folder.mkdir(parents=True)
    images = [made_clip(i, frames, height, width) for i in range(min(clips, different))]
    times, audio = np.arange(frames) / 4.0, np.zeros(1600, np.float32)
    journal = Journal.open(folder, settings)
    for i in range(clips):
        annotation = Annotation(f"clip_{i:06d}", f"clip_{i:06d}.mp4", (f"class_{i % CLASSES:02d}",), "train")
        clip = Clip(images[i % len(images)], times, 4.0, audio, 16000)
        journal.add(annotation, encode_clip(clip, jpeg_quality), (0, 0))
    journal.finish(settings)
    remove_journal(folder)
    return ClipDataset(folder)
