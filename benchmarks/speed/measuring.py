"""How the metrics of speed are taken: two procedures in turn in one run, medians, and what the machine is."""

from __future__ import annotations

import json
import multiprocessing
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from importlib.metadata import PackageNotFoundError, version
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from avdistill.fsio import write_json

RESULTS = Path(__file__).resolve().parents[2] / "results" / "performance"
REPEATS = 5
PACKAGES = (
    "torch", "torchvision", "numpy", "av", "h5py", "pillow", "lancedb", "faiss-cpu", "timm", "torchdistill",
    "torchcodec", "opencv-python-headless", "onnxruntime",
)  # fmt: skip
Row = dict[str, Any]


class NotHereError(Exception):
    """What a figure is measured against is not installed here; the message says what."""


def peak_bytes() -> int:
    """The most that this process has held. Not `ru_maxrss`, which a child begins with that of its parent."""
    return _kibibytes("VmHWM")


def resident_bytes() -> int:
    """What this process holds."""
    return _kibibytes("VmRSS")


def _kibibytes(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="utf-8").splitlines():
        if line.startswith(field):
            return int(line.split()[1]) * 1024
    raise OSError(f"/proc/self/status tells no {field}")


def seconds(procedure: Callable[[], object]) -> float:
    """Of one call, by the wall clock."""
    began = time.perf_counter()
    procedure()
    return time.perf_counter() - began


@contextmanager
def process_of(make: Callable[[], Callable[[], object]]) -> Iterator[Callable[[], None]]:
    """A procedure that is made and called in a process of its own, whose memory and settings are no other's.

    `make` is a function of a module, or a `partial` of one.
    """
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    process = context.Process(target=_serve, args=(make, theirs))
    process.start()
    theirs.close()
    ours.recv()

    def call() -> None:
        ours.send(True)
        ours.recv()

    try:
        yield call
    finally:
        ours.send(False)
        process.join()


def _serve(make: Callable[[], Callable[[], object]], pipe: Connection) -> None:
    multiprocessing.set_start_method(None, force=True)  # that of a program of its own, not "spawn" after its parent
    procedure = make()
    pipe.send(True)
    while pipe.recv():
        procedure()
        pipe.send(True)


def in_turn(
    first: Callable[[], object], second: Callable[[], object], repeats: int = REPEATS
) -> list[tuple[float, float]]:
    """Seconds of both, A B A B ..., after a round of each that does not count: a drift of the machine meets both."""
    first(), second()
    return [(seconds(first), seconds(second)) for _ in range(repeats)]


def against(
    name: str, bar: float, ours: Callable[[], object], theirs: Callable[[], object], repeats: int = REPEATS, **more: Any
) -> Row:
    """How many times as fast as theirs ours is: the median of the pairs."""
    pairs = in_turn(ours, theirs, repeats)
    metrics = {
        "ratio": statistics.median(b / a for a, b in pairs),
        "bar": bar,
        "ours_seconds": statistics.median(a for a, _ in pairs),
        "theirs_seconds": statistics.median(b for _, b in pairs),
        "ratios": [round(b / a, 3) for a, b in pairs],
    }
    return {"name": name} | metrics | more | machine()


def within(name: str, limit: float, measured: list[float], **more: Any) -> Row:
    """How far below a ceiling the median of what was measured lies: 1 and above holds it."""
    figure = statistics.median(measured)
    told = {"ratio": limit / figure, "bar": 1, "limit": limit, "measured": figure}
    return {"name": name} | told | {"all": [round(each, 4) for each in measured]} | more | machine()


def machine() -> Row:
    """Versions of the packages that are installed, and processor."""
    versions = {}
    for name in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[name] = version(name)
    return {"versions": versions, "processor": _processor()}


def _processor() -> str:
    for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor()


def write_rows(family: str, rows: list[Row]) -> None:
    """Put the rows into the family's file; rows of other names stay."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"{family}.json"
    there = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else []
    new = {row["name"] for row in rows}
    write_json(path, [row for row in there if row["name"] not in new] + rows)


def measure(family: str, measures: dict[str, Callable[[], Row]], names: Sequence[str]) -> None:
    """Take those metrics of a family that are named, or all; each is written as it is there.

    What cannot be measured here keeps the row that it has.
    """
    for name in names or measures:
        try:
            row = measures[name]()
        except NotHereError as error:
            print(f"{name} not measured: {error}", file=sys.stderr, flush=True)
            continue
        write_rows(family, [row])
        print(name, f"{row['ratio']:.2f} (bar {row['bar']})", file=sys.stderr, flush=True)
