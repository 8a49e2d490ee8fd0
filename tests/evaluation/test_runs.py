"""Metrics of a run: every window is used, what is missing counts as a miss, several ways to the same number agree."""

import json
import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import sklearn.metrics
import torch

from avdistill.annotations import Annotation
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import CLIP_SCHEMA
from avdistill.dataset.windows import evaluation_window
from avdistill.errors import ConfigError, DatasetError
from avdistill.evaluation import classification, retrieval
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.multilabel import MultilabelMetrics
from avdistill.evaluation.retrieval import retrieve
from avdistill.evaluation.statistics import interval
from avdistill.inference import runner
from avdistill.inference.predictor import Student
from avdistill.inference.runner import run_network
from avdistill.inputs import VideoInput, normalize_frames
from avdistill.methods.c2kd import C2KDConfig
from avdistill.models.checkpoint import load_student, save_student
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.training import ModelConfig, TrainConfig, train

VIEW = VideoInput(frames=4, size=(24, 32), scale=(0.8, 1.0), ratio=(1.2, 1.6), hflip=False)


@pytest.fixture(scope="module")
def run(taught, tmp_path_factory):
    return train(
        TrainConfig(
            dataset=taught.folder,
            out=tmp_path_factory.mktemp("runs") / "run",
            student=ModelConfig("shifted_frames", VIEW, {"width": 8, "embedding_dim": 16}),
            steps=25,
            batch_size=6,
            val_fraction=0,
        )
    )


def test_clips_are_means_over_all_their_windows(taught, run):
    student, description = load_student(run)
    clips = np.array([0, 3, 20])
    outputs = run_network(student, taught, clips, description.view, batch_size=2)
    for i, clip in enumerate(clips):
        windows = torch.stack([evaluation_window(taught.frames(clip), VIEW, 16000, s) for s in (0, 4, 8)])
        with torch.no_grad():
            features = student(normalize_frames(windows))
        torch.testing.assert_close(outputs.embedding[i], features.embedding.mean(0))
        torch.testing.assert_close(outputs.probabilities[i], features.logits.softmax(1).mean(0))
    assert not student.training


@pytest.mark.parametrize("batch_size", [1, 5, 100])
def test_batch_size_changes_nothing(taught, run, batch_size):
    student, description = load_student(run)
    clips = np.arange(6)
    expected = run_network(student, taught, clips, description.view, batch_size=7)
    outputs = run_network(student, taught, clips, description.view, batch_size=batch_size)
    torch.testing.assert_close(outputs.embedding, expected.embedding)


def test_classification_metrics_are_those_of_the_predictions(taught, run):
    result = evaluate(run, taught)
    rows = result.predictions
    assert [row["id"] for row in rows] == [f"test_{i}" for i in range(6)]
    assert [row["label"] for row in rows] == [f"class_{i % 3}" for i in range(6)]
    hits = [row["label"] == row["predicted"] for row in rows]
    assert result.metrics.to_dict()["top1_accuracy"] == pytest.approx(sum(hits) / 6)
    assert sum(map(sum, result.confusion)) == 6
    assert result.metrics.to_dict()["missing"] == 0
    low, high = result.metrics.to_dict()["top1_accuracy_interval"]
    assert 0 <= low <= result.metrics.to_dict()["top1_accuracy"] <= high <= 1
    json.dumps(result.metrics.to_dict(), allow_nan=False)


def test_a_clip_without_video_is_a_counted_miss(small_set, run, tmp_path):
    from support.media_files import tone, write_video

    folder, _ = small_set
    write_video(tmp_path / "heard.m4a", frames=None, waveform=tone(1.0, 300))
    (tmp_path / "seen.mp4").write_bytes((folder / "test_1.mp4").read_bytes())
    (tmp_path / "also.mp4").write_bytes((folder / "test_2.mp4").read_bytes())
    annotations = [
        Annotation("seen", "seen.mp4", ("class_1",), "test"),
        Annotation("heard", "heard.m4a", ("class_0",), "test"),
        Annotation("nameless", "also.mp4", (), "test"),
        Annotation("gallery", "seen.mp4", ("class_1",), "train"),
    ]
    dataset = prepare(annotations, tmp_path, tmp_path / "dataset", PrepareConfig(fps=10, short_side=32), workers=1)
    result = evaluate(run, dataset)
    assert result.metrics.to_dict()["clips"] == 2
    assert result.metrics.to_dict()["missing"] == 1
    assert result.metrics.to_dict()["unlabeled_left_out"] == 1
    right = float(result.predictions[0]["predicted"] == "class_1")
    assert result.metrics.to_dict()["top1_accuracy"] == right / 2
    assert result.metrics.to_dict()["mean_class_accuracy"] == right / 2
    found = retrieve(run, dataset).metrics.to_dict()
    assert found["queries"] == 2
    assert found["queries_missing"] == 1
    assert found["hit@1"] == 0.5  # the query that is seen finds itself
    assert result.embedding is None
    embedding = evaluate(run, dataset, keep_embedding=True).embedding
    assert len(embedding) == 1
    assert retrieve(run, dataset, query_embedding=embedding).metrics.to_dict() == found
    # Nothing of the other's class is in the gallery: it is no query that mAP counts, seen or not.
    assert (found["map"], found["queries_without_relevant"]) == (1, 1)


def test_retrieval_needs_no_audio_and_leaves_out_nothing(taught, run):
    result = retrieve(run, taught)
    metrics = result.metrics.to_dict()
    assert metrics["queries"] == 6
    assert metrics["gallery"] == 9
    assert {"hit@1", "hit@5", "hit@10", "hit@20", "map", "map@R"} <= set(metrics)
    assert metrics["hit@1"] <= metrics["hit@5"] <= metrics["hit@10"] == metrics["hit@20"] == 1
    assert len(result.neighbors) == 6
    assert len(result.neighbors[0]["nearest"]) == 9
    with pytest.raises(DatasetError, match="no clip in split 'nobody'"):
        retrieve(run, taught, query_split="nobody")


def test_queries_that_are_embedded_already_are_not_embedded_again(taught, run, monkeypatch):
    embedding = evaluate(run, taught, keep_embedding=True).embedding
    whole, counted = retrieve(run, taught), []

    def counting(network, dataset, clips, *words, **options):
        counted.append(len(clips))
        return run_network(network, dataset, clips, *words, **options)

    monkeypatch.setattr(retrieval, "run_network", counting)
    assert retrieve(run, taught, query_embedding=embedding) == whole
    assert counted == [9]  # the gallery
    assert retrieve(run, taught, query_embedding=embedding.flip(0)) != whole
    with pytest.raises(ConfigError, match="query_embedding: expected a row for each of 6 clips, found 5"):
        retrieve(run, taught, query_embedding=embedding[1:])


def test_an_unknown_label_is_an_error(taught, run, tmp_path):
    student, description = load_student(run)
    folder = tmp_path / "other" / "best"
    folder.mkdir(parents=True)
    save_student(folder, student, replace(description, classes=("class_0", "class_1", "cat")))
    with pytest.raises(DatasetError, match="'class_2' is not a known class"):
        evaluate(folder.parent, taught)


def test_several_labels_per_clip(small_set, tmp_path, capsys):
    folder, annotations = small_set
    both = [
        replace(a, labels=(*a.labels, "even") if int(a.clip_id.split("_")[1]) % 2 == 0 and a.labels else a.labels)
        for a in annotations
    ]
    dataset = prepare(both, folder, tmp_path / "dataset", PrepareConfig(fps=10, short_side=32), workers=1)
    trained = train(
        TrainConfig(
            dataset=dataset.folder,
            out=tmp_path / "run",
            student=ModelConfig("shifted_frames", VIEW, {"width": 8, "embedding_dim": 16}),
            steps=20,
            batch_size=6,
            val_fraction=0.3,
            eval_every=10,
        )
    )
    result = evaluate(trained, ClipDataset(Path(dataset.folder)))
    metrics, rows = result.metrics.to_dict(), result.predictions
    assert [row["name"] for row in metrics["per_class"]] == ["class_0", "class_1", "class_2", "even"]
    assert metrics["map"] == pytest.approx(np.mean([row["average_precision"] for row in metrics["per_class"]]))
    assert 1 / 6 <= metrics["map"] <= 1
    assert 0 <= metrics["auc"] <= 1
    assert (metrics["classes_counted"], metrics["classes_left_out"]) == (4, 0)
    assert [(row["id"], row["labels"]) for row in rows[:2]] == [("test_0", "class_0|even"), ("test_1", "class_1")]
    ranked = [rows[0][f"probability_{rank}"] for rank in range(1, 5)]
    assert ranked == sorted(ranked, reverse=True)
    assert {rows[0][f"predicted_{rank}"] for rank in range(1, 5)} == {"class_0", "class_1", "class_2", "even"}
    json.dumps(metrics, allow_nan=False)
    assert main(["evaluate", str(trained), str(dataset.folder)]) == 0
    assert "area under the ROC curve" in capsys.readouterr().out
    for name, columns in (
        ("predictions.csv", "id,labels,predicted_1,probability_1,"),
        ("per_class.csv", "name,clips,average_precision,auc,d_prime"),
    ):
        assert (trained / "evaluation-test" / name).read_text().startswith(columns)
    assert {p.name for p in (trained / "evaluation-test").iterdir()} == {
        "provenance.json", "metrics.json", "predictions.csv", "per_class.csv",
    }  # fmt: skip
    found = retrieve(trained, dataset).metrics.to_dict()
    assert found["hit@20"] == 1  # all of the gallery: every query shares a label with some clip
    assert found["queries_without_relevant"] == 0


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "multi_label"])
def test_who_sees_nothing_misses_what_there_is_to_be_found(taught, run, tmp_path, monkeypatch, several):
    """Of queries without a video only those count that have a relevant clip; of the others none counts either way."""
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    rows = dataset.table.to_pylist()
    tests = [row for row in rows if row["split"] == "test" and row["labels"]]
    for row in rows:
        if row["split"] == "train" and "class_0" in row["labels"]:
            row["labels"] = []
    for number, row in enumerate(tests):
        row["labels"] = [f"class_{number % 3}"] + (["class_2"] if several and number % 3 == 1 else [])
        if number in (0, 1, 2, 4):
            row["has_video"] = False
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), dataset.folder / "clips.parquet")
    found = retrieve(run, ClipDataset(dataset.folder)).metrics.to_dict()
    kept = [row for number, row in enumerate(tests) if number not in (0, 1, 2, 4)]
    for row in tests:
        row["labels"] = row["labels"] if row in kept else []
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), dataset.folder / "clips.parquet")
    seen = retrieve(run, ClipDataset(dataset.folder)).metrics.to_dict()
    hopeless = sum("class_0" in row["labels"] for row in kept)
    answered = len(kept) - hopeless
    assert (found["queries"], found["queries_missing"]) == (len(tests), 4)
    assert seen["queries_without_relevant"] == hopeless > 0
    assert found["queries_without_relevant"] == hopeless + 1  # clip 0
    for name in ("map", "map@R"):
        assert found[name] == pytest.approx(seen[name] * answered / (answered + 3))
    assert found["hit@5"] == pytest.approx(seen["hit@5"] * len(kept) / len(tests))


def test_a_clip_is_not_looked_up_among_those_with_itself(taught, run):
    for gallery in ("test", "train+test"):
        with pytest.raises(ConfigError, match="share clips, and each would find itself"):
            retrieve(run, taught, query_split="test", gallery_split=gallery)


def test_wrong_numbers_and_places_are_one_line(taught, run, tmp_path, capsys):
    for words, code, message in (
        (["--stride", "100"], 2, "stride: expected 1 to 4, a window's length, found 100"),
        (["--batch-size", "0"], 2, "batch_size: expected at least 1"),
        (["--windows", "3", "--stride", "4"], 2, "give windows or stride, not both"),
        (["--out", str(tmp_path / "file" / "metrics")], 1, "Not a directory"),
    ):
        (tmp_path / "file").write_text("")
        assert main(["evaluate", str(run), str(taught.folder), *words]) == code
        error = capsys.readouterr().err
        assert message in error
        assert "Traceback" not in error


def test_one_clip_with_two_labels_makes_every_split_several(small_set, tmp_path):
    """A student of one label per clip could not be judged on the test clip with two."""
    folder, annotations = small_set
    both = [replace(a, labels=("class_0", "class_1")) if a.clip_id == "test_1" else a for a in annotations]
    dataset = prepare(both, folder, tmp_path / "dataset", PrepareConfig(fps=10, short_side=32), workers=1)
    student = ModelConfig("shifted_frames", VIEW, {"width": 8, "embedding_dim": 16})
    config = TrainConfig(dataset=dataset.folder, out=tmp_path / "run", student=student, steps=2, batch_size=6)
    assert isinstance(evaluate(train(config), dataset).metrics, MultilabelMetrics)
    with pytest.raises(ConfigError, match="method 'c2kd' needs one label per clip"):
        train(replace(config, out=tmp_path / "other", method=C2KDConfig()))
    assert not (tmp_path / "other").exists()


def test_a_student_and_a_folder_that_it_is_loaded_from_give_the_same(taught, run, tmp_path):
    student = Student.from_pretrained(run)
    student.save_pretrained(tmp_path / "saved")
    classified, found = evaluate(run, taught), retrieve(run, taught)
    for model in (student, run / "best", str(tmp_path / "saved")):
        for dataset in (taught, taught.folder, str(taught.folder)):
            assert evaluate(model, dataset) == classified
        assert retrieve(model, taught.folder) == found
    assert set(classified.metrics.to_dict()) == {
        "split", "clips", "missing", "unlabeled_left_out", "top1_accuracy", "top5_accuracy", "mean_class_accuracy",
        "top1_accuracy_interval", "expected_calibration_error", "per_class",
    }  # fmt: skip
    assert list(found.metrics.to_dict())[:6] == ["hit@1", "hit@5", "hit@10", "hit@20", "map", "map@R"]


def test_results_go_where_a_link_leads(taught, run, tmp_path, capsys):
    (tmp_path / "disk").mkdir()
    (tmp_path / "out").symlink_to(tmp_path / "disk")
    for verb, metric in (("evaluate", "top1_accuracy"), ("retrieve", "hit@1")):
        assert main([verb, str(run), str(taught.folder), "--out", str(tmp_path / "out"), "--json"]) == 0
        written = json.loads((tmp_path / "disk" / "metrics.json").read_text())
        assert json.loads(capsys.readouterr().out) == {"model": str(run), "dataset": str(taught.folder)} | written
        assert metric in written
    assert (tmp_path / "out").is_symlink()


def relabeled(dataset, folder, change):
    """A copy of a dataset whose rows `change` has changed."""
    copy = Path(shutil.copytree(dataset.folder, folder))
    rows = dataset.table.to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), copy / "clips.parquet")
    return ClipDataset(copy)


def test_map_without_a_query_that_has_something_relevant(taught, run, tmp_path):
    """None where no query has any; 0 where only queries have some that lack the video, and so find nothing."""

    def nothing_relevant(row):
        if row["split"] == "train" and row["labels"]:
            row["labels"] = ["class_0"]
        if row["split"] == "test":
            row["labels"] = ["class_1"]

    def only_for_the_missing(row):
        nothing_relevant(row)
        if row["id"] == "test_0":
            row["labels"], row["has_video"] = ["class_0"], False

    found = retrieve(run, relabeled(taught, tmp_path / "none", nothing_relevant)).metrics
    assert (found.map, found.map_at_r, found.hit[20], found.queries_without_relevant) == (None, None, 0, 6)
    found = retrieve(run, relabeled(taught, tmp_path / "missing", only_for_the_missing)).metrics
    assert (found.map, found.map_at_r, found.queries_without_relevant, found.queries_missing) == (0, 0, 5, 1)


def test_the_interval_draws_source_videos(taught, run, tmp_path):
    """Clips cut from one video are not independent: the more there are of each, the wider the interval."""

    def from_two_videos(row):
        if row["split"] == "test":
            row["group"] = f"video_{int(row['id'].split('_')[1]) % 2}"

    dataset = relabeled(taught, tmp_path / "dataset", from_two_videos)
    correct = [row["label"] == row["predicted"] for row in evaluate(run, dataset).predictions]
    expected = interval(np.array([correct]), np.arange(6) % 2)
    assert evaluate(run, dataset).metrics.top1_accuracy_interval == (expected.low, expected.high)


@pytest.mark.parametrize("several", [False, True])
def test_evaluation_holds_the_outputs_of_a_part_and_finds_what_all_at_once_do(taught, run, tmp_path, several):
    """So a million clips need no more memory than their answers."""

    def change(row):
        if several and row["labels"]:
            row["labels"] = ["class_0", "class_1"]
        if row["id"] == "test_2":
            row["has_video"] = False

    dataset, student, called, progress = (
        relabeled(taught, tmp_path / "dataset", change),
        Student.from_pretrained(run),
        [],
        [],
    )
    student = Student(student.network, replace(student.config, multi_label=several), student.reading)
    in_parts, whole_network = classification.run_in_parts, runner.run_network

    def counting(network, dataset, clips, *arguments, **options):
        called.append(len(clips))
        return whole_network(network, dataset, clips, *arguments, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(runner, "run_network", counting)
        whole = evaluate(student, dataset)
        assert called == [5]
        patch.setattr(classification, "run_in_parts", partial(in_parts, part_clips=2))
        parts = evaluate(student, dataset, on_progress=lambda p: progress.append((p.done, p.total)))
    assert called[1:] == [2, 2, 1]
    assert progress == sorted(progress)
    assert progress[-1] == (5, 5)
    assert parts.confusion == whole.confusion
    for row, expected in zip(parts.predictions, whole.predictions, strict=True):
        assert row == {k: pytest.approx(v, abs=1e-5) if isinstance(v, float) else v for k, v in expected.items()}
    assert parts.metrics.per_class == whole.metrics.per_class
    expected = whole.metrics.to_dict()
    for name, value in parts.metrics.to_dict().items():
        if name != "per_class":
            assert value == pytest.approx(expected[name], abs=1e-5)
    if not several:
        names = [[row[key] for row in parts.predictions] for key in ("label", "predicted")]
        assert parts.metrics.mean_class_accuracy == pytest.approx(
            sklearn.metrics.recall_score(
                *names, labels=["class_0", "class_1", "class_2"], average="macro", zero_division=0
            )
        )
