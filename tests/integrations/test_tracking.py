"""Runs in experiment trackers, offline; a tracker that only remembers shows what is sent."""

import csv
import hashlib
import json
import shutil
import sqlite3
import threading

import pytest

from avdistill.cli import main
from avdistill.errors import ConfigError, RunError, TrackingError
from avdistill.integrations.tracking import trackers
from avdistill.integrations.tracking.follow import track
from avdistill.training import resume, train
from support.training_cases import config, same, state

METRICS = {
    "split": "test", "clips": 6, "missing": 0, "top1_accuracy": 0.5, "top1_accuracy_interval": [0.25, 0.75],
    "per_class": [{"name": "a", "clips": 6, "recall": 0.5}],
}  # fmt: skip
PAGE = "<!doctype html><title>audit</title>"


class Memory:
    """A tracker of this process: sent[run_id] is what it was given, in order."""

    sent: dict = {}  # noqa: RUF012

    def __init__(self, project, name, run_id, config):
        self.run_id = run_id
        self.given = self.sent.setdefault(run_id, [])
        self.given.append(("open", project, name, config["steps"]))

    def log(self, step, values):
        self.given.append(("log", step, dict(values)))

    def table(self, name, rows, step):
        self.given.append(("table", name, list(rows)))

    def file(self, name, file):
        self.given.append(("file", name, file.read_text()))

    def close(self, finished):
        self.given.append(("close", finished))


@pytest.fixture
def memory(monkeypatch):
    monkeypatch.setitem(trackers.TRACKERS, "tensorboard", Memory)
    monkeypatch.setattr(Memory, "sent", {})
    return Memory.sent


@pytest.fixture(scope="module")
def finished(taught, tmp_path_factory):
    """A run with results beside it."""
    run = train(config(taught.folder, tmp_path_factory.mktemp("tracked") / "run", steps=4, eval_every=4))
    for folder, name, text in (
        ("evaluation-test", "metrics.json", json.dumps(METRICS)),
        ("evaluation-test", "per_class.csv", "name,clips,recall\na,6,0.5\n"),
        ("audit-train", "audit.html", PAGE),
    ):
        (run / folder).mkdir(exist_ok=True)
        (run / folder / name).write_text(text)
    return run


def recorded(run):
    """What is in `metrics.jsonl`, as a tracker is given it: (step, group/name, value)."""
    found = []
    for line in map(json.loads, (run / "metrics.jsonl").read_text().splitlines()):
        for group, entry in line.items():
            values = {f"{group}/{name}": value for name, value in entry.items()} if isinstance(entry, dict) else {}
            found += [(line["step"], name, value) for name, value in values.items()]
    return found


def given(events):
    logs = [event for event in events if event[0] == "log"]
    return [(step, name, value) for _, step, values in logs for name, value in values.items() if "/" in name]


def checksums(folder):
    files = [path for path in folder.rglob("*") if path.is_file() and not path.name.startswith("tracking-")]
    return {path.relative_to(folder): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def test_a_resumed_run_continues_the_same_tracked_run_and_no_line_is_sent_twice(taught, tmp_path, memory):
    """Killed at step 4 of 5 after a save at 3: the line of 4 is written twice, and sent once."""
    run = train(config(taught.folder, tmp_path / "run", steps=5), stop_after=3)
    first = track(run, "tensorboard")
    ahead = shutil.copytree(run, tmp_path / "ahead")
    resume(ahead, stop_after=1)
    shutil.copyfile(ahead / "metrics.jsonl", run / "metrics.jsonl")  # as a kill leaves it: lines after the last save
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 5, "los')
    track(run, "tensorboard")
    assert max(step for step, _, _ in given(memory[first.run_id])) == 4
    resume(run)
    last = track(run, "tensorboard")
    assert memory.keys() == {first.run_id} == {last.run_id}
    assert given(memory[first.run_id]) == recorded(run)
    assert [event[1] for event in memory[first.run_id] if event[0] == "close"] == [False, False, True]
    assert last.lines == len((run / "metrics.jsonl").read_text().splitlines())


def test_a_training_that_is_followed_is_the_same_and_is_followed_to_its_end(taught, finished, tmp_path, memory):
    out = tmp_path / "run"
    begun = threading.Event()
    found = []

    def follow():
        begun.wait(60)
        found.append(track(out, "tensorboard", follow=True, every_seconds=0.02))

    follower = threading.Thread(target=follow)
    follower.start()
    train(config(taught.folder, out, steps=4, eval_every=4), on_step=lambda step, losses: begun.set())
    follower.join(60)
    assert not follower.is_alive()
    (weights, rest), (others, other_rest) = state(out), state(finished)
    assert same(weights, others)
    assert same(rest, other_rest)
    assert given(memory[found[0].run_id]) == recorded(out)


def test_results_are_sent_once_and_the_run_is_only_read(finished, memory):
    before = checksums(finished)
    first = track(finished, "tensorboard", project="birds", name="a run")
    again = track(finished, "tensorboard")
    assert checksums(finished) == before
    assert again == first
    events = memory[first.run_id]
    assert events[0] == ("open", "birds", "a run", 4)
    assert [event for event in events if event[0] == "table"] == [
        ("table", "evaluation-test/per_class", [{"name": "a", "clips": "6", "recall": "0.5"}])
    ]
    assert [event for event in events if event[0] == "file"] == [("file", "audit-train", PAGE)]
    (values,) = [event[2] for event in events if event[0] == "log" and "evaluation-test/clips" in event[2]]
    assert values == {
        "evaluation-test/clips": 6, "evaluation-test/missing": 0, "evaluation-test/top1_accuracy": 0.5,
        "evaluation-test/top1_accuracy_interval_low": 0.25, "evaluation-test/top1_accuracy_interval_high": 0.75,
    }  # fmt: skip
    with pytest.raises(ConfigError, match="tracked in project 'birds', not 'fish'"):
        track(finished, "tensorboard", project="fish")
    (finished / "tracking-tensorboard.json").unlink()


def test_a_study_has_a_table_for_each_corruption(tmp_path, memory):
    rows = [
        {"corruption": "clean", "method": "kd", "top1_accuracy": 0.5, "difference": 0.1},
        {"corruption": "clean", "method": "supervised", "top1_accuracy": 0.4},
        {"corruption": "mismatched=0.4", "method": "kd", "top1_accuracy": 0.3},
    ]
    (tmp_path / "results.json").write_text(json.dumps({"table": rows}))
    (tmp_path / "study.json").write_text(json.dumps({"methods": ["kd", "supervised"], "steps": 3}))
    (tmp_path / "report.html").write_text(PAGE)
    events = memory[track(tmp_path, "tensorboard").run_id]
    assert events[1:] == [
        ("file", "report", PAGE),
        ("table", "compare/clean", [
            {"corruption": "clean", "method": "kd", "top1_accuracy": 0.5, "difference": 0.1},
            {"corruption": "clean", "method": "supervised", "top1_accuracy": 0.4, "difference": None},
        ]),
        ("table", "compare/mismatched=0.4", [rows[2]]),
        ("close", True),
    ]  # fmt: skip


def test_what_cannot_be_tracked_is_one_line(finished, tmp_path, monkeypatch, capsys):
    assert main(["track", str(tmp_path), "--to", "tensorboard"]) == 1
    (line,) = capsys.readouterr().err.splitlines()
    assert "expected a run folder or a study" in line

    def absent(*arguments):
        raise ImportError("No module named 'wandb'")

    monkeypatch.setitem(trackers.TRACKERS, "wandb", absent)
    with pytest.raises(TrackingError, match=r"wandb is not installed .*: install the extra 'track-wandb'"):
        track(finished, "wandb")

    def refuses(*arguments):
        raise KeyError("no such server\n(try again)")

    monkeypatch.setitem(trackers.TRACKERS, "mlflow", refuses)
    with pytest.raises(TrackingError, match=r"mlflow: refused: .*no such server"):
        track(finished, "mlflow")
    broken = shutil.copytree(finished, tmp_path / "broken")
    (broken / "tracking-trackio.json").write_text("{}")
    with pytest.raises(RunError, match=r"tracking-trackio\.json: damaged"):
        track(broken, "trackio")


@pytest.fixture
def in_two_calls(taught, tmp_path, monkeypatch, finished):
    """A function that tracks a run in two calls, as before and after a resume, and returns the run and the state."""
    monkeypatch.chdir(tmp_path)
    run = shutil.copytree(finished, tmp_path / "run")

    def both(to):
        whole = (run / "metrics.jsonl").read_text().splitlines(keepends=True)
        (run / "metrics.jsonl").write_text("".join(whole[:2]))
        first = track(run, to, project="birds")
        (run / "metrics.jsonl").write_text("".join(whole))
        second = track(run, to)
        assert (first.lines, second.lines, first.run_id) == (2, len(whole), second.run_id)
        return run, second

    return both


def losses(run):
    return [(step, value) for step, name, value in recorded(run) if name == "losses/classification"]


def test_tensorboard(in_two_calls, tmp_path):
    events = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="not installed: pip install avdistill[log]"
    )
    run, found = in_two_calls("tensorboard")
    folder = tmp_path / "tensorboard" / "birds" / found.run_id
    read = events.EventAccumulator(str(folder))
    read.Reload()
    scalars = [(each.step, each.value) for each in read.Scalars("losses/classification")]
    assert scalars == [(step, pytest.approx(value, rel=1e-6)) for step, value in losses(run)]
    assert read.Scalars("evaluation-test/top1_accuracy")[0].value == 0.5
    assert (folder / "audit-train" / "audit.html").read_text() == PAGE


def test_mlflow_in_a_folder(in_two_calls, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="not installed: pip install avdistill[track-mlflow]")
    from mlflow.tracking import MlflowClient

    monkeypatch.setenv("MLFLOW_TRACKING_URI", (tmp_path / "mlruns").as_uri())
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    run, found = in_two_calls("mlflow")
    client = MlflowClient()
    (only,) = client.search_runs([client.get_experiment_by_name("birds").experiment_id])
    assert only.data.tags["avdistill_run"] == found.run_id
    assert (only.info.status, only.data.params["student.model"]) == ("FINISHED", "shifted_frames")
    history = client.get_metric_history(only.info.run_id, "losses/classification")
    assert [(each.step, each.value) for each in history] == losses(run)
    assert only.data.metrics["evaluation-test/top1_accuracy_interval_low"] == 0.25
    files = {path.name: path for path in (tmp_path / "mlruns").rglob("artifacts/**/*.*")}
    assert files["audit.html"].read_text() == PAGE
    with files["per_class.csv"].open(newline="") as file:
        assert list(csv.DictReader(file)) == [{"name": "a", "clips": "6", "recall": "0.5"}]


def test_trackio_in_its_database(in_two_calls, tmp_path, monkeypatch):
    monkeypatch.setenv("TRACKIO_DIR", str(tmp_path / "trackio"))
    pytest.importorskip("trackio", reason="not installed: pip install avdistill[track-trackio]")
    from trackio import utils

    for name in ("TRACKIO_DIR", "MEDIA_DIR"):
        if hasattr(utils, name):
            monkeypatch.setattr(utils, name, tmp_path / "trackio" / ("media" if name == "MEDIA_DIR" else ""))
    run, found = in_two_calls("trackio")
    rows = []
    for database in (tmp_path / "trackio").rglob("*.db"):
        with sqlite3.connect(database) as connection:
            rows += connection.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id").fetchall()
    assert {name for name, _, _ in rows} == {found.run_id}
    values = [(step, json.loads(text)) for _, step, text in rows]
    logged = [(step, each["losses/classification"]) for step, each in values if "losses/classification" in each]
    assert logged == losses(run)
    assert any("evaluation-test/per_class" in each for _, each in values)


def test_wandb_offline(in_two_calls, tmp_path, monkeypatch):
    pytest.importorskip("wandb", reason="not installed: pip install avdistill[track-wandb]")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_DIR", str(tmp_path))
    _, found = in_two_calls("wandb")
    folders = sorted((tmp_path / "wandb").glob("offline-run-*"))
    assert [folder.name.split("-", 3)[3] for folder in folders] == [found.run_id] * 2
    written = b"".join(path.read_bytes() for folder in folders for path in folder.glob("*.wandb"))
    for part in (b"losses/classification", b"evaluation-test/top1_accuracy", b"audit-train"):
        assert part in written
