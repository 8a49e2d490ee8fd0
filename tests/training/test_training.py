"""Runs: exact resume, signals, choice of the best model, schedules, learning at all."""

import hashlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avdistill.config_io import encode
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.distributed import autocast
from avdistill.errors import DatasetError, RunError, TeacherError
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.retrieval import retrieve
from avdistill.fsio import file_checksum
from avdistill.inputs import AudioInput, VideoInput
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.models.checkpoint import load_student
from avdistill.models.r2plus1d import tiny_r2plus1d
from avdistill.models.registry import MODELS, build_model
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training import ModelConfig, OptimizerConfig, resume, train, train_to_end
from avdistill.training.optim import build_optimizer, build_schedule, clip_gradients
from avdistill.training.recipes import RECIPES
from avdistill.training.run_dir import run_state
from avdistill.training.setup import TrainingSetup, load_method
from support.features import feature_arrays, part_files
from support.training_cases import config, lines, same, state

VARIANTS = {
    "supervised": {},
    "kd, accumulating": {
        "method": KDConfig(),
        "teacher": "audio",
        "gradient_accumulation_steps": 2,
        "labeled_per_batch": 3,
    },
    "kd, reading ahead": {"method": KDConfig(), "teacher": "audio", "labeled_per_batch": 3, "workers": 2},
    "mnf_csc, plateau": {
        "method": MNFCSCConfig(),
        "teacher": "audio",
        "optimizer": OptimizerConfig("sgd", 1e-2, schedule="plateau", patience=0),
    },
    "a student that hears, with SpecAugment": {
        "student": ModelConfig("logmel_cnn", AudioInput(seconds=0.5), {"width": 8, "embedding_dim": 16}),
        "optimizer": OptimizerConfig("adam", 1e-3, schedule="multistep", milestones=(0.5, 0.8)),
    },
}


@pytest.mark.parametrize("changes", VARIANTS.values(), ids=VARIANTS)
def test_ten_steps_equal_five_and_five_resumed_bit_for_bit(taught, tmp_path, changes):
    whole = train(config(taught.folder, tmp_path / "whole", **changes))
    broken = train(config(taught.folder, tmp_path / "broken", **changes), stop_after=5)
    assert state(broken)[1]["progress"]["step"] == 5
    torch.manual_seed(999)  # whatever happened in between must not matter
    torch.rand(7)
    assert resume(broken) == broken
    assert same(state(whole), state(broken))
    assert lines(whole) == lines(broken)
    assert same(load_file(whole / "best" / "model.safetensors"), load_file(broken / "best" / "model.safetensors"))


def test_a_kill_after_the_last_save_repeats_the_lost_steps(taught, tmp_path):
    whole = train(config(taught.folder, tmp_path / "whole"))

    class Killed(BaseException):
        pass

    def on_step(step, losses):
        if step == 8:
            raise Killed

    broken = tmp_path / "broken"
    with pytest.raises(Killed):
        train(config(taught.folder, broken), on_step=on_step)
    with (broken / "metrics.jsonl").open("a") as file:
        file.write('{"step": 8, "loss')  # what a kill leaves of a line
    resume(broken)  # the last save was after step 6
    assert same(state(whole), state(broken))
    assert lines(whole) == lines(broken)


def test_a_kill_before_the_first_save_starts_again(taught, tmp_path):
    run = train(config(taught.folder, tmp_path / "run"), stop_after=1)
    for file in (run / "last").iterdir():
        file.unlink()
    (run / "last").rmdir()
    resume(run)
    whole = train(config(taught.folder, tmp_path / "whole"))
    assert same(state(whole), state(run))
    resume(run)  # a finished run stays as it is
    assert same(state(whole), state(run))


def embed_again(dataset, source, change):
    """Other features under the same name, of the same width."""
    embedding, logits, present = feature_arrays(dataset, "audio")
    embedding[~present] = logits[~present] = np.nan
    entry = dataset.teachers["audio"]
    dataset.add_features(
        "audio",
        modality="audio",
        provenance={"name": source},
        embedding=embedding * change,
        logits=logits,
        classes=entry.classes,
    )


def test_a_run_does_not_go_on_with_features_of_another_teacher(taught, tmp_path):
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    kd = config(dataset.folder, tmp_path / "run", method=KDConfig(), teacher="audio")
    run = train(kd, stop_after=5)
    recorded = json.loads((run / "data.json").read_text())["teacher"]
    assert recorded["name"] == "audio"
    assert recorded["provenance"] == {"name": "test"}
    digests = {
        kind: json.dumps([file_checksum(file) for file in part_files(dataset, "audio", kind)])
        for kind in ("valid", "embedding", "logits")
    }
    assert recorded["files"] == {kind: hashlib.sha256(text.encode()).hexdigest() for kind, text in digests.items()}
    embed_again(dataset, "other", 2.0)
    with pytest.raises(RunError, match=r"features of teacher 'audio' are no longer .*, then by test, now by other: "):
        resume(run)
    assert state(run)[1]["progress"]["step"] == 5
    # A moved dataset is the same dataset, and maps that the method does not look at are not its teacher's features.
    embedding, logits, present = feature_arrays(taught, "audio")
    embedding[~present] = logits[~present] = np.nan
    maps, said = np.zeros((len(dataset), 2, 24), np.float32), {"modality": "audio", "provenance": {"name": "test"}}
    dataset.add_features("audio", embedding=embedding, logits=logits, classes=dataset.classes, tokens=maps, **said)
    resume(run, dataset=Path(shutil.move(dataset.folder, tmp_path / "moved")))
    assert same(state(run), state(train(replace(kd, dataset=taught.folder, out=tmp_path / "whole"))))


def test_a_run_whose_record_lacks_the_teacher_is_refused(taught, tmp_path):
    run = train(config(taught.folder, tmp_path / "run", method=KDConfig(), teacher="audio"), stop_after=5)
    record = json.loads((run / "data.json").read_text())
    del record["teacher"]
    (run / "data.json").write_text(json.dumps(record))
    with pytest.raises(RunError, match=r"data\.json is missing or damaged: data\.json\.teacher: missing"):
        resume(run)


def test_a_run_without_a_teacher_minds_no_features(taught, tmp_path):
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    run = train(config(dataset.folder, tmp_path / "run", teacher="audio"), stop_after=5)
    assert json.loads((run / "data.json").read_text())["teacher"] is None
    embed_again(dataset, "other", 2.0)
    resume(run)
    assert state(run)[1]["progress"]["step"] == 10


def test_a_kill_while_saved_folders_take_their_place(taught, tmp_path):
    """Between the two renames only the folder before is there, under its old name: for all who ask it is the run's."""
    whole = train(config(taught.folder, tmp_path / "whole" / "run"))
    broken = train(config(taught.folder, tmp_path / "broken" / "run"), stop_after=5)
    shutil.copytree(broken, tmp_path / "as_saved" / "run")
    for name in ("best", "last"):
        (broken / name).rename(broken / f"{name}.old")
    assert load_teacher(broken).provenance == load_teacher(tmp_path / "as_saved" / "run").provenance
    assert run_state(broken) == run_state(tmp_path / "as_saved" / "run")
    assert load_method(broken, taught)[1] == load_method(whole, taught)[1]
    resume(broken)
    assert same(state(whole), state(broken))
    assert load_teacher(broken).provenance == load_teacher(whole).provenance
    assert not (broken / "last.old").exists()


@pytest.mark.parametrize(("sent", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 130)])
def test_a_signal_saves_and_exits(taught, tmp_path, warm_python, sent, code):
    written = tmp_path / "config.json"
    written.write_text(json.dumps(encode(config(taught.folder, tmp_path / "run", steps=100_000, eval_every=10**6))))
    command = [sys.executable, "-m", "avdistill", "train", "--config", str(written)]
    process = warm_python.popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(sent)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == code, messages
    assert f"state saved; `avdistill resume {tmp_path / 'run'}` continues" in messages
    assert "Traceback" not in messages
    step = state(tmp_path / "run")[1]["progress"]["step"]
    assert 0 < step < 100_000
    resume(tmp_path / "run", stop_after=2)
    assert state(tmp_path / "run")[1]["progress"]["step"] == step + 2


def test_a_second_interrupt_ends_training_at_once(taught, tmp_path):
    def interrupt(step, losses):
        if step == 3:
            os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        whole = train(config(taught.folder, tmp_path / "whole"))
        with pytest.raises(KeyboardInterrupt, match="stopped after step 3, state saved"):
            train(config(taught.folder, tmp_path / "run"), on_step=interrupt)
        with pytest.raises(KeyboardInterrupt, match=r"^$"):
            resume(tmp_path / "run", on_step=lambda step, losses: [interrupt(3, losses) for _ in range(2)])
    finally:
        signal.signal(signal.SIGINT, before)
    assert state(tmp_path / "run")[1]["progress"]["step"] == 3
    resume(tmp_path / "run")
    assert same(state(tmp_path / "run"), state(whole))


@pytest.mark.parametrize("sent", [signal.SIGTERM, signal.SIGHUP])
def test_the_end_of_a_session_saves_like_any_other_end(taught, tmp_path, sent):
    before = signal.signal(sent, signal.SIG_DFL)
    try:
        run = train(
            config(taught.folder, tmp_path / "run", save_every=100),
            on_step=lambda step, losses: os.kill(os.getpid(), sent) if step == 2 else None,
        )
        assert run_state(run).step == 2
        assert signal.getsignal(sent) == signal.SIG_DFL
        signal.signal(sent, signal.SIG_IGN)  # as `nohup` has it
        resume(run, on_step=lambda step, losses: os.kill(os.getpid(), sent))
    finally:
        signal.signal(sent, before)
    assert run_state(run).step == 10


def test_who_goes_on_with_a_run_gets_a_finished_one(taught, tmp_path):
    before = signal.signal(signal.SIGTERM, signal.SIG_DFL)
    small = config(taught.folder, tmp_path / "run", steps=4)
    try:
        with pytest.raises(RunError, match="stopped after step 2, state saved; the same command continues"):
            train_to_end(small, on_step=lambda step, _: os.kill(os.getpid(), signal.SIGTERM) if step == 2 else None)
    finally:
        signal.signal(signal.SIGTERM, before)
    assert run_state(train_to_end(small)).step == 4
    assert train_to_end(small) == tmp_path / "run"


def test_a_handful_of_clips_is_learned(taught, tmp_path):
    changes = {"steps": 150, "val_fraction": 0.0, "labeled_per_batch": 4}
    for method in (SupervisedConfig(), MNFCSCConfig()):
        run = train(config(taught.folder, tmp_path / method.name, method=method, teacher="audio", **changes))
        metrics = evaluate(run, taught).metrics.to_dict()
        assert metrics["top1_accuracy"] == 1.0
        assert lines(run)[-1]["losses"]["classification"] < 0.3
        assert json.loads((run / "best" / "chosen.json").read_text())["by"].startswith("last step")


def test_a_trained_teacher_is_embedded_and_taught_with(prepared, tmp_path):
    import shutil

    from avdistill.dataset.clip_dataset import ClipDataset

    shutil.copytree(prepared, tmp_path / "dataset")
    dataset = ClipDataset(tmp_path / "dataset")
    student = ModelConfig("logmel_cnn", AudioInput(seconds=1.0), {"width": 8, "embedding_dim": 16})
    taught_run = train(
        config(dataset.folder, tmp_path / "teacher", student=student, steps=150, train_split="teacher", val_fraction=0)
    )
    entry = embed(dataset, load_teacher(taught_run), "audio")
    silent_or_none = ~dataset.columns["has_audio"].astype(bool) | dataset.columns["silent"].astype(bool)
    assert entry.clips == len(dataset) - silent_or_none.sum()
    assert entry.embedding_dim == 16
    embedding, logits, present = feature_arrays(ClipDataset(dataset.folder), "audio")
    assert (present == ~silent_or_none).all()
    truth = np.array([int(i.split("_")[1]) % 3 for i in dataset.columns["id"]])
    assert (logits.argmax(1) == truth)[present].mean() > 0.9
    # The stored embedding is the network's own over the clip: two windows of a second, the last one at the end.
    network, _ = load_student(taught_run)
    row = int(np.flatnonzero(present)[0])
    audio = torch.from_numpy(dataset.audio(row).astype(np.float32) / 32767)
    assert 16000 < len(audio) < 32000
    with torch.no_grad():
        direct = network(torch.stack([audio[:16000], audio[-16000:]])).embedding.mean(0)
    np.testing.assert_allclose(embedding[row], direct.numpy(), atol=1e-5)
    kd = train(config(dataset.folder, tmp_path / "kd", method=KDConfig(), teacher="audio"))
    assert "soft_labels" in lines(kd)[0]["losses"]
    assert 0 <= retrieve(kd, dataset).metrics.hit[1] <= 1
    told = json.loads((dataset.folder / "dataset.json").read_text())
    (dataset.folder / "dataset.json").write_text(json.dumps(told | {"fps": 4.0}))
    with pytest.raises(TeacherError, match=r"expected fps 10\.0, at which the student was trained, found 4\.0"):
        evaluate(kd, ClipDataset(dataset.folder))


def test_the_best_model_is_chosen_on_clips_set_aside(taught, tmp_path):
    run = train(config(taught.folder, tmp_path / "run"))
    data = json.loads((run / "data.json").read_text())
    assert len(data["validation"]) == 3
    assert not set(data["validation"]) & set(data["training"])
    assert all(name.startswith(("train_", "silent_")) for name in data["training"] + data["validation"])
    scores = {e["step"]: e["validation"]["top1_accuracy"] for e in lines(run) if "validation" in e}
    assert set(scores) == {4, 8, 10}
    chosen = json.loads((run / "best" / "chosen.json").read_text())
    assert chosen["value"] == max(scores.values())
    assert chosen["step"] == min(s for s, v in scores.items() if v == max(scores.values()))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_two_steps(taught, tmp_path, monkeypatch, name):
    recipe = RECIPES[name]
    if name != "ucf51_mnf_csc":  # the paper's network as it is; the other recipes of it with narrow stages
        monkeypatch.setitem(MODELS, "r2plus1d_xia2023", tiny_r2plus1d)
    view = recipe.student.view
    small = replace(view, frames=8, size=(32, 32)) if isinstance(view, VideoInput) else replace(view, seconds=0.5)
    options = dict(recipe.student.options)
    if "frames" in options:
        options["frames"] = 8
    if recipe.student.model == "cnn10":
        options["sample_rate_hz"] = 16000
    run = train(
        replace(
            recipe,
            dataset=taught.folder,
            out=tmp_path / "run",
            teacher=recipe.teacher and "audio",
            steps=2,
            batch_size=4,
            labeled_per_batch=None if recipe.labeled_per_batch is None else 2,
            workers=0,
            eval_every=2,
            student=replace(recipe.student, view=small, options=options),
        )
    )
    assert state(run)[1]["progress"]["step"] == 2


def test_schedules():
    method = torch.nn.Linear(2, 2)
    method.parameter_groups = lambda: [
        {"name": "student", "params": [method.weight], "lr_scale": 1.0},
        {"name": "filter", "params": [method.bias], "lr_scale": 0.2},
    ]
    rates = {}
    for name in ("constant", "multistep", "cosine"):
        c = OptimizerConfig("sgd", 0.1, schedule=name, milestones=(0.5, 0.75), warmup_steps=4)
        optimizer = build_optimizer(c, method)
        schedule = build_schedule(c, optimizer, 20)
        rates[name] = []
        for _ in range(20):
            rates[name].append(optimizer.param_groups[0]["lr"])
            assert optimizer.param_groups[1]["lr"] == pytest.approx(0.2 * optimizer.param_groups[0]["lr"])
            optimizer.step()
            schedule.step()
        assert rates[name][:4] == pytest.approx([0.025, 0.05, 0.075, 0.1])
    assert rates["constant"][4:] == pytest.approx([0.1] * 16)
    assert rates["multistep"][4:] == pytest.approx([0.1] * 6 + [0.01] * 5 + [0.001] * 5)
    cosine = [0.05 * (1 + math.cos(math.pi * (step - 4) / 16)) for step in range(4, 20)]
    assert rates["cosine"][4:] == pytest.approx(cosine)
    c = OptimizerConfig("sgd", 0.1, schedule="plateau", patience=1)
    optimizer = build_optimizer(c, method)
    schedule = build_schedule(c, optimizer, 20)
    for figure in (0.5, 0.6, 0.6, 0.6):
        schedule.step(figure)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0.01)


def test_groups_are_clipped_each_by_its_own_norm():
    first, second = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(3))
    first.grad, second.grad = torch.full((3,), 10.0), torch.full((3,), 0.1)
    optimizer = torch.optim.SGD([{"params": [first], "name": "a"}, {"params": [second], "name": "b"}], lr=1.0)
    norms = clip_gradients(optimizer, 1.0)
    assert norms == pytest.approx({"a": 10 * 3**0.5, "b": 0.1 * 3**0.5})
    assert float(first.grad.norm()) == pytest.approx(1.0, abs=1e-5)
    assert float(second.grad.norm()) == pytest.approx(0.1 * 3**0.5)
    first.grad = torch.full((3,), 10.0)
    clip_gradients(optimizer, None)
    assert float(first.grad.norm()) == pytest.approx(10 * 3**0.5)


def test_precision_on_this_processor():
    cpu = torch.device("cpu")
    with autocast("auto", cpu):
        assert not torch.is_autocast_enabled("cpu")
    with autocast("bfloat16", cpu):
        assert torch.is_autocast_enabled("cpu")


def test_tensorboard_events(taught, tmp_path):
    pytest.importorskip("tensorboard")
    run = train(config(taught.folder, tmp_path / "run", steps=2, tensorboard=True))
    assert list((run / "tensorboard").glob("events*"))


def test_accumulated_batches_have_the_mean_gradient(taught, tmp_path):
    """Two passes of 3 clips gradient_accumulation_steps to the gradient of their mean: one SGD step shows it
    (BatchNorm aside).
    """
    changes = {"steps": 1, "batch_size": 3, "val_fraction": 0.0}
    sgd = OptimizerConfig("sgd", 1e-3, 0.0, "constant")
    run = train(config(taught.folder, tmp_path / "run", gradient_accumulation_steps=2, optimizer=sgd, **changes))
    same = config(taught.folder, tmp_path / "same", gradient_accumulation_steps=2, optimizer=sgd, **changes)
    session = TrainingSetup.open(same, same.out, torch.device("cpu"))
    student = session.method.student.train()
    start = {k: v.clone() for k, v in student.named_parameters()}
    for number in (0, 1):
        (session.method(session.batches[number])["classification"] / 2).backward()
    after = load_file(run / "last" / "model.safetensors")
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(after[name], start[name] - 1e-3 * parameter.grad, atol=1e-7, rtol=1e-5)


def test_a_run_on_several_splits(taught, tmp_path):
    both = config(taught.folder, tmp_path / "run", train_split="train+teacher", steps=2)
    told = json.loads((train(both) / "data.json").read_text())
    rows = [i for i, name in enumerate(taught.columns["split"]) if name in ("train", "teacher")]
    assert set(told["training"] + told["validation"]) == {taught.columns["id"][i] for i in rows}
    assert (told["labeled"] + len(told["validation"]), len(told["validation"])) == (18, round(0.3 * 18))
    with pytest.raises(DatasetError, match="no clip in split 'dev'"):
        train(replace(both, out=tmp_path / "none", train_split="train+dev"))


def test_environment_is_recorded(taught, tmp_path):
    run = train(config(taught.folder, tmp_path / "run", steps=1))
    told = json.loads((run / "environment.json").read_text())
    assert told["packages"]["torch"] == torch.__version__.split("+")[0] or torch.__version__.startswith(
        told["packages"]["torch"]
    )
    assert told["cores"] == os.cpu_count()
    assert build_model("logmel_cnn", 2).modality == "audio"
