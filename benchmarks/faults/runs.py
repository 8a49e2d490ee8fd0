"""Faults of the machine and of processes: kills, a full disk, two at once, a loss that is not finite, a lost rank."""

from __future__ import annotations

import json
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from tools import (
    AVDISTILL,
    ENVIRONMENT,
    BrokenPromiseError,
    Ended,
    NotRunError,
    Pipeline,
    Running,
    check_ended,
    dataset_facts,
    expect,
    expect_same,
    kill_moments,
    run,
    run_and_kill,
    run_facts,
    wait_until,
)

_KILLS = 6
# Of `Pipeline.embed_words` there are 15; the records of the finished ones.
_MOST_PARTS, _PARTS = 14, "features/.*/part-*.json"


def killed_prepare(pipeline: Pipeline) -> str:
    """kill -9 of `prepare` at random moments, then the same command"""
    reference, seconds = pipeline.prepared
    facts = dataset_facts(reference)
    out = pipeline.work / "killed_prepare" / "dataset"
    words = (*pipeline.prepare_words, "--out", out)

    def start() -> tuple[object, ...]:
        pipeline.folder("killed_prepare")
        return words

    for number, moment in enumerate(kill_moments(pipeline, "killed_prepare", _KILLS, 0.2 * seconds, seconds)):
        run_and_kill(start, moment)
        run(*words)
        expect_same(dataset_facts(out), facts, f"kill {number + 1}")
    return f"{_KILLS} kills: every dataset has the undisturbed checksum {facts['checksum'][:12]}, no process left"


def killed_embed(pipeline: Pipeline) -> str:
    """kill -9 of `embed` at random moments after some of its parts, then the same command"""
    facts = dataset_facts(pipeline.embedded[0])
    out = pipeline.work / "killed_embed" / "dataset"
    words, rng, there = pipeline.embed_words(out), pipeline.generator("killed_embed"), list[int]()
    while len(there) < _KILLS:
        shutil.copytree(pipeline.prepared[0], pipeline.folder("killed_embed") / "dataset")
        running, parts = Running(*words), int(rng.integers(1, _MOST_PARTS))
        if wait_until(partial(_has_parts, out, parts), running):
            time.sleep(0.02 * rng.random())
        running.kill()
        if running.wait().code == 0:  # it was faster
            continue
        there.append(len(list(out.glob(_PARTS))))
        finished = _arrays(out, "features/.*")
        dataset_facts(out)  # a good dataset at any moment, with the teacher or without
        run(*words)
        expect_same(dataset_facts(out), facts, f"kill {len(there)}")
        written = _arrays(out, "features/audio")
        again = [name for name, node in finished.items() if written[name] != node]
        expect(not again, f"kill {len(there)}: computed again: {', '.join(again)}")
    return (
        f"{_KILLS} kills, with {', '.join(map(str, there))} parts finished: they are not computed again; the teacher's "
        "arrays are byte for byte the undisturbed ones, no process left"
    )


def _has_parts(dataset: Path, count: int) -> bool:
    return len(list(dataset.glob(_PARTS))) >= count


def _arrays(dataset: Path, folder: str) -> dict[str, int]:
    """Name -> inode of the arrays of finished parts."""
    recorded = {file.stem for file in dataset.glob(_PARTS)}
    files = dataset.glob(f"{folder}/part-*.npy")
    return {f.name: f.stat().st_ino for f in files if not recorded or f.name[: len("part-00000000")] in recorded}


def killed_train(pipeline: Pipeline) -> str:
    """kill -9 of `train` at random moments, then `resume`"""
    reference, seconds = pipeline.trained
    facts = run_facts(reference)
    out = pipeline.work / "killed_train" / "run"

    def start() -> tuple[object, ...]:
        pipeline.folder("killed_train")
        return (*pipeline.train_words, "--out", out)

    for number, moment in enumerate(
        kill_moments(pipeline, "killed_train", _KILLS, 0, max(0.5, seconds - pipeline.start_seconds))
    ):
        run_and_kill(start, moment, after=out / "data.json")
        run("resume", out)
        expect_same(run_facts(out), facts, f"kill {number + 1}")
    return f"{_KILLS} kills: weights of best/ and last/ and all metrics are the undisturbed ones, no process left"


def killed_at_the_first_files(pipeline: Pipeline) -> str:
    """`train` killed between the first files of its run folder, which has another name till they are whole; `train`"""
    reference, _ = pipeline.trained
    states: list[tuple[str, ...]] = [(), ("config.json",), ("config.json", "environment.json")]
    for files in states:
        out = pipeline.folder("killed_at_the_first_files") / "run"
        left = out.with_name("run.tmp")
        left.mkdir()
        for name in files:
            (left / name).write_text((reference / name).read_text(encoding="utf-8")[:100], encoding="utf-8")
        check_ended(run("resume", out, code=None), 1)
        run(*pipeline.train_words, "--out", out)
        expect_same(run_facts(out), run_facts(reference), f"with {', '.join(files) or 'nothing'} in run.tmp")
        expect(not left.exists(), "run.tmp is left behind")
    return "whichever of the first files were there: `resume` says in a line that there is no run; `train` runs"


def full_disk_prepare(pipeline: Pipeline) -> str:
    """`prepare` onto a disk that is full half-way, more space, the same command"""
    reference, _ = pipeline.prepared
    room = sum(file.stat().st_size for file in reference.iterdir()) // 2
    disk = _Disk(pipeline, "full_disk_prepare")
    words = (*pipeline.prepare_words, "--out", disk.path / "dataset")
    first, _ = disk.run(words, words, room, None)
    expect_same(dataset_facts(disk.kept / "dataset"), dataset_facts(reference), "after more space")
    return f"exit 1, {_said(first)!r}; then the undisturbed checksum"


def full_disk_embed(pipeline: Pipeline) -> str:
    """`embed` into a dataset on a full disk, more space, the same command"""
    disk = _Disk(pipeline, "full_disk_embed")
    words = pipeline.embed_words(disk.path / "dataset")
    first, between = disk.run(words, words, 0, pipeline.prepared[0])
    dataset_facts(between / "dataset")
    expect_same(dataset_facts(disk.kept / "dataset"), dataset_facts(pipeline.embedded[0]), "after more space")
    return f"exit 1, {_said(first)!r}; the dataset stayed good; then the undisturbed arrays"


def full_disk_train(pipeline: Pipeline) -> str:
    """`train` on a disk that is full at a later save, more space, `resume`"""
    reference, _ = pipeline.trained
    last = sum(file.stat().st_size for file in (reference / "last").iterdir())
    disk = _Disk(pipeline, "full_disk_train")
    words = (*pipeline.train_words, "--out", disk.path / "run")
    first, _ = disk.run(words, ("resume", disk.path / "run"), last + last // 2 + 2**16, None)
    expect_same(run_facts(disk.kept / "run"), run_facts(reference), "after more space")
    return f"exit 1, {_said(first)!r}; resumed to the undisturbed weights"


def _said(ended: Ended) -> str:
    return " ".join(
        word if "/" not in word else f".../{Path(word.rstrip(':')).name}:" for word in ended.last_line.split()
    )


class _Disk:
    """A small memory disk in a mount namespace of its own; a command on it, more space, another command."""

    def __init__(self, pipeline: Pipeline, name: str) -> None:
        folder = pipeline.folder(name)
        self.path, self.between, self.kept = folder / "disk", folder / "between", folder / "kept"
        for made in (self.path, self.between, self.kept):
            made.mkdir()
        self._folder = folder
        probe = ["unshare", "-rm", "mount", "-t", "tmpfs", "tmpfs", str(self.path)]
        if shutil.which("unshare") is None or subprocess.run(probe, capture_output=True, check=False).returncode:
            raise NotRunError("needs user namespaces (unshare -rm with a tmpfs)")

    def run(
        self, first: Sequence[object], second: Sequence[object], room: int, setup: Path | None
    ) -> tuple[Ended, Path]:
        """`first` with `room` bytes beside a copy of `setup` must fail in one line; `second` with more must not."""
        log = shlex.quote(str(self._folder / "log"))
        disk, between, kept = (shlex.quote(str(p)) for p in (self.path, self.between, self.kept))
        copy = f"cp -r {shlex.quote(str(setup))} {disk}/dataset" if setup else "true"
        script = f"""
            mount -t tmpfs -o size=64m tmpfs {disk} && {copy} || exit 99
            used=$(df --output=used -k {disk} | tail -1)
            mount -o remount,size=$((used + {room // 1024}))k {disk} || exit 99
            {shlex.join([*AVDISTILL, *map(str, first)])} 2> {log}.1; echo $? > {log}.code
            cp -r {disk}/. {between}
            mount -o remount,size=256m {disk} || exit 99
            {shlex.join([*AVDISTILL, *map(str, second)])} 2> {log}.2; code=$?
            cp -r {disk}/. {kept}
            exit $code"""
        done = subprocess.run(
            ["unshare", "-rm", "sh", "-c", script], env=ENVIRONMENT, capture_output=True, text=True, check=False
        )
        if done.returncode == 99:
            raise NotRunError(f"the memory disk could not be set up: {done.stderr.strip()}")
        error = (self._folder / "log.1").read_text(encoding="utf-8")
        ended = Ended(int((self._folder / "log.code").read_text()), "", error, 0)
        check_ended(ended, 1)
        said = (self._folder / "log.2").read_text(encoding="utf-8")
        check_ended(Ended(done.returncode, done.stdout, said, 0), 0)
        return ended, self.between


def two_prepare_at_once(pipeline: Pipeline) -> str:
    """two `prepare` of one dataset at the same time"""
    out = pipeline.folder("two_prepare_at_once") / "dataset"
    both = [Running(*pipeline.prepare_words, "--out", out) for _ in range(2)]
    ended = sorted((running.wait() for running in both), key=lambda e: e.code)
    check_ended(ended[0], 0)
    if ended[1].code:
        check_ended(ended[1], 1)
        expect("another process" in ended[1].last_line, f"the second says: {ended[1].last_line}")
    expect_same(dataset_facts(out), dataset_facts(pipeline.prepared[0]), "two at once")
    second = "says that another process is preparing it (exit 1)" if ended[1].code else "finds it finished"
    return f"one finishes with the undisturbed checksum, the other {second}"


def two_train_at_once(pipeline: Pipeline) -> str:
    """two `train` into one `--out` at the same time"""
    out = pipeline.folder("two_train_at_once") / "run"
    both = [Running(*pipeline.train_words, "--out", out) for _ in range(2)]
    ended = sorted((running.wait() for running in both), key=lambda e: e.code)
    check_ended(ended[0], 0)
    check_ended(ended[1], 1)
    told = ended[1].last_line
    expect("another process is training it" in told or "already there" in told, f"the second says: {told}")
    expect_same(run_facts(out), run_facts(pipeline.trained[0]), "two at once")
    return f"one trains to the undisturbed weights, the other ends with exit 1: {_said(ended[1])!r}"


def full_disk_results(pipeline: Pipeline) -> str:
    """`synthesize`, `evaluate`, `audit`, `export` and `compare` on a full disk"""
    trained, dataset = pipeline.trained[0], pipeline.embedded[0]
    words: dict[str, tuple[object, ...]] = {
        "synthesize": pipeline.synthesize_words,
        "evaluate": ("evaluate", trained, dataset),
        "audit": ("audit", trained, dataset),
        "export": ("export", trained, "--format", "safetensors"),
        "compare": ("compare", dataset, "--methods", "supervised", "--seeds", 0, "--base.steps", 1),
    }
    for verb, begin in words.items():
        disk = _Disk(pipeline, f"full_disk_{verb}")
        out = disk.path / "out"
        ended, between = disk.run((*begin, "--out", out), ("--version",), 8192, None)
        told = ended.last_line
        expect("No space left on device" in told and str(disk.path) in told, f"{verb}: {told}")
        left = [file for file in between.rglob("*") if file.is_file() and verb in ("evaluate", "audit", "export")]
        expect(not left, f"{verb}: half a result: {', '.join(map(str, left))}")
    return "exit 1 and a line that names the place, each time; no half of a result folder"


def not_finite(pipeline: Pipeline) -> str:
    """`train` with a learning rate at which the loss is not finite"""
    out = pipeline.folder("not_finite") / "run"
    rate = ("--optimizer.learning-rate", "1e30", "--optimizer.warmup-steps", 0)
    ended = run(*pipeline.train_words, *rate, "--out", out, code=1)
    told = json.loads((out / "not_finite.json").read_text(encoding="utf-8"))
    known = set(json.loads((out / "data.json").read_text(encoding="utf-8"))["training"])
    expect(bool(told["clips"]) and set(told["clips"]) <= known, "not_finite.json does not name the clips of the batch")
    expect("not_finite.json" in ended.last_line, f"the line does not say where to look: {ended.last_line}")
    weights = load_file(out / "last" / "model.safetensors")
    bad = [name for name, values in weights.items() if not np.isfinite(values.astype(np.float64)).all()]
    expect(not bad, f"last/ holds values that are not finite: {', '.join(bad[:3])} ({len(bad)} of {len(weights)})")
    return (
        f"exit 1 at step {told['step']} in one line; {len(told['clips'])} clip ids in not_finite.json; last/ is finite"
    )


def killed_rank(pipeline: Pipeline) -> str:
    """kill -9 of one of two ranks in training, then `resume` with two ranks"""
    folder = pipeline.folder("killed_rank")
    launch = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "avdistill")
    whole = Running(*pipeline.train_words, "--out", folder / "whole", prefix=launch).wait()
    if whole.code:
        raise NotRunError(f"training with two ranks does not work yet: {whole.last_line}")
    out = folder / "run"
    running = Running(*pipeline.train_words, "--out", out, prefix=launch)
    logged = out / "metrics.jsonl"
    if not wait_until(lambda: logged.is_file() and logged.read_bytes().count(b"\n") >= 3, running):
        raise BrokenPromiseError(f"ended before it could be disturbed: {running.wait().last_line}")
    ranks = [process for process in running.processes() if _is_rank(process)]
    expect(len(ranks) == 2, f"{len(ranks)} processes of `avdistill train`, expected 2")
    running.kill(max(ranks))
    ended = running.wait(120)
    expect(ended.code != 0, "exit code 0 although a rank was killed")
    told = [line for line in ended.error.splitlines() if line.startswith("avdistill: ")]
    expect(len(told) == 1 and "another process of this run ended" in told[0], f"no line of the lost rank: {told}")
    resumed = Running("resume", out, prefix=launch).wait()
    expect(resumed.code == 0, f"resume ends with exit code {resumed.code}: {resumed.last_line}")
    expect_same(run_facts(out), run_facts(folder / "whole"), "a killed rank, resumed")
    return f"the other rank ends after {ended.seconds:.0f} s in all; resumed to the weights of an undisturbed run"


def _is_rank(process: int) -> bool:
    words = Path(f"/proc/{process}/cmdline").read_text(encoding="utf-8").split("\0")
    return "avdistill" in words and "torch.distributed.run" not in words
