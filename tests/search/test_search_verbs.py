"""`avdistill index` and `avdistill search` with a student: what is indexed is found by its own file."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.evaluation.retrieval import retrieve
from avdistill.inference.predictor import Student
from avdistill.inference.runner import run_network
from avdistill.inputs import AudioInput, VideoInput
from avdistill.methods.cmc import CMCConfig
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.models.checkpoint import load_student, save_student
from avdistill.models.noise_filter import NoiseFilter
from avdistill.models.registry import build_model
from avdistill.search.forms import open_index
from avdistill.teachers.extraction import embed
from avdistill.teachers.registry import load_teacher
from avdistill.training import train
from avdistill.types import StudentConfig
from support.training_cases import STUDENT, config


@pytest.fixture(scope="module")
def students(taught: ClipDataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A video and an audio student of random weights."""
    folder, found = tmp_path_factory.mktemp("students"), []
    views = {"shifted_frames": VideoInput(frames=4, size=(24, 32)), "logmel_cnn": AudioInput(seconds=0.3)}
    for name, view in views.items():
        torch.manual_seed(0)
        config = StudentConfig(
            name, taught.classes, view, taught.fps, taught.sample_rate_hz, options={"width": 8}, **taught.video_reading
        )
        student = build_model(name, len(taught.classes), config.options)
        (folder / view.modality / "best").mkdir(parents=True)
        save_student(folder / view.modality / "best", student, config)
        (folder / view.modality).rename(folder / f"{view.modality}_run")
        found.append(folder / f"{view.modality}_run")
    return found[0], found[1]


@pytest.fixture(scope="module")
def index(taught: ClipDataset, students: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("index") / "index"
    audit = tmp_path_factory.mktemp("audit")
    scored = [str(name) for name in taught.columns["id"][:4]]
    with (audit / "clips.csv").open("w", newline="") as file:
        rows = csv.DictWriter(file, ["id", "mismatch_score", "mismatch_probability"])
        rows.writeheader()
        rows.writerows(
            {"id": name, "mismatch_score": n, "mismatch_probability": n / 4} for n, name in enumerate(scored)
        )
    (audit / "audit.json").write_text(json.dumps({"settings": {"dataset_checksum": taught.checksum}}))
    assert main(["index", str(taught.folder), *map(str, students), "--out", str(out), "--audit", str(audit)]) == 0
    return out


@pytest.fixture
def search(index: Path, capsys: pytest.CaptureFixture[str]):
    def call(*words: str) -> dict:
        capsys.readouterr()
        assert main(["search", str(index), *words, "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return call


@pytest.mark.parametrize("modality", ["video", "audio"])
def test_a_file_finds_its_own_clip_first(
    modality: str, search, small_set, taught: ClipDataset, students: tuple[Path, Path]
) -> None:
    """The clip that is the whole of its file."""
    c = taught.columns
    counts = {path: c["path"].tolist().count(path) for path in c["path"]}
    row = next(
        i
        for i, name in enumerate(c["path"])
        if counts[name] == 1 and c[f"has_{modality}"][i] and not c["silent"][i] and c["start_seconds"][i] == 0
    )
    file = small_set[0] / c["path"][row]
    found = search(f"--{modality}", str(file), "--space", f"{modality}_run")
    assert found["hits"][0]["clip"] == c["id"][row]
    assert found["hits"][0]["score"] == pytest.approx(1, abs=1e-4)
    assert found["hits"][0]["score"] > found["hits"][1]["score"]


def test_the_neighbors_of_a_clip_are_those_of_retrieve(search, taught: ClipDataset, students) -> None:
    result = retrieve(students[0], taught, query_split="test", gallery_split="train", ks=(1, 3))
    for row in result.neighbors[:3]:
        where = "split = 'train' AND labeled"
        hits = search("--clip", row["id"], "--space", "video_run", "--where", where, "--k", "3")["hits"]
        assert [hit["score"] for hit in hits] == pytest.approx(row["cosine"], abs=1e-4)


def test_the_scores_of_an_audit_are_named_in_conditions(search, taught: ClipDataset) -> None:
    hits = search("--label", taught.classes[0], "--space", "audio", "--where", "mismatch_probability < 0.5")["hits"]
    assert {hit["clip"] for hit in hits} <= set(taught.columns["id"][:2])
    assert hits


def test_a_student_that_has_changed_makes_the_index_stale(index: Path, students, capsys) -> None:
    weights = students[0] / "best" / "model.safetensors"
    whole = weights.read_bytes()
    student = Student.from_pretrained(students[0])
    with torch.no_grad():
        next(student.network.parameters()).add_(1)
    student.save_pretrained(students[0] / "best")
    try:
        assert main(["search", str(index), "--clip", "x"]) == 2
        assert f"stale: {students[0]}: the student has changed" in capsys.readouterr().err
    finally:
        weights.write_bytes(whole)
    assert open_index(index)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ([], "expected one of --video, --audio, --clip, --text, --label, found none"),
        (["--clip", "a", "--label", "b"], "found --clip and --label"),
        (["--clip", "a"], "expected one space, found audio, video_run, audio_run; name one"),
        (["--label", "a", "--space", "x"], "no space 'x'; found audio, video_run, audio_run"),
        (["--audio", "a.wav", "--space", "video_run"], "no space 'video_run'; found audio, audio_run of audio"),
        (["--label", "class_0", "--space", "audio", "--where", "split == 'a'"], "where: character 8: expected a text"),
        (["--label", "class_0", "--space", "audio", "--where", "split = 'a"], "where: character 9: expected a column"),
        (["--label", "class_0", "--space", "audio", "--where", "silent > 1"], "where: character 8: expected = or !="),
        (["--label", "class_0", "--space", "audio", "--where", "(" * 99], "at most 50 nested conditions"),
        (["--label", "class_0", "--space", "audio", "--k", "0"], "k: expected at least 1"),
        (["--text", "rowing", "--space", "audio"], "--text: expected --encoder, the joint encoder"),
        (["--audio", "missing.wav", "--space", "audio_run"], "missing.wav"),
    ],
)
def test_a_wrong_search_is_one_line(index: Path, words: list[str], message: str, capsys) -> None:
    code = main(["search", str(index), *words])
    error = capsys.readouterr().err
    assert code == (1 if "missing.wav" in words else 2)
    assert message in error
    assert len(error.splitlines()) == 1


def test_a_wrong_index_is_one_line(taught: ClipDataset, prepared: Path, tmp_path: Path, capsys) -> None:
    calls = {
        "no index here": ["search", str(tmp_path), "--clip", "a"],
        "expected a dataset, or a run": ["index", str(tmp_path), "--out", str(tmp_path / "i")],
        "expected a run, or datasets with features": ["index", str(prepared), "--out", str(tmp_path / "i")],
        "expected form 'exact' there, found 'qdrant'": ["index", "d", "--out", str(tmp_path / "i"), "--form", "qdrant"],
        "expected a folder, s3://": ["index", "d", "--out", "ftp://x/y"],
        "expected what `avdistill audit` writes": [
            "index", str(taught.folder), "--out", str(tmp_path / "i"), "--audit", str(tmp_path)
        ],
    }  # fmt: skip
    for message, words in calls.items():
        assert main(words) == 2, message
        error = capsys.readouterr().err
        assert message in error
        assert len(error.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("method", ["cmc", "mnf_csc"])
def test_a_clip_finds_clips_of_the_other_modality_where_a_method_shares_a_space(
    method: str, many_clips: ClipDataset, students, request: pytest.FixtureRequest, tmp_path: Path, capsys
) -> None:
    embed(many_clips, load_teacher(students[1]), "audio")
    many_clips = ClipDataset(many_clips.folder)
    method_config = {"cmc": CMCConfig(width=6), "mnf_csc": MNFCSCConfig()}[method]
    run = train(config(many_clips.folder, tmp_path / "run", method=method_config, teacher="audio", steps=2))
    index = tmp_path / "index"
    assert main(["index", str(run), "--out", str(index), "--cross-modal"]) == 0
    network, _ = load_student(run / "last")
    clips = np.arange(len(many_clips))
    outputs = run_network(network, many_clips, clips, STUDENT.view, with_tokens=True)
    teacher = torch.from_numpy(many_clips.features("audio").embedding)
    weights = load_file(run / "last" / "helpers.safetensors")
    if method == "cmc":
        parts = [[weights[f"{side}_projection.{of}"] for of in ("weight", "bias")] for side in ("student", "teacher")]
        student, other = (x @ W.T + b for x, (W, b) in zip((outputs.embedding, teacher), parts, strict=True))
    else:
        noise_filter = NoiseFilter(16, 3, teacher_dim=teacher.shape[1]).eval()
        noise_filter.load_state_dict({name.removeprefix("filter."): value for name, value in weights.items()})
        with torch.inference_mode():
            filtered = noise_filter(teacher=teacher, tokens=outputs.tokens, embedding=outputs.embedding)
        student, other = outputs.embedding, filtered.embedding
    expected = torch.nn.functional.normalize(other[3:4]) @ torch.nn.functional.normalize(student).T
    expected[0, 3] = -2  # itself
    capsys.readouterr()
    words = ["--clip", str(many_clips.columns["id"][3]), "--space", "run.teacher", "--k", "5"]
    assert main(["search", str(index), *words, "--target", "run.student", "--json"]) == 0
    hits = json.loads(capsys.readouterr().out)["hits"]
    assert [hit["score"] for hit in hits] == pytest.approx(
        expected[0].sort(descending=True).values[:5].tolist(), abs=1e-4
    )
    assert main(["search", str(index), *words, "--target", "audio"]) == 2
    assert "'run.teacher' and 'audio': expected a common vector space" in capsys.readouterr().err
    file = str(request.getfixturevalue("_sounding").parent / many_clips.columns["path"][3])
    for words, code in (
        (["--video", file, "--space", "run.student"], 0),
        (["--audio", file, "--space", "run.teacher", "--encoder", str(students[1])], 0 if method == "cmc" else 2),
    ):
        assert main(["search", str(index), *words, "--json"]) == code
        found = capsys.readouterr()
        if code == 0:
            hit = json.loads(found.out)["hits"][0]
            assert (hit["clip"], hit["score"]) == (many_clips.columns["id"][3], pytest.approx(1, abs=1e-3))
        else:
            assert "expected a method whose teacher needs no student beside it (cmc, crd), found mnf_csc" in found.err
    words = ["--clip", str(many_clips.columns["id"][3]), "--space", "run.teacher"]
    (run / "last" / "helpers.safetensors").write_bytes(b"changed")
    assert main(["search", str(index), *words]) == 2
    assert "helpers.safetensors has changed" in capsys.readouterr().err


def test_a_method_without_a_common_space_has_no_cross_modal_search(
    many_clips: ClipDataset, tmp_path: Path, capsys
) -> None:
    run = train(config(many_clips.folder, tmp_path / "run", steps=1))
    assert main(["index", str(run), "--out", str(tmp_path / "index"), "--cross-modal"]) == 2
    assert "expected a method of cmc, crd, mnf_csc, robust_csc, found supervised" in capsys.readouterr().err
