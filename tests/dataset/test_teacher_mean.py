"""The mean of several teachers against loops in float64, and its way through datasets, training and studies."""

from __future__ import annotations

import json
import math
from contextlib import nullcontext
from dataclasses import replace

import numpy as np
import pytest
import torch

from avdistill.analysis.distill import encoders
from avdistill.analysis.distill.config import DistillConfig
from avdistill.cli import main
from avdistill.dataset.batches import TrainingBatches
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import DecidedDataset, Decision
from avdistill.dataset.splits import clips_of_split, encode_labels
from avdistill.dataset.stored_features import StoredFeatures
from avdistill.dataset.teacher_mean import calibrated_temperature, mean_of_teachers
from avdistill.errors import DatasetError, RunError, TeacherError
from avdistill.inputs import AudioInput
from avdistill.methods.attention_transfer import ATConfig
from avdistill.methods.crd import CRDConfig
from avdistill.methods.kd import KDConfig
from avdistill.models.logmel_cnn import LogMelCNN
from avdistill.teachers.base import Teacher
from avdistill.training import resume, train
from support.literal import softmax
from support.training_cases import STUDENT, config, same, state

N, CLASSES = 30, ("a", "b", "c", "d")
VALID = np.array([[i % 4 != 1, i % 5 != 2] for i in range(N)])
VALID[7] = False


def stored(seed, width, valid, classes=CLASSES, scale=1.0):
    rng = np.random.default_rng(seed)
    embedding = (rng.standard_normal((N, width)) * valid[:, None]).astype(np.float32)
    logits = (scale * rng.standard_normal((N, len(classes))) * valid[:, None]).astype(np.float32)
    return StoredFeatures(embedding, logits, None, valid, classes, {"name": f"network {seed}"})


# The second has its classes in another order, and one more.
TEACHERS = {"x": stored(0, 3, VALID[:, 0]), "y": stored(1, 5, VALID[:, 1], ("d", "c", "other", "b", "a"), 3.0)}
FITTED_ON = [np.arange(N) < 20, np.arange(N) < 24]


def targets(multi_label):
    rng = np.random.default_rng(5)
    found = rng.integers(0, 2, (N, 4)) if multi_label else rng.integers(0, 4, N)
    found[np.arange(N) % 3 == 0] = 0 if multi_label else -1  # unlabeled
    return found


def sigmoid(row):
    return [1 / (1 + math.exp(-x)) for x in row]


def literal(temperatures, multi_label):
    """Logits and embedding of each clip, None for a clip that no teacher knows; from loops."""
    rows = []
    for i in range(N):
        there = [k for k in range(2) if VALID[i, k]]
        p, confidence = {}, {}
        for k, teacher in enumerate(TEACHERS.values()):
            scaled = [float(teacher.logits[i, teacher.classes.index(name)]) / temperatures[k] for name in CLASSES]
            p[k] = sigmoid(scaled) if multi_label else softmax(scaled)
            confidence[k] = sum(max(q, 1 - q) for q in p[k]) / 4 if multi_label else max(p[k])
        if not there:
            rows.append(None)
            continue
        weight = {k: confidence[k] / sum(confidence[j] for j in there) for k in there}
        mean = [sum(weight[k] * p[k][c] for k in there) for c in range(4)]
        logits = [math.log(q / (1 - q)) if multi_label else math.log(q) for q in mean]
        embedding = []
        for k, teacher in enumerate(TEACHERS.values()):
            e = [float(x) for x in teacher.embedding[i]]
            length = math.sqrt(sum(x * x for x in e))
            embedding += [math.sqrt(8 * weight[k]) * x / length if k in there else 0.0 for x in e]
        rows.append((logits, embedding))
    return rows


def slope(teacher, rows, wanted, temperature, multi_label):
    """d/d(1/T) of the cross-entropy, by a loop: 0 at its minimum, rising in 1/T."""
    total = 0.0
    for i in rows:
        z = [float(teacher.logits[i, teacher.classes.index(name)]) for name in CLASSES]
        p = (sigmoid if multi_label else softmax)([x / temperature for x in z])
        y = wanted[i] if multi_label else [float(wanted[i] == c) for c in range(4)]
        total += sum((p[c] - y[c]) * z[c] for c in range(4))
    return total / len(rows)


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_mean_is_that_of_a_loop(multi_label):
    wanted = targets(multi_label)
    found = mean_of_teachers(TEACHERS, CLASSES, wanted, FITTED_ON)
    labeled = np.arange(N) % 3 != 0 if not multi_label else wanted.any(1)
    temperatures = []
    for k, teacher in enumerate(TEACHERS.values()):
        rows = np.flatnonzero(FITTED_ON[k] & VALID[:, k] & labeled)
        own = teacher.with_classes(CLASSES).logits[rows]
        temperatures.append(calibrated_temperature(own, wanted[rows]))
        if 0.06 < temperatures[k] < 19:
            assert slope(teacher, rows, wanted, temperatures[k], multi_label) == pytest.approx(0, abs=1e-4)
        else:  # labels that are chance: the sharpest or the flattest allowed
            assert temperatures[k] == pytest.approx(20 if temperatures[k] > 1 else 0.05, rel=1e-2)
    assert found.valid.tolist() == VALID.any(1).tolist()
    for i, row in enumerate(literal(temperatures, multi_label)):
        assert (row is None) == (not found.valid[i])
        if row is not None:
            np.testing.assert_allclose(found.logits[i], row[0], atol=1e-5)
            np.testing.assert_allclose(found.embedding[i], row[1], atol=1e-5)
            assert np.square(found.embedding[i]).mean() == pytest.approx(1, abs=1e-5)
    assert not found.logits[7].any()
    assert not found.embedding[7].any()
    assert [part.classes for part in found.teachers] == [CLASSES, CLASSES]
    assert found.provenance == {"name": "x+y", "x.name": "network 0", "y.name": "network 1"}


def test_the_temperature_undoes_a_scale():
    """Labels drawn from softmax(z) have temperature 1, and s when the logits are s times z."""
    rng = np.random.default_rng(0)
    z = 2 * rng.standard_normal((4000, 4))
    p = np.exp(z) / np.exp(z).sum(1, keepdims=True)
    drawn = np.array([rng.choice(4, p=row) for row in p])
    once = calibrated_temperature(z, drawn)
    assert once == pytest.approx(1, abs=0.1)
    assert calibrated_temperature(3 * z, drawn) == pytest.approx(3 * once, rel=1e-3)
    assert calibrated_temperature(z[:0], drawn[:0]) == 1.0


def test_an_overconfident_teacher_does_not_outvote_a_better_one():
    """One is right, one guesses with large logits: after calibration the guess hardly counts."""
    rng = np.random.default_rng(0)
    truth = rng.integers(0, 4, 400)
    right = 2 * np.eye(4)[truth] + 0.3 * rng.standard_normal((400, 4))
    guess = 30 * np.eye(4)[rng.integers(0, 4, 400)]
    embedding, all_ = np.ones((400, 2), np.float32), np.ones(400, bool)
    pair = {name: StoredFeatures(embedding, z.astype(np.float32), None, all_, CLASSES, {"name": name})
            for name, z in (("right", right), ("guess", guess))}  # fmt: skip
    found = mean_of_teachers(pair, CLASSES, truth, [all_, all_])
    assert (found.logits.argmax(1) == truth).mean() > 0.99


def test_without_logits_of_each_the_teachers_count_alike():
    plain = replace(TEACHERS["y"], logits=None, classes=())
    found = mean_of_teachers({"x": TEACHERS["x"], "y": plain}, CLASSES, targets(False), FITTED_ON)
    assert (found.logits, found.classes) == (None, ())
    both = VALID.all(1)
    assert np.square(found.embedding[both, :3]).sum(1) == pytest.approx(4, abs=1e-5)  # half of 8
    assert np.square(found.embedding[VALID[:, 0] & ~VALID[:, 1], :3]).sum(1) == pytest.approx(8, abs=1e-5)
    unlabeled = mean_of_teachers(TEACHERS, (), np.full(N, -1), FITTED_ON)
    assert (unlabeled.logits, unlabeled.classes) == (None, ())


def test_the_dataset_has_the_mean_under_the_joint_name(two):
    entry, found = two.teacher("audio+other"), two.features("audio+other")
    assert (entry.embedding_dim, entry.num_tokens, entry.classes) == (24 + 7, 0, two.classes)
    assert found.valid.tolist() == two.features("audio").valid.tolist()
    manifest = two.features_manifest("audio+other")
    kinds = ("valid", "embedding", "logits")
    assert set(manifest["files"]) == {f"{name} {kind}" for name in ("audio", "other") for kind in kinds}
    assert manifest["provenance"] == entry.provenance == found.provenance
    assert "audio+other" not in two.teachers
    for name, message in (("audio+more", "no teacher 'more' in this dataset"), ("audio+audio", "found one twice")):
        with pytest.raises(DatasetError, match=message):
            two.features(name)
    # Where only one teacher has the clip, the logits are that one's own at its temperature.
    rows = np.flatnonzero(two.columns["split"] == "train")
    wanted = np.array([two.classes.index(row[0]) for row in two.labels])
    single = two.features("audio")
    temperature = calibrated_temperature(single.logits[rows], wanted[rows])
    expected = torch.from_numpy(single.logits[::3]).double().div(temperature).log_softmax(1)
    np.testing.assert_allclose(found.logits[::3], expected, atol=1e-5)


def test_decisions_reach_each_of_the_teachers(two):
    dropped = str(two.columns["id"][1])
    decided = DecidedDataset(two, [Decision(dropped, "drop_audio")])
    assert two.features("audio+other").valid[1]
    assert not decided.features("audio+other").valid[1]


def test_batches_hold_each_teacher_only_where_asked(two):
    clips = clips_of_split(two, "train")
    several = two.features("audio+other")
    for teacher, count in ((several, 2), (several.without_teachers(), 0)):
        batch = TrainingBatches(two, clips, encode_labels(two, clips, two.classes), STUDENT.view, batch_size=8,
                                labeled_per_batch=None, use_unlabeled=True, teacher=teacher, seed=0)[0]  # fmt: skip
        assert len(batch.each_teacher) == count
    batch = TrainingBatches(two, clips, encode_labels(two, clips, two.classes), STUDENT.view, batch_size=8,
                            labeled_per_batch=None, use_unlabeled=True, teacher=several, seed=0)[0]  # fmt: skip
    rows = clips[batch.indices]
    assert [each.embedding.shape for each in batch.each_teacher] == [(8, 24), (8, 7)]
    assert batch.has_each.tolist() == [[True, bool(row % 3)] for row in rows]
    torch.testing.assert_close(batch.each_teacher[1].embedding, torch.from_numpy(two.features("other").embedding[rows]))
    half = batch.map(lambda x: x[:4])
    assert (half.has_each.shape, half.each_teacher[0].embedding.shape) == ((4, 2), (4, 24))


@pytest.mark.parametrize("method", [KDConfig(), CRDConfig()], ids=["kd", "crd"])
def test_a_run_with_two_teachers_resumes_exactly_and_records_both(two, tmp_path, method):
    changes = {"method": method, "teacher": "audio+other", "steps": 4}
    whole = train(config(two.folder, tmp_path / "whole", **changes))
    broken = train(config(two.folder, tmp_path / "broken", **changes), stop_after=2)
    assert same(state(whole), state(resume(broken)))
    record = json.loads((whole / "data.json").read_text())
    assert record["teacher"]["name"] == "audio+other"
    assert len(record["teacher"]["files"]) == 6
    one = train(config(two.folder, tmp_path / "one", **changes | {"teacher": "audio"}))
    assert not same(state(whole)[0], state(one)[0])


def test_tokens_of_several_teachers_are_refused(two, tmp_path):
    with pytest.raises(RunError, match=r"needs the teacher's tokens.*a mean of several has none"):
        train(config(two.folder, tmp_path / "run", method=ATConfig(), teacher="audio+other"))
    assert not (tmp_path / "run").exists()


def test_compare_takes_several_also_under_corruptions(two, tmp_path, capsys):
    words = ["compare", str(two.folder), "--out", str(tmp_path / "study"), "--recipe", "demo_supervised",
             "--methods", "supervised", "kd", "--seeds", "0", "--teacher", "audio+other",
             "--corruptions", "mismatched=0.4", "--base.steps", "2", "--base.batch-size", "4",
             "--base.labeled-per-batch", "2",
             "--base.student.view.frames", "8", "--base.student.view.size", "16", "24",
             "--base.val-fraction", "0.2", "--json"]  # fmt: skip
    assert main(words) == 0, capsys.readouterr().err
    assert {row["method"] for row in json.loads(capsys.readouterr().out)["table"]} == {"supervised", "kd"}
    (made,) = (tmp_path / "study").glob("**/dataset.json")
    assert set(ClipDataset(made.parent).teachers) == {"audio", "other"}
    capsys.readouterr()
    assert (
        main(["compare", str(two.folder), "--out", str(tmp_path / "b"), "--methods", "kd", "--teacher", "audio+no"])
        == 1
    )
    assert "needs teacher 'audio+no'" in capsys.readouterr().err


def test_audit_and_probe_take_the_mean(two, tmp_path, capsys):
    run = train(config(two.folder, tmp_path / "run", method=KDConfig(), teacher="audio+other", steps=1))
    assert main(["audit", str(run), str(two.folder), "--out", str(tmp_path / "audit")]) == 0
    record = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert record["settings"]["teacher"] == "audio+other"
    capsys.readouterr()
    assert main(["teacher", "probe", str(two.folder), "--teacher", "audio+other", "--split", "test", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["probe"]["top1_accuracy"] > 0.5  # logits of "audio" are mostly right


def test_an_audit_of_teachers_of_both_modalities_is_refused(two, tmp_path, capsys):
    embedding = np.random.default_rng(0).standard_normal((len(two), 4)).astype(np.float32)
    logits = two.features("audio").logits
    about = {"modality": "video", "provenance": {"name": "eyes"}, "logits": logits, "classes": two.classes}
    two.add_features("eyes", embedding=embedding, **about)
    run = train(config(two.folder, tmp_path / "run", method=KDConfig(), teacher="audio+eyes", steps=1))
    assert main(["audit", str(run), str(two.folder), "--out", str(tmp_path / "audit")]) == 1
    assert "expected teachers of one modality to audit, found 'audio+eyes' of both" in capsys.readouterr().err


def test_distill_embeds_each_teacher(two, tmp_path, monkeypatch):
    videos = DistillConfig(tmp_path, tmp_path / "out", teacher="yamnet+huggingface:models/ast+x")
    assert videos.teachers == {"audio": "yamnet", "ast": "huggingface:models/ast", "x": "x"}
    assert videos.features == "audio+ast+x"
    assert DistillConfig(tmp_path, tmp_path / "out").teachers == {"audio": None}
    odd = tmp_path / "a+b"
    odd.mkdir()
    assert DistillConfig(tmp_path, tmp_path / "out", teacher=str(odd)).teachers == {"audio": str(odd)}

    def tiny(name):
        network = LogMelCNN(3, width=4, embedding_dim=6)
        return Teacher(network, AudioInput(seconds=0.3), (), False, None, two.sample_rate_hz, {"name": name})

    monkeypatch.setattr(encoders, "load_teacher", tiny)
    monkeypatch.setattr(encoders, "_INSTALLED", {"audio": (), "video": ()})
    asked = DistillConfig(tmp_path, tmp_path / "out", teacher="one+two")
    found = encoders.embed_all(asked, two, "one+two", lambda _: nullcontext(lambda _: None))
    assert found.teachers["two"].provenance["name"] == "two"
    assert found.teachers["two"].embedding_dim == 6
    eyes = replace(asked, student_modality="audio", teacher="one")
    with pytest.raises(TeacherError, match="expected a teacher of video for a student of audio"):
        encoders.embed_all(eyes, two, "one", lambda _: nullcontext(lambda _: None))
