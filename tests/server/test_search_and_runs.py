"""Search in an index, and the pages of runs and studies."""

from __future__ import annotations

import csv
import json
import shlex
import shutil
import subprocess
from pathlib import Path

import numpy as np
import pytest

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, SearchError
from avdistill.search.forms import build_index, open_index
from avdistill.server import searcher
from avdistill.server.config import ServeConfig
from avdistill.server.run_files import chart, expand, read_run
from support.live_server import finished, live


@pytest.mark.parametrize("space", ["audio", "run"])
def test_neighbors_are_those_of_the_index(served, indexed, server, space):
    expected = open_index(indexed).search_clip("train_1", space=space, k=24)
    found = server.ask(f"/api/search?clip=train_1&space={space}").json["clips"]
    assert [(clip["id"], clip["similarity"]) for clip in found] == [(hit.clip, hit.score) for hit in expected]
    page = server.ask(f"/search?clip=train_1&space={space}").text
    assert page.count("/media/thumbnail/") == sum(clip["has_video"] for clip in found)
    assert f"nearest clips by {space}" in server.ask("/clip/train_1").text


def test_audio_finds_video_where_they_share_a_space(served, server, tmp_path):
    dataset = ClipDataset(shutil.copytree(served[0].folder, tmp_path / "dataset"))
    rows = np.random.default_rng(5).standard_normal((len(dataset), 24)).astype(np.float32)
    dataset.add_features("video", modality="video", provenance={"name": "v"}, embedding=rows, logits=None, classes=())
    joint = build_index([dataset.folder], tmp_path / "index", joint=[("audio", "video")])
    expected = joint.search_clip("train_1", space="audio", target="video", k=5)
    with live(ServeConfig(dataset=dataset.folder, index=str(tmp_path / "index"))) as other:
        found = other.ask("/api/search?clip=train_1&space=audio&target=video&k=5").json["clips"]
        assert [clip["id"] for clip in found] == [hit.clip for hit in expected]
        same = other.ask("/api/search?clip=train_1&space=audio&k=5").json["clips"]
        assert [clip["id"] for clip in same] != [clip["id"] for clip in found]
        assert 'name="target"' in other.ask("/search?clip=train_1&space=audio&target=video").text
        assert other.ask("/api/search?label=class_1&space=audio&target=video").status == 400
    refused = server.ask("/api/search?clip=train_1&space=run&target=audio")
    assert (refused.status, "expected a common vector space" in refused.json["error"]) == (400, True)
    assert 'name="target"' not in server.ask("/search").text


def test_labels_and_conditions(server):
    clips = server.ask("/api/search?label=class_1&space=run&where=split%20=%20'test'&k=3").json["clips"]
    assert len(clips) == 3
    assert all(clip["split"] == "test" for clip in clips)


@pytest.mark.parametrize(
    "query",
    ["clip=nothing&space=run", "label=nothing&space=run", "clip=train_1&space=no", "clip=train_1&space=run&where=x",
     "clip=train_1&space=run&k=0", "clip=train_1&label=class_1", "", "clip=train_1&where=" + "x" * 3000],
)  # fmt: skip
def test_impossible_searches_are_refused_in_words(server, query):
    answer = server.ask(f"/api/search?{query}")
    assert (answer.status, list(answer.json)) == (400, ["error"])


def test_an_uploaded_clip_finds_itself_first(served, server, small_set):
    """The file of a clip is nearest to the clip that was prepared from it."""
    content = (small_set[0] / "test_2.mp4").read_bytes()
    job = server.upload("/api/searches", content, space="run").json["id"]
    found = finished(server, job, "searches")
    assert found["state"] == "done", found
    assert found["clips"][0]["id"] == "test_2"
    assert found["clips"][0]["similarity"] == pytest.approx(1, abs=1e-4)
    assert server.ask(f"/api/predictions/{job}").status == 404
    assert "/clip/test_2" in server.ask(f"/search/{job}?part=result").text


def test_an_index_of_another_dataset_is_refused(indexed, many_clips):
    with (
        pytest.raises(SearchError, match="expected an index of"),
        live(ServeConfig(dataset=many_clips.folder, index=str(indexed))),
    ):
        pass


def test_a_run_shows_its_curves(served, server):
    lines = [json.loads(line) for line in (served[1] / "metrics.jsonl").read_text().splitlines()]
    answer = server.ask("/api/runs/run").json
    assert answer["curves"]["losses"]["classification"] == [
        [line["step"], line["losses"]["classification"]] for line in lines if "losses" in line
    ]
    page = server.ask("/runs/run")
    assert page.text.count("<polyline") >= 1
    assert "refresh" not in page.headers
    assert "mnf_csc" in server.ask("/runs").text
    assert server.ask("/runs/nothing").status == 404


def test_a_run_that_trains_is_asked_again_and_a_damaged_one_says_so(served, tmp_path):
    training, damaged = (shutil.copytree(served[1], tmp_path / name) for name in ("training", "damaged"))
    lines = (training / "metrics.jsonl").read_bytes().splitlines(keepends=True)
    config = json.loads((training / "config.json").read_text())
    (training / "config.json").write_text(json.dumps(config | {"steps": 100}))
    (training / "metrics.jsonl").write_bytes(lines[0] + lines[0][:9])  # a line that is being written
    (damaged / "metrics.jsonl").write_text("no json\n")
    with live(ServeConfig(runs=(training, damaged))) as server:
        page = server.ask("/runs/training")
        assert page.headers["refresh"] == "5"
        assert server.ask("/api/runs/training").json["training"]
        assert "expected a JSON object" in server.ask("/runs/damaged").text
        rows = {row["run"]: row["state"] for row in server.ask("/api/runs").json["runs"]}
        assert rows == {"training": "training", "damaged": "damaged"}


def test_a_study_shows_its_table_and_its_runs(served, tmp_path):
    study = tmp_path / "study"
    run = shutil.copytree(served[1], study / "runs" / "clean" / "mnf_csc" / "seed-0")
    table = [{"corruption": "clean", "method": "<b>mnf", "n": 1, "top1_accuracy": 0.4321}]
    (study / "results.json").write_text(json.dumps({"table": table}))
    assert expand((study, served[1])) == ([run, served[1]], [study])
    with live(ServeConfig(runs=(study,))) as server:
        text = server.ask("/runs").text
        assert "&lt;b&gt;mnf" in text
        assert "0.432" in text
        (study / "results.json").write_text("{")
        assert "expected the results of a study" in server.ask("/runs").text


def test_a_chart_is_to_scale():
    drawn = chart({"a": [(0, 1.0), (10, 3.0)], "b": [(5, 2.0)], "c": []})
    assert [line["points"] for line in drawn["lines"]] == ["0.0,200.0 600.0,0.0", "300.0,100.0"]
    assert chart({}) is None
    long = chart({"a": [(i, float(i)) for i in range(5000)]})["lines"][0]["points"].split()
    assert len(long) <= 301
    assert long[-1] == "600.0,0.0"


def test_results_of_evaluate_are_in_the_row(served, tmp_path):
    run = shutil.copytree(served[1], tmp_path / "run")
    (run / "evaluation-test").mkdir()
    (run / "evaluation-test" / "metrics.json").write_text('{"top1_accuracy": 0.25, "clips": 6}')
    assert read_run("run", run).row["evaluation-test: top1_accuracy"] == 0.25


# The interface for scripts


def test_every_address_for_scripts_is_in_the_openapi_file(server):
    described = server.ask("/api/openapi.json").json
    assert described["openapi"].startswith("3.1")
    operations = {
        (path, method.upper()) for path, item in described["paths"].items() for method in item if method != "parameters"
    }
    routes = {
        (route.path.replace("{clip:clip}", "{id}").replace("{run:clip}", "{run}"), method)
        for route in server.app.routes
        if route.path.startswith("/api/")
        for method in route.methods - {"HEAD"}
    }
    assert operations == routes
    schemas = described["components"]["schemas"]
    references = set(json.dumps(described).split('"#/components/schemas/')[1:])
    assert {text.partition('"')[0] for text in references} <= schemas.keys()
    for path, schema in (
        ("/api/dataset", "Dataset"), ("/api/clips", "Clips"), ("/api/clips/train_1", "ClipDetails"),
        ("/api/runs", "Runs"), ("/api/runs/run", "RunState"), ("/api/review?by=x", "Review"),
        ("/api/search?label=class_1&space=run", "Found"),
    ):  # fmt: skip
        answer = server.ask(path).json
        assert set(answer) == set(schemas[schema]["properties"]), path
        assert set(schemas[schema].get("required", ())) <= set(answer)
    clip = server.ask("/api/clips?size=1").json["clips"][0]
    assert set(clip) == set(schemas["Clip"]["properties"]) - {"similarity"}


def test_the_examples_of_the_documents_run(server, video):
    if shutil.which("curl") is None:
        pytest.skip("curl is not installed")
    page = (Path(__file__).resolve().parents[2] / "docs" / "serve.md").read_text()
    lines = [line for line in page.splitlines() if line.startswith("curl ")]
    assert len(lines) >= 8
    for line in lines:
        words = shlex.split(line.replace("http://127.0.0.1:8080", server.url).replace("@video.mp4", f"@{video}"))
        done = subprocess.run(words, capture_output=True, check=False, timeout=60)
        assert done.returncode == 0, line
        if not line.endswith(".csv"):
            assert json.loads(done.stdout), line


def test_clips_over_the_interface_are_those_of_the_library(served, server):
    first = server.ask("/api/clips?size=20&order=mismatch").json
    second = server.ask("/api/clips?size=20&order=mismatch&page=2").json
    assert (first["total"], first["pages"]) == (len(served[0]), 2)
    ids = [clip["id"] for clip in first["clips"] + second["clips"]]
    assert sorted(ids) == sorted(served[0].columns["id"].tolist())
    with (served[1] / "audit-train" / "clips.csv").open(newline="") as file:
        assert ids[0] == next(csv.DictReader(file))["id"]
    answer = server.ask("/api/clips/nothing")
    assert (answer.status, list(answer.json)) == (404, ["error"])


def test_words_find_clips_where_there_is_an_encoder_of_texts(served, indexed, monkeypatch):
    """The encoder is a stand-in that embeds every text as the clip of that name is: its vector is nearest."""
    dataset = served[0]
    embedding = dataset.features("audio").embedding

    class Encoder:
        provenance = dataset.teachers["audio"].provenance

        def embed(self, text):
            return embedding[dataset.columns["id"].tolist().index(text)]

    monkeypatch.setattr(searcher, "load_text_encoder", lambda name: Encoder())
    with live(ServeConfig(dataset=dataset.folder, index=str(indexed), text_encoder="stand-in")) as server:
        found = server.ask("/api/search?text=test_3").json["clips"]
        assert found[0]["id"] == "test_3"
        assert server.ask("/api/search?text=test_3&space=run").status == 400
        assert "Search by words" in server.ask("/search?text=test_3").text
    with pytest.raises(ConfigError, match="expected with --index"):
        ServeConfig(dataset=dataset.folder, text_encoder="stand-in")
