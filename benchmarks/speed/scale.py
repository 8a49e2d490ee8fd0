"""What preparation costs beyond one process: `results/performance/scale.json`.

    python benchmarks/speed/scale.py --work DIR [two_parts ...]

Clips of a made video of 640 x 360 pixels and 20 seconds: two parts of 60 at the same time and `join`, each part kept
on a core of its own as on a machine of one core, against one preparation kept on one core; and the bytes that `prepare`
writes to the disk over those of the dataset, for twelve clips with raw frames and as JPEG. `two_parts` needs two quiet
cores.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from functools import partial
from pathlib import Path

sys.path.append(str(Path(__file__).resolve().parents[1] / "faults"))  # what it shares with the scripts there

from avdistill.dataset.clip_dataset import ClipDataset
from measuring import Row, against, measure, within
from preparation import video
from tools import write_list

CLIPS, FEW = 120, 12
#: calls the command line, then prints the bytes that it and its ended workers have written to the disk
COUNTED = (
    "import sys; from pathlib import Path; from avdistill.cli import main; code = main(sys.argv[1:]); "
    "print(Path('/proc/self/io').read_text(), file=sys.stderr); sys.exit(code)"
)
#: calls the command line on one core, the first argument
ON_A_CORE = (
    "import os, sys; os.sched_setaffinity(0, {int(sys.argv.pop(1))}); from avdistill.cli import main; "
    "sys.exit(main(sys.argv[1:]))"
)


def listed_videos(work: Path, clips: int) -> Path:
    """A list of clips; each is a file of its own, so that two parts can share them."""
    videos = work / "videos"
    videos.mkdir(exist_ok=True)
    made = video(work / "video.mp4")
    for number in range(clips):
        if not (videos / f"{number}.mp4").exists():
            shutil.copyfile(made, videos / f"{number}.mp4")
    return write_list(work / f"list_{clips}.csv", [f"{number}.mp4" for number in range(clips)])


def words(work: Path, clips: int, out: Path, *more: str) -> list[str]:
    """Of `prepare` into a new folder."""
    shutil.rmtree(out, ignore_errors=True)
    given = ["prepare", listed_videos(work, clips), "--videos", work / "videos", "--out", out, "--workers", 1]
    return [*map(str, given), *more]


def two_parts(work: Path) -> Row:
    """At least 1.8 times as fast as one, `join` included."""
    parts, out = [work / "part_1", work / "part_2"], work / "joined"
    cores = sorted(os.sched_getaffinity(0))[:2]

    def started(core: int, words: list[str]) -> subprocess.Popen[bytes]:
        """A verb that stays on a core, with all of its processes and threads."""
        return subprocess.Popen([sys.executable, "-c", ON_A_CORE, str(core), *words], stdout=subprocess.DEVNULL)

    def in_parts() -> None:
        running = [
            started(core, words(work, CLIPS, part, "--part", f"{number}/2"))
            for core, (number, part) in zip(cores, enumerate(parts, 1), strict=True)
        ]
        assert [each.wait() for each in running] == [0, 0]
        shutil.rmtree(out, ignore_errors=True)
        assert started(cores[0], ["join", *map(str, parts), "--out", str(out)]).wait() == 0

    def at_once() -> None:
        assert started(cores[0], words(work, CLIPS, work / "single")).wait() == 0

    row = against("two_parts", 1.8, in_parts, at_once)
    assert ClipDataset(out).checksum == ClipDataset(work / "single").checksum
    return row


def written_over_stored(work: Path, *more: str) -> float:
    """Bytes written to the disk over bytes of the dataset."""
    out = work / "counted"
    command = [sys.executable, "-c", COUNTED, *words(work, FEW, out, *more)]
    told = subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True).stderr
    (written,) = (int(line.split()[1]) for line in told.splitlines() if line.startswith("write_bytes:"))
    return written / sum(file.stat().st_size for file in out.iterdir())


def write_once(work: Path) -> Row:
    """At most 1.1; the worse of raw frames and JPEG."""
    found = {"raw": written_over_stored(work), "jpeg": written_over_stored(work, "--jpeg", "90")}
    return within("write_once", 1.1, [max(found.values())], **found)


MEASURES = {"write_once": write_once, "two_parts": two_parts}


def main() -> None:
    """Those named, or all."""
    parser = argparse.ArgumentParser(description="preparation in parts: results/performance/scale.json")
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("names", nargs="*")
    a = parser.parse_args()
    a.work = a.work.resolve()
    a.work.mkdir(parents=True, exist_ok=True)
    measure("scale", {name: partial(taken, a.work) for name, taken in MEASURES.items()}, a.names)


if __name__ == "__main__":
    main()
