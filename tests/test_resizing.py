"""Scaling of frames: by NumPy the bytes that PyTorch gives, and Pillow."""

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from avdistill.resizing import resize_array, resize_frames

SIZES = [
    ((64, 85), (56, 74)),
    ((40, 50), (56, 70)),
    ((36, 64), (28, 64)),
    ((36, 64), (36, 48)),
    ((97, 13), (3, 31)),
    ((1, 90), (7, 1)),
    ((255, 2), (1, 199)),
]


@pytest.mark.parametrize(("before", "after"), SIZES)
def test_numpy_gives_the_bytes_of_pytorch_and_of_pillow(before, after):
    frames = np.random.default_rng(0).integers(0, 256, (3, *before, 3), dtype=np.uint8)
    frames[0] = 255  # the largest sums
    found = resize_array(frames, after)
    tensor = torch.from_numpy(frames).permute(0, 3, 1, 2)
    by_torch = functional.interpolate(tensor, list(after), mode="bilinear", antialias=True)
    np.testing.assert_array_equal(found, by_torch.permute(0, 2, 3, 1))
    by_pillow = [Image.fromarray(frame).resize(after[::-1], Image.Resampling.BILINEAR) for frame in frames]
    # Pillow's weights have 7 bits more: a value that lies between two bytes may be rounded to the other.
    assert np.abs(found.astype(int) - np.stack([np.asarray(image, int) for image in by_pillow])).max() <= 1
    assert found.dtype == np.uint8


def test_frames_of_the_size_are_as_they_are():
    frames = np.zeros((2, 4, 6, 3), np.uint8)
    assert resize_frames(frames, (4, 6)) is frames
