"""A data set made here: real MP4 and AVI files of twelve moving things whose audio is often not theirs.

A clip follows from the configuration, its split and its index alone: the first draws decide its truth (`plan_clip`),
two independent streams then make its drawing and its audio, so that a knob of one never changes the other.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from fractions import Fraction
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from pathlib import Path

import av
import numpy as np
from av.audio.stream import AudioStream
from av.container import OutputContainer
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from avdistill.errors import ConfigError
from avdistill.fsio import replace_text, sync_all
from avdistill.progress import OnProgress, Progress
from avdistill.synthetic import audio, drawing
from avdistill.synthetic.audio import AudioDifficulty, Motion
from avdistill.synthetic.drawing import VideoDifficulty

SPLITS = ("teacher", "train", "test")
HEADER = ("path", "label", "split", "start_seconds", "end_seconds", "true_label", "audio", "audio_source", "snr_db")


@dataclass(frozen=True)
class Thing:
    """One class: how it looks, how it audio, and how many cycles a second both go through."""

    draw: drawing.Draw
    voice: audio.Voice
    rates_hz: tuple[float, float]


THINGS: dict[str, Thing] = {
    "bouncing_ball": Thing(drawing.draw_bouncing_ball, audio.audio_bouncing_ball, (1.2, 2.4)),
    "pendulum": Thing(drawing.draw_pendulum, audio.audio_pendulum, (1.2, 2.6)),
    "hammer": Thing(drawing.draw_hammer, audio.audio_hammer, (1.1, 2.2)),
    "siren": Thing(drawing.draw_siren, audio.audio_siren, (1.2, 3.0)),
    "rotor": Thing(drawing.draw_rotor, audio.audio_rotor, (2.5, 6.0)),
    "water_drops": Thing(drawing.draw_water_drops, audio.audio_water_drops, (1.2, 2.6)),
    "passing_engine": Thing(drawing.draw_passing_engine, audio.audio_passing_engine, (0.5, 0.9)),
    "sliding_saw": Thing(drawing.draw_sliding_saw, audio.audio_sliding_saw, (1.4, 3.2)),
    "hopping_frog": Thing(drawing.draw_hopping_frog, audio.audio_hopping_frog, (1.1, 2.2)),
    "fluttering_bird": Thing(drawing.draw_fluttering_bird, audio.audio_fluttering_bird, (1.1, 2.4)),
    "buzzing_insect": Thing(drawing.draw_buzzing_insect, audio.audio_buzzing_insect, (1.5, 3.5)),
    "bell": Thing(drawing.draw_bell, audio.audio_bell, (1.1, 2.2)),
}
CLASSES: tuple[str, ...] = tuple(THINGS)
MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclass(frozen=True)
class Difficulty(VideoDifficulty, AudioDifficulty):
    """The knobs of both halves in one value; see `VideoDifficulty` and `AudioDifficulty`."""


@dataclass(frozen=True)
class SyntheticConfig:
    """What `synthesize` makes.

    Attributes:
        teacher_clips: labeled clips for training audio teacher; their audio is `related` or `noisy`, in the ratio of
            these two shares.
        labeled_clips: the first clips of split `train`, annotated with their label.
        unlabeled_clips: the further clips of split `train`, annotated without.
        test_clips: labeled clips with the same mix of audio as `train`.
        seconds: length of every clip.
        height, width: pixels, both even (H.264 halves the color planes).
        fps: frames per second.
        sample_rate_hz: of the audio; one that MP3 knows (`MP3_RATES_HZ`).
        noisy, mismatched, silent: shares of clips in `train` and `test`; what is left of 1 is `related`.
        snr_db: range from which a noisy clip draws its signal-to-noise ratio. The ratio is 10 log10(mean own² / mean
            other²) over the whole clip, own = the thing's audio in its room, other = what is mixed in; the recording
            floor, which every clip has, is in neither.
        avi_share: share of clips that are AVI with MPEG-4 and MP3; the others are MP4 with H.264 and AAC.
        seed: another seed gives other clips throughout.
        difficulty: how hard drawing and audio are to read.
    """

    teacher_clips: int = 360
    labeled_clips: int = 72
    unlabeled_clips: int = 648
    test_clips: int = 240
    seconds: float = 2.0
    height: int = 72
    width: int = 96
    fps: int = 16
    sample_rate_hz: int = 16000
    noisy: float = 0.2
    mismatched: float = 0.4
    silent: float = 0.1
    snr_db: tuple[float, float] = (-3.0, 9.0)
    avi_share: float = 0.25
    seed: int = 0
    difficulty: Difficulty = Difficulty()

    def __post_init__(self) -> None:
        shares = (self.noisy, self.mismatched, self.silent)
        if min(shares) < 0 or sum(shares) > 1 + 1e-9:
            raise ConfigError(f"noisy, mismatched and silent must be shares that sum to at most 1, got {shares}")
        if self.teacher_clips and self.mismatched + self.silent > 1 - 1e-9:
            raise ConfigError(
                "teacher_clips need related or noisy audio, but mismatched and silent leave no share for them"
            )
        if self.seed < 0:
            raise ConfigError(f"seed: must not be negative, got {self.seed}")
        if not 0 < self.seconds < float("inf") or self.fps < 1:
            raise ConfigError(f"seconds and fps must be above 0, got {self.seconds:g} and {self.fps}")
        if self.sample_rate_hz not in MP3_RATES_HZ:
            raise ConfigError(f"sample_rate_hz must be one of {', '.join(map(str, MP3_RATES_HZ))}")
        if min(self.height, self.width) < 2 or self.height % 2 or self.width % 2:
            raise ConfigError(f"height and width must be even, got {self.height} x {self.width}")

    def clips(self, split: str) -> int:
        """How many clips `split` has."""
        train_clips = self.labeled_clips + self.unlabeled_clips
        return {"teacher": self.teacher_clips, "train": train_clips, "test": self.test_clips}[split]


@dataclass(frozen=True)
class Truth:
    """What is true of one clip, as its row in annotations.csv says it (`snr_db` is None where it is empty)."""

    path: str
    label: str
    split: str
    true_label: str
    audio: str
    audio_source: str
    snr_db: float | None

    def row(self) -> tuple[str, ...]:
        """The values under `HEADER`."""
        snr_db = "" if self.snr_db is None else f"{self.snr_db:.2f}"
        return (self.path, self.label, self.split, "", "", self.true_label, self.audio, self.audio_source, snr_db)


@dataclass(frozen=True)
class Clip:
    """One clip before encoding.

    Attributes:
        frames: uint8 (T, H, W, 3), RGB.
        waveform: float32 (S,) in [-1, 1]: foreground + background + recording floor; zeros when silent.
        foreground: float32 (S,), the audio of the thing in the drawing, zeros where it is not heard.
        background: float32 (S,), whatever else audio.
        event_seconds: the times in the clip at which the thing in the drawing completes a cycle.
        truth: its row in annotations.csv.
    """

    frames: NDArray[np.uint8]
    waveform: NDArray[np.float32]
    foreground: NDArray[np.float32]
    background: NDArray[np.float32]
    event_seconds: NDArray[np.floating]
    truth: Truth


def plan_clip(config: SyntheticConfig, split: str, index: int) -> Truth:
    """The truth of one clip, without making it."""
    return _plan(config, split, index)[0]


def render_clip(config: SyntheticConfig, split: str, index: int) -> Clip:
    """One clip's frames, waveform and truth; the same whatever else is made."""
    truth, rng = _plan(config, split, index)
    video_rng, audio_rng = rng.spawn(2)
    thing = THINGS[truth.true_label]
    motion = Motion.draw(thing.rates_hz, rng)
    frame_times = np.arange(round(config.seconds * config.fps)) / config.fps
    size = {"height": config.height, "width": config.width, "fps": config.fps}
    cycles = motion.cycles(frame_times)
    frames = drawing.render_video(thing.draw, cycles, video_rng, difficulty=config.difficulty, **size)
    foreground, background, floor = _render_audio(config, truth, motion, audio_rng)
    events = motion.events(0.0, config.seconds)
    waveform = (foreground + background + floor).astype(np.float32)
    return Clip(frames, waveform, foreground.astype(np.float32), background.astype(np.float32), events, truth)


def synthesize(
    out: str | os.PathLike[str],
    config: SyntheticConfig,
    *,
    workers: int = 2,
    on_progress: OnProgress | None = None,
) -> Path:
    """Make the data set in the folder `out`; a killed run continues where it stopped.

    Writes `videos/<split>/<number>.mp4|avi`, `synthetic.json` (configuration, versions, counts) first of all and
    `annotations.csv` last.

    Args:
        out: a folder, created if need be.
        config: what to make.
        workers: processes; with 1 the work is done in this one.
        on_progress: called after each clip.

    Returns:
        The path of annotations.csv.

    Raises:
        FileExistsError: `out` holds a data set of another configuration; the message names the difference.
    """
    out = Path(out)
    clips = [(split, index) for split in SPLITS for index in range(config.clips(split))]
    truths = [plan_clip(config, split, index) for split, index in clips]
    _describe(out / "synthetic.json", config, truths)
    for split in SPLITS:
        (out / "videos" / split).mkdir(parents=True, exist_ok=True)
    missing = [clip for clip, truth in zip(clips, truths, strict=True) if not (out / "videos" / truth.path).exists()]
    done = len(clips) - len(missing)
    for _ in _make(out / "videos", config, missing, workers):
        done += 1
        if on_progress is not None:
            on_progress(Progress(done, len(clips)))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([HEADER, *(truth.row() for truth in truths)])
    annotations = out / "annotations.csv"
    replace_text(annotations, table.getvalue())
    return annotations


def _plan(config: SyntheticConfig, split: str, index: int) -> tuple[Truth, Generator]:
    """The truth of a clip and the generator that made it, for what remains to be drawn."""
    split_number = SPLITS.index(split)
    rng = default_rng([config.seed, split_number, index])
    # Every twelve clips hold each class once, in an order of their own: the file number must not tell the class.
    block, place = divmod(index, len(CLASSES))
    name = CLASSES[default_rng([config.seed, split_number, block, len(CLASSES)]).permutation(len(CLASSES))[place]]
    condition, suffix = rng.random(), "avi" if rng.random() < config.avi_share else "mp4"
    snr_db, other, kind = rng.uniform(*config.snr_db), CLASSES[rng.integers(len(CLASSES))], int(rng.integers(3))
    if other == name:
        other = CLASSES[(CLASSES.index(name) + 1 + rng.integers(len(CLASSES) - 1)) % len(CLASSES)]
    if split == "teacher":
        condition *= 1 - config.mismatched - config.silent
    bounds = np.cumsum([config.noisy, 1 - config.noisy - config.mismatched - config.silent, config.mismatched])
    heard = ("noisy", "related", "mismatched", "silent")[int(np.searchsorted(bounds - 1e-12, condition, side="right"))]
    source = f"class:{name}"
    if heard == "mismatched":
        source = ("music", f"class:{other}", "babble")[kind]
    elif heard == "silent":
        source = ("no_stream", "zeros")[block % 2]
    labeled = split != "train" or index < config.labeled_clips
    path = f"{split}/{index:06d}.{suffix}"
    truth = Truth(path, name if labeled else "", split, name, heard, source, snr_db if heard == "noisy" else None)
    return truth, rng


def _render_audio(
    config: SyntheticConfig, truth: Truth, motion: Motion, rng: Generator
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """The thing's own audio, the other audio and the recording floor (S,) each, at their final levels."""
    knobs, rate = config.difficulty, config.sample_rate_hz
    times = np.arange(round(config.seconds * rate)) / rate
    own: NDArray[np.floating] = np.zeros(len(times))
    other: NDArray[np.floating] = np.zeros(len(times))
    if truth.audio == "silent":
        return own, other, np.zeros(len(times))

    def hear(voice: audio.Voice, clock: Motion) -> NDArray[np.floating]:
        pitch = 2 ** (knobs.pitch_spread_octaves * rng.uniform(-1, 1))
        return audio.record(voice(clock, times, pitch, rng), rng, sample_rate_hz=rate, room=knobs.room)

    if truth.audio == "mismatched":
        kind, _, name = truth.audio_source.partition(":")
        if kind == "class":
            thing = THINGS[name]
            other = hear(thing.voice, Motion.draw(thing.rates_hz, rng))
        else:
            other = hear({"music": audio.music, "babble": audio.babble}[kind], motion)
    else:
        own = hear(THINGS[truth.true_label].voice, motion)
    if truth.snr_db is not None:
        noise = (audio.street, audio.music, audio.babble)[int(rng.integers(3))]
        other = audio.scale_to_snr(own, hear(noise, motion), truth.snr_db)
    floor = audio.recording_floor(len(times), rng, sample_rate_hz=rate)
    floor = audio.scale_to_snr(own + other, floor, -knobs.floor_db - rng.uniform(-4, 4))
    level = 10 ** (rng.uniform(-15, -1) / 20) / np.abs(own + other + floor).max()
    return level * own, level * other, level * floor


def _make(videos: Path, config: SyntheticConfig, clips: list[tuple[str, int]], workers: int) -> Iterator[None]:
    """Make the clips, yielding after each."""
    if workers <= 1 or len(clips) < 2:
        for split, index in clips:
            _make_clip(videos, config, split, index)
            yield
        return
    # A spawned worker starts clean: a forked one would inherit the threads of whatever the caller has imported.
    with ProcessPoolExecutor(workers, mp_context=get_context("spawn")) as pool:
        try:
            for future in as_completed([pool.submit(_make_clip, videos, config, *clip) for clip in clips]):
                future.result()
                yield
        finally:
            pool.shutdown(cancel_futures=True)  # after an error, do not first make all the other clips


def _make_clip(videos: Path, config: SyntheticConfig, split: str, index: int) -> None:
    """Render and encode one clip; its file appears under its name only when it is complete."""
    clip = render_clip(config, split, index)
    path = videos / clip.truth.path
    temporary = path.with_name(path.name + ".tmp")
    _encode(temporary, path.suffix[1:], clip, config)
    sync_all(temporary)  # what has its name is not made again
    os.replace(temporary, path)


def _encode(path: Path, container_format: str, clip: Clip, config: SyntheticConfig) -> None:
    """Write a clip as an MP4 or AVI file, without audio stream where its truth says so."""
    fps, rate = config.fps, config.sample_rate_hz
    with av.open(str(path), "w", format=container_format, options={"fflags": "+bitexact"}) as container:
        if container_format == "mp4":
            speed = {"threads": "1", "preset": "ultrafast", "crf": "23"}
            video_stream = container.add_stream("libx264", rate=fps, options=speed)
        else:
            video_stream = container.add_stream("mpeg4", rate=fps, options={"threads": "1", "qmin": "4", "qmax": "4"})
        video_stream.width, video_stream.height, video_stream.pix_fmt = config.width, config.height, "yuv420p"
        # A container takes no stream once data has been written.
        has_audio = clip.truth.audio_source != "no_stream"
        audio_stream = _add_audio(container, container_format, rate) if has_audio else None
        for number, frame in enumerate(clip.frames):
            image = av.VideoFrame.from_ndarray(frame, format="rgb24")
            image.pts, image.time_base = number, Fraction(1, fps)
            container.mux(video_stream.encode(image))
        container.mux(video_stream.encode(None))
        if audio_stream is not None:
            samples = av.AudioFrame.from_ndarray(clip.waveform[None], format="fltp", layout="mono")
            samples.sample_rate, samples.pts, samples.time_base = rate, 0, Fraction(1, rate)
            container.mux(audio_stream.encode(samples))
            container.mux(audio_stream.encode(None))


def _add_audio(container: OutputContainer, container_format: str, sample_rate_hz: int) -> AudioStream:
    """A mono audio stream with the fast variant of the format's usual encoder."""
    if container_format == "mp4":
        audio_stream = container.add_stream("aac", rate=sample_rate_hz, options={"threads": "1", "aac_coder": "fast"})
    else:
        audio_stream = container.add_stream("libmp3lame", rate=sample_rate_hz, options={"compression_level": "9"})
    audio_stream.layout, audio_stream.format, audio_stream.bit_rate = "mono", "fltp", 64000
    return audio_stream


def _describe(path: Path, config: SyntheticConfig, truths: list[Truth]) -> None:
    """Write synthetic.json, or check that the one that is there describes the same configuration."""
    settings = json.loads(json.dumps(asdict(config)))
    if path.exists():
        differences = _differences(json.loads(path.read_text())["config"], settings)
        if differences:
            raise FileExistsError(f"{path} describes another data set: {'; '.join(differences)}")
        return
    try:
        own_version = version("avdistill")
    except PackageNotFoundError:  # run from a source tree that is not installed
        own_version = "unknown"
    description = {
        "config": settings,
        "classes": CLASSES,
        "versions": {"avdistill": own_version, "av": av.__version__, "numpy": np.__version__},
        "counts": {split: _count([t for t in truths if t.split == split]) for split in SPLITS},
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps(description, indent=2) + "\n")


def _count(truths: list[Truth]) -> dict[str, object]:
    """How many clips there are of each class, audio, source and container."""
    return {
        "clips": len(truths),
        "labeled": sum(bool(truth.label) for truth in truths),
        "true_label": dict(sorted(Counter(truth.true_label for truth in truths).items())),
        "audio": dict(sorted(Counter(truth.audio for truth in truths).items())),
        "mismatched_source": dict(sorted(Counter(t.audio_source for t in truths if t.audio == "mismatched").items())),
        "container": dict(sorted(Counter(truth.path[-3:] for truth in truths).items())),
    }


def _differences(there: dict[str, object], wanted: dict[str, object], prefix: str = "") -> list[str]:
    """Where two nested dictionaries differ, as "key: there, wanted now"."""
    found = []
    for key in sorted(there.keys() | wanted.keys()):
        old, new = there.get(key, "absent"), wanted.get(key, "absent")
        if isinstance(old, dict) and isinstance(new, dict):
            found += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            found.append(f"{prefix}{key} is {old}, asked for {new}")
    return found
