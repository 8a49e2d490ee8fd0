"""Audits: every score worked out in naive loops, the order of the table, what is missing."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from avdistill.analysis.audit.audit import audit
from avdistill.analysis.audit.scores import SCORES, percentiles
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.windows import evaluation_window
from avdistill.errors import DatasetError, RunError
from avdistill.inputs import normalize_frames
from avdistill.methods.kd import KDConfig
from avdistill.methods.mnf_csc import MNFCSCConfig, contrast_batches
from avdistill.methods.supervised import SupervisedConfig
from avdistill.training.setup import load_method
from support.audit_cases import LABELED, UNLABELED, VIEW, WITHOUT_TEACHER, by_id, changed, trained
from support.features import feature_arrays
from support.literal import softmax

FILTER_SCORES = ("gate", "similarity", "calibration")


@pytest.fixture(scope="module")
def runs(taught, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    return {
        "mnf_csc": trained(taught, folder / "mnf_csc", MNFCSCConfig()),
        "kd": trained(taught, folder / "kd", KDConfig()),
        "supervised": trained(taught, folder / "supervised", SupervisedConfig(), teacher=None),
    }


# The oracle: naive loops in float64 over what the networks say of one clip at a time


def outputs(run, dataset, teacher="audio"):
    """Per scored clip what the loops need, as lists of Python floats."""
    method, description = load_method(run, dataset)
    embedding, logits, present = feature_arrays(dataset, teacher)
    ids = dataset.columns["id"].tolist()
    said = {}
    for name in (*LABELED, *UNLABELED):
        clip = ids.index(name)
        assert present[clip]
        windows = torch.stack([evaluation_window(dataset.frames(clip), VIEW, 16000, s) for s in (0, 4, 8)])
        with torch.no_grad():
            features = method.student(normalize_frames(windows))
            squash = torch.sigmoid if description.multi_label else lambda x: x.softmax(1)
            one = {
                "student": squash(features.logits).mean(0),
                "v": features.embedding.mean(0),
                "teacher": torch.from_numpy(logits[clip]) if logits is not None else torch.zeros(0),
            }
            if hasattr(method, "filter"):
                filtered = method.filter(
                    teacher=torch.from_numpy(embedding[clip])[None],
                    tokens=features.tokens.mean(0)[None],
                    embedding=one["v"][None],
                )
                one |= {"gate": filtered.gate[0], "a": filtered.embedding[0], "s": filtered.guided[0]}
        said[name] = {key: values.double().tolist() for key, values in one.items()}
    return said


def cosine(x, y):
    dot = sum(a * b for a, b in zip(x, y, strict=True))
    return dot / (math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y)))


def pull(said, dataset, *, labeled, temperature):
    """(1 - P_ii) / T_ii, the columns of i being the batch's labeled clips and i."""
    order = [i for i in dataset.columns["id"].tolist() if i in said]
    flags = np.array([i in labeled for i in order])
    found = {}
    for rows in contrast_batches(flags, 6):
        batch = [order[i] for i in rows.tolist()]
        for i in batch:
            terms = {}
            for j in batch:
                if j == i or j in labeled:
                    T = max(temperature(said[i], said[j]), 0.01)
                    terms[j] = (cosine(said[i]["v"], said[j]["s"]) / T, T)
            total = sum(math.exp(score) for score, _ in terms.values())
            score, T = terms[i]
            found[i] = (1 - math.exp(score) / total) / T
    return found


def test_scores_of_the_filter_are_those_of_the_loops(taught, runs):
    rows = by_id(audit(runs["mnf_csc"], taught, batch_size=5))
    said = outputs(runs["mnf_csc"], taught)
    expected_pull = pull(said, taught, labeled=LABELED, temperature=lambda i, j: cosine(i["v"], j["a"]) + 0.07)
    assert len(set(expected_pull.values())) == 13
    for name, one in said.items():
        assert rows[name]["gate"] == pytest.approx(1 - sum(one["gate"]) / 16, rel=1e-4)
        assert rows[name]["similarity"] == pytest.approx(1 - cosine(one["v"], one["a"]), rel=1e-4)
        assert rows[name]["calibration"] == pytest.approx(expected_pull[name], rel=1e-4)


@pytest.mark.parametrize("method", ["mnf_csc", "kd"])
def test_scores_of_the_logits_are_those_of_the_loops(taught, runs, method):
    rows = by_id(audit(runs[method], taught))
    for name, one in outputs(runs[method], taught).items():
        row, p = rows[name], softmax(one["teacher"])
        agree = -math.log(sum(a * b for a, b in zip(one["student"], p, strict=True)))
        assert row["disagreement"] == pytest.approx(agree, rel=1e-5)
        if name in LABELED:
            assert row["teacher_nll"] == pytest.approx(-math.log(p[int(name[6:]) % 3]), rel=1e-5)
            assert row["mismatch_score"] == row["teacher_nll"]
        else:
            assert row["teacher_nll"] is None
            assert row["mismatch_score"] == row["disagreement"]
        assert row["teacher_class"] == f"class_{p.index(max(p))}"
        assert row["teacher_probability"] == pytest.approx(max(p), rel=1e-5)
        assert row["student_class"] == f"class_{one['student'].index(max(one['student']))}"
        assert row["student_probability"] == pytest.approx(max(one["student"]), rel=1e-5)
        if method == "kd":
            assert [row[score] for score in FILTER_SCORES] == [None] * 3


def test_the_contrast_is_that_of_the_runs_config(taught, tmp_path):
    run = trained(taught, tmp_path / "run", MNFCSCConfig(temperature="sample", unlabeled="pseudo_label"))
    rows = by_id(audit(run, taught))
    everybody = [*LABELED, *UNLABELED]
    said = outputs(run, taught)
    expected = pull(said, taught, labeled=everybody, temperature=lambda i, _j: 1 - cosine(i["v"], i["a"]))
    for name in everybody:
        assert rows[name]["calibration"] == pytest.approx(expected[name], rel=1e-4)


def test_several_labels(taught, tmp_path):
    several = {f"train_{i}": [f"class_{i % 3}", "class_0"] if i % 3 else ["class_0"] for i in range(9)}
    dataset = changed(taught, tmp_path / "dataset", {"labels": several})
    run = trained(dataset, tmp_path / "run", MNFCSCConfig())
    rows = by_id(audit(run, dataset))
    for name, one in outputs(run, dataset).items():
        p = [1 / (1 + math.exp(-z)) for z in one["teacher"]]
        agree = sum(a / sum(one["student"]) * b / sum(p) for a, b in zip(one["student"], p, strict=True))
        assert rows[name]["disagreement"] == pytest.approx(-math.log(agree), rel=1e-5)
        if name in LABELED:
            own = sorted({int(label[6:]) for label in several[name]})
            assert rows[name]["teacher_nll"] == pytest.approx(sum(-math.log(p[c]) for c in own) / len(own), rel=1e-5)
            assert rows[name]["label"].split("|") == several[name]


def test_batches_of_the_contrast_hold_every_row_once_and_equally_many_labeled():
    labeled = np.arange(101) % 7 == 0
    batches = contrast_batches(labeled, 10)
    assert sorted(torch.cat(batches).tolist()) == list(range(101))
    assert {len(b) for b in batches} == {9, 10}
    assert {int(labeled[b.numpy()].sum()) for b in batches} == {1, 2}
    assert all(torch.equal(a, b) for a, b in zip(batches, contrast_batches(labeled, 10), strict=True))
    assert [b.tolist() for b in contrast_batches(np.array([True]), 32)] == [[0]]


# The order


def test_percentiles_by_hand():
    nan = math.nan
    values = torch.tensor([3.0, 1.0, 1.0, nan, 40.0, 20.0, 30.0, 10.0], dtype=torch.float64)
    labeled = torch.tensor([True, True, True, True, False, False, False, False])
    apart = percentiles(values, labeled, by_group=True).tolist()
    assert apart[:3] == pytest.approx([2.5 / 3, 1 / 3, 1 / 3])
    assert math.isnan(apart[3])
    assert apart[4:] == [0.875, 0.375, 0.625, 0.125]
    together = percentiles(values, labeled, by_group=False).tolist()
    assert together[:3] == pytest.approx([2.5 / 7, 1 / 7, 1 / 7])


def test_groups_are_ranked_apart_and_merged(taught, runs):
    result = audit(runs["kd"], taught)
    ranked = [row for row in result.rows if row["rank"] is not None]
    assert [row["rank"] for row in ranked] == list(range(1, 14))
    for labeled, names in ((True, LABELED), (False, UNLABELED)):
        own = [row for row in ranked if row["labeled"] is labeled]
        assert sorted(row["id"] for row in own) == sorted(names)
        scores = [row["mismatch_score"] for row in own]
        assert scores == sorted(scores, reverse=True)
        n = len(own)
        assert [row["percentile"] for row in own] == pytest.approx([(n - i - 0.5) / n for i in range(n)])
    # 6 and 7 clips whose percentiles interleave: 13/14, 11/12, 11/14, 9/12, ...
    assert [row["labeled"] for row in ranked] == [False, True] * 6 + [False]
    ids = taught.columns["id"]
    assert [ids[clip] for clip in result.clips] == [row["id"] for row in result.rows]
    assert result.metrics["mismatch_score_from"] == {"labeled": "teacher_nll", "unlabeled": "disagreement"}


def test_clips_without_a_teacher_or_a_video_are_listed_last(taught, runs, tmp_path):
    dataset = changed(taught, tmp_path / "dataset", {"has_video": {"train_2": False, "train_4": False}})
    result = audit(runs["mnf_csc"], dataset)
    last = result.rows[12:]
    assert [row["id"] for row in last] == [i for i in by_order(dataset) if i in (*WITHOUT_TEACHER, "train_2")]
    assert {row["id"]: row["missing"] for row in last} == dict.fromkeys(WITHOUT_TEACHER, "teacher") | dict.fromkeys(
        ("train_2", "train_4"), "student"
    )
    assert all(row[key] is None for row in last for key in ("rank", "mismatch_score", *SCORES, "student_class"))
    metrics = result.metrics
    assert (metrics["clips"], metrics["scored"], metrics["ranked"]) == (20, 12, 12)
    assert (metrics["labeled"], metrics["unlabeled"]) == (5, 7)
    assert (metrics["without_teacher"], metrics["without_student"]) == (6, 2)


def by_order(dataset):
    return dataset.columns["id"].tolist()


@pytest.mark.parametrize("by", [score for score in SCORES if score != "mismatch_probability"])
def test_any_score_may_rank(taught, runs, by):
    result = audit(runs["mnf_csc"], taught, by=by)
    values = [row[by] for row in result.rows if row["rank"] is not None]
    assert len(values) == (6 if by == "teacher_nll" else 13)
    assert values == sorted(values, reverse=True)
    assert sum(row["rank"] is None for row in result.rows) == 20 - len(values)
    assert result.metrics["ranked"] == len(values)
    assert not result.metrics["merged_by_percentile"]


def test_a_run_without_a_teacher_takes_one_by_name(taught, runs):
    with pytest.raises(RunError, match=r"no teacher; name one of the dataset's with --teacher \(found: audio\)"):
        audit(runs["supervised"], taught)
    rows = by_id(audit(runs["supervised"], taught, teacher="audio"))
    assert [score for score in SCORES if rows["train_1"][score] is not None] == ["teacher_nll", "disagreement"]
    with pytest.raises(RunError, match="trained with teacher 'audio'"):
        audit(runs["kd"], taught, teacher="other")
    with pytest.raises(DatasetError, match="no teacher 'nobody'"):
        audit(runs["supervised"], taught, teacher="nobody")


def test_columns_of_the_logits_are_put_in_the_students_order(taught, runs, tmp_path):
    _, logits, present = feature_arrays(taught, "audio")
    logits[~present] = np.nan
    extra = np.concatenate([logits[:, [2, 0, 1]], np.full((len(logits), 1), -1e4, np.float32)], 1)
    dataset = changed(taught, tmp_path / "dataset", logits=extra, classes=("class_2", "class_0", "class_1", "more"))
    expected, found = by_id(audit(runs["kd"], taught)), by_id(audit(runs["kd"], dataset))
    for name in (*LABELED, *UNLABELED):
        assert found[name]["mismatch_score"] == pytest.approx(expected[name]["mismatch_score"], rel=1e-6)
        assert found[name]["teacher_class"] == expected[name]["teacher_class"]


def test_a_filter_is_not_fed_with_another_networks_features(taught, runs, tmp_path):
    dataset = changed(taught, tmp_path / "dataset")
    embedding, logits, present = feature_arrays(dataset, "audio")
    embedding[~present] = np.nan
    dataset.add_features(
        "audio",
        modality="audio",
        provenance={"name": "other"},
        embedding=embedding,
        logits=logits,
        classes=dataset.classes,
    )
    with pytest.raises(DatasetError, match="are by other, the run learned from those by test"):
        audit(runs["mnf_csc"], ClipDataset(dataset.folder))
    assert audit(runs["kd"], ClipDataset(dataset.folder)).metrics["scored"]  # looks at what is there


def test_a_teacher_without_logits(taught, runs, tmp_path):
    dataset = changed(taught, tmp_path / "dataset", logits=None, classes=())
    result = audit(runs["mnf_csc"], dataset)
    assert result.metrics["mismatch_score_from"] == {"labeled": "similarity", "unlabeled": "similarity"}
    scores = [row["mismatch_score"] for row in result.rows[:13]]
    assert scores == [row["similarity"] for row in result.rows[:13]] == sorted(scores, reverse=True)
    assert all(row["teacher_nll"] is None and row["teacher_class"] is None for row in result.rows)
    with pytest.raises(RunError, match="cannot rank by 'disagreement': it needs a teacher with logits"):
        audit(runs["mnf_csc"], dataset, by="disagreement")
    with pytest.raises(RunError, match="'audio' has no logits in the student's classes, and the run no noise filter"):
        audit(runs["supervised"], dataset, teacher="audio")
    with pytest.raises(RunError, match="cannot rank by 'gate': it needs a run of method mnf_csc"):
        audit(runs["kd"], taught, by="gate")


def test_the_audit_changes_nothing_and_does_not_depend_on_its_batches(taught, runs):
    before = {f: f.read_bytes() for f in runs["mnf_csc"].rglob("*") if f.is_file()}
    first, second = (audit(runs["mnf_csc"], taught, batch_size=n) for n in (1, 100))
    assert [row["id"] for row in first.rows] == [row["id"] for row in second.rows]
    for a, b in zip(first.rows[:13], second.rows[:13], strict=True):
        assert [a[s] for s in FILTER_SCORES] == pytest.approx([b[s] for s in FILTER_SCORES], rel=1e-4)
    assert before == {f: f.read_bytes() for f in runs["mnf_csc"].rglob("*") if f.is_file()}
