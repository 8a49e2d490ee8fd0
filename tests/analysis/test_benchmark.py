"""Studies: the same for every method, nothing lost to a kill, and a method of the user's own among them."""

import csv
import errno
import json
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch

from avdistill.analysis.benchmark import jobs, report
from avdistill.analysis.benchmark.jobs import Job, _finish_job, _result, sibling_path
from avdistill.analysis.benchmark.report import read_lines, summarize_study
from avdistill.analysis.benchmark.study import Study
from avdistill.analysis.benchmark.trials import LEARNING_RATES, settings_to_try
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import CLIP_SCHEMA
from avdistill.errors import ConfigError, RunError
from avdistill.evaluation.retrieval import retrieve
from avdistill.evaluation.statistics import paired_difference
from avdistill.executors.executor import Ended, call
from avdistill.methods import METHODS, CustomMethodConfig, parse_method
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.teachers.extraction import add_features
from avdistill.training.recipes import RECIPES
from avdistill.training.run_dir import run_state
from support.features import feature_arrays

sys.path.append(str(Path(__file__).resolve().parents[2] / "benchmarks" / "faults"))

import tools

SMALL = [
    *("--workers", "2", "--threads", "1"),
    *("--base.student.view.frames", "8", "--base.student.view.size", "16", "24", "--base.steps", "6"),
    *("--base.batch-size", "6", "--base.labeled-per-batch", "3", "--base.val-fraction", "0.3"),
    *("--base.eval-every", "3", "--base.save-every", "3", "--base.log-every", "1"),
]

OWN = """
from dataclasses import dataclass
from typing import ClassVar

from torch.nn import functional as F

from avdistill import Method
from avdistill.losses import masked_cross_entropy
from avdistill.methods import TeacherRequirement


@dataclass(frozen=True)
class Settings:
    weight: float = 1.0


class Mine(Method):
    config_class = Settings
    tuning: ClassVar = {"weight": (0.5, 1.0)}

    @classmethod
    def requires(cls, config):
        return TeacherRequirement.LOGITS

    def losses(self, student, batch):
        rows = batch.has_teacher
        wrong = F.mse_loss(student.logits[rows].softmax(1), batch.teacher.logits[rows].softmax(1))
        return {
            "classification": masked_cross_entropy(logits=student.logits, labels=batch.labels, labeled=batch.labeled),
            "match": self.config.weight * wrong,
        }
"""


def arguments(dataset, out, *more, recipe="demo_supervised"):
    return ["compare", str(dataset), "--out", str(out), "--recipe", recipe, *SMALL, *map(str, more)]


def without_costs(result):
    """A study's results without what a clock or another machine's memory decides."""
    for row in [*result["table"], *result["runs"]]:
        for key in ("step_seconds", "peak_memory_bytes", "time", "memory"):
            row.pop(key, None)
    result.pop("environment")
    return result


@pytest.fixture
def study(many_clips, tmp_path):
    """A finished study of two methods, one of them a file's."""
    own = tmp_path / "mine.py"
    own.write_text(OWN)
    out = tmp_path / "study"
    methods = ["--methods", "supervised", f"{own}:Mine"]
    corruptions = ["--corruptions", "clean", "mismatched=0.4,label_fraction=0.5"]
    call = arguments(many_clips.folder, out, *methods, *corruptions, "--seeds", 0, 1, "--trials", 2, "--trial-steps", 3)
    assert main(call) == 0
    return out, call, many_clips


def test_a_study_compares_alike_and_writes_everything_down(study, capsys):
    out, call, dataset = study
    capsys.readouterr()
    result = json.loads((out / "results.json").read_text())
    assert len(result["runs"]) == 2 * 2 * (2 + 2)
    for row in result["runs"]:
        config = json.loads(next(out.glob(f"runs/*/*/{row['run']}/config.json")).read_text())
        assert config["steps"] == (6 if row["run"].startswith("seed") else 3)
        assert row["step_seconds"] > 0
        assert row["peak_memory_bytes"] > 10e6
        assert [step for step, _ in row["curve"]] == ([3, 6] if row["run"].startswith("seed") else [3])
        assert ("top1_accuracy" in row) == row["run"].startswith("seed")
    by_setting = {}
    for row in result["runs"]:
        by_setting.setdefault((row["corruption"], row["method"]), []).append(row)
    for rows in by_setting.values():
        trials = [r for r in rows if r["run"].startswith("trial")]
        best = max(trials, key=lambda r: r["validation"])  # of equals the first
        assert all(r["setting"] == best["setting"] for r in rows if r["run"].startswith("seed"))
        assert {r["seed"] for r in trials} == {1000}

    table = result["table"]
    assert len(table) == 4
    groups = np.unique(dataset.columns["path"][dataset.columns["split"] == "test"].astype(str), return_inverse=True)[1]
    for line in table:
        rows = [r for r in by_setting[line["corruption"], line["method"]] if r["run"].startswith("seed")]
        assert line["top1_accuracy"] == pytest.approx(np.mean([r["top1_accuracy"] for r in rows]))
        assert line["std"] == pytest.approx(np.std([r["top1_accuracy"] for r in rows], ddof=1))
        if line["method"] != "supervised":
            reference = [r for r in by_setting[line["corruption"], "supervised"] if r["run"].startswith("seed")]
            matrices = [np.array([[int(c) for c in r["correct"]] for r in x]) for x in (rows, reference)]
            gain = paired_difference(*matrices, groups)
            assert line["difference"] == pytest.approx(gain.mean)
            assert line["difference_interval"] == f"{gain.low:+.3f} to {gain.high:+.3f}"
    for name in ("report.html", "table.md", "table.csv", "runs.csv", "top1_accuracy-clean.png", "curves-clean.png"):
        assert (out / name).stat().st_size > 100
    with (out / "runs.csv").open() as file:
        assert len(list(csv.DictReader(file))) == 16
    page = (out / "report.html").read_text()
    assert "30 training clips, 15 of them labeled; their audio: 18 kept, 12 mismatched" in page
    assert "mine.py:Mine" in page
    assert str(out.parent) not in page

    # Asked again, nothing is trained, and the answer is the same.
    dates = {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*/*/metrics.json")}
    assert main([*call, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["table"] == table
    assert {p: p.stat().st_mtime_ns for p in out.glob("runs/*/*/*/metrics.json")} == dates
    changed = list(call)
    changed[changed.index("--base.steps") + 1] = "7"
    assert main(changed) == 2
    assert "holds another study: base differ" in capsys.readouterr().err


def test_a_study_killed_at_random_moments_ends_with_the_same_table(many_clips, tmp_path, warm_python):
    methods = ["--methods", "supervised", "mnf_csc", "--corruptions", "dropped=0.3", "--seeds", 0, 1]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    more = [*methods, "--trials", 2]
    assert main(arguments(many_clips.folder, whole, *more)) == 0
    chance = random.Random(5)
    command = [sys.executable, "-m", "avdistill", *arguments(many_clips.folder, cut, *more)]
    killed = 0
    while killed < 2:
        process = warm_python.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        finished = len(list(cut.glob("runs/*/*/*/metrics.json")))
        # At a random moment, but not before it has done something new.
        while process.poll() is None and len(list(cut.glob("runs/*/*/*/metrics.jsonl"))) <= finished:
            time.sleep(0.05)
        time.sleep(chance.uniform(0, 2.5))
        assert process.poll() is None, "it finished before it could be killed"
        process.send_signal(signal.SIGKILL)
        process.wait()
        killed += 1
    assert warm_python.run(command).returncode == 0
    first, second = (without_costs(json.loads((x / "results.json").read_text())) for x in (whole, cut))
    assert first == second
    assert (whole / "top1_accuracy-dropped=0.3.png").read_bytes() == (
        cut / "top1_accuracy-dropped=0.3.png"
    ).read_bytes()


def test_a_run_of_a_study_that_is_ended_saves_and_no_process_is_left(many_clips, tmp_path):
    more = ["--methods", "supervised", "--seeds", 0, "--base.steps", 10**6, "--base.save-every", 10**6]
    running = tools.Running(*arguments(many_clips.folder, tmp_path / "study", *more, "--base.eval-every", 10**6))
    run = tmp_path / "study" / "runs" / "clean" / "supervised" / "seed-0"
    tools.wait_until(lambda: (run / "metrics.jsonl").is_file() and (run / "metrics.jsonl").stat().st_size > 0, running)
    running.kill(number=signal.SIGTERM)
    assert running.wait().code == -signal.SIGTERM  # it raises where processes are left
    assert run_state(run).step > 0


def test_lines_of_a_run_that_are_damaged_are_named(tmp_path):
    path = tmp_path / "metrics.jsonl"
    assert read_lines(path) == []
    path.write_text('{"step": 1}\n{"step": 2}\n{"st')  # the last is still being written
    assert read_lines(path) == [{"step": 1}, {"step": 2}]
    for damaged in (b"\0\0\0", b'{"st', b"[2]", b'{"loss": 2}', b"\xff", b""):
        path.write_bytes(b'{"step": 1}\n' + damaged + b'\n{"step": 3}\n')
        with pytest.raises(RunError, match=r"metrics\.jsonl: line 2: expected a JSON object with a step, found"):
            read_lines(path)


def test_a_report_is_whole_or_not_there(tmp_path, monkeypatch):
    def full_disk(*arguments, **options):
        raise OSError(errno.ENOSPC, "No space left on device")

    study = tmp_path / "study"
    study.mkdir()
    (study / "study.json").write_text("{}")
    row = {"corruption": "clean", "method": "kd", "run": "seed-0", "seed": 0, "failed": "loss = nan"}
    base = {"student": {"model": "m"}, "steps": 1, "batch_size": 1}
    record = {"methods": ["kd"], "corruptions": ["clean"], "seeds": [0], "trials": 1, "base": base}
    monkeypatch.setattr(report, "write_page", full_disk)
    with pytest.raises(OSError, match="No space left on device") as error:
        report.write_study_report(study, record, [row], [], [], title="t")
    assert error.value.filename == str(study)
    assert [file.name for file in tmp_path.rglob("*")] == ["study", "study.json"]
    monkeypatch.undo()
    report.write_study_report(study, record, [row], [], [], title="t")
    written = {"report.html", "results.json", "runs.csv", "study.json", "table.csv", "table.md"}
    assert {file.name for file in study.iterdir()} == written


def test_a_method_that_fails_is_told_and_the_others_are_compared(many_clips, tmp_path, capsys):
    own = tmp_path / "mine.py"
    own.write_text(OWN.replace("self.config.weight * wrong", "wrong * float('nan')"))
    call = arguments(many_clips.folder, tmp_path / "study", "--methods", "supervised", f"{own}:Mine", "--seeds", 0)
    assert main([*call, "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert [(line["method"], line["n"]) for line in told["table"]] == [("supervised", 1), ("mine.py:Mine", 0)]
    assert "match = nan" in told["failed"][0]["failed"]
    assert "match = nan" in (tmp_path / "study" / "report.html").read_text()


def test_a_run_that_breaks_for_another_reason_stops_the_study_in_one_line(many_clips, tmp_path, capsys):
    own = tmp_path / "mine.py"
    own.write_text(OWN.replace("rows = batch.has_teacher", "raise RuntimeError('no such thing')"))
    call = arguments(many_clips.folder, tmp_path / "study", "--methods", f"{own}:Mine", "--seeds", 0)
    assert main(call) == 1
    assert "no such thing" in capsys.readouterr().err


def test_a_student_whose_predictions_are_no_numbers_is_told_as_failed(many_clips, tmp_path, monkeypatch):
    """Without validation only the test notices."""
    base = RECIPES["demo_supervised"]
    student = replace(base.student, view=replace(base.student.view, size=(16, 24)))
    changes = {"val_fraction": 0.0, "steps": 1, "batch_size": 6, "labeled_per_batch": 3}
    config = replace(base, dataset=many_clips.folder, out=tmp_path / "run", student=student, **changes)
    classify = torch.nn.Linear.forward
    broken = lambda self, x: classify(self, x) * (1 if self.training else torch.inf)  # noqa: E731
    monkeypatch.setattr(torch.nn.Linear, "forward", broken)
    job = Job("clean", "supervised", "seed-0", config, 1, many_clips.folder, "test", {"run": "seed-0"})
    assert "is not finite" in _result(job)["failed"]


def test_where_clips_have_several_labels_the_metrics_are_those_of_tagging(many_clips, tmp_path):
    rows = many_clips.table.to_pylist()
    for row in rows:
        row["labels"] = row["labels"] and sorted({*row["labels"], many_clips.classes[0]})
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), many_clips.folder / "clips.parquet")
    out = tmp_path / "study"
    assert main(arguments(many_clips.folder, out, "--methods", "supervised", "--seeds", 0)) == 0
    (line,) = json.loads((out / "results.json").read_text())["table"]
    (run,) = json.loads((out / "results.json").read_text())["runs"]
    for name in ("map", "auc", "d_prime"):
        assert line[name] == run[name]
    header = (out / "table.md").read_text().splitlines()[2]
    assert "| mAP | AUC | d-prime |" in header
    assert "retrieval" not in header


def test_a_failed_seed_leaves_no_flattering_mean():
    rows = [
        {"corruption": "clean", "method": "kd", "run": f"seed-{s}", "seed": s, "setting": {}, "step_seconds": 1.0}
        | {"peak_memory_bytes": 1, "correct": "11"}
        for s in (0, 1)
    ]
    rows[1] = {key: rows[1][key] for key in ("corruption", "method", "run", "seed", "setting")} | {"failed": "nan"}
    table, failed = summarize_study(rows, [0, 1])
    assert "top1_accuracy" not in table[0]
    assert [row["seed"] for row in failed] == [1]


def test_methods_are_read_with_their_settings(tmp_path):
    assert parse_method("kd") == KDConfig()
    assert parse_method("mnf_csc:temperature=fixed,threshold=0.2") == MNFCSCConfig(temperature="fixed", threshold=0.2)
    own = tmp_path / "mine.py"
    own.write_text(OWN)
    assert parse_method(f"{own}:Mine:weight=2") == CustomMethodConfig(f"{own}:Mine", options={"weight": 2})
    for wrong, message in (
        ("no", "no method 'no'"),
        ("kd:heat=3", "unknown key"),
        ("kd:temperature=hot", "expected float"),
        (f"{own}:Other", "expected a Method 'Other'"),
        (f"{tmp_path}/absent.py:Mine", "found no such file"),
    ):
        with pytest.raises(ConfigError, match=message):
            parse_method(wrong)
    own.write_text("1 / 0")
    with pytest.raises(ConfigError, match="ZeroDivisionError"):
        parse_method(f"{own}:Mine")
    own.write_text(OWN.replace("config_class = Settings", ""))
    with pytest.raises(ConfigError, match="config_class"):
        parse_method(f"{own}:Mine")


@pytest.mark.parametrize("name", sorted(METHODS))
def test_trials_are_as_many_for_every_method_and_the_first_is_the_published_one(name):
    settings = settings_to_try(name, parse_method(name), 4, seed=1000)
    assert len(settings) == 4
    assert settings[0].overrides() == {}
    assert len({json.dumps(s.overrides(), sort_keys=True) for s in settings}) == 4
    assert all(s.learning_rate_scale in LEARNING_RATES for s in settings)
    assert settings == settings_to_try(name, parse_method(name), 4, seed=1000)
    for key, values in METHODS[name].tuning.items():
        assert getattr(METHODS[name].config_class(), key) in values, "the published value is among those tried"


def test_what_a_study_fixes_is_not_tuned():
    settings = settings_to_try("kd:temperature=2", parse_method("kd:temperature=2"), 15, seed=0)
    assert {s.method.temperature for s in settings} == {2.0}
    assert len({s.method.weight for s in settings}) > 1


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"methods": ()}, "methods"),
        ({"seeds": (1, 1)}, "each once"),
        ({"corruptions": ("clean", "mismatched=0")}, "two are the same"),
        ({"methods": ("a/mine.py:Mine", "b/mine.py:Mine")}, "same name"),
        ({"seeds": (1000,)}, "one of the seeds"),
        ({"trials": 2, "base": "unvalidated"}, "val_fraction"),
        ({"trials": 0}, "must lie in"),
        ({"trials": 6}, "must lie in"),
    ],
)
def test_studies_that_cannot_be_are_refused(changes, message):
    base = RECIPES["demo_supervised" if changes.pop("base", None) else "tiny_supervised"]
    with pytest.raises(ConfigError, match=message):
        Study(**{"dataset": Path("s"), "out": Path("o"), "base": base, **changes})


def test_what_a_dataset_lacks_is_said_before_anything_is_trained(many_clips, taught, tmp_path, capsys):
    for method, said in (("at", "embed --tokens"), ("kd", "needs teacher 'ears'")):
        more = ["--methods", "supervised", method, *(["--teacher", "ears"] if method == "kd" else [])]
        assert main(arguments(many_clips.folder, tmp_path / method, *more)) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / method).exists()
    assert main(arguments(many_clips.folder, tmp_path / "x", recipe="none")) == 2


def with_splits(dataset, **names):
    """The dataset with its splits called something else."""
    rows = dataset.table.to_pylist()
    for row in rows:
        row["split"] = names.get(row["split"], row["split"])
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), dataset.folder / "clips.parquet")
    return ClipDataset(dataset.folder)


def test_a_test_dataset_without_training_clips_is_tested_without_retrieval(many_clips, tmp_path, capsys):
    only = with_splits(ClipDataset(shutil.copytree(many_clips.folder, tmp_path / "only")), train="unused")
    out = tmp_path / "study"
    call = arguments(many_clips.folder, out, "--methods", "supervised", "--seeds", 0, "--test-dataset", only.folder)
    assert main([*call, "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["table"]
    assert line["n"] == 1
    assert not {"map", "hit@1"} & line.keys()
    assert "no metrics of retrieval: the test dataset has no labeled clips of split &#39;train&#39;" in (
        (out / "report.html").read_text()
    )
    assert "retrieval" not in (out / "table.md").read_text()


def test_a_study_changes_and_searches_the_split_that_is_trained_on(many_clips, tmp_path, capsys):
    rows = many_clips.table.to_pylist()
    for i, row in enumerate(rows[:30]):
        row["split"] = "more" if i % 2 else "training"
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), many_clips.folder / "clips.parquet")
    dataset, out = ClipDataset(many_clips.folder), tmp_path / "study"
    more = ["--methods", "supervised", "--seeds", 0, "--corruptions", "mismatched=0.4,label_fraction=0.5"]
    call = arguments(dataset.folder, out, *more, "--base.train-split", "training+more")
    assert main([*call, "--json"]) == 0
    (line,) = json.loads(capsys.readouterr().out)["table"]
    found = retrieve(next(out.glob("runs/*/supervised/seed-0")), dataset, gallery_split="training+more").metrics
    assert line["map"] == found.map
    assert "30 training clips, 15 of them labeled; their audio: 18 kept, 12 mismatched" in (
        (out / "report.html").read_text()
    )


def test_what_no_run_could_be_tested_on_is_said_before_anything_is_trained(many_clips, tmp_path, capsys):
    test = with_splits(ClipDataset(shutil.copytree(many_clips.folder, tmp_path / "test")), train="unused")
    described = json.loads((test.folder / "dataset.json").read_text())
    rows = test.table.to_pylist()

    def written(description=(), **values):
        (test.folder / "dataset.json").write_text(json.dumps(described | dict(description)))
        changed = [row | values if row["split"] == "test" else row for row in rows]
        pq.write_table(pa.Table.from_pylist(changed, schema=CLIP_SCHEMA), test.folder / "clips.parquet")

    call = arguments(many_clips.folder, tmp_path / "study", "--methods", "supervised", "--test-dataset", test.folder)
    for changes, more, said in (
        ({}, ["--test-split", "none"], "no clip in split 'none'"),
        ({}, ["--base.train-split", "none"], "no clip in split 'none'"),
        ({"labels": []}, [], "no labeled clip in split 'test'"),
        ({"labels": ["new"]}, [], "label 'new' is not among the classes"),
        ({"labels": ["class_0", "class_1"]}, [], "has 2 labels where one is expected"),
        ({"has_video": False}, [], "no labeled clip of split 'test' holds video"),
        ({"description": {"fps": 4.0}}, [], "expected fps 10.0, at which the student was trained"),
    ):
        written(**changes)
        assert main([*call, *more]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "study").exists()


def test_nothing_that_is_tested_is_trained_on(many_clips, tmp_path, capsys):
    call = arguments(many_clips.folder, tmp_path / "study", "--methods", "supervised", "kd")
    for more in (["--base.train-split", "train+test"], ["--test-split", "train"]):
        assert main([*call, *more]) == 2
        assert "which is trained on" in capsys.readouterr().err
    embedding = np.random.default_rng(0).standard_normal((len(many_clips), 6)).astype(np.float32)
    about = {"modality": "audio", "provenance": {"name": "s"}, "embedding": embedding, "logits": None, "classes": ()}
    add_features(many_clips, "audio", head_split="train+test", **about)
    assert main(call) == 1
    assert "fitted on split 'train+test', with clips of 'test', which are tested" in capsys.readouterr().err
    # One video with labels is none to fit a head on: kd would end the study when supervised is done.
    add_features(many_clips, "audio", **about)
    assert main([*call, "--corruptions", "labeled_videos=1"]) == 1
    assert "method 'kd' needs logits of teacher 'audio'" in capsys.readouterr().err
    assert not list(tmp_path.glob("study/runs/*"))


def test_a_study_does_not_go_on_with_another_test_dataset(many_clips, tmp_path, capsys):
    test = with_splits(ClipDataset(shutil.copytree(many_clips.folder, tmp_path / "test")), train="unused")
    out = tmp_path / "study"
    call = arguments(many_clips.folder, out, "--methods", "supervised", "--seeds", 0, "--test-dataset", test.folder)
    assert main(call) == 0
    shutil.rmtree(test.folder / "features")  # they name the clips that they are of
    described = json.loads((test.folder / "dataset.json").read_text())
    (test.folder / "dataset.json").write_text(json.dumps(described | {"checksum": "other"}))
    assert main(call) == 2
    assert "test_dataset_checksum differ" in capsys.readouterr().err


def test_a_study_without_a_teacher_minds_no_features(many_clips, tmp_path):
    out = tmp_path / "study"
    call = arguments(many_clips.folder, out, "--methods", "supervised", "--seeds", 0)
    assert main(call) == 0
    assert json.loads((out / "study.json").read_text())["teacher_features"] is None


def test_a_study_does_not_go_on_with_features_of_another_teacher(many_clips, tmp_path, capsys):
    out = tmp_path / "study"
    more = ["--methods", "kd", "--seeds", 0, "--corruptions", "mismatched=0.4"]
    call = arguments(many_clips.folder, out, *more)
    assert main(call) == 0
    (metrics,) = out.glob("runs/*/kd/seed-0/metrics.json")
    metrics.unlink()
    embedding, logits, _ = feature_arrays(many_clips, "audio")

    def embed_again(source, change):
        many_clips.add_features(
            "audio", modality="audio", provenance={"name": source}, embedding=embedding * change, logits=logits,
            classes=many_clips.classes,
        )  # fmt: skip

    embed_again("test", 2.0)
    capsys.readouterr()
    assert main(call) == 1
    assert "cannot continue" in capsys.readouterr().err
    assert not metrics.is_file()
    embed_again("other", 1.0)  # the corruption's dataset is compared as well
    assert main(call) == 1
    assert "its teacher 'audio' is test, that of" in capsys.readouterr().err
    embed_again("test", 1.0)
    assert main(call) == 0
    assert metrics.is_file()


def test_runs_whose_settings_differ_after_a_dot_wait_for_no_other(tmp_path):
    names = [sibling_path(tmp_path / f"kd-weight=0.5-{seed}", "lock").name for seed in (0, 1)]
    assert names == ["kd-weight=0.5-0.lock", "kd-weight=0.5-1.lock"]


def test_a_setting_that_the_dataset_does_not_allow_loses_its_trial(taught, tmp_path):
    """`compare` may draw pseudo-labels for mnf_csc where the teacher has no classes; a run that counts ends it."""
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    embedding, _, present = feature_arrays(dataset, "audio")
    embedding[~present] = np.nan
    dataset.add_features(
        "deaf", modality="audio", provenance={"name": "test"}, embedding=embedding, logits=None, classes=()
    )
    base = RECIPES["demo_supervised"]
    view = replace(base.student.view, size=(16, 24))
    method = MNFCSCConfig(unlabeled="pseudo_label")
    config = replace(
        base,
        dataset=dataset.folder,
        student=replace(base.student, view=view),
        method=method,
        teacher="deaf",
        steps=1,
        batch_size=6,
        labeled_per_batch=3,
    )
    trial = Job(
        "clean", "mnf_csc", "trial-1", replace(config, out=tmp_path / "trial"), 1, None, "test", {"run": "trial-1"}
    )
    assert _result(trial) == {
        "run": "trial-1",
        "failed": "method 'mnf_csc' needs logits in the dataset's classes; 'deaf' has none",
    }
    _finish_job(trial)  # there is no run folder yet for what came of it
    assert "needs logits" in json.loads(trial.metrics.read_text())["failed"]
    counts = replace(trial, config=replace(config, out=tmp_path / "seed"), test_dataset=dataset.folder)
    with pytest.raises(RunError, match="needs logits"):
        _result(counts)


def test_a_run_on_a_full_disk_hands_its_reason_on(monkeypatch, tmp_path):
    """Where there is no room for the run there is none for a file about it."""

    def full_disk(*_):
        raise OSError(errno.ENOSPC, "No space left on device", str(tmp_path / "seed"))

    monkeypatch.setattr(jobs, "_result", full_disk)
    monkeypatch.setattr(jobs, "replace_text", full_disk)
    job = Job("clean", "kd", "seed", replace(RECIPES["demo_kd"], out=tmp_path / "seed"), 1, None, "test", {})
    with pytest.raises(OSError, match="No space left"):
        jobs.do_job(job)
    error = call(jobs.do_job, (job,))[1]
    with pytest.raises(RunError, match=r"seed: OSError: \[Errno 28\] No space left on device: .*; the same"):
        jobs.check_ended(Ended(job, error=error))
