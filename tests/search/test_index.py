"""The exact form against a loop over cosines in float64; stale, damaged and interrupted indexes; wrong queries."""

from __future__ import annotations

import numpy as np
import pytest

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, SearchError
from avdistill.search.forms import build_index, open_index
from avdistill.search.index import Index


def cosines(dataset: ClipDataset, teacher: str, query: np.ndarray) -> dict[str, float]:
    """By clip id, written out; clips without features are absent."""
    found = {}
    features = dataset.features(teacher)
    for clip, row, valid in zip(dataset.columns["id"], features.embedding, features.valid, strict=True):
        if valid:
            a, b = row.astype(np.float64), query.astype(np.float64)
            found[str(clip)] = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    return found


@pytest.fixture(scope="module", params=["exact", "lance"])
def index(request: pytest.FixtureRequest, taught: ClipDataset, tmp_path_factory: pytest.TempPathFactory) -> Index:
    if request.param == "lance":
        pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install avdistill[search]")
    out = tmp_path_factory.mktemp("index") / "index"
    build_index([taught.folder], out, form=request.param)
    return open_index(out)


def test_a_vector_finds_the_clips_of_highest_cosine(index: Index, taught: ClipDataset) -> None:
    query = np.random.default_rng(3).standard_normal(24).astype(np.float32)
    expected = cosines(taught, "audio", query)
    hits = index.search_vector(query, "audio", k=100)
    assert [hit.clip for hit in hits] == sorted(expected, key=expected.__getitem__, reverse=True)
    assert [hit.score for hit in hits] == pytest.approx([expected[hit.clip] for hit in hits], abs=1e-6)
    assert [hit.clip for hit in index.search_vector(5 * query, "audio", k=2)] == [hit.clip for hit in hits[:2]]


def test_a_hit_says_what_the_clip_is(index: Index, taught: ClipDataset) -> None:
    hit = index.search_vector(np.ones(24), "audio", k=1)[0]
    row = taught.columns["id"].tolist().index(hit.clip)
    c = taught.columns
    assert (hit.dataset, hit.split, hit.path) == ("dataset", c["split"][row], c["path"][row])
    assert hit.labels == taught.labels[row]
    assert hit.start_seconds == c["start_seconds"][row]


def test_a_clip_finds_its_neighbors_without_itself(index: Index, taught: ClipDataset) -> None:
    features = taught.features("audio")
    row = int(np.flatnonzero(features.valid)[0])
    name = str(taught.columns["id"][row])
    expected = cosines(taught, "audio", features.embedding[row])
    del expected[name]
    hits = index.search_clip(name, k=3)
    assert [hit.clip for hit in hits] == sorted(expected, key=expected.__getitem__, reverse=True)[:3]


def test_a_label_finds_the_clips_nearest_to_the_mean_direction_of_its_clips(index: Index, taught: ClipDataset) -> None:
    features, label = taught.features("audio"), taught.classes[0]
    members = [row for row, names in enumerate(taught.labels) if label in names and features.valid[row]]
    rows = features.embedding[members].astype(np.float64)
    expected = cosines(taught, "audio", (rows / np.linalg.norm(rows, axis=1)[:, None]).mean(0))
    hits = index.search_label(label, k=100)
    assert [hit.clip for hit in hits] == sorted(expected, key=expected.__getitem__, reverse=True)
    others = index.search_label(label, k=100, where=f"NOT labels = '{label}'")
    assert [hit.clip for hit in others] == [hit.clip for hit in hits if label not in hit.labels]


def test_a_condition_does_not_reduce_the_number_of_hits(index: Index, taught: ClipDataset) -> None:
    """It comes before the search: the k best of those that meet it, not those of the k best that do."""
    query = np.ones(24, np.float32)
    every = index.search_vector(query, "audio", k=100)
    last = every[-1]
    assert [hit.clip for hit in index.search_vector(query, "audio", k=1, where=f"id = '{last.clip}'")] == [last.clip]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda i: i.search_vector(np.ones(24), "nothing"), "no space 'nothing'; found audio"),
        (lambda i: i.search_vector(np.ones(23), "audio"), "expected a vector of 24 numbers, found (23,)"),
        (lambda i: i.search_vector(np.zeros(24), "audio"), "expected finite numbers other than 0"),
        (lambda i: i.search_vector(np.full(24, np.nan), "audio"), "expected finite numbers"),
        (lambda i: i.search_vector(np.ones(24), "audio", k=0), "k: expected at least 1"),
        (lambda i: i.search_vector(np.ones(24), "audio", where="splt = 'x'"), "where: character 1: expected a column"),
        (lambda i: i.search_clip("nobody"), "expected a clip 'nobody' with a vector in 'audio', found none"),
        (lambda i: i.search_label("nothing"), "expected clips labeled 'nothing'"),
        (lambda i: i.search_file("a.mp4", modality="video"), "expected one space of video, found none"),
        (lambda i: i.search_file("a.mp4"), "expected the encoder that computed it (test), found none"),
    ],
)
def test_a_search_that_cannot_be_answered_is_one_line_and_exit_code_2(index: Index, call, message: str) -> None:
    with pytest.raises((SearchError, ConfigError)) as error:
        call(index)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.exit_code == 2


CONDITIONS = [
    ("split = 'train'", lambda row: row["split"] == "train"),
    ("split != 'train'", lambda row: row["split"] != "train"),
    ("id IN ('{0}', '{1}', 'it''s')", lambda row: row["number"] < 2),
    ("id NOT IN ('{0}', '{1}')", lambda row: row["number"] >= 2),
    ("labels = '{label}'", lambda row: row["label"] in row["labels"]),
    ("NOT labels = '{label}'", lambda row: row["label"] not in row["labels"]),
    ("labels IN ('{label}', 'none')", lambda row: row["label"] in row["labels"]),
    ("labeled", lambda row: bool(row["labels"])),
    ("NOT (labeled AND has_video = true)", lambda row: not (row["labels"] and row["has_video"])),
    ("start_seconds >= 0.5 OR has_video", lambda row: row["start_seconds"] >= 0.5 or row["has_video"]),
    ("start_seconds < 0.5 and not silent", lambda row: row["start_seconds"] < 0.5 and not row["silent"]),
    ("end_seconds IS NULL", lambda row: not np.isfinite(row["end_seconds"])),
    ("mismatch_score IS NULL", lambda row: True),
    ("NOT mismatch_score IS NULL", lambda row: False),
    ("mismatch_score < 0.5", lambda row: False),
    ("NOT (mismatch_score < 0.5)", lambda row: False),
    ("group != 'x' AND path != 'y' AND dataset = 'dataset'", lambda row: True),
]


@pytest.mark.parametrize(("where", "holds"), CONDITIONS, ids=[where for where, _ in CONDITIONS])
def test_a_condition_selects_the_same_clips_in_every_form(index: Index, taught: ClipDataset, where, holds) -> None:
    valid = taught.features("audio").valid
    ids = [str(taught.columns["id"][row]) for row in np.flatnonzero(valid)]
    expected = set()
    for number, row in enumerate(np.flatnonzero(valid)):
        values = {name: column[row] for name, column in taught.columns.items()}
        values |= {"number": number, "labels": taught.labels[row], "label": taught.classes[0]}
        if holds(values):
            expected.add(ids[number])
    text = where.format(*ids, label=taught.classes[0])
    assert {hit.clip for hit in index.search_vector(np.ones(24), "audio", k=100, where=text)} == expected
