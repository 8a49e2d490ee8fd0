"""Clips to label next: they cover the space, no source video twice, and the list is a file to fill in."""

import csv
import json

import numpy as np
import pytest

from avdistill.analysis.suggest import COLUMNS, choose, suggest
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError
from avdistill.methods.kd import KDConfig
from avdistill.training import train
from support.training_cases import config


def blobs(sizes, spread=0.02, seed=0):
    """(N, D) embeddings of well separated clusters, and which cluster each row is of."""
    rng = np.random.default_rng(seed)
    cluster = np.repeat(np.arange(len(sizes)), sizes)
    return np.eye(8)[cluster] + spread * rng.standard_normal((len(cluster), 8)), cluster


def test_every_part_of_the_space_is_covered_the_largest_first():
    embedding, cluster = blobs([5, 30, 12, 20])
    chosen = choose(embedding, np.zeros(67, bool), np.arange(67).astype(str), count=4)
    assert cluster[chosen].tolist() == [1, 3, 2, 0]
    for row in chosen:  # the clip with the nearest neighbors of its cluster
        inside = np.flatnonzero(cluster == cluster[row])
        unit = embedding[inside] / np.linalg.norm(embedding[inside], axis=1, keepdims=True)
        distances = np.sort(np.linalg.norm(unit[:, None] - unit, axis=2), axis=1)[:, 1:21].mean(1)
        assert row == inside[distances.argmin()]


def test_what_labels_cover_comes_last_and_weight_decides_among_neighbors():
    embedding, cluster = blobs([30, 10, 5])
    labeled = np.zeros(45, bool)
    labeled[3] = True
    groups = np.arange(45).astype(str)
    assert cluster[choose(embedding, labeled, groups, count=2)].tolist() == [1, 2]
    weight = np.zeros(45)
    weight[33] = 100.0
    assert choose(embedding, labeled, groups, count=1, weight=weight) == [33]


def test_a_source_video_comes_once_while_others_are_left():
    embedding, _ = blobs([6, 6])
    groups = np.array(["a"] * 6 + ["b"] * 3 + ["c"] * 3)
    chosen = choose(embedding, np.zeros(12, bool), groups, count=12)
    assert sorted(groups[chosen[:3]]) == ["a", "b", "c"]
    assert sorted(chosen) == list(range(12))
    assert choose(embedding, np.ones(12, bool), groups, count=3) == []


def test_the_list_is_a_file_to_fill_in(many_clips, tmp_path, capsys):
    out = tmp_path / "list.csv"
    split = [*("--split", "test"), "--features", "audio"]
    with pytest.raises(DatasetError, match="expected clips without a label, found a label on each"):
        suggest(many_clips, split="test")
    assert main(["corrupt", str(many_clips.folder), "label_fraction=0.3", "--out", str(tmp_path / "few")]) == 0
    few = ClipDataset(tmp_path / "few")
    capsys.readouterr()
    assert main(["suggest", str(few.folder), "-n", "5", "--out", str(out), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    with out.open(newline="") as file:
        rows = list(csv.DictReader(file))
    unlabeled = {few.columns["id"][i] for i in range(len(few)) if not few.labels[i]}
    assert list(rows[0]) == list(COLUMNS)
    assert [row["id"] for row in rows] == [row["id"] for row in told["suggested"]]
    assert len({row["id"] for row in rows} & unlabeled) == 5
    assert {row["label"] for row in rows} == {""}
    assert main(["suggest", str(few.folder), *split]) == 1
    assert main(["suggest", str(few.folder), "-n", "0"]) == 2
    assert main(["suggest", str(few.folder), "--features", "nothing"]) == 1


def test_a_run_embeds_and_its_disagreement_counts(many_clips, tmp_path):
    assert main(["corrupt", str(many_clips.folder), "label_fraction=0.3", "--out", str(tmp_path / "few")]) == 0
    few = ClipDataset(tmp_path / "few")
    run = train(config(few.folder, tmp_path / "run", method=KDConfig(), teacher="audio"))
    rows = suggest(few, count=100, run=run)
    unlabeled = sum(not few.labels[i] and few.columns["split"][i] == "train" for i in range(len(few)))
    assert len(rows) == unlabeled
    assert all(0 <= row["disagreement"] <= 1 for row in rows)
    assert all(row["disagreement"] is None for row in suggest(few, count=3))
