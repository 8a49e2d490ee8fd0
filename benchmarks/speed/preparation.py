"""Speed of preparation, and of the command line: `results/performance/preparation.json`.

    python benchmarks/speed/preparation.py --work DIR [prepare_vs_decode ...]

A made video of 640 x 360 pixels, H.264 and AAC, to frames at 4 a second with a short side of 128 and audio at 16 kHz:
against decoding alone with the same decoder, and against FFmpeg's `minterpolate`, JPEG and HDF5 (which needs the
program ffmpeg); the memory that an hour of video takes; and how long `avdistill --help` takes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Callable
from fractions import Fraction
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "faults"))  # what it shares with the scripts there

import av
import numpy as np

import baseline
from avdistill.media import read_clip
from measuring import NotHereError, Row, against, in_turn, measure, seconds, within
from synthetic_datasets import draw_image
from tools import run, write_clip, write_list

#: brings 640 x 360 pixels to what uploads of that size have, some 0.9 Mbit/s; without it decoding would be too easy
NOISE = 4


def video(
    path: Path,
    length_seconds: int = 20,
    fps: int = 25,
    size: tuple[int, int] = (360, 640),
    noise: int = NOISE,
    variable: bool = False,
) -> Path:
    """A window that moves over a draw_image, with a camera's noise, new in every frame, and a tone; kept if there.

    With `variable` a frame comes up to 16 ms late, as those of telephones do.
    """
    if path.is_file():
        return path
    rng = np.random.default_rng(0)
    whole = draw_image(rng, size[0] + 120, size[1] + 120).astype(np.int16)
    with av.open(str(path), "w") as container:
        seen = container.add_stream("libx264", rate=Fraction(fps), options={"preset": "veryfast", "crf": "20"})
        seen.height, seen.width, seen.pix_fmt = *size, "yuv420p"
        seen.codec_context.time_base = Fraction(1, 1000)
        heard = container.add_stream("aac", rate=44100, layout="stereo")
        for i in range(length_seconds * fps):
            top, left = (round(60 + 60 * np.sin(i / (11 + 6 * axis))) for axis in (0, 1))
            frame = whole[top : top + size[0], left : left + size[1]]
            grain = rng.integers(-noise, noise + 1, (*size, 1), dtype=np.int16)
            seen_now = np.clip(frame + grain, 0, 255).astype(np.uint8)
            image = av.VideoFrame.from_ndarray(seen_now, "rgb24")
            image.pts = 1000 * i // fps + (int(rng.integers(17)) if variable else 0)
            image.time_base = Fraction(1, 1000)
            container.mux(seen.encode(image))
        container.mux(seen.encode())
        for first in range(0, length_seconds * 44100, 44100):
            tone = np.sin(2 * np.pi * 440 * (first + np.arange(44100)) / 44100).astype(np.float32) / 2
            audio = av.AudioFrame.from_ndarray(np.stack([tone, tone]), "fltp", "stereo")
            audio.sample_rate, audio.pts = 44100, first
            container.mux(heard.encode(audio))
        container.mux(heard.encode())
    return path


def decode(path: Path) -> int:
    """Every frame of draw_image and audio, and nothing done with them."""
    with av.open(str(path)) as container:
        return sum(1 for _ in container.decode(container.streams.video[0], container.streams.audio[0]))


def to_arrays(path: Path, out: Path) -> None:
    """What `prepare` does with one file, arrays on the disk included: the frames go there as they are decoded."""
    clip = read_clip(path, fps=4, short_side=128, spool=out.with_suffix(".frames"))
    assert clip.waveform is not None
    clip.waveform.tofile(out.with_suffix(".audio"))


def vs_decode(work: Path) -> Row:
    """At most 1.3 times as long as decoding alone: the slowest of an upload, one of variable rate and one of 1080p.

    Also of a video that is easier to decode than uploads are, which does not count.
    """
    made = {
        "video": video(work / "video.mp4"),
        "variable_rate": video(work / "variable.mp4", variable=True),
        "1080p": video(work / "1080p.mp4", length_seconds=5, size=(1080, 1920)),
        "easy": video(work / "easy.mp4", noise=0),
    }
    ratios, others = {}, {}
    for name, path in made.items():
        pairs = in_turn(lambda path=path: to_arrays(path, work / "ours"), lambda path=path: decode(path), repeats=9)  # type: ignore[misc]
        ratios[name] = [a / b for a, b in pairs]
        seconds = 5 if name == "1080p" else 20
        rate = round(path.stat().st_size * 8 / 1000 / seconds)
        others[name] = {"kbit_per_second": rate, "measured": statistics.median(ratios[name])}
    slowest = max((name for name in made if name != "easy"), key=lambda name: others[name]["measured"])
    return within(
        "prepare_vs_decode", 1.3, ratios[slowest], slowest=slowest, files=others, load_average=os.getloadavg()[0]
    )


def vs_chain(work: Path) -> Row:
    """Against FFmpeg, JPEG, HDF5."""
    if shutil.which("ffmpeg") is None:
        raise NotHereError("needs the program ffmpeg (Debian: apt-get install ffmpeg)")
    path = video(work / "short.mp4", length_seconds=5)

    def chain() -> None:
        shutil.rmtree(work / "chain", ignore_errors=True)
        baseline.prepare_chain(path, work / "chain")

    return against("prepare_vs_chain", 5, lambda: to_arrays(path, work / "ours"), chain)


def memory(work: Path) -> Row:
    """All processes of `prepare` together on an hour of video, at most 1 GB."""
    videos = work / "hour"
    videos.mkdir(exist_ok=True)
    if not (videos / "hour.avi").is_file():
        write_clip(videos / "hour.avi", seconds=3600, fps=5, rate=8000)
    listed, measured = write_list(work / "hour.csv", ["hour.avi"]), []
    for _ in range(5):
        shutil.rmtree(work / "hour_dataset", ignore_errors=True)
        ended = run("prepare", listed, "--videos", videos, "--out", work / "hour_dataset", "--workers", 2)
        measured.append(float(ended.peak_bytes))
    return within("prepare_memory", 1e9, measured)


def help_text(_: Path) -> Row:
    """Seconds that `avdistill --help` takes over a bare interpreter, at most 0.3."""

    def start(*words: str) -> Callable[[], object]:
        return lambda: subprocess.run([sys.executable, *words], check=True, capture_output=True)

    ours, bare = start("-m", "avdistill", "--help"), start("-c", "pass")
    ours(), bare()
    return within("help", 0.3, [seconds(ours) - seconds(bare) for _ in range(9)])


MEASURES = {"prepare_vs_decode": vs_decode, "prepare_vs_chain": vs_chain, "prepare_memory": memory, "help": help_text}


def main() -> None:
    """Those named, or all."""
    parser = argparse.ArgumentParser(description="speed of preparation: results/performance/preparation.json")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    a = parser.parse_args()
    a.work = a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    measure("preparation", {name: partial(taken, a.work) for name, taken in MEASURES.items()}, a.names)


if __name__ == "__main__":
    main()
