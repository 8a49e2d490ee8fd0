"""Lost machines: 300 small videos prepared and embedded in parts, and a study, by Ray, by submitit and by xargs."""

from __future__ import annotations

import csv
import shlex
import shutil
import signal
import sys
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import torch

import kills
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.inputs import AudioInput
from avdistill.models.checkpoint import save_student
from avdistill.models.registry import build_model
from avdistill.types import Option, StudentConfig
from tools import (
    AVDISTILL,
    PREPARE,
    NotRunError,
    Pipeline,
    Running,
    check_ended,
    expect,
    expect_same,
    run,
    wait_until,
    write_clip,
)

VIDEOS, PARTS = 300, 6
_SLURM, _JOB = ("--slurm", "partition=any,time=60"), "submitit.core._submit"
_RAY_CLUSTER = Path(__file__).with_name("ray_cluster.py")


def lost_node(pipeline: Pipeline) -> str:
    """`prepare --ray` on two nodes of this machine, one of which is killed while it has a part"""
    _need("ray")
    folder = pipeline.folder("lost_node")
    words = (*_prepare_words(pipeline), "--parts", PARTS, "--out", folder / "dataset")
    ended = Running(folder / "dataset.parts", *words, prefix=(sys.executable, str(_RAY_CLUSTER))).wait()
    check_ended(ended, 0)
    expect("killed a node" in ended.out, "it finished before a node could be killed")
    expect("1 of 2 nodes are left" in ended.error, f"no line of the lost node: {ended.last_line}")
    return _compare(pipeline, folder / "dataset")


def lost_job(pipeline: Pipeline) -> str:
    """`prepare --slurm` by processes of this machine (submitit without Slurm), one of which is killed with its part"""
    _need_submitit()
    folder = pipeline.folder("lost_job")
    running = Running(*_prepare_words(pipeline), *_SLURM, "--parts", PARTS, "--out", folder / "dataset")
    _kill_a_part(running, folder / "dataset.parts", "*-of-*", _JOB)
    check_ended(running.wait(), 0)
    return _compare(pipeline, folder / "dataset")


def lost_run(pipeline: Pipeline) -> str:
    """`compare --slurm` by processes of this machine (submitit without Slurm), one of which is killed in its run"""
    _need_submitit()
    folder = pipeline.folder("lost_run")
    words = ("compare", pipeline.embedded[0], *kills.COMPARED, "--out")
    run(*words, folder / "whole")
    running = Running(*words, folder / "slurm", *_SLURM)
    logs = folder / "slurm" / "runs" / "clean"
    _kill_one(running, lambda: any(log.stat().st_size for log in logs.glob("*/*/metrics.jsonl")), _JOB)
    check_ended(running.wait(), 0)
    expect_same(kills.study(folder / "slurm"), kills.study(folder / "whole"), "by jobs")
    return "the tables of the same study without jobs; the killed run went on in another one"


def lost_process(pipeline: Pipeline) -> str:
    """`prepare --part` and `embed` by xargs, one of whose processes is killed; then the same command, and `join`"""
    folder = pipeline.folder("lost_process")
    prepare = [*AVDISTILL, *map(str, _prepare_words(pipeline, teacher=False)), "--part", f"{{}}/{PARTS}"]
    embed = [*AVDISTILL, "embed", f"{folder}/part-{{}}", "--teacher", str(_teacher(pipeline))]
    each = f"{shlex.join([*prepare, '--out', f'{folder}/part-{{}}'])} && {shlex.join([*embed, '--name', 'run'])}"
    command = f"seq {PARTS} | xargs -P 2 -I {{}} sh -c {shlex.quote(each)}"
    running = Running(command, prefix=("bash", "-c"))
    _kill_a_part(running, folder, "part-*", "--part")
    expect(running.wait().code != 0, "exit code 0 although a process was killed")
    check_ended(Running(command, prefix=("bash", "-c")).wait(), 0)
    run("join", *sorted(folder.glob("part-*")), "--out", folder / "dataset")
    return _compare(pipeline, folder / "dataset")


def _need_submitit() -> None:
    _need("submitit")
    if shutil.which("srun") is not None:
        raise NotRunError("this machine has Slurm")


def _need(package: str) -> None:
    if find_spec(package) is None:
        raise NotRunError(f"needs the package {package}")


def _kill_a_part(running: Running, parts: Path, names: str, word: str) -> None:
    """SIGKILL to a process of a part, with a word in its command, once another part is finished."""
    _kill_one(running, lambda: any(part.suffix != ".partial" for part in parts.glob(names)), word)


def _kill_one(running: Running, reached: Callable[[], bool], word: str) -> None:
    """SIGKILL to a process with a word in its command, once a state is reached."""

    def killed() -> bool:
        if not reached():
            return False
        for process in running.processes():
            words = Path(f"/proc/{process}/cmdline")
            if words.exists() and word.encode() in words.read_bytes().split(b"\0"):
                running.kill(process, signal.SIGKILL)
                return True
        return False

    expect(wait_until(killed, running), "it finished before a process could be killed")


def _list(pipeline: Pipeline) -> Path:
    """300 videos of half a second, of three classes, with their list."""
    folder = pipeline.work / "three_hundred"
    file = folder / "list.csv"
    if not file.is_file():
        folder.mkdir(parents=True, exist_ok=True)
        names = [write_clip(folder / f"clip_{i}.avi", seconds=0.5, seed=i).name for i in range(VIDEOS)]
        with file.open("w", encoding="utf-8", newline="") as opened:
            rows = ((name, f"class {i % 3}", "test" if i % 5 == 0 else "train") for i, name in enumerate(names))
            csv.writer(opened).writerows([("path", "label", "split"), *rows])
    return file


def _teacher(pipeline: Pipeline) -> Path:
    """An audio network of random weights, as a run folder."""
    folder = pipeline.work / "machines_teacher" / "run"
    if not folder.is_dir():
        torch.manual_seed(0)
        options: dict[str, Option] = {"width": 8, "embedding_dim": 16}
        network = build_model("logmel_cnn", 2, options).eval()
        view = AudioInput(seconds=0.5)
        folder.mkdir(parents=True)
        save_student(folder, network, StudentConfig("logmel_cnn", ("a", "b"), view, None, 16000, options=options))
    return folder


def _prepare_words(pipeline: Pipeline, teacher: bool = True) -> tuple[object, ...]:
    file = _list(pipeline)
    embed = ("--teacher", _teacher(pipeline)) if teacher else ()
    return ("prepare", file, "--videos", file.parent, *PREPARE, "--workers", 1, *embed)


def _compare(pipeline: Pipeline, folder: Path) -> str:
    """Demand one machine's clips, bit for bit, and its features but for the rounding of other batches."""
    reference = pipeline.work / "one_machine"
    if not reference.is_dir():
        run(*_prepare_words(pipeline), "--out", reference)
    one, several = ClipDataset(reference), ClipDataset(folder)
    expect(not several.verify(), "files differ from their checksums")
    expect(several.checksum == one.checksum, f"checksum {several.checksum[:12]}, not {one.checksum[:12]}")
    expected, found = one.features("run"), several.features("run")
    expect(bool((found.valid == expected.valid).all()), "features of other clips")
    difference = float(np.abs(found.embedding - expected.embedding).max() / np.abs(expected.embedding).max())
    expect(difference < 1e-5, f"embeddings differ by {difference:.1g} of the largest")
    return (
        f"{VIDEOS} videos in {PARTS} parts, joined: the checksum of one machine ({one.checksum[:12]}), features of "
        f"{int(found.valid.sum())} clips (largest relative difference {difference:.1g})"
    )
