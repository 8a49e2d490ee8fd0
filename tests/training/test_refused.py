"""Runs that cannot be, that end before their time, or that are damaged: told in one line, and nothing lost."""

import errno
import json
import math
import re
import shutil
import threading
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from avdistill.cli import main
from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.mapped_features import MappedFeatures
from avdistill.dataset.schema import CLIP_SCHEMA
from avdistill.errors import ConfigError, DatasetError, RunError
from avdistill.evaluation.classification import evaluate
from avdistill.fsio import open_lock
from avdistill.inputs import AudioInput, VideoInput
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.models.checkpoint import load_student
from avdistill.models.registry import build_model
from avdistill.training import ModelConfig, OptimizerConfig, resume, train
from avdistill.training.run_dir import run_state
from avdistill.training.setup import TrainingSetup
from support.features import feature_arrays, part_files
from support.training_cases import STUDENT, config, same, state


def test_a_gradient_that_is_not_finite_stops_the_run_before_it_ruins_the_weights(taught, tmp_path):
    broken = config(
        taught.folder, tmp_path / "run", optimizer=OptimizerConfig("sgd", 1e18, schedule="constant"), steps=50
    )
    with pytest.raises(RunError, match="gradient of student = nan at step"):
        train(broken)
    told = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert len(told["clips"]) == 6
    weights, saved = state(tmp_path / "run")
    assert saved["progress"]["step"] == told["step"]
    assert all(torch.isfinite(w).all() for w in weights.values())


def test_of_two_that_begin_one_run_one_runs_and_the_other_says_so(taught, tmp_path, monkeypatch):
    both_ready = threading.Barrier(2)
    opened = TrainingSetup.open

    def open_together(*arguments):
        setup = opened(*arguments)
        both_ready.wait()
        return setup

    monkeypatch.setattr(TrainingSetup, "open", open_together)
    ended = []

    def begin():
        try:
            ended.append(train(config(taught.folder, tmp_path / "run", steps=3)))
        except RunError as error:
            ended.append(error)

    threads = [threading.Thread(target=begin) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (refused,) = (end for end in ended if isinstance(end, RunError))
    assert re.search(r"run: (another process is training it|already there)", str(refused))
    assert sum(end == tmp_path / "run" for end in ended) == 1
    assert run_state(tmp_path / "run").step == 3
    assert not (tmp_path / "run.tmp").exists()


def test_a_run_under_way_is_not_called_one_to_resume(taught, tmp_path):
    small = config(taught.folder, tmp_path / "run", steps=1)

    def again(step, losses):
        with pytest.raises(RunError, match="run: another process is training it"):
            train(small)

    train(small, on_step=again)
    with pytest.raises(RunError, match="already there; `avdistill resume` continues a run"):
        train(small)


def test_what_a_kill_left_of_a_new_run_is_no_part_of_it(taught, tmp_path):
    (tmp_path / "run.tmp" / "last").mkdir(parents=True)
    (tmp_path / "run.tmp" / "config.json").write_text('{"data')
    run = train(config(taught.folder, tmp_path / "run", steps=2), stop_after=0)
    assert not (run / "last").exists()
    assert resume(run) == run
    assert sorted(file.name for file in tmp_path.iterdir()) == ["run"]


@pytest.mark.parametrize("method", [KDConfig(), MNFCSCConfig()])
def test_a_teacher_that_knows_no_training_clip_is_refused(taught, tmp_path, method):
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    embedding, logits, _ = feature_arrays(dataset, "audio")
    embedding[dataset.columns["split"] != "test"] = np.nan
    said = {"modality": "audio", "provenance": {"name": "test"}, "classes": dataset.classes}
    dataset.add_features("audio", embedding=embedding, logits=logits, **said)
    with pytest.raises(DatasetError, match=r"expected training clips with features of teacher 'audio', found none"):
        train(config(dataset.folder, tmp_path / "run", method=method, teacher="audio"))
    assert not (tmp_path / "run").exists()


def test_how_many_clips_have_a_teacher_is_in_the_run(taught, tmp_path, capsys):
    written = tmp_path / "config.json"
    small = config(taught.folder, tmp_path / "run", method=KDConfig(), teacher="audio", steps=1)
    written.write_text(json.dumps(encode(small)))
    assert main(["train", "--config", str(written)]) == 0
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    _, _, present = feature_arrays(taught, "audio")
    known = dict(zip(taught.columns["id"].tolist(), present.tolist(), strict=True))
    expected = sum(known[clip] for clip in data["training"])
    assert 0 < expected < len(data["training"])
    assert data["with_teacher"] == expected
    assert f"; {expected} of {len(data['training'])} training clips have a teacher" in capsys.readouterr().err
    alone = train(config(taught.folder, tmp_path / "alone", steps=1))
    assert json.loads((alone / "data.json").read_text())["with_teacher"] is None


def test_features_that_are_not_finite_are_refused(taught, tmp_path):
    shutil.copytree(taught.folder, tmp_path / "dataset")
    dataset = ClipDataset(tmp_path / "dataset")
    present = feature_arrays(dataset, "audio")[2]
    file = part_files(dataset, "audio", "logits")[0]
    values = np.load(file)
    values[present] = np.inf
    np.save(file, values)
    with pytest.raises(DatasetError, match=r"\.logits\.npy: expected finite numbers"):
        train(config(dataset.folder, tmp_path / "run", method=KDConfig(), teacher="audio"))
    assert not (tmp_path / "run" / "last").exists()


def test_a_loss_that_is_not_finite_stops_the_run_and_leaves_no_trace(taught, tmp_path, monkeypatch):
    """One row of logits makes a loss infinite: the run ends at the batch that draws it, as if it had ended before."""
    dataset, read = taught, MappedFeatures.rows
    present = feature_arrays(dataset, "audio")[2]

    def damaged(self, kind, clips):
        rows = read(self, kind, clips)
        if kind == "logits":
            rows[clips == np.flatnonzero(present)[0]] = np.inf
        return rows

    monkeypatch.setattr(MappedFeatures, "rows", damaged)
    settings = {"method": KDConfig(), "teacher": "audio", "val_fraction": 0.0, "save_every": 1}
    with pytest.raises(RunError, match="soft_labels = nan at step"):
        train(config(dataset.folder, tmp_path / "run", **settings))
    told = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert dataset.columns["id"][np.flatnonzero(present)[0]] in told["clips"]
    train(config(dataset.folder, tmp_path / "undisturbed", **settings), stop_after=told["step"])
    assert same(state(tmp_path / "run"), state(tmp_path / "undisturbed"))


def test_predictions_that_are_not_finite_end_the_run_where_the_losses_still_are(taught, tmp_path, monkeypatch):
    """As where the running statistics overflow before a batch's own."""
    begun = config(taught.folder, tmp_path / "run", save_every=2)
    classify = torch.nn.Linear.forward
    monkeypatch.setattr(
        torch.nn.Linear, "forward", lambda self, x: classify(self, x) * (1 if self.training else torch.inf)
    )
    with pytest.raises(RunError, match=r"validation after step 4: .* is not finite; the last save stays"):
        train(begun)
    told = json.loads((tmp_path / "run" / "not_finite.json").read_text())
    assert told["step"] == 4
    assert set(told["clips"]) == set(json.loads((tmp_path / "run" / "data.json").read_text())["validation"])
    assert run_state(tmp_path / "run").step == 2
    monkeypatch.undo()
    resume(tmp_path / "run")
    whole = train(replace(begun, out=tmp_path / "whole"))
    assert same(state(tmp_path / "run"), state(whole))


def test_a_run_is_trained_by_one_process_at_a_time(taught, tmp_path):
    run = train(config(taught.folder, tmp_path / "run"), stop_after=3)
    with open_lock(run), pytest.raises(RunError, match="another process is training it"):
        resume(run)
    assert run_state(run).step == 3
    resume(run)
    assert run_state(run).step == 10


def test_where_the_file_system_has_no_locks_a_run_is_trained_all_the_same(taught, tmp_path, monkeypatch):
    def flock(_file, _how):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr("fcntl.flock", flock)
    assert run_state(train(config(taught.folder, tmp_path / "run", steps=2))).step == 2


def test_a_damaged_run_is_named(taught, tmp_path):
    run = train(config(taught.folder, tmp_path / "run"), stop_after=3)
    good = (run / "last" / "state.pt").read_bytes()
    for damaged in (good[: len(good) // 2], b"", b"nothing"):
        (run / "last" / "state.pt").write_bytes(damaged)
        with pytest.raises(RunError, match=r"state\.pt: missing or damaged"):
            resume(run)
    (run / "last" / "state.pt").write_bytes(good)
    for damaged in ("{", "[]", "{}"):
        (run / "data.json").write_text(damaged)
        with pytest.raises(RunError, match=r"data\.json is missing or damaged"):
            resume(run)


def test_the_folder_that_one_stands_in_takes_no_run(taught, tmp_path, monkeypatch):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    for out in (".", "../here"):
        with pytest.raises(RunError, match="found the working directory"):
            train(config(taught.folder, out, steps=1))


def test_weights_that_a_student_begins_with_are_not_sought_when_a_run_goes_on(taught, tmp_path, monkeypatch):
    asked = []

    def build(name, classes, options):
        asked.append(dict(options))
        return build_model(name, classes, {key: value for key, value in options.items() if key != "pretrained"})

    monkeypatch.setattr("avdistill.training.setup.build_model", build)
    student = replace(STUDENT, options={**STUDENT.options, "pretrained": True})
    run = train(config(taught.folder, tmp_path / "run", student=student), stop_after=3)
    resume(run)
    assert [("pretrained" in options) for options in asked] == [True, False]


@pytest.mark.parametrize(
    "wrong", [{"gamma": 1.0, "schedule": "plateau"}, {"gamma": -1.0}, {"weight_decay": math.nan}, {"gamma": math.nan}]
)
def test_optimizers_that_cannot_be(wrong):
    with pytest.raises(ConfigError, match=f"config.optimizer.{'gamma' if 'gamma' in wrong else 'weight_decay'}"):
        OptimizerConfig(**wrong)


def test_faults_are_named(taught, prepared, tmp_path):
    run = train(config(taught.folder, tmp_path / "run", steps=1))
    with pytest.raises(RunError, match="already there"):
        train(config(taught.folder, run))
    with pytest.raises(RunError, match="needs a teacher"):
        train(config(taught.folder, tmp_path / "a", method=KDConfig()))
    with pytest.raises(DatasetError, match="no teacher 'audio'"):
        train(config(prepared, tmp_path / "b", method=KDConfig(), teacher="audio"))
    with pytest.raises(RunError, match="takes 16 frames, its view has 8"):
        train(config(taught.folder, tmp_path / "c", student=ModelConfig("stacked_frames", VideoInput(frames=8))))
    with pytest.raises(RunError, match=r"takes 32000 Hz, .* holds 16000"):
        train(config(taught.folder, tmp_path / "c", student=ModelConfig("cnn6", AudioInput(seconds=0.5))))
    with pytest.raises(RunError, match="takes audio, its view is video"):
        train(config(taught.folder, tmp_path / "c", student=ModelConfig("logmel_cnn")))
    for student, message in (
        (ModelConfig("resnet"), "unknown model 'resnet'"),
        (replace(STUDENT, options={"color": 1}), "color"),
        (ModelConfig("r2plus1d_xia2023", options={"depth": 50}), "18 or 34"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(config(taught.folder, tmp_path / "c", student=student))
    with pytest.raises(RunError, match="no run folder"):
        resume(tmp_path / "nothing")
    assert not any((tmp_path / name).exists() for name in "abc")


def test_a_view_that_does_not_fit_is_refused_before_anything_is_written(taught, tmp_path):
    student = replace(STUDENT, view=VideoInput(frames=4, size=(33, 32), resize=False))
    with pytest.raises(DatasetError, match=r"hold no window of 33x32, and the view's `resize` is off"):
        train(config(taught.folder, tmp_path / "run", student=student))
    assert not (tmp_path / "run").exists()


def test_what_cannot_be_trained_is_refused_before_the_folder_is_made(taught, tmp_path):
    plateau = OptimizerConfig(schedule="plateau")
    for message, changes in (
        ("student_dim: expected a multiple of 3 heads and of 2, found 16", {"method": MNFCSCConfig(heads=3)}),
        ("'plateau' needs validation", {"optimizer": plateau, "val_fraction": 0.0}),
    ):
        with pytest.raises(ConfigError, match=message):
            train(config(taught.folder, tmp_path / "run", teacher="audio", **changes))
        assert not (tmp_path / "run").exists()


def test_a_class_of_the_test_split_alone_is_no_output_of_the_student(taught, tmp_path):
    """Its clips are misses; a label that a corruption took away stays a class."""
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    rows = dataset.table.to_pylist()
    tested = [row for row in rows if row["split"] == "test" and row["labels"]]
    for row in rows:
        row["extra"] = []
        if row["split"] == "train" and row["labels"] == ["class_1"]:
            row["labels"], row["extra"] = [], [("true_label", "class_1")]
        elif row["split"] == "train" and row["labels"] == ["class_2"]:
            row["labels"] = []
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), dataset.folder / "clips.parquet")
    run = train(config(dataset.folder, tmp_path / "run", method=KDConfig(), teacher="audio", steps=2))
    _, description = load_student(run)
    assert description.classes == ("class_0", "class_1")
    assert json.loads((run / "data.json").read_text())["classes"] == ["class_0", "class_1"]
    found = evaluate(run, dataset)
    assert found.classes == ("class_0", "class_1", "class_2")
    unknown = [row["id"] for row in tested if row["labels"] == ["class_2"]]
    assert unknown
    for row in found.predictions:
        assert row["predicted"] in ("class_0", "class_1")
        assert row["label"] == "class_2" or row["id"] not in unknown
    assert found.metrics.clips == len(tested)
    assert found.metrics.top1_accuracy <= found.metrics.top5_accuracy <= 1 - len(unknown) / len(tested)
