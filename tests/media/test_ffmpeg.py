"""Frames of generated files equal those of the ffmpeg command: six containers, five rates, all orientations and shapes.

One ffmpeg process reads all files. Where the rate is the file's own, its `fps` filter rounds times to the nearest,
otherwise up, which is the rule of the reader: from a frame's time on it is shown.
"""

import shutil
import subprocess
from fractions import Fraction

import numpy as np
import pytest

from avdistill.media import read_clip
from support.media_files import write_timed

pytestmark = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="the ffmpeg command is not installed")

CODECS = {"mp4": "libx264", "mov": "mpeg4", "mkv": "mpeg4", "webm": "libvpx", "ts": "mpeg2video", "flv": "flv"}
RATES = [Fraction(10), Fraction(24000, 1001), Fraction(25), Fraction(30000, 1001), Fraction(30)]
# a, b, c, d of the display matrix: upright, mirrored, upside down, turned by 180, 90 and 270 degrees, both mirrored.
MATRICES = [(1, 0, 0, 1), (-1, 0, 0, 1), (1, 0, 0, -1), (-1, 0, 0, -1)]
MATRICES += [(0, 1, -1, 0), (0, -1, 1, 0), (0, 1, 1, 0), (0, -1, -1, 0)]
ASPECTS = [Fraction(1), Fraction(2), Fraction(12, 11)]
HEIGHT, WIDTH, COUNT = 32, 48, 10


def marked(count):
    """Grey frames whose brightness tells their number, and of whose corners each has a color of its own."""
    frames = np.empty((count, HEIGHT, WIDTH, 3), np.uint8)
    frames[:] = (60 + 15 * np.arange(count))[:, None, None, None]
    frames[:, :8, :16], frames[:, :8, -16:], frames[:, -8:, :16] = (230, 20, 20), (20, 20, 230), (20, 200, 20)
    return frames


def cases():
    """(suffix, rate, times in seconds, requested rate, display matrix, pixel aspect)"""
    rng = np.random.default_rng(0)
    for suffix in CODECS:
        for rate in RATES:
            yield suffix, rate, [n / rate for n in range(COUNT)], rate, MATRICES[0], ASPECTS[0]
            # Of both 25 and 5 frames per second, times are whole milliseconds.
            times = [Fraction(int(n), 25) for n in np.cumsum([0, *rng.integers(1, 20, COUNT - 1)])]
            yield suffix, Fraction(25), times, Fraction(int(rng.choice([2, 4, 5, 8, 10]))), MATRICES[0], ASPECTS[0]
    for suffix in ("mp4", "mov", "mkv"):
        for number, matrix in enumerate(MATRICES):
            rate = RATES[number % len(RATES)]
            for aspect in ASPECTS[: 2 if suffix == "mkv" else 3]:
                if matrix != MATRICES[0] or aspect != 1:
                    yield suffix, rate, [n / rate for n in range(COUNT)], rate, matrix, aspect


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """(path, requested rate, pixel aspect) and ffmpeg's frames of it."""
    folder, listed, inputs, outputs = tmp_path_factory.mktemp("files"), [], [], []
    for number, (suffix, rate, times, requested, matrix, aspect) in enumerate(cases()):

        def prepare_stream(stream, matrix=matrix, aspect=aspect):
            stream.codec_context.sample_aspect_ratio = aspect
            a, b, c, d = (65536 * value for value in matrix)
            if matrix != MATRICES[0]:
                stream.set_display_matrix([a, b, 0, c, d, 0, 0, 0, 2**30])
            stream.codec_context.bit_rate = 4_000_000

        path = folder / f"{number}.{suffix}"
        codec = CODECS[suffix]
        write_timed(path, times, frames=marked(COUNT), tick=1 / rate, codec=codec, prepare_stream=prepare_stream)
        listed.append((path, requested, requested == rate))
        rounding = "near" if requested == rate else "up"
        scaled = "scale=round(iw*sar):ih:flags=bilinear" if aspect != 1 else "null"
        inputs += ["-threads", "1", "-i", path]
        # Aspect first: ffmpeg turns the frame, and its pixels with it, before these filters.
        scaled = scaled if not matrix[1] or aspect == 1 else "scale=iw:round(ih/sar):flags=bilinear"
        chain = f"fps={requested}:round={rounding},{scaled}"
        outputs += [
            "-map",
            f"{number}:v",
            "-vf",
            chain,
            "-pix_fmt",
            "rgb24",
            "-f",
            "rawvideo",
            path.with_suffix(".rgb"),
        ]
    command = ["ffmpeg", "-v", "error", "-nostdin", "-filter_complex_threads", "1", *inputs, *outputs]
    subprocess.run([str(word) for word in command], check=True)
    return listed


def test_at_least_a_hundred_files(files):
    assert len(files) >= 100


def test_the_frames_are_ffmpegs(files):
    for path, requested, own_rate in files:
        frames = read_clip(path, fps=float(requested)).frames
        _, height, width, _ = frames.shape
        expected = np.fromfile(path.with_suffix(".rgb"), np.uint8).reshape(-1, height, width, 3)
        # Of varying durations ffmpeg 5 takes no last one from the file.
        assert len(frames) == len(expected) if own_rate else len(frames) >= len(expected) > 2, path
        common = min(len(frames), len(expected))
        far = np.abs(frames[:common].astype(int) - expected[:common]).mean((1, 2, 3))
        assert far.max() < 4, (path, far)  # the next frame is 15 levels brighter, another orientation farther off
