"""What the fault list stands on: small videos, the command line in a process of its own, kills, limits, comparisons."""

from __future__ import annotations

import csv
import hashlib
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cached_property
from pathlib import Path
from typing import Any

import av
import numpy as np

AVDISTILL = (sys.executable, "-m", "avdistill")
PREPARE = ("--fps", "8", "--short-side", "32")
TEACHER = ("--steps", "3", "--batch-size", "4", "--student.view.seconds", "0.5", "--student.options", "width", "8")
TRAIN = (
    *("--steps", "40", "--batch-size", "4", "--save-every", "5", "--eval-every", "20", "--log-every", "1"),
    *("--student.view.size", "24", "32", "--student.view.frames", "4"),
)
# One thread: sums come out in the same order whatever else the machine does.
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
# Nothing here takes a minute alone; a machine that others use may take many times as long.
_HANG_SECONDS = 1200
_GONE_SECONDS = 90  # a worker that trains finishes its step and saves, for which it has 30 s


class BrokenPromiseError(Exception):
    """What the documents promise did not happen; the message is what happened instead."""


class NotRunError(Exception):
    """This machine (or this version) lacks what the fault needs; the message names it."""


def expect(promise: bool, otherwise: str) -> None:
    """Raise BrokenPromiseError unless `promise` holds."""
    if not promise:
        raise BrokenPromiseError(otherwise)


@dataclass
class Ended:
    """A process that ended."""

    code: int
    out: str
    error: str
    seconds: float
    peak_bytes: int = 0

    @property
    def last_line(self) -> str:
        """The last line of standard error: there a failure is said."""
        return (self.error.strip().splitlines() or [""])[-1]


def _take_signals() -> None:
    """What is started in the background, or by `nohup`, ignores these signals and hands that down."""
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_DFL)


class Running:
    """A command whose processes carry a mark in their environment, so that all can be found; its memory is watched."""

    def __init__(self, *words: object, cwd: Path | None = None, prefix: Sequence[str] = AVDISTILL) -> None:
        self.words = [*prefix, *(str(word) for word in words)]
        self._began = time.monotonic()
        # Files, not pipes: a pipe would stay open as long as any process that was left behind.
        self._out, self._error = (tempfile.TemporaryFile("w+") for _ in range(2))  # noqa: SIM115 (`wait` closes them)
        mark = uuid.uuid4().hex
        self._mark = f"AVDISTILL_FAULT={mark}".encode()
        self._process = subprocess.Popen(
            self.words,
            cwd=cwd,
            env={**ENVIRONMENT, "AVDISTILL_FAULT": mark},
            stdin=subprocess.DEVNULL,
            stdout=self._out,
            stderr=self._error,
            preexec_fn=_take_signals,
        )
        self._peak = 0
        self._watch = threading.Thread(target=self._measure, daemon=True)
        self._watch.start()

    def wait(self, limit_seconds: float = _HANG_SECONDS) -> Ended:
        """Its end. Raises BrokenPromiseError where it hangs or leaves processes behind (which are then killed)."""
        try:
            self._process.wait(limit_seconds)
        except subprocess.TimeoutExpired:
            self.kill_all()
            raise BrokenPromiseError(
                f"still running after {limit_seconds:.0f} s: {shlex.join(self.words[2:])}"
            ) from None
        seconds = time.monotonic() - self._began
        self._watch.join()
        until = time.monotonic() + _GONE_SECONDS
        while left := self.processes():
            if time.monotonic() > until:
                self.kill_all()
                raise BrokenPromiseError(f"{len(left)} processes left behind after {_GONE_SECONDS} s")
            time.sleep(0.1)
        with self._out as out, self._error as error:
            out.seek(0)
            error.seek(0)
            return Ended(self._process.returncode, out.read(), error.read(), seconds, self._peak)

    def kill(self, process: int | None = None, number: signal.Signals = signal.SIGKILL) -> None:
        """A signal to the command's own process (or another of its processes), as the out-of-memory killer does it."""
        os.kill(process or self._process.pid, number)

    @property
    def ended(self) -> bool:
        """Whether the command's own process is over."""
        return self._process.poll() is not None

    def processes(self) -> dict[int, int]:
        """Process ids of the command that are alive, whoever their parent is by now, with their resident bytes."""
        found = {}
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    # A process that has ended, but was not asked for its exit code, has no environment any more.
                    if self._mark in (entry / "environ").read_bytes().split(b"\0"):
                        pages = int((entry / "statm").read_text().split()[1])
                        found[int(entry.name)] = pages * os.sysconf("SC_PAGE_SIZE")
                except OSError:  # ended in between, or another user's
                    continue
        return found

    def _measure(self) -> None:
        while self._process.returncode is None:
            self._peak = max(self._peak, sum(self.processes().values()))
            time.sleep(0.1)

    def kill_all(self) -> None:
        """SIGKILL to every process of the command."""
        for process in self.processes():
            os.kill(process, signal.SIGKILL)
        self._process.wait()


def run(*words: object, code: int | None = 0, cwd: Path | None = None, limit_seconds: float = _HANG_SECONDS) -> Ended:
    """Run `avdistill WORDS` to its end; `code` is demanded, and where it is not 0, one line that says why."""
    ended = Running(*words, cwd=cwd).wait(limit_seconds)
    if code is not None:
        check_ended(ended, code)
    return ended


def check_ended(ended: Ended, code: int) -> None:
    """Demand an exit code and, for a failure, one `avdistill: ...` line and no traceback."""
    expect("Traceback" not in ended.error, f"a traceback: {ended.last_line}")
    expect(ended.code == code, f"exit code {ended.code}, expected {code}: {ended.last_line}")
    if code:
        lines = [line for line in ended.error.splitlines() if line.startswith("avdistill:")]
        expect(len(lines) == 1, f"{len(lines)} lines that begin with 'avdistill:'; the last line: {ended.last_line}")


@dataclass
class Pipeline:
    """The small set everything is tried on; each part is made when first asked for."""

    work: Path
    seed: int
    clips: Path | None = None
    _made: dict[str, Any] = field(default_factory=dict)

    def generator(self, fault: str) -> np.random.Generator:
        """Random numbers of one fault, whichever others are run."""
        return np.random.default_rng([self.seed, *fault.encode()])

    def folder(self, name: str) -> Path:
        """A new, empty folder."""
        folder = self.work / name
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        return folder

    @cached_property
    def data(self) -> Path:
        """60 videos of 2 s with `annotations.csv`."""
        out = self.work / "data"
        run(*self.synthesize_words, "--out", out)
        return out

    @property
    def synthesize_words(self) -> tuple[object, ...]:
        """`synthesize` of `data`, without `--out`."""
        clips = ("--teacher-clips", 12, "--labeled-clips", 12, "--unlabeled-clips", 24, "--test-clips", 12)
        return ("synthesize", *clips, "--seconds", 2)

    @property
    def prepare_words(self) -> tuple[object, ...]:
        """`prepare` of `data`, without `--out`."""
        return ("prepare", self.data / "annotations.csv", "--videos", self.data / "videos", *PREPARE)

    @cached_property
    def prepared(self) -> tuple[Path, float]:
        """The undisturbed dataset, and the seconds that it took."""
        out = self.work / "dataset"
        return out, run(*self.prepare_words, "--out", out).seconds

    @cached_property
    def teacher(self) -> Path:
        """Audio teacher of three steps."""
        out = self.work / "teacher"
        run("teacher", "train", self.prepared[0], "--out", out, *TEACHER)
        return out

    @cached_property
    def embedded(self) -> tuple[Path, float]:
        """A copy of the dataset with the teacher's features put in undisturbed, and the seconds that it took."""
        out = self.work / "embedded"
        shutil.copytree(self.prepared[0], out)
        return out, run(*self.embed_words(out)).seconds

    def embed_words(self, dataset: Path) -> tuple[object, ...]:
        """`embed` of a copy of `prepared`, in parts."""
        return ("embed", dataset, "--teacher", self.teacher, "--part-clips", 4)

    @property
    def train_words(self) -> tuple[object, ...]:
        """`train` on `embedded`, without `--out`."""
        return ("train", "tiny_kd", "--dataset", self.embedded[0], *TRAIN)

    @cached_property
    def trained(self) -> tuple[Path, float]:
        """The undisturbed run, and the seconds that it took."""
        out = self.work / "run"
        return out, run(*self.train_words, "--out", out).seconds

    @cached_property
    def start_seconds(self) -> float:
        """How long `embed` and `train` take before they do anything: the imports."""
        return run("embed", "--help").seconds


def kill_moments(pipeline: Pipeline, fault: str, count: int, first: float, last: float) -> list[float]:
    """`count` random moments in seconds, one in each of as many equal parts of [first, last)."""
    shares = (np.arange(count) + pipeline.generator(fault).random(count)) / count
    return [float(first + share * (last - first)) for share in shares]


def run_and_kill(start: Callable[[], Sequence[object]], moment_seconds: float, after: Path | None = None) -> None:
    """Kill -9 a command so many seconds after its start (or after a path is there).

    Args:
        start: makes everything ready and returns the command's words; called again where the command was faster.
        moment_seconds: shortened by a third as often as the command was faster.
        after: what the command makes first.
    """
    while True:
        running = Running(*start())
        if after is not None:
            wait_until(after.exists, running)
        began = time.monotonic()
        while not running.ended and time.monotonic() - began < moment_seconds:
            time.sleep(0.005)
        in_time = not running.ended
        if in_time:
            running.kill()
        ended = running.wait()
        if in_time:
            return
        check_ended(ended, 0)
        moment_seconds *= 2 / 3


def wait_until(true: Callable[[], bool], running: Running, limit_seconds: float = _HANG_SECONDS) -> bool:
    """Wait for something to become true while a command runs; False where the command ended first."""
    until = time.monotonic() + limit_seconds
    while not true():
        if running.ended:
            return False
        if time.monotonic() > until:
            running.kill_all()
            raise BrokenPromiseError(f"nothing happened within {limit_seconds:.0f} s")
        time.sleep(0.01)
    return True


def dataset_facts(dataset: Path) -> dict[str, str]:
    """Name -> SHA-256 of a dataset's files, recomputed from their bytes, and the checksum it states."""
    told = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    for name, expected in told["files"].items():
        expect(_sha256(dataset / name) == expected, f"{name}: differs from the checksum in dataset.json")
    features = {str(file.relative_to(dataset)): _sha256(file) for file in dataset.glob("features/[!.]*/*")}
    return {**told["files"], **features, "checksum": told["checksum"]}


def run_facts(folder: Path) -> dict[str, Any]:
    """Hashes of a run's weights and every logged value but the clock's."""
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    metrics = [json.loads(line) for line in lines]
    return {
        **{kind: _sha256(folder / kind / "model.safetensors") for kind in ("best", "last")},
        "metrics": [{k: v for k, v in entry.items() if "seconds" not in k} for entry in metrics],
    }


def expect_same(found: dict[str, Any], expected: dict[str, Any], when: str) -> None:
    """Demand that nothing differs from the undisturbed result."""
    names = sorted(found.keys() | expected.keys())
    different = [name for name in names if found.get(name) != expected.get(name)]
    expect(not different, f"{when}: differs from the undisturbed result in {', '.join(different)}")


def skipped(dataset: Path) -> dict[str, str]:
    """Clip id -> reason."""
    with (dataset / "skipped.csv").open(encoding="utf-8", newline="") as file:
        return {row["clip"]: row["reason"] for row in csv.DictReader(file)}


def without_root(*words: object) -> list[str]:
    """The command as a process that file permissions bind, root or not."""
    if os.geteuid() != 0:
        return [*AVDISTILL, *(str(word) for word in words)]
    if shutil.which("setpriv") is None:
        raise NotRunError("needs setpriv (util-linux), or a user who is not root")
    return ["setpriv", "--bounding-set=-all", *AVDISTILL, *(str(word) for word in words)]


def write_clip(
    path: Path,
    *,
    seconds: float = 2,
    fps: int = 10,
    audio_seconds: float | None = None,
    seed: int = 0,
    rate: int = 16000,
) -> Path:
    """An AVI of 64 x 48 pixels: a brightness that wanders, a tone; frame by frame, however long it is."""
    rng = np.random.default_rng(seed)
    with av.open(str(path), "w", format="avi") as container:
        video = container.add_stream("mpeg4", rate=fps)
        video.width, video.height, video.pix_fmt = 64, 48, "yuv420p"
        audio = container.add_stream("libmp3lame", rate=rate)
        audio.layout = "mono"
        texture = rng.integers(0, 60, (48, 64, 3))
        pitch = rng.uniform(200, 2000)
        samples = round((seconds if audio_seconds is None else audio_seconds) * rate)
        for number in range(max(round(seconds * fps), -(-samples * fps // rate))):
            if number < round(seconds * fps):
                image = (texture + 60 + 60 * np.sin(number / 7)).astype(np.uint8)
                container.mux(video.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
            ticks = np.arange(number * rate // fps, min((number + 1) * rate // fps, samples))
            if len(ticks):
                tone = (0.5 * np.sin(2 * np.pi * pitch * ticks / rate)).astype(np.float32)[None]
                chunk = av.AudioFrame.from_ndarray(tone, format="fltp", layout="mono")
                chunk.sample_rate, chunk.pts, chunk.time_base = rate, int(ticks[0]), Fraction(1, rate)
                container.mux(audio.encode(chunk))
        container.mux(video.encode(None))
        container.mux(audio.encode(None))
    return path


def write_list(path: Path, videos: Sequence[str], label: str = "thing") -> Path:
    """A CSV list of whole videos."""
    with path.open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("path", "label", "split"), *((name, label, "train") for name in videos)])
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
