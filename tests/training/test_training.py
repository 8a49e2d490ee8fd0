"""Runs: exact resume, signals, choice of the best model, schedules, learning at all."""

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

from avdistill.data.files import file_checksum
from avdistill.data.store import Store, StoreError
from avdistill.decoding import encode
from avdistill.evaluation.classification import evaluate
from avdistill.evaluation.retrieval import retrieve
from avdistill.methods import KDConfig, MNFCSCConfig, SupervisedConfig
from avdistill.models import build_model
from avdistill.models.weights import load_student
from avdistill.teachers import TeacherError, embed, load_teacher
from avdistill.training import OptimizerConfig, StudentConfig, resume, train
from avdistill.training.checkpoint import RunError, run_progress
from avdistill.training.optim import autocast, build_optimizer, build_schedule, clip_gradients
from avdistill.training.recipes import RECIPES
from avdistill.training.session import Session, load_method
from avdistill.types import PictureView, SoundView
from training_cases import config, lines, same, state

VARIANTS = {
    "supervised": {},
    "kd, accumulating": {"method": KDConfig(), "teacher": "sound", "accumulate": 2, "labelled_per_batch": 3},
    "kd, reading ahead": {"method": KDConfig(), "teacher": "sound", "labelled_per_batch": 3, "workers": 2},
    "mnf_csc, plateau": {
        "method": MNFCSCConfig(),
        "teacher": "sound",
        "optimizer": OptimizerConfig("sgd", 1e-2, schedule="plateau", patience=0),
    },
    "a student that hears, with SpecAugment": {
        "student": StudentConfig("logmel_cnn", SoundView(seconds=0.5), {"width": 8, "embedding_dim": 16}),
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
    assert same(load_file(whole / "best" / "student.safetensors"), load_file(broken / "best" / "student.safetensors"))


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


def embed_again(store, source, change):
    """Other features under the same name, of the same width."""
    embedding, logits, present = store.teacher_features("sound")
    embedding[~present] = logits[~present] = np.nan
    entry = store.teachers["sound"]
    store.add_teacher(
        "sound", modality="sound", source=source, embedding=embedding * change, logits=logits, classes=entry.classes
    )


def test_a_run_does_not_go_on_with_features_of_another_teacher(taught, tmp_path):
    store = Store(shutil.copytree(taught.folder, tmp_path / "store"))
    kd = config(store.folder, tmp_path / "run", method=KDConfig(), teacher="sound")
    run = train(kd, stop_after=5)
    recorded = json.loads((run / "data.json").read_text())["teacher"]
    assert recorded["name"] == "sound"
    assert recorded["source"] == "test"
    assert recorded["files"] == {
        name: file_checksum(store.folder / name) for name in ("teacher-sound.npy", "teacher-sound-logits.npy")
    }
    embed_again(store, "other", 2.0)
    with pytest.raises(RunError, match=r"features of teacher 'sound' are no longer .*, then by test, now by other: "):
        resume(run)
    assert state(run)[1]["progress"]["step"] == 5
    # A moved store is the same store, and maps that the method does not look at are not its teacher's features.
    embedding, logits, present = taught.teacher_features("sound")
    embedding[~present] = logits[~present] = np.nan
    maps, said = np.zeros((len(store), 2, 24), np.float32), {"modality": "sound", "source": "test"}
    store.add_teacher("sound", embedding=embedding, logits=logits, classes=store.classes, tokens=maps, **said)
    resume(run, store=Path(shutil.move(store.folder, tmp_path / "moved")))
    assert same(state(run), state(train(replace(kd, store=taught.folder, out=tmp_path / "whole"))))


def test_a_run_of_an_older_version_that_does_not_tell_its_teacher_goes_on(taught, tmp_path):
    kd = config(taught.folder, tmp_path / "run", method=KDConfig(), teacher="sound")
    run = train(kd, stop_after=5)
    told = json.loads((run / "data.json").read_text())
    del told["teacher"]
    (run / "data.json").write_text(json.dumps(told))
    resume(run)
    assert same(state(run), state(train(replace(kd, out=tmp_path / "whole"))))


def test_a_run_without_a_teacher_minds_no_features(taught, tmp_path):
    store = Store(shutil.copytree(taught.folder, tmp_path / "store"))
    run = train(config(store.folder, tmp_path / "run", teacher="sound"), stop_after=5)
    assert json.loads((run / "data.json").read_text())["teacher"] is None
    embed_again(store, "other", 2.0)
    resume(run)
    assert state(run)[1]["progress"]["step"] == 10


def test_a_kill_while_saved_folders_take_their_place(taught, tmp_path):
    """Between the two renames only the folder before is there, under its old name: for all who ask it is the run's."""
    whole = train(config(taught.folder, tmp_path / "whole" / "run"))
    broken = train(config(taught.folder, tmp_path / "broken" / "run"), stop_after=5)
    shutil.copytree(broken, tmp_path / "as_saved" / "run")
    for name in ("best", "last"):
        (broken / name).rename(broken / f"{name}.old")
    assert load_teacher(broken).source == load_teacher(tmp_path / "as_saved" / "run").source
    assert run_progress(broken) == run_progress(tmp_path / "as_saved" / "run")
    assert load_method(broken, taught)[1] == load_method(whole, taught)[1]
    resume(broken)
    assert same(state(whole), state(broken))
    assert load_teacher(broken).source == load_teacher(whole).source
    assert not (broken / "last.old").exists()


def test_sigterm_saves_and_exits_0(taught, tmp_path):
    written = tmp_path / "config.json"
    written.write_text(json.dumps(encode(config(taught.folder, tmp_path / "run", steps=100_000, validate_every=10**6))))
    command = [sys.executable, "-m", "avdistill", "train", "--config", str(written)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    metrics = tmp_path / "run" / "metrics.jsonl"
    deadline = time.monotonic() + 60
    while not (metrics.exists() and metrics.stat().st_size) and time.monotonic() < deadline:
        time.sleep(0.05)
    process.send_signal(signal.SIGTERM)
    _, messages = process.communicate(timeout=60)
    assert process.returncode == 0
    assert "avdistill resume" in messages
    step = state(tmp_path / "run")[1]["progress"]["step"]
    assert 0 < step < 100_000
    resume(tmp_path / "run", stop_after=2)
    assert state(tmp_path / "run")[1]["progress"]["step"] == step + 2


def test_a_handful_of_clips_is_learned(taught, tmp_path):
    changes = {"steps": 150, "validation_fraction": 0.0, "labelled_per_batch": 4}
    for method in (SupervisedConfig(), MNFCSCConfig()):
        run = train(config(taught.folder, tmp_path / method.name, method=method, teacher="sound", **changes))
        figures = evaluate(run, taught).figures
        assert figures["top1"] == 1.0
        assert lines(run)[-1]["losses"]["classification"] < 0.3
        assert json.loads((run / "best" / "chosen.json").read_text())["by"].startswith("last step")


def test_a_trained_teacher_is_embedded_and_taught_with(prepared, tmp_path):
    import shutil

    from avdistill.data.store import Store

    shutil.copytree(prepared, tmp_path / "store")
    store = Store(tmp_path / "store")
    student = StudentConfig("logmel_cnn", SoundView(seconds=1.0), {"width": 8, "embedding_dim": 16})
    taught_run = train(
        config(
            store.folder, tmp_path / "teacher", student=student, steps=150, train_split="teacher", validation_fraction=0
        )
    )
    entry = embed(store, load_teacher(taught_run), "sound")
    silent_or_none = ~store.columns["has_sound"].astype(bool) | store.columns["silent"].astype(bool)
    assert entry.clips == len(store) - silent_or_none.sum()
    assert entry.width == 16
    embedding, logits, present = Store(store.folder).teacher_features("sound")
    assert (present == ~silent_or_none).all()
    truth = np.array([int(i.split("_")[1]) % 3 for i in store.columns["id"]])
    assert (logits.argmax(1) == truth)[present].mean() > 0.9
    # The stored embedding is the network's own over the clip: two windows of a second, the last one at the end.
    network, _ = load_student(taught_run)
    row = int(np.flatnonzero(present)[0])
    sound = torch.from_numpy(store.sound(row).astype(np.float32) / 32767)
    assert 16000 < len(sound) < 32000
    with torch.no_grad():
        direct = network(torch.stack([sound[:16000], sound[-16000:]])).embedding.mean(0)
    np.testing.assert_allclose(embedding[row], direct.numpy(), atol=1e-5)
    kd = train(config(store.folder, tmp_path / "kd", method=KDConfig(), teacher="sound"))
    assert "soft_labels" in lines(kd)[0]["losses"]
    assert 0 <= retrieve(kd, store).figures["hit@1"] <= 1
    told = json.loads((store.folder / "store.json").read_text())
    (store.folder / "store.json").write_text(json.dumps(told | {"fps": 4.0}))
    with pytest.raises(TeacherError, match=r"trained at 10\.0 frames a second"):
        evaluate(kd, Store(store.folder))


def test_the_best_model_is_chosen_on_clips_set_aside(taught, tmp_path):
    run = train(config(taught.folder, tmp_path / "run"))
    data = json.loads((run / "data.json").read_text())
    assert len(data["validation"]) == 3
    assert not set(data["validation"]) & set(data["training"])
    assert all(name.startswith(("train_", "silent_")) for name in data["training"] + data["validation"])
    scores = {e["step"]: e["validation"]["top1"] for e in lines(run) if "validation" in e}
    assert set(scores) == {4, 8, 10}
    chosen = json.loads((run / "best" / "chosen.json").read_text())
    assert chosen["value"] == max(scores.values())
    assert chosen["step"] == min(s for s, v in scores.items() if v == max(scores.values()))


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_runs_two_steps(taught, tmp_path, name):
    recipe = RECIPES[name]
    view = recipe.student.view
    small = replace(view, frames=8, size=(32, 32)) if isinstance(view, PictureView) else replace(view, seconds=0.5)
    options = dict(recipe.student.options)
    if "frames" in options:
        options["frames"] = 8
    if recipe.student.model == "cnn10":
        options["sample_rate_hz"] = 16000
    run = train(
        replace(
            recipe,
            store=taught.folder,
            out=tmp_path / "run",
            teacher=recipe.teacher and "sound",
            steps=2,
            batch_size=4,
            labelled_per_batch=None if recipe.labelled_per_batch is None else 2,
            workers=0,
            validate_every=2,
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
    """Two passes of 3 clips accumulate to the gradient of their mean: one SGD step shows it (BatchNorm aside)."""
    changes = {"steps": 1, "batch_size": 3, "validation_fraction": 0.0}
    sgd = OptimizerConfig("sgd", 1e-3, 0.0, "constant")
    run = train(config(taught.folder, tmp_path / "run", accumulate=2, optimizer=sgd, **changes))
    same = config(taught.folder, tmp_path / "same", accumulate=2, optimizer=sgd, **changes)
    session = Session.open(same, same.out, torch.device("cpu"))
    student = session.method.student.train()
    start = {k: v.clone() for k, v in student.named_parameters()}
    for number in (0, 1):
        (session.method(session.batches[number])["classification"] / 2).backward()
    after = load_file(run / "last" / "student.safetensors")
    for name, parameter in student.named_parameters():
        torch.testing.assert_close(after[name], start[name] - 1e-3 * parameter.grad, atol=1e-7, rtol=1e-5)


def test_a_run_on_several_splits(taught, tmp_path):
    both = config(taught.folder, tmp_path / "run", train_split="train+teacher", steps=2)
    told = json.loads((train(both) / "data.json").read_text())
    rows = [i for i, name in enumerate(taught.columns["split"]) if name in ("train", "teacher")]
    assert set(told["training"] + told["validation"]) == {taught.columns["id"][i] for i in rows}
    assert (told["labelled"] + len(told["validation"]), len(told["validation"])) == (18, round(0.3 * 18))
    with pytest.raises(StoreError, match="no clip in split 'dev'"):
        train(replace(both, out=tmp_path / "none", train_split="train+dev"))


def test_environment_is_recorded(taught, tmp_path):
    run = train(config(taught.folder, tmp_path / "run", steps=1))
    told = json.loads((run / "environment.json").read_text())
    assert told["packages"]["torch"] == torch.__version__.split("+")[0] or torch.__version__.startswith(
        told["packages"]["torch"]
    )
    assert told["cores"] == os.cpu_count()
    assert build_model("logmel_cnn", 2).modality == "sound"
