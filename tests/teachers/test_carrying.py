"""Features from files, of clips whose sound is not in the store, brought to the store under a condition."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from avdistill.cli import main
from avdistill.data.conditions import Condition, apply_condition
from avdistill.data.store import Store, StoreError
from avdistill.models.audio import LogMelCNN
from avdistill.teachers import Teacher, TeacherError, embed
from avdistill.teachers.carrying import carry_features, sound_sources
from avdistill.teachers.head import add_features, maker
from avdistill.teachers.precomputed import embed_precomputed
from avdistill.types import PictureView, SoundView


@pytest.fixture
def half_mute(many_clips, tmp_path):
    """A store half of whose training clips have no sound; features of all clips but two (one mute, one not)."""
    mute = apply_condition(many_clips, Condition(silent=0.5), tmp_path / "mute")
    sounding = mute.columns["has_sound"].astype(bool)
    left_out = {int(np.flatnonzero(~sounding)[0]), int(np.flatnonzero(sounding)[0])}
    rows = [i for i in range(len(mute)) if i not in left_out]
    values = np.random.default_rng(0).standard_normal((len(rows), 6)).astype(np.float32)
    np.savez(tmp_path / "file.npz", name=mute.columns["id"][rows].astype(str), embedding=values)
    embed_precomputed(mute, tmp_path / "file.npz", "sound")
    expected = np.full((len(mute), 6), np.nan, dtype=np.float32)
    expected[rows] = values
    return Store(mute.folder), sounding, expected


def test_features_of_clips_without_sound_are_those_that_embedding_anew_gives(half_mute, tmp_path):
    base, _, expected = half_mute
    made = apply_condition(base, Condition(labelled_per_class=4), tmp_path / "few")
    carry_features(base, made, "sound")
    embed_precomputed(made, tmp_path / "file.npz", "anew")
    made = Store(made.folder)
    carried, anew = made.teacher_features("sound"), made.teacher_features("anew")
    assert np.array_equal(np.where(carried[2][:, None], carried[0], np.nan), expected, equal_nan=True)
    for a, b in zip(carried, anew, strict=True):
        assert np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
    labelled = np.array([bool(row) for row in made.labels]) & (made.columns["split"] == "train")
    assert f"{int((labelled & carried[2]).sum())} labelled clips" in made.teachers["sound"].source
    assert made.teachers["sound"].source == made.teachers["anew"].source
    assert not np.allclose(carried[1][carried[2]], base.teacher_features("sound")[1][carried[2]])


def test_a_clip_that_lost_its_sound_loses_its_features_and_one_that_had_none_keeps_them(half_mute, tmp_path):
    base, sounding, expected = half_mute
    made = apply_condition(base, Condition(silent=0.4, unrelated=0.3), tmp_path / "made")
    carry_features(base, made, "sound")
    made = Store(made.folder)
    ids = base.columns["id"].tolist()
    source = np.arange(len(base))
    for i, told in enumerate(dict(row or ()) for row in made.table["extra"].to_pylist()):
        if sounding[i] and told.get("sound") == "silent":
            source[i] = -1
        elif told.get("sound") == "unrelated":
            source[i] = ids.index(told["sound_source"])
    assert (source == -1).any()
    assert (source[~sounding] == np.flatnonzero(~sounding)).all()
    assert np.array_equal(sound_sources(base, made), source)
    embedding, _, present = made.teacher_features("sound")
    expected = np.where(source[:, None] >= 0, expected[source], np.nan)
    assert np.array_equal(present, ~np.isnan(expected).any(1))
    assert np.array_equal(embedding[present], expected[present])


def test_sound_that_came_to_a_clip_without_any_is_new(half_mute, many_clips):
    """From the store with sound back: the clips had none where the features were made."""
    base, sounding, _ = half_mute
    sources = sound_sources(base, many_clips)
    assert (sources[~sounding] == -2).all()
    assert np.array_equal(sources[sounding], np.flatnonzero(sounding))
    other = apply_condition(many_clips, Condition(), many_clips.folder.parent / "clean")
    with pytest.raises(StoreError, match=f"{int((~sounding).sum())} clips have sound that teacher 'sound' has not"):
        carry_features(base, other, "sound")


@pytest.fixture
def ears(many_clips, monkeypatch):
    """Networks by their names, as `--teacher-run` gives them; the store has features of "mine" beside its "sound"."""
    torch.manual_seed(0)
    network = LogMelCNN(3, width=8, embedding_dim=16, sample_rate_hz=many_clips.sample_rate_hz).eval()
    classes, rate = many_clips.classes, many_clips.sample_rate_hz
    mine = Teacher(network, SoundView(seconds=0.5), classes, False, None, rate, "mine, sha256 1")
    known = {
        "mine": mine,
        "other": replace(mine, source="other, sha256 2"),
        "eyes": replace(mine, view=PictureView(), source="eyes, sha256 3"),
    }
    monkeypatch.setattr("avdistill.commands.compare.load_teacher", known.__getitem__)
    embed(many_clips, mine, "ears")
    return known


def test_new_sound_is_heard_by_the_network_of_these_features_only(many_clips, ears, tmp_path, capsys):
    call = ["condition", str(many_clips.folder), "shifted=0.5", "--out", str(tmp_path / "made"), "--teacher-run"]
    for name, said in (("other", "'sound' by test; 'ears' by mine, sha256 1), found other"), ("eyes", "that hears")):
        assert main([*call, name]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "made").exists()
    assert main([*call, "mine"]) == 0
    assert "teacher 'sound' is left out: mine is another" in capsys.readouterr().err
    made = Store(tmp_path / "made")
    assert {name: entry.source for name, entry in made.teachers.items()} == {"ears": "mine, sha256 1"}
    base = Store(many_clips.folder)
    with pytest.raises(TeacherError, match=r"'sound' by test\), found mine"):
        carry_features(base, made, "sound", teacher=ears["mine"])
    carry_features(base, made, "sound", teacher=replace(ears["mine"], source="test"))
    assert set(Store(made.folder).teachers) == {"ears", "sound"}


def test_a_condition_without_new_sound_brings_all_whichever_network_is_given(many_clips, ears, tmp_path):
    call = ["condition", str(many_clips.folder), "unrelated=0.5", "--out", str(tmp_path / "made"), "--teacher-run"]
    assert main([*call, "mine"]) == 0
    assert set(Store(tmp_path / "made").teachers) == {"ears", "sound"}


def test_the_sources_of_resampled_sound_and_of_a_fitted_head_are_known_again(many_clips, ears, tmp_path):
    at_half = replace(ears["mine"], sample_rate_hz=many_clips.sample_rate_hz // 2, any_rate=True, classes=("a", "b"))
    entry = embed(many_clips, at_half, "resampled")
    assert "resampled from" in entry.source
    assert "linear head" in entry.source
    base = Store(many_clips.folder)
    made = apply_condition(base, Condition(drowned=0.5), tmp_path / "made")
    with pytest.raises(TeacherError, match="found mine, sha256 1"):
        carry_features(base, made, "resampled", teacher=ears["mine"])
    carry_features(base, made, "resampled", teacher=at_half)
    carry_features(base, made, "resampled")  # it is there: nothing to do


@pytest.mark.parametrize("change", ["values", "head_split", "absent"])
def test_older_features_that_a_condition_already_has_are_refused(half_mute, tmp_path, change):
    base, _, values = half_mute
    made = apply_condition(base, Condition(silent=0.2, unrelated=0.3), tmp_path / "made")
    carry_features(base, made, "sound")
    carry_features(base, Store(made.folder), "sound")  # as they are: nothing to do
    about = {"modality": "sound", "source": maker(base.teachers["sound"]), "logits": None, "classes": ()}
    if change == "head_split":
        about["head_split"] = "train+test"
    elif change == "values":
        values = values + np.float32(0.1)
    else:
        kept = np.flatnonzero((sound_sources(base, made) == np.arange(len(base))) & ~np.isnan(values[:, 0]))
        values[kept[0]] = np.nan
    add_features(base, "sound", embedding=values, **about)
    with pytest.raises(StoreError, match="has other features of teacher 'sound' by now: remove this folder"):
        carry_features(Store(base.folder), Store(made.folder), "sound")


def test_features_of_another_network_that_a_condition_already_has_are_refused(many_clips, ears, tmp_path):
    made = apply_condition(many_clips, Condition(unrelated=0.5), tmp_path / "made")
    carry_features(Store(many_clips.folder), made, "ears")
    embed(many_clips, ears["other"], "ears")
    with pytest.raises(
        StoreError, match=r"its teacher 'ears' is mine, sha256 1, that of .* is other, sha256 2: remove"
    ):
        carry_features(Store(many_clips.folder), Store(made.folder), "ears")


def test_a_study_takes_no_other_network_than_that_of_its_features(many_clips, ears, tmp_path, capsys):
    call = ["compare", str(many_clips.folder), "--out", str(tmp_path / "study"), "--methods", "supervised"]
    for name, said in (("other", "expected the network that made its features ('ears'"), ("eyes", "that hears")):
        assert main([*call, "--conditions", "drowned=0.5", "--teacher", "ears", "--teacher-run", name]) == 1
        assert said in capsys.readouterr().err
        assert not (tmp_path / "study").exists()
