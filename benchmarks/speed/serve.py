"""The web server under load: `results/performance/serve.json`.

    python benchmarks/speed/serve.py --work DIR [--seconds 60] [NAME ...]

A server of 100,000 clips with an index of 512 dimensions, as a program; 50 clients on the same machine ask for pages of
the library at random and, one time in five, search for a random clip's neighbors, with a pause of a second on average.
Then 100 uploads at once.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import random
import re
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.inputs import VideoInput
from avdistill.media.encoder import write_clip
from avdistill.models.checkpoint import save_student
from avdistill.models.registry import build_model
from avdistill.search.forms import build_index
from avdistill.types import StudentConfig
from measuring import Row, machine, write_rows
from synthetic_datasets import synthetic_dataset

CLIPS, WIDTH, CLIENTS, UPLOADS = 100_000, 512, 50, 100
PAUSE_SECONDS = 1.0
LIMITS = {"serve_library": 0.150, "serve_search": 0.100}
BOUNDARY = "f00d"


def prepare(work: Path) -> None:
    """The dataset, its index, a student and a video; kept if there."""
    dataset = synthetic_dataset(work / "dataset", CLIPS, 1, 24, 32)
    if "made_up" not in dataset.teachers:
        rng = np.random.default_rng(0)
        dataset.add_features(
            "made_up",
            modality="video",
            provenance={"name": "random numbers"},
            embedding=rng.standard_normal((CLIPS, WIDTH), dtype=np.float32),
            logits=None,
            classes=(),
        )
    build_index([work / "dataset"], work / "index")
    if not (work / "student").is_dir():
        (work / "student").mkdir()
        view = VideoInput(frames=4, size=(24, 32), scale=(0.8, 1.0), ratio=(1.2, 1.6), hflip=False)
        options: dict[str, Any] = {"width": 8, "embedding_dim": 16}
        classes = ClipDataset(work / "dataset").classes
        config = StudentConfig("shifted_frames", classes, view, 4.0, 16000, options=options, short_side=24)
        save_student(work / "student", build_model("shifted_frames", len(classes), options), config)
    if not (work / "video.mp4").is_file():
        frames = np.random.default_rng(1).integers(0, 256, (100, 240, 320, 3)).astype(np.uint8)  # noise: a large file
        write_clip(work / "video.mp4", "mp4", frames, 25, np.zeros(64_000, np.float32), 16000)


@contextmanager
def served(work: Path) -> Iterator[tuple[subprocess.Popen[str], int]]:
    """`avdistill serve` as a program: (process, port)."""
    words = ["serve", work / "dataset", "--run", work / "student", "--index", work / "index", "--port", "0"]
    command = [sys.executable, "-m", "avdistill", *map(str, words)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        try:
            assert process.stderr is not None
            line = process.stderr.readline()
            found = re.search(r"http://127\.0\.0\.1:(\d+)/", line)
            if found is None:
                raise SystemExit(f"the server did not start: {line}")
            yield process, int(found[1])
        finally:
            process.terminate()


async def ask(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: bytes) -> tuple[int, bytes]:
    """(status, body) of one request on an open connection."""
    writer.write(request)
    await writer.drain()
    head = await reader.readuntil(b"\r\n\r\n")
    length = re.search(rb"(?i)content-length: (\d+)", head)
    body = await reader.readexactly(int(length[1])) if length else b""
    return int(head.split(b" ", 2)[1]), body


async def client(port: int, number: int, end: float, took: dict[str, list[float]], statuses: Counter[int]) -> None:
    """One reader, until the time is over."""
    rng = random.Random(number)
    reader, writer = await asyncio.open_connection("127.0.0.1", port, limit=2**24)
    await asyncio.sleep(rng.uniform(0, 2 * PAUSE_SECONDS))
    while time.monotonic() < end:
        if rng.random() < 0.2:
            name, path = "serve_search", f"/search?clip=clip_{rng.randrange(CLIPS):06d}&space=made_up"
        else:
            name, path = "serve_library", f"/?page={rng.randint(1, CLIPS // 48)}"
        began = time.perf_counter()
        status, _ = await ask(reader, writer, f"GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n".encode())
        took[name].append(time.perf_counter() - began)
        statuses[status] += 1
        await asyncio.sleep(rng.uniform(0, 2 * PAUSE_SECONDS))
    writer.close()


async def load(port: int, seconds: float) -> tuple[dict[str, list[float]], Counter[int]]:
    """Seconds of each answer, by kind, and statuses."""
    took: dict[str, list[float]] = {name: [] for name in LIMITS}
    statuses: Counter[int] = Counter()
    end = time.monotonic() + seconds
    await asyncio.gather(*(client(port, number, end, took, statuses) for number in range(CLIENTS)))
    return took, statuses


async def upload(port: int, content: bytes) -> str:
    """What becomes of one upload: a status, or how the connection ended."""
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="a.mp4"\r\n\r\n'
    body = head.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()
    request = (
        f"POST /api/predictions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        f"Content-Type: multipart/form-data; boundary={BOUNDARY}\r\n\r\n"
    )
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        status, _ = await asyncio.wait_for(ask(reader, writer, request.encode() + body), 120)
        writer.close()
        return str(status)
    except (OSError, asyncio.IncompleteReadError, TimeoutError) as error:
        return type(error).__name__


def measure_load(work: Path, seconds: float) -> list[Row]:
    """p95 of pages and of searches: a limit over what was measured, 1 and above holds it."""
    with served(work) as (process, port):
        asyncio.run(load(port, 5))  # maps and templates are loaded
        busy = cpu_seconds_of(process.pid)
        took, statuses = asyncio.run(load(port, seconds))
        busy = cpu_seconds_of(process.pid) - busy
        memory = peak_bytes_of(process.pid)
    rows = []
    for name, limit in LIMITS.items():
        answers = sorted(took[name])
        p95 = answers[int(0.95 * len(answers))]
        told = {
            "ratio": limit / p95,
            "bar": 1,
            "limit": limit,
            "measured": p95,
            "p50": statistics.median(answers),
            "slowest": answers[-1],
            "answers": len(answers),
            "clients": CLIENTS,
            "pause_seconds": PAUSE_SECONDS,
            "seconds": seconds,
            "statuses": {str(status): count for status, count in sorted(statuses.items())},
            "server_peak_bytes": memory,
            "server_cpu_seconds": round(busy, 2),
        }
        rows.append({"name": name} | told | _beside() | machine())
    return rows


def measure_uploads(work: Path) -> list[Row]:
    """100 uploads at once: all answered or refused, in bounded memory (limit 1 GB beyond that before)."""
    content = (work / "video.mp4").read_bytes()
    with served(work) as (process, port):
        asyncio.run(load(port, 2))
        before = peak_bytes_of(process.pid)

        async def all_at_once() -> Counter[str]:
            return Counter(await asyncio.gather(*(upload(port, content) for _ in range(UPLOADS))))

        began = time.perf_counter()
        found = asyncio.run(all_at_once())
        took = time.perf_counter() - began
        time.sleep(10)  # those that were accepted are decoded
        more = max(1, peak_bytes_of(process.pid) - before)
        alive = process.poll() is None
    good = alive and set(found) <= {"202", "429", "413", "503"} and sum(found.values()) == UPLOADS
    told = {
        "ratio": 2**30 / more if good else 0.0,
        "bar": 1,
        "limit": 2**30,
        "measured": more,
        "statuses": dict(sorted(found.items())),
        "upload_bytes": len(content),
        "seconds": took,
    }
    return [{"name": "serve_uploads"} | told | _beside() | machine()]


def peak_bytes_of(process: int) -> int:
    """The most memory that a process has held."""
    text = Path(f"/proc/{process}/status").read_text(encoding="utf-8")
    return next(int(line.split()[1]) * 1024 for line in text.splitlines() if line.startswith("VmHWM"))


def cpu_seconds_of(process: int) -> float:
    """What a process has used of a core."""
    fields = Path(f"/proc/{process}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def _beside() -> Row:
    """Processes that wanted a core besides, on average over a minute: the clients and the server are among them."""
    return {"cores": os.cpu_count(), "load_average": round(os.getloadavg()[0], 2)}


def main() -> None:
    """Those named, or all."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("names", nargs="*", default=["load", "uploads"])
    a = parser.parse_args()
    a.work.mkdir(parents=True, exist_ok=True)
    prepare(a.work)
    for name in a.names:
        rows = measure_load(a.work, a.seconds) if name == "load" else measure_uploads(a.work)
        write_rows("serve", rows)
        for row in rows:
            print(row["name"], f"{row['ratio']:.2f} (bar {row['bar']})", row["statuses"], file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
