"""`embed` part by part: killed anywhere it goes on to the same bytes; shares of several calls join to the same."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.teachers import extraction
from avdistill.teachers.extraction import Unfinished, embed
from avdistill.teachers.registry import load_teacher
from support.features import part_files
from teachers.test_tokens import save_ears

PART = 4


class Killed(BaseException):
    """What no code of ours catches."""


@pytest.fixture(scope="module")
def ears(prepared, tmp_path_factory):
    """A teacher of other classes than the dataset's: its logits are those of a linear head."""
    return save_ears(tmp_path_factory.mktemp("run") / "ears", ("bark", "hum"))


@pytest.fixture(scope="module")
def whole(prepared, ears, tmp_path_factory):
    """What a call that nobody disturbs makes."""
    folder = shutil.copytree(prepared, tmp_path_factory.mktemp("whole") / "dataset")
    dataset = ClipDataset(folder)
    embed(dataset, load_teacher(ears), "audio", part_clips=PART)
    return dataset


def fresh(prepared, folder):
    return ClipDataset(shutil.copytree(prepared, folder))


def content(dataset):
    """The bytes of all files of the features, by name."""
    folder = dataset.folder / "features" / "audio"
    return {file.name: file.read_bytes() for file in folder.iterdir()}


def test_parts_are_those_of_one_and_of_the_whole(whole, prepared, ears, tmp_path):
    assert len(part_files(whole, "audio", "embedding")) > 2
    one = fresh(prepared, tmp_path / "one")
    embed(one, load_teacher(ears), "audio")
    assert len(part_files(one, "audio", "embedding")) == 1
    for kind in ("embedding", "logits"):
        rows = [each.features("audio") for each in (one, whole)]
        # Windows are in other batches, and the head is asked for other rows at once: last digits may differ.
        np.testing.assert_allclose(*(getattr(each, kind) for each in rows), rtol=1e-5, atol=1e-6)
    assert one.teachers["audio"] == whole.teachers["audio"]
    assert whole.verify() == []
    assert [each.name for each in (whole.folder / "features").iterdir()] == ["audio"]


def test_killed_at_every_step_on_the_disk_it_goes_on(whole, prepared, ears, tmp_path, monkeypatch):
    teacher, steps = load_teacher(ears), []
    dataset = fresh(prepared, tmp_path / "dataset")

    def dying(function):
        def call(*arguments, **options):
            steps.append(function)
            if len(steps) == die_at:
                raise Killed
            return function(*arguments, **options)

        return call

    die_at, finished, deaths = 3, False, 0
    while not finished:
        steps.clear()
        with monkeypatch.context() as patch:
            for owner, name in ((Path, "replace"), (os, "fsync")):
                patch.setattr(owner, name, dying(getattr(owner, name)))
            with suppress(Killed):
                embed(dataset, teacher, "audio", part_clips=PART)
                finished = True
        deaths += not finished
        die_at += 1  # every call comes a step further than the last one
        dataset = ClipDataset(dataset.folder)
        assert finished or "audio" not in dataset.teachers or content(dataset).items() >= content(whole).items()
    assert deaths > 4
    assert content(dataset) == content(whole)
    assert [each.name for each in (dataset.folder / "features").iterdir()] == ["audio"]


def test_only_what_is_missing_is_computed(whole, prepared, ears, tmp_path, monkeypatch):
    dataset, teacher, run = fresh(prepared, tmp_path / "dataset"), load_teacher(ears), extraction.run_network
    done = []

    def counting(network, dataset, clips, *arguments, **options):
        if len(done) == 2 and not finishing:
            raise Killed
        done.append(clips.tolist())
        return run(network, dataset, clips, *arguments, **options)

    monkeypatch.setattr(extraction, "run_network", counting)
    finishing = False
    with suppress(Killed):
        embed(dataset, teacher, "audio", part_clips=PART)
    first, finishing = list(done), True
    done.clear()
    seen = []
    embed(dataset, teacher, "audio", part_clips=PART, on_progress=lambda p: seen.append((p.done, p.total)))
    assert len(first) == 2
    assert first[-1][-1] < done[0][0]
    assert seen[-1][0] <= seen[-1][1] == len(dataset)
    assert content(dataset) == content(whole)


def test_killed_by_a_signal_the_command_goes_on(whole, prepared, ears, tmp_path, warm_python):
    dataset = fresh(prepared, tmp_path / "dataset")
    words = ["embed", str(dataset.folder), "--teacher", str(ears), "--part-clips", str(PART)]
    process = warm_python.popen([sys.executable, "-m", "avdistill", *words], stderr=subprocess.DEVNULL)
    while process.poll() is None and not list(dataset.folder.glob("features/.audio-*/part-*.json")):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert main(words) == 0
    assert content(ClipDataset(dataset.folder)) == content(whole)


def test_shares_in_any_order_are_the_whole(whole, prepared, ears, tmp_path, capsys):
    dataset, teacher = fresh(prepared, tmp_path / "dataset"), load_teacher(ears)
    parts = -(-len(dataset) // PART)
    last = len(dataset) - PART * (parts * 2 // 3)
    assert embed(dataset, teacher, "audio", part_clips=PART, part=(3, 3)) == Unfinished("audio", len(dataset), last)
    words = ["embed", str(dataset.folder), "--teacher", str(ears), "--part-clips", str(PART), "--part"]
    assert main([*words, "1/3"]) == 0
    assert "clips are there, other shares are missing" in capsys.readouterr().out
    assert "audio" not in ClipDataset(dataset.folder).teachers
    entry = embed(dataset, teacher, "audio", part_clips=PART, part=(2, 3))
    assert entry == whole.teachers["audio"]
    assert content(dataset) == content(whole)


def test_a_share_without_parts_disturbs_nobody(whole, prepared, ears, tmp_path, monkeypatch):
    """It ends while another share computes its first part."""
    dataset, teacher, run = fresh(prepared, tmp_path / "dataset"), load_teacher(ears), extraction.run_network

    def meanwhile(*arguments, **options):
        monkeypatch.setattr(extraction, "run_network", run)
        many = 10 * len(dataset)
        assert embed(dataset, teacher, "audio", part_clips=PART, part=(1, many)) == Unfinished("audio", len(dataset), 0)
        return run(*arguments, **options)

    monkeypatch.setattr(extraction, "run_network", meanwhile)
    embed(dataset, teacher, "audio", part_clips=PART)
    assert content(dataset) == content(whole)


@pytest.mark.parametrize("text", ["0/3", "4/3", "2", "a/b", "1/0"])
def test_a_share_that_is_none_is_refused(prepared, ears, tmp_path, text, capsys):
    assert main(["embed", str(prepared), "--teacher", str(ears), "--part", text]) == 2
    assert "--part: expected i/n with i from 1 to n, such as 2/3, found" in capsys.readouterr().err
