"""The interface of a method: one new file, what it requires of the teacher, pure losses, bounded snapshots."""

import json
import math
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

import avdistill
from avdistill.config_io import decode
from avdistill.errors import ConfigError, RunError
from avdistill.methods import (
    METHODS,
    Method,
    MethodContext,
    build_method,
    parse_method,
    teacher_requirement,
    uses_unlabeled,
)
from avdistill.methods.crd import CRDConfig
from avdistill.methods.kd import KD, KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.robust import RobustConfig
from avdistill.training import train
from avdistill.training.setup import TrainingSetup
from avdistill.training.trainer import _restore, _snapshot
from support.method_cases import C, D, batch, built, step, student
from support.training_cases import config, state

NEW_FILE = """
from dataclasses import dataclass
from typing import Literal

from avdistill.methods.base import Method, classification_loss, register_method
from avdistill.methods.config import BaseMethodConfig, NonNegative


@dataclass(frozen=True)
class EntropyConfig(BaseMethodConfig):
    name: Literal["entropy"] = "entropy"
    weight: NonNegative = 0.1


@register_method("entropy")
class Entropy(Method):
    config_class = EntropyConfig

    def losses(self, student, batch):
        p = student.logits.softmax(1)
        return classification_loss(student, batch) | {"entropy": -self.config.weight * (p * p.log()).sum(1).mean()}
"""


CALLS = """
import contextlib, io, json, sys
from avdistill.cli import main

*first, last = json.loads(sys.argv[1])
ends = []
for words in first:
    with contextlib.redirect_stdout(io.StringIO()) as out, contextlib.redirect_stderr(io.StringIO()) as err:
        code = main(words)
    ends.append([code, out.getvalue(), err.getvalue()])
print(json.dumps(ends), flush=True)
sys.exit(main(last))
"""


def test_adding_a_method_is_one_new_file(prepared, tmp_path):
    package = shutil.copytree(Path(avdistill.__file__).parent, tmp_path / "avdistill")
    (package / "methods" / "entropy.py").write_text(NEW_FILE)

    words = ["train", "tiny_supervised", "--method", "entropy:weight=0.5", "--dataset", str(prepared), "--out"]
    small = ["--steps", "1", "--batch-size", "4", "--student.view.frames", "2", "--student.view.size", "16", "24"]
    calls = [
        ["recipes", "--json"],
        [*words, str(tmp_path / "run"), *small],
        [*words, str(tmp_path / "refused"), *small, "--method.weight", "-1"],
    ]
    command = [sys.executable, "-c", CALLS, json.dumps(calls)]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
    done = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True, check=False)
    listed, trained = json.loads(done.stdout.splitlines()[0])
    methods = json.loads(listed[1])["methods"]
    assert methods["entropy"] == {"name": "entropy", "weight": 0.1}
    assert list(methods) == sorted(methods)
    assert trained[0] == 0, trained[2]
    assert json.loads((tmp_path / "run" / "config.json").read_text())["method"] == {"name": "entropy", "weight": 0.5}
    assert (done.returncode, "config.method.weight: expected a number" in done.stderr) == (2, True)


def test_what_a_method_requires_depends_on_its_settings():
    assert str(teacher_requirement(MNFCSCConfig())) == "embedding"
    assert str(teacher_requirement(MNFCSCConfig(unlabeled="pseudo_label"))) == "logits"
    assert not teacher_requirement(parse_method("supervised"))
    with pytest.raises(ConfigError, match="expected a teacher's embedding, found none"):
        build_method(KDConfig(), student(), MethodContext(C))


@pytest.mark.parametrize(
    ("method", "drawn"), [("supervised", False), ("kd", True), ("mnf_csc", True), ("mnf_csc:unlabeled=unused", False)]
)
def test_unlabeled_clips_are_drawn_for_methods_that_use_them(method, drawn, taught, tmp_path):
    chosen = parse_method(method)
    asked = config(taught.folder, tmp_path / "run", method=chosen, teacher="audio", labeled_per_batch=2)
    batches = TrainingSetup.open(asked, asked.out, torch.device("cpu")).batches
    assert uses_unlabeled(chosen) == drawn
    assert any(not bool(batches[i].labeled.all()) for i in range(5)) == drawn


def test_pseudo_labels_without_logits_are_refused_before_the_folder_is_made(many_clips, tmp_path):
    stored = many_clips.features("audio")
    embedding = np.where(stored.valid[:, None], stored.embedding, np.nan)
    about = {"modality": "audio", "provenance": {"name": "test"}, "logits": None, "classes": ()}
    many_clips.add_features("plain", embedding=embedding, **about)
    pseudo_label = MNFCSCConfig(unlabeled="pseudo_label")
    for _ in range(2):
        with pytest.raises(RunError, match="needs logits"):
            train(config(many_clips.folder, tmp_path / "run", method=pseudo_label, teacher="plain"))
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("name", METHODS)
def test_losses_change_no_state_and_update_moves_it(name):
    method, data = built(METHODS[name].config_class()), batch(labeled=[True] * 3 + [False] * 3)
    features = method.student(torch.rand(6, 3, 4, 32, 32)).detach()
    own = {n: b for n, b in method.named_buffers() if not n.startswith("student.")}
    before = {n: b.clone() for n, b in own.items()}
    first = method.losses(features, data)
    changed = {n for n, b in own.items() if not torch.equal(b, before[n])}
    assert all(n.rpartition(".")[2] in ("running_mean", "running_var", "num_batches_tracked") for n in changed)
    before = {n: b.clone() for n, b in own.items()}
    step(method.eval(), features, data)
    assert all(torch.equal(b, before[n]) for n, b in own.items())
    with torch.no_grad():
        method.update(features, data)
    moved = {n for n, b in own.items() if not torch.equal(b, before[n])}
    assert bool(moved) == (type(method).update is not Method.update)
    assert set(first) == set(method.losses(features, data))


@pytest.mark.parametrize("method", [CRDConfig(), RobustConfig()], ids=str)
def test_a_snapshot_holds_a_memory_only_for_the_clips_of_the_step(method):
    """The bytes do not grow with the number of training clips, and restoring gives back every buffer exactly."""
    sizes = []
    for clips in (100, 10_000):
        torch.manual_seed(0)
        built_method = build_method(method, student(), MethodContext(C, teacher_dim=D, training_clips=clips))
        data = batch(labeled=[True] * 2 + [False] * 4)
        rows = {0: data.indices.numpy()}
        session = SimpleNamespace(
            method=built_method,
            config=SimpleNamespace(gradient_accumulation_steps=1),
            batches=SimpleNamespace(rows=rows.__getitem__),
        )
        whole = {name: buffer.clone() for name, buffer in built_method.named_buffers()}
        before = _snapshot(session, SimpleNamespace(step=0))
        built_method(data)
        assert not all(torch.equal(buffer, whole[name]) for name, buffer in built_method.named_buffers())
        _restore(session, SimpleNamespace(step=0), before)
        assert all(torch.equal(buffer, whole[name]) for name, buffer in built_method.named_buffers())
        sizes.append(sum(x.nbytes for name, x in before.items() if not name.startswith("student.")))
    assert sizes[0] == sizes[1] < 10_000


def test_the_memory_of_a_step_that_is_not_finite_is_that_before_it(taught, tmp_path):
    method = CRDConfig()
    good = train(config(taught.folder, tmp_path / "good", method=method, teacher="audio"), stop_after=3)

    def break_a_weight(number, _losses):
        if number == 3:
            raise_at.append(number)

    raise_at: list[int] = []
    losses = METHODS["crd"].losses

    def infinite(self, features, data):
        found = losses(self, features, data)
        return found | {"contrast": found["contrast"] * (math.inf if raise_at else 1)}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(METHODS["crd"], "losses", infinite)
        with pytest.raises(RunError, match="at step 3"):
            train(config(taught.folder, tmp_path / "bad", method=method, teacher="audio"), on_step=break_a_weight)
    expected, found = (state(run)[0] for run in (good, tmp_path / "bad"))
    assert all(torch.equal(found[name], value) for name, value in expected.items() if name.startswith("memory"))


REFUSED = (
    ("kd:temperature=0", "temperature"),
    ("kd:weight=-1", "weight"),
    ("dist:beta=-0.5", "beta"),
    ("dkd:warmup_share=1.5", "warmup_share"),
    ("pseudo_label:confidence=1.1", "confidence"),
    ("mnf_csc:margin=-0.1", "margin"),
    ("mnf_csc:heads=0", "heads"),
    ("mnf_csc:log_epsilon=-1", "log_epsilon"),
    ("crd:momentum=2", "momentum"),
    ("crd:drawn=0", "drawn"),
    ("crd:width=0", "width"),
    ("cmc:temperature=-0.07", "temperature"),
    ("cc:order=-1", "order"),
    ("cc:embedding_dim=-1", "embedding_dim"),
    ("ifd:decay=1.5", "decay"),
    ("vid:initial_variance=0.00001", "initial_variance"),
    ("robust:temperature=0", "temperature"),
)


@pytest.mark.parametrize(("text", "key"), REFUSED)
def test_an_impossible_setting_is_one_line_that_names_its_key(text, key):
    with pytest.raises(ConfigError, match=rf"^config\.method\.{key}: expected a number .+, found [^\n]+$"):
        parse_method(text)


def test_every_number_of_a_config_has_a_range_or_a_reason():
    for name, method in METHODS.items():
        for key, value in vars(method.config_class()).items():
            if type(value) in (int, float) and (name, key) != ("c2kd", "threshold"):  # of Kendall's tau: any
                with pytest.raises(ConfigError, match=key):
                    decode(method.config_class, {key: math.nan if type(value) is float else -1})
            elif isinstance(value, str) and key != "name":
                with pytest.raises(ConfigError, match=key):
                    method.config_class(**{key: "other"})


def test_an_error_in_a_constructor_is_not_shown_as_one_of_the_config():
    @dataclass(frozen=True)
    class PlainConfig:
        name: str = "kd"

    class Broken(KD):
        config_class = PlainConfig

        def __init__(self, *arguments):
            super().__init__(*arguments)
            len(3)

    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(METHODS, "kd", Broken)
        with pytest.raises(TypeError, match="has no len"):
            built(KDConfig())
