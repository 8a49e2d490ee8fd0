"""The exact form against a loop over cosines in float64; stale, damaged and interrupted indexes; wrong queries."""

from __future__ import annotations

import numpy as np
import pytest

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, SearchError
from avdistill.search.forms import build_index
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


@pytest.fixture(scope="module")
def index(taught: ClipDataset, tmp_path_factory: pytest.TempPathFactory) -> Index:
    return build_index([taught.folder], tmp_path_factory.mktemp("index") / "index")


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
        (lambda i: i.search_file("a.mp4"), "expected the encoder that computed it, 'test', found none"),
    ],
)
def test_a_search_that_cannot_be_answered_is_one_line_and_exit_code_2(index: Index, call, message: str) -> None:
    with pytest.raises((SearchError, ConfigError)) as error:
        call(index)
    assert message in str(error.value)
    assert len(str(error.value).splitlines()) == 1
    assert error.value.exit_code == 2
