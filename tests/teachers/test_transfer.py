"""Features from files, of clips whose audio is not in the dataset, brought to the dataset under a corruption."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from avdistill.cli import main
from avdistill.corruption import Corruption, corrupt
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError, TeacherError
from avdistill.inputs import AudioInput, VideoInput
from avdistill.models.logmel_cnn import LogMelCNN
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import add_features, embed
from avdistill.teachers.precomputed import embed_precomputed
from avdistill.teachers.transfer import clip_sources, transfer_features
from support.features import feature_arrays


@pytest.fixture
def half_mute(many_clips, tmp_path):
    """A dataset half of whose training clips have no audio; features of all clips but two (one mute, one not)."""
    mute = corrupt(many_clips, Corruption(dropped=0.5), tmp_path / "mute")
    with_audio = mute.columns["has_audio"].astype(bool)
    left_out = {int(np.flatnonzero(~with_audio)[0]), int(np.flatnonzero(with_audio)[0])}
    rows = [i for i in range(len(mute)) if i not in left_out]
    values = np.random.default_rng(0).standard_normal((len(rows), 6)).astype(np.float32)
    np.savez(tmp_path / "file.npz", name=mute.columns["id"][rows].astype(str), embedding=values)
    embed_precomputed(mute, tmp_path / "file.npz", "audio")
    expected = np.full((len(mute), 6), np.nan, dtype=np.float32)
    expected[rows] = values
    return ClipDataset(mute.folder), with_audio, expected


def test_features_of_clips_without_audio_are_those_that_embedding_anew_gives(half_mute, tmp_path):
    base, _, expected = half_mute
    made = corrupt(base, Corruption(labeled_per_class=4), tmp_path / "few")
    transfer_features(base, made, "audio")
    embed_precomputed(made, tmp_path / "file.npz", "anew")
    made = ClipDataset(made.folder)
    transferred, anew = feature_arrays(made, "audio"), feature_arrays(made, "anew")
    assert np.array_equal(np.where(transferred[2][:, None], transferred[0], np.nan), expected, equal_nan=True)
    for a, b in zip(transferred, anew, strict=True):
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    labeled = np.array([bool(row) for row in made.labels]) & (made.columns["split"] == "train")
    assert made.teachers["audio"].head["labeled_clips"] == int((labeled & transferred[2]).sum())
    assert made.teachers["audio"].provenance == made.teachers["anew"].provenance
    assert not np.allclose(transferred[1][transferred[2]], feature_arrays(base, "audio")[1][transferred[2]])


def test_a_clip_that_lost_its_audio_loses_its_features_and_one_that_had_none_keeps_them(half_mute, tmp_path):
    base, with_audio, expected = half_mute
    made = corrupt(base, Corruption(dropped=0.4, mismatched=0.3), tmp_path / "made")
    transfer_features(base, made, "audio")
    made = ClipDataset(made.folder)
    ids = base.columns["id"].tolist()
    source = np.arange(len(base))
    for i, told in enumerate(dict(row or ()) for row in made.table["extra"].to_pylist()):
        if with_audio[i] and told.get("audio") == "dropped":
            source[i] = -1
        elif told.get("audio") == "mismatched":
            source[i] = ids.index(told["audio_source"])
    assert (source == -1).any()
    assert (source[~with_audio] == np.flatnonzero(~with_audio)).all()
    assert np.array_equal(clip_sources(base, made, "audio"), source)
    embedding, _, present = feature_arrays(made, "audio")
    expected = np.where(source[:, None] >= 0, expected[source], np.nan)
    assert np.array_equal(present, ~np.isnan(expected).any(1))
    assert np.array_equal(embedding[present], expected[present])


def test_audio_that_came_to_a_clip_without_any_is_new(half_mute, many_clips):
    """From the dataset with audio back: the clips had none where the features were made."""
    base, with_audio, _ = half_mute
    sources = clip_sources(base, many_clips, "audio")
    assert (sources[~with_audio] == -2).all()
    assert np.array_equal(sources[with_audio], np.flatnonzero(with_audio))
    other = corrupt(many_clips, Corruption(), many_clips.folder.parent / "clean")
    with pytest.raises(
        DatasetError, match=f"{int((~with_audio).sum())} clips have new audio: expected the network of teacher 'audio'"
    ):
        transfer_features(base, other, "audio")


@pytest.fixture
def ears(many_clips, monkeypatch):
    """Networks by their names, as `--teacher-run` gives them; the dataset has features of "mine" beside its "audio"."""
    torch.manual_seed(0)
    network = LogMelCNN(3, width=8, embedding_dim=16, sample_rate_hz=many_clips.sample_rate_hz).eval()
    classes, rate = many_clips.classes, many_clips.sample_rate_hz
    mine = Teacher(network, AudioInput(seconds=0.5), classes, False, None, rate, {"name": "mine", "sha256": "1"})
    known = {
        "mine": mine,
        "other": replace(mine, provenance={"name": "other", "sha256": "2"}),
        "eyes": replace(mine, view=VideoInput(), provenance={"name": "eyes", "sha256": "3"}),
    }
    monkeypatch.setattr("avdistill.commands.compare.load_teacher", known.__getitem__)
    embed(many_clips, mine, "ears")
    return known


def test_new_audio_is_heard_by_the_network_of_these_features_only(many_clips, ears, tmp_path, capsys):
    call = ["corrupt", str(many_clips.folder), "time_shifted=0.5", "--out", str(tmp_path / "made"), "--teacher-run"]
    for name, said in (("other", "'audio' by test; 'ears' by mine, sha256 1), found other"), ("eyes", "found eyes")):
        assert main([*call, name]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "made").exists()
    assert main([*call, "mine"]) == 0
    assert "teacher 'audio' is left out: mine is another" in capsys.readouterr().err
    made = ClipDataset(tmp_path / "made")
    assert {name: entry.provenance for name, entry in made.teachers.items()} == {
        "ears": {"name": "mine", "sha256": "1"}
    }
    base = ClipDataset(many_clips.folder)
    with pytest.raises(TeacherError, match=r"'audio' by test\), found mine"):
        transfer_features(base, made, "audio", teacher=ears["mine"])
    transfer_features(base, made, "audio", teacher=replace(ears["mine"], provenance={"name": "test"}))
    assert set(ClipDataset(made.folder).teachers) == {"ears", "audio"}


def test_a_corruption_without_new_audio_brings_all_whichever_network_is_given(many_clips, ears, tmp_path):
    call = ["corrupt", str(many_clips.folder), "mismatched=0.5", "--out", str(tmp_path / "made"), "--teacher-run"]
    assert main([*call, "mine"]) == 0
    assert set(ClipDataset(tmp_path / "made").teachers) == {"ears", "audio"}


def test_the_sources_of_resampled_audio_and_of_a_fitted_head_are_known_again(many_clips, ears, tmp_path):
    at_half = replace(ears["mine"], sample_rate_hz=many_clips.sample_rate_hz // 2, any_rate=True, classes=("a", "b"))
    entry = embed(many_clips, at_half, "resampled")
    assert entry.provenance["resampled_from_hz"]
    assert entry.head
    base = ClipDataset(many_clips.folder)
    made = corrupt(base, Corruption(noisy=0.5), tmp_path / "made")
    with pytest.raises(TeacherError, match="found mine, sha256 1"):
        transfer_features(base, made, "resampled", teacher=ears["mine"])
    transfer_features(base, made, "resampled", teacher=at_half)
    transfer_features(base, made, "resampled")  # it is there: nothing to do


@pytest.mark.parametrize("change", ["values", "head_split", "absent"])
def test_older_features_that_a_corruption_already_has_are_refused(half_mute, tmp_path, change):
    base, _, values = half_mute
    made = corrupt(base, Corruption(dropped=0.2, mismatched=0.3), tmp_path / "made")
    transfer_features(base, made, "audio")
    transfer_features(base, ClipDataset(made.folder), "audio")  # as they are: nothing to do
    about = {"modality": "audio", "provenance": base.teachers["audio"].provenance, "logits": None, "classes": ()}
    if change == "head_split":
        about["head_split"] = "train+test"
    elif change == "values":
        values = values + np.float32(0.1)
    else:
        kept = np.flatnonzero((clip_sources(base, made, "audio") == np.arange(len(base))) & ~np.isnan(values[:, 0]))
        values[kept[0]] = np.nan
    add_features(base, "audio", embedding=values, **about)
    with pytest.raises(DatasetError, match="has other features of teacher 'audio' now: remove this folder"):
        transfer_features(ClipDataset(base.folder), ClipDataset(made.folder), "audio")


def test_features_of_another_network_that_a_corruption_already_has_are_refused(many_clips, ears, tmp_path):
    made = corrupt(many_clips, Corruption(mismatched=0.5), tmp_path / "made")
    transfer_features(ClipDataset(many_clips.folder), made, "ears")
    embed(many_clips, ears["other"], "ears")
    with pytest.raises(
        DatasetError, match=r"its teacher 'ears' is mine, sha256 1, that of .* is other, sha256 2: remove"
    ):
        transfer_features(ClipDataset(many_clips.folder), ClipDataset(made.folder), "ears")


def test_a_study_takes_no_other_network_than_that_of_its_features(many_clips, ears, tmp_path, capsys):
    call = ["compare", str(many_clips.folder), "--out", str(tmp_path / "study"), "--methods", "supervised"]
    for name, said in (("other", "expected the network of its features ('ears'"), ("eyes", "found eyes")):
        assert main([*call, "--corruptions", "noisy=0.5", "--teacher", "ears", "--teacher-run", name]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "study").exists()
