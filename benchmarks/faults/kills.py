"""Ends of the commands that start processes or write result folders: what is left, and what the same command makes."""

from __future__ import annotations

import hashlib
import json
import shutil
import signal
import sys
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from tools import Pipeline, Running, check_ended, expect, expect_same, run, wait_until

_SIGNALS = (signal.SIGTERM, signal.SIGHUP, signal.SIGKILL)
COMPARED = (
    *("--recipe", "tiny_supervised", "--methods", "supervised", "kd", "--seeds", 0, 1, "--threads", 1),
    *("--base.steps", 60, "--base.batch-size", 4, "--base.save-every", 10, "--base.eval-every", 20),
    *("--base.log-every", 1, "--base.labeled-per-batch", "None"),
    *("--base.student.view.size", 24, 32, "--base.student.view.frames", 4),
)
# The demo itself takes ten minutes: the same, with fewer clips and steps.
_SMALL_DEMO = """
import sys
from dataclasses import replace
from avdistill.analysis import demo
from avdistill.cli import main
from avdistill.training.recipes import RECIPES
few = {"teacher_clips": 20, "labeled_clips": 20, "unlabeled_clips": 10, "test_clips": 10}
demo.DEMO_DATA = replace(demo.DEMO_DATA, **few)
for name in ("demo_teacher", "demo_supervised"):
    RECIPES[name] = replace(RECIPES[name], steps=16, batch_size=16, eval_every=8, save_every=4, log_every=1)
if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
"""


def killed_synthesize(pipeline: Pipeline) -> str:
    """`synthesize` ended by SIGTERM, SIGHUP and SIGKILL after some of its clips, then the same command"""
    reference = _files(pipeline.data)
    out = pipeline.folder("killed_synthesize") / "data"
    words = (*pipeline.synthesize_words, "--out", out)
    for number, count in zip(_SIGNALS, (5, 20, 35), strict=True):
        running = Running(*words)
        in_time = wait_until(partial(_holds, out, "videos/*/*", count), running)
        expect(in_time, "it finished before it could be ended")
        running.kill(number=number)
        ended = running.wait()  # it fails where processes are left
        expect(ended.code == -number, f"{number.name}: exit code {ended.code}")
    run(*words)
    expect_same(_files(out), reference, "after three ends")
    return f"{len(reference)} files, byte for byte the undisturbed ones; no process left"


def _holds(folder: Path, pattern: str, count: int) -> bool:
    """Whether a folder holds so many files that are not empty, or folders, of a pattern."""
    found = 0
    for path in folder.glob(pattern):
        with suppress(FileNotFoundError):  # a temporary file that got its name meanwhile
            found += path.is_dir() or path.stat().st_size > 0
    return found >= count


def killed_compare(pipeline: Pipeline) -> str:
    """`compare` ended by SIGTERM and SIGKILL while its workers train, then the same command"""
    folder = pipeline.folder("killed_compare")
    words = ("compare", pipeline.embedded[0], *COMPARED, "--out")
    run(*words, folder / "whole")
    out = folder / "cut"
    saved = []
    for begun, number in enumerate((signal.SIGTERM, signal.SIGKILL), start=1):
        running = Running(*words, out)
        logs = out / "runs" / "clean"
        in_time = wait_until(partial(_holds, logs, "*/*/metrics.jsonl", begun), running)
        expect(in_time, "it finished before it could be ended")
        log = _begun(logs)[-1]
        running.kill(number=number)
        ended = running.wait()  # it fails where processes are left
        expect(ended.code == -number, f"{number.name}: exit code {ended.code}")
        expect((log.parent / "last").is_dir() or (log.parent / "metrics.json").is_file(), f"{number.name}: no save")
        expect(not (out / "results.json").exists(), "a report of an unfinished study")
        saved.append(number.name)
    run(*words, out)
    expect_same(study(out), study(folder / "whole"), "after two ends")
    return f"{', '.join(saved)}: the run under way was saved, no process left; then the undisturbed tables"


def _begun(runs: Path) -> list[Path]:
    """The logs of the runs with a finished step, in the order in which they began."""
    logs = [log for log in runs.glob("*/*/metrics.jsonl") if log.stat().st_size]
    return sorted(logs, key=lambda log: (log.parent / "data.json").stat().st_mtime_ns)


def study(out: Path) -> dict[str, Any]:
    """What a study found, without what a clock decides."""
    result = json.loads((out / "results.json").read_text(encoding="utf-8"))
    costs = ("step_seconds", "peak_memory_bytes", "time", "memory")
    rows = {key: [{k: v for k, v in row.items() if k not in costs} for row in result[key]] for key in ("table", "runs")}
    return rows | {"files": sorted(file.name for file in out.iterdir() if file.is_file())}


def killed_demo(pipeline: Pipeline) -> str:
    """`demo` (with fewer clips and steps) ended in each of its stages, then the same command"""
    folder = pipeline.folder("killed_demo")
    (folder / "small.py").write_text(_SMALL_DEMO, encoding="utf-8")
    prefix = (sys.executable, str(folder / "small.py"))
    words = ("demo", "--seeds", 0, "--json", "--out")
    check_ended(whole := Running(*words, folder / "whole", prefix=prefix).wait(), 0)
    out = folder / "cut"
    stages = (
        ("synthesize", signal.SIGTERM, lambda: len(list((out / "data").rglob("*.*"))) >= 9),
        ("prepare", signal.SIGKILL, lambda: _lines(out / "dataset.partial" / "journal.jsonl") >= 5),
        ("train the teacher", signal.SIGHUP, lambda: _lines(out / "teacher" / "metrics.jsonl") >= 3),
        ("train students", signal.SIGTERM, lambda: bool(_begun(out / "study" / "runs" / "clean"))),
    )
    for stage, number, reached in stages:
        running = Running(*words, out, prefix=prefix)
        expect(wait_until(reached, running), f"{stage}: over before it could be ended")
        running.kill(number=number)
        ended = running.wait()
        if stage == "train the teacher":  # which saves, and must not be taken for a finished one
            check_ended(ended, 1)
            expect("state saved" in ended.last_line, f"{stage}: {ended.last_line}")
        else:
            expect(ended.code == -number, f"{stage}: exit code {ended.code}")
        expect(not (out / "report.html").exists(), "a report of an unfinished demo")
    check_ended(again := Running(*words, out, prefix=prefix).wait(), 0)
    expect_same(json.loads(again.out), json.loads(whole.out), "after four ends")
    return (
        "SIGTERM, SIGKILL and SIGHUP in four stages: no process left, a teacher under way saved; then the same report"
    )


def _lines(file: Path) -> int:
    return file.read_bytes().count(b"\n") if file.is_file() else 0


def killed_results(pipeline: Pipeline) -> str:
    """kill -9 of `evaluate`, `audit` and `export` as they begin to write their results, then the same command"""
    folder = pipeline.folder("killed_results")
    trained, dataset = pipeline.trained[0], pipeline.embedded[0]
    for verb, words in {
        "evaluate": ("evaluate", trained, dataset),
        "audit": ("audit", trained, dataset),
        "export": ("export", trained, "--format", "safetensors", "--clips", dataset),
    }.items():
        (place := folder / verb).mkdir()
        out = place / "out"
        run(*words, "--out", out)  # under the same name: `audit.json` holds the command
        reference = _files(out)
        out.rename(place / "whole")
        running = Running(*words, "--out", out)
        wait_until(partial(_holds, place, "*", 2), running)  # the folder of another name
        running.kill()
        running.wait()
        if out.exists():
            expect_same(_files(out), reference, f"{verb}, killed")
            shutil.rmtree(out)
        run(*words, "--out", out)
        expect_same(_files(out), reference, f"{verb} again")
    return "the folder is whole or not there, each time; then the same files"


def _files(folder: Path) -> dict[str, str]:
    """Name -> SHA-256 of the files below a folder."""
    found = {}
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            found[str(file.relative_to(folder))] = hashlib.sha256(file.read_bytes()).hexdigest()
    return found
