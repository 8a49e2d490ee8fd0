"""Features from files, of clips whose sound is not in the store, brought to the store under a condition."""

import numpy as np
import pytest

from avdistill.data.conditions import Condition, apply_condition
from avdistill.data.store import Store, StoreError
from avdistill.teachers.carrying import carry_features, sound_sources
from avdistill.teachers.precomputed import embed_precomputed


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
