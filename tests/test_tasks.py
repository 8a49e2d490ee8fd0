"""The pages of UCF51 and ActivityNet: their commands, word for word, on tiny trees of the same layout."""

import json
import re
import shlex
from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision import models

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.models.torchvision_video import TorchvisionVideo
from avdistill.teachers import video
from avdistill.training.recipes import RECIPES
from support.media_files import tone, write_video
from support.pages import ROOT, commands


@pytest.fixture
def small_recipes(monkeypatch):
    """The same recipes with a few steps of a small network, so that the pages' commands end in seconds."""
    for name, recipe in RECIPES.items():
        options = {"width": 8, "embedding_dim": 16}
        hears = recipe.student.view.modality == "audio"
        view = replace(recipe.student.view, **({"seconds": 0.5} if hears else {"size": (32, 32), "frames": 4}))
        model = "logmel_cnn" if hears else "shifted_frames"
        if recipe.student.model == "cnn10":  # the page prepares at the rate it hears
            options["sample_rate_hz"] = 32000
        student = replace(recipe.student, model=model, view=view, options=options)
        few = {"steps": 2, "batch_size": 6, "labeled_per_batch": None, "workers": 0}
        monkeypatch.setitem(RECIPES, name, replace(recipe, student=student, **few))


def clip(folder, name, label, seed, audio=True, seconds=1.5):
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    frames = rng.integers(0, 120, (int(8 * seconds), 48, 64, 3)).astype(np.uint8)
    frames[:, :, 16 * label : 16 * label + 16] += 100
    waveform = tone(seconds, 300 * (label + 1)) if audio else None
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
            clip(tmp_path / "UCF-101" / folder, name, label, seed=100 * label + group, audio=group != 10)
            lists["test" if group <= 7 else "train"].append((f"{folder}/{name}", label + 1))
    clip(tmp_path / "UCF-101" / "YoYo", "v_YoYo_g09_c01.avi", 0, seed=1)  # of UCF101, not of UCF51
    names = sorted(path.stem for path in (tmp_path / "UCF-101").rglob("*.avi"))
    embedding = np.random.default_rng(0).random((len(names), 12)).astype(np.float32)
    np.savez(tmp_path / "cnn14.npz", name=np.array(names), embedding=embedding)
    (tmp_path / "ucfTrainTestlist").mkdir()
    train = "".join(f"{path} {number}\n" for path, number in lists["train"])
    (tmp_path / "ucfTrainTestlist" / "trainlist01.txt").write_text(train)
    (tmp_path / "ucfTrainTestlist" / "testlist01.txt").write_text("".join(f"{p}\n" for p, _ in lists["test"]))

    walk("docs/tasks/ucf51.md", monkeypatch, tmp_path, capsys)

    dataset = ClipDataset(tmp_path / "ucf51")
    assert dataset.classes == ("Archery", "HandstandPushups", "Typing")
    assert dataset.describe()["splits"] == {"test": 6, "train": 12}
    assert dataset.teachers["audio"].clips == 15
    metrics = json.loads((tmp_path / "runs" / "mnf_csc" / "evaluation-test" / "metrics.json").read_text())
    assert metrics["clips"] == 6
    assert ClipDataset(tmp_path / "ucf101").describe()["splits"] == {"test": 6, "train": 12}


def test_activitynet_page(small_recipes, monkeypatch, tmp_path, capsys):
    database = {}
    labels = ("Archery", "Rock climbing")
    for number, subset in enumerate(["training"] * 8 + ["validation"] * 4 + ["testing"]):
        name, label = f"-A_b{number:02d}xYzQw", number % 2
        if number != 3:  # gone from the web
            suffix = "mkv" if number % 3 == 0 else "mp4"
            clip(tmp_path / "videos", f"v_{name}.{suffix}", label, seed=number, audio=number != 4, seconds=4)
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

    dataset = ClipDataset(tmp_path / "activitynet")
    assert dataset.describe()["splits"] == {"test": 1, "train": 14, "validation": 8}
    assert dataset.describe()["skipped"] == 2
    assert "-A_b03xYzQw" in (tmp_path / "activitynet" / "skipped.csv").read_text()
    metrics = json.loads((tmp_path / "runs" / "mnf_csc" / "retrieval-validation" / "metrics.json").read_text())
    assert metrics["queries"] == 8


def test_vggsound_page(small_recipes, monkeypatch, tmp_path, capsys):
    rows = []
    for number in range(12):
        name, label, split = f"yt{number:09d}", number % 2, "test" if number >= 8 else "train"
        if number != 5:
            clip(tmp_path / "videos", f"{name}_{30 + number:06d}.mp4", label, seed=number)
        rows.append(f'{name},{30 + number},"{("dog barking", "cat, purring")[label]}",{split}\n')
    (tmp_path / "vggsound.csv").write_text("".join(rows))

    walk("docs/tasks/vggsound.md", monkeypatch, tmp_path, capsys)

    dataset = ClipDataset(tmp_path / "vggsound")
    assert dataset.classes == ("cat, purring", "dog barking")
    assert dataset.describe()["splits"] == {"test": 4, "train": 7}


def test_kinetics_audio_page(small_recipes, monkeypatch, tmp_path, capsys):
    for split, count in (("train", 8), ("validate", 4)):
        rows = ["label,youtube_id,time_start,time_end,split"]
        for number in range(count):
            name, label = f"{split[:2]}_{number:08d}", ("bowling", "singing", "abseiling")[number % 3]
            clip(tmp_path / "videos" / label, f"{name}_000010_000020.mp4", number % 3, seed=number)
            rows.append(f"{label},{name},10,20,{split}")
        (tmp_path / f"{split}.csv").write_text("\n".join(rows) + "\n")

    walk("docs/tasks/kinetics_sounds.md", monkeypatch, tmp_path, capsys)

    dataset = ClipDataset(tmp_path / "ks")
    assert dataset.classes == ("bowling", "singing")
    assert dataset.describe()["splits"] == {"train": 6, "validation": 3}


def test_kinetics_networks_page(small_recipes, monkeypatch, tmp_path, capsys):
    """With random weights in the file that the page names, and frames of 32 pixels to save time."""
    torch.manual_seed(0)
    torch.save(models.get_model("s3d", weights=None).state_dict(), tmp_path / "s3d-d76dad2f.pth")
    whole = video._teacher

    def small(network, side, **about):
        return whole(network, side=32, **about)

    monkeypatch.setattr(video, "_teacher", small)
    rows = ["path,label,split"]
    for number in range(6):
        label = number % 2
        clip(tmp_path / "videos", f"{number}.mp4", label, seed=number, seconds=1.0)
        rows.append(f"{number}.mp4,{('dog', 'bell')[label]},{'test' if number >= 4 else 'train'}")
    (tmp_path / "clips.csv").write_text("\n".join(rows))

    walk("docs/tasks/kinetics_networks.md", monkeypatch, tmp_path, capsys)

    entry = ClipDataset(tmp_path / "clips").teachers["video"]
    assert (entry.modality, entry.embedding_dim, entry.clips, entry.classes) == ("video", 1024, 6, ("bell", "dog"))
    assert (entry.provenance["name"], entry.provenance["windows"]) == ("torchvision:s3d", 2)
    config = json.loads((tmp_path / "runs" / "kd" / "config.json").read_text())
    assert (config["teacher"], config["student"]["view"]["modality"]) == ("video", "audio")


def test_the_table_of_kinetics_networks_is_torchvisions():
    page = (ROOT / "docs" / "tasks" / "kinetics_networks.md").read_text()
    pattern = (
        r"^\| `torchvision:(\w+)` \| `(.+)` \| (\d+) \| (\d+) \| (\d+) \| (\d+) frames, ([\d.]+) fps \| ([\d.]+) \|$"
    )
    rows = re.findall(pattern, page, re.MULTILINE)
    assert {row[0] for row in rows} == set(models.list_models(module=models.video))
    for name, file, megabytes, channels, side, frames, fps, accuracy in rows:
        weights = models.get_model_weights(name).DEFAULT
        assert weights.url.endswith(f"/{file}")
        assert int(megabytes) == round(weights.meta["_file_size"])
        assert weights.transforms().crop_size == [int(side)] * 2
        assert f"`frame_rate={fps}`" in weights.meta["_docs"]
        assert f"`clip_len={frames}`" in weights.meta["_docs"]
        assert float(accuracy) == round(weights.meta["_metrics"]["Kinetics-400"]["acc@1"], 1)
        with torch.device("meta"):
            assert TorchvisionVideo(1, name).embedding_dim == int(channels)


def test_audioset_tagging_page(small_recipes, monkeypatch, tmp_path, capsys):
    (tmp_path / "audioset").mkdir()
    mids = ("/m/068hy", "/m/07q6cd_", "/t/dd00088")
    names = ("Domestic animals, pets", "Squeak", "Gush")
    table = "".join(f'{i},{mid},"{name}"\n' for i, (mid, name) in enumerate(zip(mids, names, strict=True)))
    (tmp_path / "audioset" / "class_labels_indices.csv").write_text("index,mid,display_name\n" + table)
    head = "# Segments csv created\n# num_ytids=9\n# YTID, start_seconds, end_seconds, positive_labels\n"
    for part, count in (("balanced_train", 10), ("eval", 5)):
        rows = []
        for number in range(count):
            name, label = f"-{part[:2]}{number:08d}", number % 3
            clip(tmp_path / "videos", f"Y{name}.mp4", label, seed=number)
            both = ",".join({mids[label], mids[(label + number % 2) % 3]})
            rows.append(f'{name}, {number}.000, {number + 10}.000, "{both}"\n')
        (tmp_path / "audioset" / f"{part}_segments.csv").write_text(head + "".join(rows))

    walk("docs/tasks/audioset_tagging.md", monkeypatch, tmp_path, capsys)

    dataset = ClipDataset(tmp_path / "tagging")
    assert dataset.classes == tuple(sorted(names))
    assert dataset.describe()["splits"] == {"test": 5, "train": 10}
    assert dataset.teachers["video"].classes == dataset.classes
    metrics = json.loads((tmp_path / "runs" / "mnf_csc" / "evaluation-test" / "metrics.json").read_text())
    assert {"map", "auc", "d_prime"} <= metrics.keys()
