"""The pages of UCF51 and ActivityNet: their commands, word for word, on tiny trees of the same layout."""

import json
import shlex
from dataclasses import replace

import numpy as np
import pytest

from avdistill.cli import main
from avdistill.data.store import Store
from avdistill.training.recipes import RECIPES
from media_files import tone, write_video
from test_documents import commands


@pytest.fixture
def small_recipes(monkeypatch):
    """The same recipes with a few steps of a small network, so that the pages' commands end in seconds."""
    for name, recipe in RECIPES.items():
        options = {"width": 8, "embedding_dim": 16}
        view = replace(
            recipe.student.view, **({"seconds": 0.5} if "teacher" in name else {"size": (32, 32), "frames": 4})
        )
        model = "logmel_cnn" if "teacher" in name else "shifted_frames"
        student = replace(recipe.student, model=model, view=view, options=options)
        few = {"steps": 2, "batch_size": 6, "labelled_per_batch": None, "workers": 0}
        monkeypatch.setitem(RECIPES, name, replace(recipe, student=student, **few))


def clip(folder, name, label, seed, sound=True, seconds=1.5):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 120, (int(8 * seconds), 48, 64, 3)).astype(np.uint8)
    frames[:, :, 16 * label : 16 * label + 16] += 100
    waveform = tone(seconds, 300 * (label + 1)) if sound else None
    suffix = name.rsplit(".", 1)[1]
    codecs = ("mpeg4", {"avi": "mp3", "mkv": "libopus"}.get(suffix, "aac"))
    rate = 48000 if suffix == "mkv" else 16000
    if waveform is not None and rate != 16000:
        waveform = tone(seconds, 300 * (label + 1), rate)
    write_video(folder / name, frames=frames, fps=8, waveform=waveform, sample_rate=rate, codecs=codecs)


def walk(page, monkeypatch, tmp_path, capsys):
    monkeypatch.chdir(tmp_path)
    lines = commands(page)
    assert all(line.startswith("avdistill ") for line in lines)
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0, f"{line}: {capsys.readouterr().err}"


def test_ucf51_page(small_recipes, monkeypatch, tmp_path, capsys):
    lists = {"train": [], "test": []}
    for label, (folder, stem) in enumerate(
        [("Archery", "Archery"), ("HandstandPushups", "HandStandPushups"), ("Typing", "Typing")]
    ):
        for group in (1, 2, 8, 9, 10, 11):
            name = f"v_{stem}_g{group:02d}_c01.avi"
            clip(tmp_path / "UCF-101" / folder, name, label, seed=100 * label + group, sound=group != 10)
            lists["test" if group <= 7 else "train"].append((f"{folder}/{name}", label + 1))
    clip(tmp_path / "UCF-101" / "YoYo", "v_YoYo_g09_c01.avi", 0, seed=1)  # of UCF101, not of UCF51
    (tmp_path / "ucfTrainTestlist").mkdir()
    train = "".join(f"{path} {number}\n" for path, number in lists["train"])
    (tmp_path / "ucfTrainTestlist" / "trainlist01.txt").write_text(train)
    (tmp_path / "ucfTrainTestlist" / "testlist01.txt").write_text("".join(f"{p}\n" for p, _ in lists["test"]))

    walk("docs/tasks/ucf51.md", monkeypatch, tmp_path, capsys)

    store = Store(tmp_path / "ucf51")
    assert store.classes == ("Archery", "HandstandPushups", "Typing")
    assert store.describe()["splits"] == {"test": 6, "train": 12}
    assert store.teachers["sound"].clips == 15
    figures = json.loads((tmp_path / "runs" / "mnf_csc" / "evaluation-test" / "figures.json").read_text())
    assert figures["clips"] == 6
    assert Store(tmp_path / "ucf101").describe()["splits"] == {"test": 6, "train": 12}


def test_activitynet_page(small_recipes, monkeypatch, tmp_path, capsys):
    database = {}
    labels = ("Archery", "Rock climbing")
    for number, subset in enumerate(["training"] * 8 + ["validation"] * 4 + ["testing"]):
        name, label = f"-A_b{number:02d}xYzQw", number % 2
        if number != 3:  # gone from the web
            suffix = "mkv" if number % 3 == 0 else "mp4"
            clip(tmp_path / "videos", f"v_{name}.{suffix}", label, seed=number, sound=number != 4, seconds=4)
        segments = [[0.0, 1.5], [2.25, 3.9]] if subset != "testing" else []
        database[name] = {
            "duration": 4.0,
            "subset": subset,
            "resolution": "64x48",
            "url": f"https://www.youtube.com/watch?v={name}",
            "annotations": [{"segment": segment, "label": labels[label]} for segment in segments],
        }
    listed = {"version": "VERSION 1.3", "taxonomy": [], "database": database}
    (tmp_path / "activity_net.v1-3.min.json").write_text(json.dumps(listed))

    walk("docs/tasks/activitynet.md", monkeypatch, tmp_path, capsys)

    store = Store(tmp_path / "activitynet")
    assert store.describe()["splits"] == {"test": 1, "train": 14, "validation": 8}
    assert store.describe()["skipped"] == 2
    assert "-A_b03xYzQw" in (tmp_path / "activitynet" / "skipped.csv").read_text()
    figures = json.loads((tmp_path / "runs" / "mnf_csc" / "retrieval-validation" / "figures.json").read_text())
    assert figures["queries"] == 8
