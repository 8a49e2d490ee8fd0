"""The exact form against a loop over cosines in float64; stale, damaged and interrupted indexes; wrong queries."""

from __future__ import annotations

import os
import shutil
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, SearchError
from avdistill.search import knn, qdrant
from avdistill.search.columns import FeaturesColumn
from avdistill.search.exact import ExactIndex
from avdistill.search.forms import build_index, open_index
from avdistill.search.index import Index
from support.s3_server import s3_server
from support.warm_python import WarmPython


def cosines(dataset: ClipDataset, teacher: str, query: np.ndarray) -> dict[str, float]:
    """By clip id, written out; clips without features are absent."""
    found = {}
    features = dataset.features(teacher)
    for clip, row, valid in zip(dataset.columns["id"], features.embedding, features.valid, strict=True):
        if valid:
            a, b = row.astype(np.float64), query.astype(np.float64)
            found[str(clip)] = float((a * b).sum() / np.sqrt((a * a).sum() * (b * b).sum()))
    return found


@pytest.fixture(scope="module", params=["exact", "lance", "qdrant"])
def index(request: pytest.FixtureRequest, taught: ClipDataset, tmp_path_factory: pytest.TempPathFactory) -> Index:
    out, patches = str(tmp_path_factory.mktemp("index") / "index"), pytest.MonkeyPatch()
    if request.param == "lance":
        pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install avdistill[search]")
    elif request.param == "qdrant":
        out = local_qdrant(patches)
    build_index([taught.folder], out, form=request.param)
    opened = open_index(out)
    patches.undo()  # which must not last as long as this fixture
    return opened


def local_qdrant(patches: pytest.MonkeyPatch) -> str:
    """A name in the client's own model of a server, which keeps points in memory."""
    client = pytest.importorskip(
        "qdrant_client", reason="qdrant-client is not installed: pip install avdistill[qdrant]"
    )
    local = client.QdrantClient(":memory:")
    patches.setattr(local, "create_payload_index", lambda *arguments: None)  # which it warns to have none of
    patches.setattr(qdrant, "connect", lambda location: local)
    return "http://127.0.0.1:6333/test"


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
        names = ("split", "start_seconds", "end_seconds", "has_video", "silent")
        values = {name: taught.columns[name][row] for name in names}
        values |= {"number": number, "labels": taught.labels[row], "label": taught.classes[0]}
        if holds(values):
            expected.add(ids[number])
    text = where.format(*ids, label=taught.classes[0])
    assert {hit.clip for hit in index.search_vector(np.ones(24), "audio", k=100, where=text)} == expected


def test_threads_that_ask_together_are_answered_together_and_each_its_own(
    taught: ClipDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    build_index([taught.folder], tmp_path / "index")
    index = open_index(tmp_path / "index")
    assert isinstance(index, ExactIndex)
    vectors = np.random.default_rng(0).standard_normal((12, index.space("audio").dim))
    asked = [(vector, None if i % 3 else "split = 'train'") for i, vector in enumerate(vectors)]

    def search(query: tuple[np.ndarray, str | None]) -> list[str]:
        return [hit.clip for hit in index.search_vector(query[0], "audio", k=3, where=query[1])]

    alone, counts = [search(query) for query in asked], []
    found = knn.nearest_units

    def counted(queries: np.ndarray, *more: object) -> object:
        counts.append(len(queries))
        return found(queries, *more)

    monkeypatch.setattr("avdistill.search.exact.nearest_units", counted)
    with ThreadPoolExecutor(12) as pool:
        with index._turn:
            answers = [pool.submit(search, query) for query in asked]
            while len(index._waiting) < 12:
                time.sleep(0.001)
        assert [each.result(60) for each in answers] == alone
    assert sorted(counts) == [4, 8]
    assert not index._waiting


def test_changed_features_make_an_index_stale_and_indexing_again_replaces_it(
    taught: ClipDataset, tmp_path: Path
) -> None:
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    for form in ("exact", "lance"):
        pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install avdistill[search]")
        before = build_index([dataset.folder], tmp_path / form, form=form)
        features = dataset.features("audio")
        changed = np.where(features.valid[:, None], features.embedding[:, ::-1], np.nan).astype(np.float32)
        dataset.add_features(
            "audio", modality="audio", provenance={"name": "test"}, embedding=changed, logits=None, classes=()
        )
        with pytest.raises(SearchError, match=r"stale: .*features 'audio' have changed; run `avdistill index` again"):
            open_index(tmp_path / form)
        assert before.search_vector(np.arange(24.0), "audio", k=1)  # one that is open stays as it was
        build_index([dataset.folder], tmp_path / form, form=form)
        if form == "lance":
            with pytest.raises(SearchError, match=r"LanceDB cannot read it: .*; open it again"):
                before.search_vector(np.arange(24.0), "audio", k=1)
        query = np.arange(24.0, dtype=np.float32)
        expected = cosines(dataset := ClipDataset(dataset.folder), "audio", query)
        assert open_index(tmp_path / form).search_vector(query, "audio", k=1)[0].clip == max(expected, key=expected.get)


def test_an_index_of_a_dataset_that_is_gone_still_opens(taught: ClipDataset, tmp_path: Path) -> None:
    shutil.copytree(taught.folder, tmp_path / "dataset")
    build_index([tmp_path / "dataset"], tmp_path / "index")
    shutil.rmtree(tmp_path / "dataset")
    assert open_index(tmp_path / "index").search_vector(np.ones(24), "audio", k=1)


def test_lance_keeps_every_row_once(taught: ClipDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install avdistill[search]")
    monkeypatch.setattr(FeaturesColumn, "rows", 3)  # several batches, which are joined at the end
    build_index([taught.folder], tmp_path / "index", form="lance")
    (table,) = (tmp_path / "index").glob("clips-*.lance")
    assert len(list((table / "data").iterdir())) == 1


def test_two_datasets_are_told_apart_by_name(taught: ClipDataset, tmp_path: Path) -> None:
    for name in ("a", "b"):
        shutil.copytree(taught.folder, tmp_path / name / "dataset")
    made = build_index([tmp_path / "a" / "dataset", tmp_path / "b" / "dataset"], tmp_path / "index")
    assert [source.name for source in made.description.sources] == ["a/dataset", "b/dataset"]
    clip = str(taught.columns["id"][np.flatnonzero(taught.features("audio").valid)[0]])
    with pytest.raises(SearchError, match="expected one, found it in a/dataset and b/dataset"):
        made.search_clip(clip)
    first = made.search_clip(clip, dataset="a/dataset", k=1)[0]
    assert (first.clip, first.dataset) == (clip, "b/dataset")
    assert first.score == pytest.approx(1, abs=1e-6)
    assert all(
        hit.dataset == "a/dataset" for hit in made.search_clip(clip, dataset="b/dataset", where="dataset = 'a/dataset'")
    )


def test_features_of_one_name_from_two_teachers_are_refused(taught: ClipDataset, tmp_path: Path) -> None:
    other = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    rows = np.ones((len(other), 24), np.float32)
    other.add_features("audio", modality="audio", provenance={"name": "b"}, embedding=rows, logits=None, classes=())
    with pytest.raises(SearchError, match="features 'audio': expected those of 'test' as in the datasets before"):
        build_index([taught.folder, other.folder], tmp_path / "index")


def test_spaces_are_compared_only_where_an_encoder_is_joint(taught: ClipDataset, tmp_path: Path) -> None:
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    rows = np.random.default_rng(5).standard_normal((len(dataset), 24)).astype(np.float32)
    dataset.add_features("video", modality="video", provenance={"name": "v"}, embedding=rows, logits=None, classes=())
    apart = build_index([dataset.folder], tmp_path / "apart")
    row = int(np.flatnonzero(taught.features("audio").valid)[0])
    clip = str(taught.columns["id"][row])
    with pytest.raises(SearchError, match="expected one space, found audio, video; name one"):
        apart.search_clip(clip)
    with pytest.raises(SearchError, match="'audio' and 'video': expected a common vector space, found two"):
        apart.search_clip(clip, space="audio", target="video")
    joint = build_index([dataset.folder], tmp_path / "joint", joint=[("audio", "video")])
    expected = cosines(ClipDataset(dataset.folder), "video", taught.features("audio").embedding[row])
    del expected[clip]
    found = joint.search_clip(clip, space="audio", target="video", k=3)
    assert [hit.clip for hit in found] == sorted(expected, key=expected.get, reverse=True)[:3]
    with pytest.raises(ConfigError, match="joint: no space 'text'"):
        build_index([dataset.folder], tmp_path / "joint", joint=[("audio", "text")])


KILLED = """
import os, signal, sys
from avdistill.search.columns import FeaturesColumn
from avdistill.search.forms import build_index

FeaturesColumn.rows = 3
vectors = FeaturesColumn.vectors

def killed(self, dataset, clips):
    if clips[0] == 6:
        os.kill(os.getpid(), signal.SIGKILL)
    return vectors(self, dataset, clips)

FeaturesColumn.vectors = killed
for form in sys.argv[3:]:
    process = os.fork()
    if process == 0:
        build_index([sys.argv[1]], os.path.join(sys.argv[2], form), form=form)
    print(form, os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]))
"""


def test_indexing_that_is_killed_goes_on_after_its_last_batch(
    taught: ClipDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, warm_python: WarmPython
) -> None:
    forms = ["exact", *(["lance"] if find_spec("lancedb") else [])]
    command = [sys.executable, "-c", KILLED, str(taught.folder), str(tmp_path), *forms]
    ended = warm_python.run(command, text=True, timeout=120, check=True).stdout
    assert ended == "".join(f"{form} -9\n" for form in forms)
    vectors, computed = FeaturesColumn.vectors, []

    def counted(self: FeaturesColumn, dataset: ClipDataset, clips: np.ndarray) -> np.ndarray:
        computed.extend(clips.tolist())
        return vectors(self, dataset, clips)

    monkeypatch.setattr(FeaturesColumn, "vectors", counted)
    query = np.arange(24.0, dtype=np.float32)
    expected = cosines(taught, "audio", query)
    for form in forms:
        with pytest.raises(SearchError, match="no index here"):
            open_index(tmp_path / form)
        computed.clear()
        build_index([taught.folder], tmp_path / form, form=form)
        assert computed == list(range(6, len(taught)))  # the two batches that were committed are not computed again
        hits = open_index(tmp_path / form).search_vector(query, "audio", k=100)
        assert [hit.clip for hit in hits] == sorted(expected, key=expected.get, reverse=True)


def test_nothing_but_an_index_is_replaced_and_a_damaged_one_is_refused(taught: ClipDataset, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "file").write_text("mine")
    for form in ("exact", "lance"):
        with pytest.raises(SearchError, match="expected an index or a free name, found something else"):
            build_index([taught.folder], tmp_path / "mine", form=form)
    assert (tmp_path / "mine" / "file").read_text() == "mine"
    with pytest.raises(SearchError, match="no index here"):
        open_index(tmp_path / "mine")
    build_index([taught.folder], tmp_path / "index")
    for name, content in (("vectors-0.npy", b""), ("index.json", b'{"version": 9}'), ("index.json", b"[" * 10**5)):
        whole = (tmp_path / "index" / name).read_bytes()
        (tmp_path / "index" / name).write_bytes(content)
        with pytest.raises(SearchError, match="damaged"):
            open_index(tmp_path / "index")
        (tmp_path / "index" / name).write_bytes(whole)
    assert open_index(tmp_path / "index")


@pytest.mark.parametrize("server", [False, True], ids=["local", "server"])
def test_indexing_on_qdrant_goes_on_and_the_alias_moves_to_the_new_index(
    taught: ClipDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: bool
) -> None:
    if server and "QDRANT_URL" not in os.environ:
        pytest.skip("no Qdrant server: QDRANT_URL is not set")
    out = f"{os.environ['QDRANT_URL']}/test-{os.getpid()}" if server else local_qdrant(monkeypatch)
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    monkeypatch.setattr(FeaturesColumn, "rows", 3)
    monkeypatch.setattr(qdrant, "_POINTS", 3)
    vectors, computed = FeaturesColumn.vectors, []

    def counted(self: FeaturesColumn, dataset: ClipDataset, clips: np.ndarray) -> np.ndarray:
        if clips[0] == 6 and len(computed) == 6:
            raise KeyboardInterrupt
        computed.extend(clips.tolist())
        return vectors(self, dataset, clips)

    monkeypatch.setattr(FeaturesColumn, "vectors", counted)
    with pytest.raises(KeyboardInterrupt):
        build_index([dataset.folder], out)
    with pytest.raises(SearchError, match="no index here"):
        open_index(out)
    build_index([dataset.folder], out)
    assert computed[6:] == list(range(3, len(taught)))  # the last request before the kill is sent again
    query = np.arange(24.0, dtype=np.float32)
    changed = np.nan_to_num(dataset.features("audio").embedding) + 1
    dataset.add_features("audio", modality="audio", provenance={}, embedding=changed, logits=None, classes=())
    with pytest.raises(SearchError, match="stale"):
        open_index(out)
    build_index([dataset.folder], out)
    expected = cosines(ClipDataset(dataset.folder), "audio", query)
    hits = open_index(out).search_vector(query, "audio", k=100)
    assert [hit.score for hit in hits] == pytest.approx(sorted(expected.values(), reverse=True), abs=1e-6)
    client, name = qdrant.connect(out), qdrant.collection_name(out)
    assert len([each for each in client.get_collections().collections if each.name.startswith(name)]) == 1
    with pytest.raises(ConfigError, match="Qdrant compares texts by =, != and IN, found <"):
        open_index(out).search_vector(query, "audio", where="id < 'a'")
    client.create_collection(f"{name}other", vectors_config={})
    with pytest.raises(SearchError, match="expected an index or a free name, found a collection"):
        build_index([dataset.folder], f"{out}other")
    with pytest.raises(SearchError, match="expected an index, found another collection"):
        open_index(f"{out}other")


def test_a_server_that_does_not_answer_is_one_line(taught: ClipDataset) -> None:
    pytest.importorskip("qdrant_client", reason="qdrant-client is not installed: pip install avdistill[qdrant]")
    with pytest.raises(SearchError, match=r"http://127\.0\.0\.1:1/x: the Qdrant server does not do it: .*refused"):
        open_index("http://127.0.0.1:1/x")
    with pytest.raises(ConfigError, match="expected http://host:port/collection"):
        build_index([taught.folder], "http://127.0.0.1:1")


@pytest.mark.parametrize(("place", "package"), [("index", "lancedb"), ("http://127.0.0.1:1/x", "qdrant_client")])
def test_a_missing_package_is_one_line(
    taught: ClipDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    out = place if "://" in place else str(tmp_path / place)
    extra = "search" if package == "lancedb" else "qdrant"
    with pytest.raises(SearchError, match=f"is not installed: install the extra '{extra}'"):
        build_index([taught.folder], out, form="lance" if package == "lancedb" else "qdrant")


def test_an_index_in_a_bucket(taught: ClipDataset, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("lancedb", reason="LanceDB is not installed: pip install avdistill[search]")
    with s3_server() as (address, objects):
        for name in ("ENDPOINT", "ENDPOINT_URL_S3", "ALLOW_HTTP", "REGION", "DEFAULT_REGION"):
            monkeypatch.delenv(f"AWS_{name}", raising=False)
        settings = {"ENDPOINT_URL": address, "ACCESS_KEY_ID": "name", "SECRET_ACCESS_KEY": "secret"}
        for name, value in settings.items():
            monkeypatch.setenv(f"AWS_{name}", value)
        with pytest.raises(SearchError, match="s3://bucket/clips: no index here"):
            open_index("s3://bucket/clips")
        build_index([taught.folder], "s3://bucket/clips")
        query = np.arange(24.0, dtype=np.float32)
        expected = cosines(taught, "audio", query)
        hits = open_index("s3://bucket/clips").search_vector(query, "audio", k=100)
        assert main(["fetch", "s3://bucket/clips", "--out", str(tmp_path / "clips")]) == 0
    fetched = open_index(tmp_path / "clips").search_vector(query, "audio", k=100)
    assert [hit.clip for hit in fetched] == [hit.clip for hit in hits]
    assert [hit.clip for hit in hits] == sorted(expected, key=expected.get, reverse=True)
    assert {name.split("/")[1] for name in objects} == {"clips"}
