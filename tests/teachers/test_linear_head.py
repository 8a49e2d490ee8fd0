"""The linear head that gives a teacher logits: what it is fitted on; no clip is scored by its own label."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn.model_selection import GroupKFold

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.teachers.linear_head import _fitted as fit
from avdistill.teachers.linear_head import fit_head


def set_classes(monkeypatch, dataset, classes):
    monkeypatch.setattr(dataset, "_description", replace(dataset._description, classes=tuple(classes)))


@pytest.fixture
def informed(prepared):
    """(dataset, embedding): 24 dimensions, a third of which tells each class, named by the clip; two clips without."""
    dataset = ClipDataset(prepared)
    rng = np.random.default_rng(0)
    embedding = rng.standard_normal((len(dataset), 24)).astype(np.float32)
    classes = np.array([int(name.split("_")[1]) % 3 for name in dataset.columns["id"]])
    embedding += 2 * np.tile(np.eye(3, dtype=np.float32)[classes], 8)
    embedding[[0, 30]] = np.nan
    return dataset, embedding, classes


def test_all_clips_with_an_embedding_get_logits_from_the_labeled_of_the_split(informed):
    dataset, embedding, classes = informed
    logits, told = fit_head(dataset, embedding)
    assert logits.shape == (len(dataset), 3)
    assert np.isnan(logits[[0, 30]]).all()
    rest = np.delete(np.arange(len(dataset)), [0, 30])
    assert np.isfinite(logits[rest]).all()
    np.testing.assert_allclose(np.exp(logits[rest]).sum(1), 1, atol=1e-5)
    tests = np.flatnonzero(dataset.columns["split"] == "test")
    assert (logits[np.setdiff1d(tests, [30])].argmax(1) == classes[np.setdiff1d(tests, [30])]).mean() > 0.7
    assert told["labeled_clips"] == 8  # nine, one of which has no embedding


def test_a_clip_s_own_label_does_not_reach_its_logits(informed, monkeypatch):
    """Another label for one training clip: its own logits stay, those of others move."""
    dataset, embedding, _ = informed
    before, _ = fit_head(dataset, embedding)
    row = int(np.flatnonzero((dataset.columns["split"] == "train") & [bool(x) for x in dataset.labels])[2])
    labels = list(dataset.labels)
    labels[row] = tuple({"class_0", "class_1", "class_2"} - set(labels[row]))[:1]
    monkeypatch.setitem(dataset.__dict__, "labels", labels)
    monkeypatch.setattr("avdistill.teachers.linear_head._STRENGTHS", (0.1,))
    after, _ = fit_head(dataset, embedding)
    monkeypatch.setitem(dataset.__dict__, "labels", list(ClipDataset(dataset.folder).labels))
    before, _ = fit_head(dataset, embedding)
    np.testing.assert_allclose(after[row], before[row], atol=1e-6)
    tests = dataset.columns["split"] == "test"
    assert np.nanmax(np.abs(after[tests] - before[tests])) > 0.01


def test_segments_of_a_video_share_a_fold(informed, monkeypatch):
    """Two clips of one video with the same embedding and unlike labels: neither learns the other's label."""
    dataset, embedding, _ = informed
    rows = np.flatnonzero((dataset.columns["split"] == "train") & [bool(x) for x in dataset.labels])[1:3]
    group = dataset.columns["group"].copy()
    group[rows[1]] = group[rows[0]]
    monkeypatch.setitem(dataset.columns, "group", group)
    embedding[rows[1]] = embedding[rows[0]]
    logits, _ = fit_head(dataset, embedding)
    np.testing.assert_array_equal(logits[rows[0]], logits[rows[1]])


def labeled_in_train(dataset):
    return np.flatnonzero((dataset.columns["split"] == "train") & [bool(x) for x in dataset.labels])


def test_a_class_that_a_fold_lacks_is_unknown_and_not_never(informed, monkeypatch):
    """One clip of each class: whoever judges it has not seen its class."""
    dataset, embedding, _ = informed
    rows = labeled_in_train(dataset)[1:]
    labels = list(dataset.labels)
    for number, row in enumerate(rows):
        labels[row] = (f"only_{number}",)
    monkeypatch.setitem(dataset.__dict__, "labels", labels)
    set_classes(monkeypatch, dataset, [*dataset.classes, *(f"only_{i}" for i in range(len(rows)))])
    logits, _ = fit_head(dataset, embedding)
    np.testing.assert_allclose(np.exp(logits[rows]).sum(1), 1, atol=1e-5)
    own = np.exp(logits[rows, 3 + np.arange(len(rows))])
    # 5 folds of 8 clips: one or two of the classes are held out.
    assert set(np.round(own * len(rows), 6)) == {1.0}
    assert (logits[rows, :3] == -20).all()  # nobody has a labeled clip of these


@pytest.mark.parametrize("classes", [2, 4, 5])
def test_names_in_the_order_of_the_classes_do_not_hide_a_class(informed, monkeypatch, classes):
    dataset, embedding, _ = informed
    monkeypatch.setitem(dataset.columns, "split", np.full(len(dataset), "train"))
    labels = [(f"k{i % classes}",) for i in range(len(dataset))]
    monkeypatch.setitem(dataset.__dict__, "labels", labels)
    set_classes(monkeypatch, dataset, [f"k{i}" for i in range(classes)])
    seen = []
    monkeypatch.setattr(
        "avdistill.teachers.linear_head._fitted",
        lambda x, targets, *more: seen.append(set(targets)) or fit(x, targets, *more),
    )
    fit_head(dataset, embedding)
    assert len(seen) > 5
    assert all(len(known) == classes for known in seen)


def test_a_label_that_all_or_none_of_a_fold_have_is_not_certain(informed, monkeypatch):
    dataset, embedding, _ = informed
    rows = labeled_in_train(dataset)[1:]
    labels = list(dataset.labels)
    for row in labeled_in_train(dataset):
        labels[row] = ("every", "half") if row % 2 else ("every",)
    labels[rows[3]] = ("every", "once")
    monkeypatch.setitem(dataset.__dict__, "labels", labels)
    set_classes(monkeypatch, dataset, ["every", "half", "once"])
    logits, _ = fit_head(dataset, embedding)
    chance = 1 / (1 + np.exp(-logits[rows]))
    assert (chance[:, 0] > 0.8).all()
    assert (chance[:, 0] < 0.9).all()  # (n + 1) / (n + 2) of six or seven clips
    assert 0.1 < chance[3, 2] < 0.13


def test_several_labels(prepared, monkeypatch, informed):
    dataset, embedding, classes = informed
    labels = [(*row, "odd") if row and i % 2 else row for i, row in enumerate(dataset.labels)]
    monkeypatch.setitem(dataset.__dict__, "labels", labels)
    set_classes(monkeypatch, dataset, ["class_0", "class_1", "class_2", "odd"])
    logits, _ = fit_head(dataset, embedding)
    tests = np.setdiff1d(np.flatnonzero(dataset.columns["split"] == "test"), [30])
    assert np.isfinite(logits[tests]).all()
    assert (logits[tests, :3].argmax(1) == classes[tests]).mean() > 0.7


def test_a_class_without_labeled_clips_is_never_and_too_few_give_none(informed, monkeypatch):
    dataset, embedding, _ = informed
    set_classes(monkeypatch, dataset, [*dataset.classes, "unseen"])
    logits, _ = fit_head(dataset, embedding)
    assert (logits[~np.isnan(logits[:, 3]), 3] == -20).all()
    logits, told = fit_head(dataset, embedding, split="nowhere")
    assert logits is None
    assert told == {}


def test_all_folds_choose_the_regularization(informed):
    """Against a loop over strengths, folds and clips."""
    dataset, embedding, _ = informed
    rng = np.random.default_rng(3)
    embedding = embedding + 2 * rng.standard_normal(embedding.shape).astype(np.float32)
    rows = np.array([i for i in labeled_in_train(dataset) if not np.isnan(embedding[i]).any()])
    names = sorted({dataset.labels[i][0] for i in rows})
    targets = np.array([names.index(dataset.labels[i][0]) for i in rows])
    groups = dataset.columns["group"][rows]
    folds = list(GroupKFold(5, shuffle=True, random_state=0).split(rows, groups=groups))
    likelihood = {}
    for strength in (0.001, 0.01, 0.1, 1.0):
        found = []
        for fitted_on, held_out in folds:
            head = fit(embedding[rows[fitted_on]], targets[fitted_on], strength)
            known = list(head.classes_)
            total = len(fitted_on) + 3 - len(known)  # Laplace: a class that the fold lacks counts one more clip
            for row in held_out:
                p = head.predict_proba(embedding[rows[[row]]])[0]
                seen = targets[row] in known
                found.append(np.log((p[known.index(targets[row])] * len(fitted_on) if seen else 1) / total))
        likelihood[strength] = np.mean(found)
    assert fit_head(dataset, embedding)[1]["C"] == max(likelihood, key=likelihood.get)
