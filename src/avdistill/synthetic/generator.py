"""A synthetic dataset: MP4 and AVI files of twelve moving objects, many with noisy correspondence, with known truth.

A clip depends on the configuration, its split and its index alone: the first draws decide its truth (`plan_clip`), two
independent streams then make its video and its audio, so that a parameter of one never changes the other.
"""

import csv
import io
import json
import os
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
from numpy.random import Generator, default_rng
from numpy.typing import NDArray

from avdistill.config_io import read_json
from avdistill.errors import ConfigError, DatasetError
from avdistill.executors.process_pool import ordered_map
from avdistill.fsio import error_message, replace_text, sync_all
from avdistill.media.encoder import write_clip
from avdistill.progress import OnProgress, Progress
from avdistill.synthetic import audio, drawing
from avdistill.synthetic.audio import AudioDifficulty, Motion
from avdistill.synthetic.drawing import VideoDifficulty

SPLITS = ("teacher", "train", "test")
HEADER = ("path", "label", "split", "start_seconds", "end_seconds", "true_label", "audio", "audio_source", "snr_db")


@dataclass(frozen=True)
class ObjectClass:
    """How the objects of one class are drawn, their audio, and the range of cycles per second."""

    draw: drawing.Draw
    voice: audio.Voice
    rates_hz: tuple[float, float]


OBJECTS: dict[str, ObjectClass] = {
    "bouncing_ball": ObjectClass(drawing.draw_bouncing_ball, audio.bouncing_ball, (1.2, 2.4)),
    "pendulum": ObjectClass(drawing.draw_pendulum, audio.pendulum, (1.2, 2.6)),
    "hammer": ObjectClass(drawing.draw_hammer, audio.hammer, (1.1, 2.2)),
    "siren": ObjectClass(drawing.draw_siren, audio.siren, (1.2, 3.0)),
    "rotor": ObjectClass(drawing.draw_rotor, audio.rotor, (2.5, 6.0)),
    "water_drops": ObjectClass(drawing.draw_water_drops, audio.water_drops, (1.2, 2.6)),
    "passing_engine": ObjectClass(drawing.draw_passing_engine, audio.passing_engine, (0.5, 0.9)),
    "sliding_saw": ObjectClass(drawing.draw_sliding_saw, audio.sliding_saw, (1.4, 3.2)),
    "hopping_frog": ObjectClass(drawing.draw_hopping_frog, audio.hopping_frog, (1.1, 2.2)),
    "fluttering_bird": ObjectClass(drawing.draw_fluttering_bird, audio.fluttering_bird, (1.1, 2.4)),
    "buzzing_insect": ObjectClass(drawing.draw_buzzing_insect, audio.buzzing_insect, (1.5, 3.5)),
    "bell": ObjectClass(drawing.draw_bell, audio.bell, (1.1, 2.2)),
}
CLASSES: tuple[str, ...] = tuple(OBJECTS)
MP3_RATES_HZ = (8000, 11025, 12000, 16000, 22050, 24000, 32000, 44100, 48000)


@dataclass(frozen=True)
class Difficulty(VideoDifficulty, AudioDifficulty):
    """The difficulty of both modalities; see `VideoDifficulty` and `AudioDifficulty`."""


@dataclass(frozen=True)
class SyntheticConfig:
    """What `synthesize` makes.

    Attributes:
        teacher_clips: The number of labeled clips to train an audio teacher on; their audio is `related` or `noisy`, in
            the ratio of these two fractions.
        labeled_clips: The number of clips of the split train with a label in the annotations.
        unlabeled_clips: The number of clips of the split train without a label.
        test_clips: The number of labeled test clips, with the same mix of audio as train.
        seconds: The length of every clip in seconds.
        height: The height of the frames in pixels, even because H.264 halves the color planes.
        width: The width of the frames in pixels, even.
        fps: Frames per second.
        sample_rate_hz: The sample rate of the audio in Hz, one of `MP3_RATES_HZ`.
        noisy: The fraction of clips of train and test with other audio mixed in.
        mismatched: The fraction of clips of train and test with audio that does not belong to the object.
        silent: The fraction of clips of train and test without an audio stream or with zeros; the rest is `related`.
        snr_db: The range of the signal-to-noise ratio of noisy clips in dB, 10 log10(mean own^2 / mean other^2) over
            the clip, without the recording noise that every clip has.
        avi_share: The fraction of clips that are AVI with MPEG-4 and MP3; the others are MP4 with H.264 and AAC.
        seed: The seed of all draws.
        difficulty: how hard video and audio are to classify.
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
            raise ConfigError("teacher_clips need related or noisy audio, but mismatched and silent leave no share")
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
    """The truth about one clip, its row in annotations.csv (`snr_db` is None where it is empty)."""

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
class SyntheticClip:
    """One clip before encoding.

    Attributes:
        frames: uint8 (T, H, W, 3), RGB.
        waveform: float32 (S,) in [-1, 1]: foreground + background + recording floor; zeros when silent.
        foreground: float32 (S,), the audio of the object in the video; zeros if it is mismatched or silent.
        background: float32 (S,), the other audio.
        event_seconds: the times in the clip at which the object in the video completes a cycle.
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


def render_clip(config: SyntheticConfig, split: str, index: int) -> SyntheticClip:
    """One clip's frames, waveform and truth; independent of all other clips."""
    truth, rng = _plan(config, split, index)
    video_rng, audio_rng = rng.spawn(2)
    object_class = OBJECTS[truth.true_label]
    motion = Motion.draw(object_class.rates_hz, rng)
    frame_times = np.arange(round(config.seconds * config.fps)) / config.fps
    size = {"height": config.height, "width": config.width, "fps": config.fps}
    cycles = motion.cycles(frame_times)
    frames = drawing.render_video(object_class.draw, cycles, video_rng, difficulty=config.difficulty, **size)
    foreground, background, floor = _render_audio(config, truth, motion, audio_rng)
    events = motion.events(0.0, config.seconds)
    waveform = (foreground + background + floor).astype(np.float32)
    return SyntheticClip(frames, waveform, foreground.astype(np.float32), background.astype(np.float32), events, truth)


def synthesize(
    out: str | os.PathLike[str], config: SyntheticConfig, *, workers: int = 2, on_progress: OnProgress | None = None
) -> Path:
    """Make the dataset's media files in the folder `out`; a killed run continues where it stopped.

    Writes `synthetic.json` (configuration and versions), then `videos/<split>/<number>.mp4|avi`, and
    `annotations.csv` last.

    Args:
        out: a folder, created if it does not exist.
        workers: number of processes, at least one.
        on_progress: called after each clip.

    Returns:
        The path of annotations.csv.

    Raises:
        DatasetError: `out` holds a dataset of another configuration; the message names the differences.
    """
    out = Path(out)
    clips = [(split, index) for split in SPLITS for index in range(config.clips(split))]
    truths = [plan_clip(config, split, index) for split, index in clips]
    _describe(out / "synthetic.json", config)
    for split in SPLITS:
        (out / "videos" / split).mkdir(parents=True, exist_ok=True)
    missing = [clip for clip, truth in zip(clips, truths, strict=True) if not (out / "videos" / truth.path).exists()]
    make = partial(_make_clip, out / "videos", config)
    results = ordered_map(make, missing, workers=workers, time_limit_seconds=None, memory_limit_bytes=None)
    for number, (failure, (split, index)) in enumerate(zip(results, missing, strict=True), start=1):
        if failure is not None:
            raise RuntimeError(f"{out}: clip {index} of split {split} was not made: {failure.reason}")
        if on_progress is not None:
            on_progress(Progress(len(clips) - len(missing) + number, len(clips)))
    table = io.StringIO()
    csv.writer(table, lineterminator="\n").writerows([HEADER, *(truth.row() for truth in truths)])
    replace_text(out / "annotations.csv", table.getvalue())
    return out / "annotations.csv"


def _plan(config: SyntheticConfig, split: str, index: int) -> tuple[Truth, Generator]:
    """The truth of a clip and its random generator, for the further draws."""
    split_number = SPLITS.index(split)
    rng = default_rng([config.seed, split_number, index])
    # Every block of twelve clips has each class once, in random order: the file number must not reveal the class.
    block, place = divmod(index, len(CLASSES))
    name = CLASSES[default_rng([config.seed, split_number, block, len(CLASSES)]).permutation(len(CLASSES))[place]]
    draw, suffix = rng.random(), "avi" if rng.random() < config.avi_share else "mp4"
    snr_db, other, kind = rng.uniform(*config.snr_db), CLASSES[rng.integers(len(CLASSES))], int(rng.integers(3))
    if other == name:
        other = CLASSES[(CLASSES.index(name) + 1 + rng.integers(len(CLASSES) - 1)) % len(CLASSES)]
    if split == "teacher":
        draw *= 1 - config.mismatched - config.silent
    bounds = np.cumsum([config.noisy, 1 - config.noisy - config.mismatched - config.silent, config.mismatched])
    which = int(np.searchsorted(bounds - 1e-12, draw, side="right"))
    truth_audio = ("noisy", "related", "mismatched", "silent")[which]
    source = f"class:{name}"
    if truth_audio == "mismatched":
        source = ("music", f"class:{other}", "babble")[kind]
    elif truth_audio == "silent":
        source = ("no_stream", "zeros")[block % 2]
    labeled = split != "train" or index < config.labeled_clips
    path = f"{split}/{index:06d}.{suffix}"
    label, noisy_snr_db = name if labeled else "", snr_db if truth_audio == "noisy" else None
    return Truth(path, label, split, name, truth_audio, source, noisy_snr_db), rng


def _render_audio(
    config: SyntheticConfig, truth: Truth, motion: Motion, rng: Generator
) -> tuple[NDArray[np.floating], NDArray[np.floating], NDArray[np.floating]]:
    """The object's audio, the other audio and the recording noise, (S,) each, at their final levels."""
    difficulty, rate = config.difficulty, config.sample_rate_hz
    times = np.arange(round(config.seconds * rate)) / rate
    own: NDArray[np.floating] = np.zeros(len(times))
    other: NDArray[np.floating] = np.zeros(len(times))
    if truth.audio == "silent":
        return own, other, np.zeros(len(times))

    def render(voice: audio.Voice, clock: Motion) -> NDArray[np.floating]:
        pitch = 2 ** (difficulty.pitch_spread_octaves * rng.uniform(-1, 1))
        return audio.add_room(voice(clock, times, pitch, rng), rng, sample_rate_hz=rate, room=difficulty.room)

    if truth.audio == "mismatched":
        kind, _, name = truth.audio_source.partition(":")
        if kind == "class":
            other = render(OBJECTS[name].voice, Motion.draw(OBJECTS[name].rates_hz, rng))
        else:
            other = render({"music": audio.music, "babble": audio.babble}[kind], motion)
    else:
        own = render(OBJECTS[truth.true_label].voice, motion)
    if truth.snr_db is not None:
        noise = (audio.street, audio.music, audio.babble)[int(rng.integers(3))]
        other = audio.scale_to_snr(own, render(noise, motion), truth.snr_db)
    floor = audio.recording_floor(len(times), rng, sample_rate_hz=rate)
    floor = audio.scale_to_snr(own + other, floor, -difficulty.floor_db - rng.uniform(-4, 4))
    level = 10 ** (rng.uniform(-15, -1) / 20) / np.abs(own + other + floor).max()
    return level * own, level * other, level * floor


def _make_clip(videos: Path, config: SyntheticConfig, clip_of_split: tuple[str, int]) -> None:
    """Render and encode one clip; its file gets its name when it is complete."""
    clip = render_clip(config, *clip_of_split)
    path = videos / clip.truth.path
    temporary = path.with_name(path.name + ".tmp")
    waveform = None if clip.truth.audio_source == "no_stream" else clip.waveform
    write_clip(temporary, path.suffix[1:], clip.frames, config.fps, waveform, config.sample_rate_hz)
    sync_all(temporary)  # a file with its name is not made again, so it must be on the disk
    os.replace(temporary, path)


def _describe(path: Path, config: SyntheticConfig) -> None:
    """Write synthetic.json, or check that the existing one has the same configuration."""
    settings = json.loads(json.dumps(asdict(config)))
    if path.exists():
        try:
            existing = read_json(path)["config"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DatasetError(f"{path}: missing or damaged: {error_message(error):.160}") from error
        differences = _differences(existing if isinstance(existing, dict) else {}, settings)
        if differences:
            raise DatasetError(f"{path}: another configuration is here: {'; '.join(differences)}")
        return
    versions = {name: version(name) for name in ("avdistill", "av", "numpy")}
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, json.dumps({"config": settings, "versions": versions}, indent=2) + "\n")


def _differences(existing: dict[str, object], requested: dict[str, object], prefix: str = "") -> list[str]:
    """Each difference of two nested dictionaries, in words."""
    differences = []
    for key in sorted(existing.keys() | requested.keys()):
        old, new = existing.get(key, "absent"), requested.get(key, "absent")
        if isinstance(old, dict) and isinstance(new, dict):
            differences += _differences(old, new, f"{prefix}{key}.")
        elif old != new:
            differences.append(f"{prefix}{key} is {old}, requested {new}")
    return differences
