"""The audit without a run: rows, flags, what it refuses, the command with its files, and the page."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
from sklearn.metrics import roc_auc_score

from avdistill.analysis.audit.dataset_audit import audit_dataset, estimates
from avdistill.analysis.audit.dataset_page import MEASURED
from avdistill.analysis.audit.flags import flag_clips
from avdistill.annotations import Annotation
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import read_decisions
from avdistill.errors import DatasetError
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.audit_cases import by_id, changed
from support.media_files import tone, write_video

# Every third clip of many_clips gets the audio features of the clip nine further: of its own class, another video.
MISMATCHED = [f"clip{i}" for i in range(0, 40, 3)]


def with_features(dataset, name, modality, embedding, **fields):
    fields = {"logits": None, "classes": ()} | fields
    dataset.add_features(name, modality=modality, provenance={"name": f"{name}.npz"}, embedding=embedding, **fields)


@pytest.fixture
def encoded(many_clips, tmp_path):
    """Features "a" and "v" that share five numbers a clip; a third of the audio is mismatched, and that is recorded."""
    truth = {f"clip{i}": [("audio", "mismatched" if f"clip{i}" in MISMATCHED else "kept")] for i in range(40)}
    dataset = changed(many_clips, tmp_path / "encoded", {"extra": truth})
    rng = np.random.default_rng(0)
    shared = rng.standard_normal((40, 5))
    audio, video = (np.abs(shared @ rng.standard_normal((5, D)) + 3).astype(np.float32) for D in (30, 20))
    wrong = np.arange(0, 40, 3)
    audio[wrong] = audio[np.roll(wrong, 3)]
    audio[7] = video[8] = np.nan
    with_features(dataset, "a", "audio", audio)
    with_features(dataset, "v", "video", video)
    return ClipDataset(dataset.folder)


def test_rows_are_in_order_and_the_truth_is_measured(encoded):
    result = audit_dataset(encoded, audio_features="a")
    ranked, rest = result.rows[:38], result.rows[38:]
    assert [row["rank"] for row in ranked] == list(range(1, 39))
    scores = [row["correspondence"] for row in ranked]
    assert scores == sorted(scores, reverse=True)
    assert [(row["id"], row["missing"], row["rank"], row["correspondence"]) for row in rest] == [
        ("clip7", "audio", None, None),
        ("clip8", "video", None, None),
    ]
    wrong = [row["id"] in MISMATCHED for row in ranked]
    auroc = roc_auc_score(wrong, scores)
    assert auroc > 0.8
    assert result.metrics["truth"]["auroc"] == pytest.approx(auroc)
    assert [result.metrics["truth"][key] for key in ("positives", "negatives")] == [sum(wrong), 38 - sum(wrong)]
    assert [encoded.columns["id"][clip] for clip in result.clips] == [row["id"] for row in result.rows]


def test_labels_and_truth_change_no_score(encoded, tmp_path):
    other = changed(
        encoded, tmp_path / "other", {"labels": {f"clip{i}": [] for i in range(40)}, "extra": {"clip0": []}}
    )
    first, second = (by_id(audit_dataset(dataset, audio_features="a")) for dataset in (encoded, other))
    assert {name: row["correspondence"] for name, row in first.items()} == {
        name: row["correspondence"] for name, row in second.items()
    }


def test_features_are_found_by_modality_or_named(encoded):
    assert audit_dataset(encoded, audio_features="a").settings["video_features"] == "v"
    with pytest.raises(
        DatasetError, match="audio features: expected a name with --audio-features, found several: a, a"
    ):
        audit_dataset(encoded)
    with pytest.raises(DatasetError, match="video features: expected one of v, found 'a'"):
        audit_dataset(encoded, audio_features="a", video_features="a")
    with pytest.raises(
        DatasetError, match="features 'a' and 'v': expected at least 20 clips of 2 source videos, found 10"
    ):
        audit_dataset(encoded, audio_features="a", split="test")


def test_a_dataset_without_video_features_says_how_to_add_them(many_clips):
    with pytest.raises(DatasetError, match=r"video features: expected those of a frozen encoder, found none; .* embed"):
        audit_dataset(many_clips)


def test_estimates_are_those_of_the_triangle():
    """The mean of two independent uniform numbers is at least t >= 1/2 with probability 2 (1 - t)^2."""
    rng = np.random.default_rng(0)
    scores = np.concatenate([rng.uniform(size=(40_000, 2)).mean(1), np.full(60_000, 0.01)])
    found = estimates(scores)
    assert found["mismatched_share_at_most"] == pytest.approx(0.4, abs=0.01)
    for row in found["thresholds"]:
        assert row["mismatched_at_most"] == pytest.approx(int((scores >= row["threshold"]).sum()), rel=0.05)


@pytest.fixture(scope="module")
def odd_clips(tmp_path_factory):
    """Six clips: ordinary, still but for the codec's noise, a small part moves, silent, no audio, one image."""
    folder = tmp_path_factory.mktemp("odd")
    rng = np.random.default_rng(0)
    image = rng.integers(0, 255, (64, 96, 3)).astype(np.uint8)
    moving = rng.integers(0, 255, (3, 10, 64, 96, 3)).astype(np.uint8)
    mouth = np.repeat(image[None], 10, 0)
    mouth[::2, 40:48, 40:52] = 255 - mouth[::2, 40:48, 40:52]
    # Video and audio of its own for each, or they would be flagged as sharing it.
    audio = [rng.uniform(0.05, 0.5, 40).repeat(400) * tone(1.0, 300 * (i + 1)) for i in range(4)]
    cases = {
        "ordinary": (moving[0], audio[0]),
        "still": (np.repeat(image[None], 10, 0), audio[1]),
        "mouth": (mouth, audio[2]),
        "silent": (moving[1], np.zeros(16000)),
        "no_audio": (moving[2], None),
        "one_frame": (moving[0][:1], audio[3]),
    }
    for name, (frames, waveform) in cases.items():
        write_video(folder / f"{name}.mp4", frames=frames, waveform=waveform)
    clips = [Annotation(name, f"{name}.mp4", (), "train") for name in cases]
    return prepare(clips, folder, folder / "dataset", PrepareConfig(fps=10, short_side=64), workers=1)


def test_flags(odd_clips):
    found = flag_clips(odd_clips, np.arange(6))
    assert dict(zip(odd_clips.columns["id"].tolist(), found.of_clip, strict=True)) == {
        "ordinary": (),
        "still": ("still_video",),
        "mouth": (),
        "silent": ("silent",),
        "no_audio": ("no_audio",),
        "one_frame": ("still_video",),
    }
    assert list(found.not_looked_for) == ["speech_throughout", "music_throughout"]


def test_speech_and_music_need_a_tagger(odd_clips, tmp_path):
    dataset = changed(odd_clips, tmp_path / "tagged")
    logits = np.full((6, 4), -3, np.float32)
    logits[0, 1] = logits[2, 3] = 0.1  # a probability of 0.52
    logits[1, 1] = -0.1
    logits[4] = np.nan
    embedding = np.where(np.isnan(logits[:, :1]), np.nan, np.ones((6, 2), np.float32))
    with_features(dataset, "yamnet", "audio", embedding, logits=logits, classes=("Bell", "Speech", "Dog", "Music"))
    found = flag_clips(ClipDataset(dataset.folder), np.array([0, 1, 2, 4]))
    assert found.of_clip == [("speech_throughout",), ("still_video",), ("music_throughout",), ("no_audio",)]
    assert found.not_looked_for == {}


def test_the_command_writes_table_page_and_decisions(encoded, tmp_path, capsys):
    out = tmp_path / "audit"
    words = ["audit", str(encoded.folder), "--audio-features", "a", "--decide", "0.5", "--cards", "2", "--json"]
    assert main([*words, "--out", str(out)]) == 0
    report = json.loads(capsys.readouterr().out)
    result = audit_dataset(encoded, audio_features="a")
    with (out / "clips.csv").open(newline="", encoding="utf-8") as file:
        table = list(csv.DictReader(file))
    assert [row["id"] for row in table] == [row["id"] for row in result.rows]
    assert list(table[0])[:1] + list(table[0])[8:] == [
        *("rank", "correspondence", "flags", "audio", "audio_source", "true_label", "missing")
    ]
    dropped = [row["id"] for row in table if row["correspondence"] and float(row["correspondence"]) >= 0.5]
    decisions = read_decisions(out / "decisions.csv", encoded)
    assert [decision.clip for decision in decisions if decision.kind == "drop_audio"] == dropped
    assert {decision.by for decision in decisions} == {"audit: correspondence >= 0.5"}
    assert len(decisions) == 38
    assert report["decisions"] == {"drop_audio": len(dropped), "keep": 38 - len(dropped)}
    text = (out / "audit.html").read_text(encoding="utf-8")
    assert text.count('<article class="card"') == 2 + 8
    assert "at most" in text
    assert main(words) == 0
    assert (encoded.folder.parent / "encoded-audit" / "audit.html").is_file()


def test_what_the_page_says_was_measured_was():
    report = json.loads((Path(__file__).parents[2] / "results" / "audit.json").read_text())["without_a_run"]
    rows = [row for row in report["rows"] if (row["share"], row["replaced_by"]) == (0.4, "other_video")]
    means = {row["data"]: np.mean([r["auroc"] for r in rows if r["data"] == row["data"]]) for row in rows}
    assert pytest.approx(means, abs=0.005) == MEASURED


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["a", "b", "c"], "expected DATASET or RUN DATASET, found 3 paths"),
        (["a", "--by", "gate"], "--by: expected with RUN DATASET only"),
        (["a", "--teacher", "audio"], "--teacher: expected with RUN DATASET only"),
        (["a", "b", "--audio-features", "x"], "--audio-features: expected with DATASET alone only"),
        (["a", "--decide", "nan"], "--decide: expected a number"),
    ],
)
def test_options_without_effect_are_refused(words, expected, capsys):
    assert main(["audit", *words]) == 2
    assert expected in capsys.readouterr().err
