"""Stores under a condition: what changed, what did not, and that nothing was touched."""

import os

import numpy as np
import pytest

from avdistill.cli import main
from avdistill.data.conditions import Condition, apply_condition, parse_condition
from avdistill.data.store import Store, StoreError, file_checksum
from avdistill.decoding import ConfigError
from avdistill.models.audio import LogMelCNN
from avdistill.teachers.base import Teacher, embed
from avdistill.teachers.carrying import carry_features, sound_sources
from avdistill.types import SoundView


def extra(store):
    return [dict(row or ()) for row in store.table["extra"].to_pylist()]


def checksums(folder):
    return {file.name: file_checksum(file) for file in folder.iterdir()}


def test_a_share_of_the_sounds_is_another_clips_with_a_different_label(many_clips, tmp_path):
    before = checksums(many_clips.folder)
    made = apply_condition(many_clips, Condition(unrelated=0.4, seed=3), tmp_path / "made")
    train = np.flatnonzero(many_clips.columns["split"] == "train")
    ids = many_clips.columns["id"].tolist()
    changed = [i for i in range(len(many_clips)) if not np.array_equal(many_clips.sound(i), made.sound(i))]
    assert len(changed) == round(0.4 * len(train))
    assert set(changed) <= set(train.tolist())
    for i, told in enumerate(extra(made)):
        assert np.array_equal(many_clips.frames(i), made.frames(i))
        if i not in changed:
            assert told.get("sound") == ("kept" if i in train else None)
            continue
        donor = ids.index(told["sound_source"])
        assert told["sound"] == "unrelated"
        assert np.array_equal(made.sound(i), many_clips.sound(donor))
        assert many_clips.labels[donor] != many_clips.labels[i]
        assert many_clips.columns["split"][donor] == "train"
    assert made.labels == many_clips.labels
    assert made.classes == many_clips.classes
    assert checksums(many_clips.folder) == before
    assert made.verify() == []
    assert made.checksum != many_clips.checksum


def test_pictures_take_no_room(many_clips, tmp_path):
    made = apply_condition(many_clips, Condition(unrelated=0.2), tmp_path / "made")
    for file in many_clips.folder.glob("frames-*.npy"):
        assert os.path.samefile(file, made.folder / file.name)
    made.folder.joinpath("clips.parquet").unlink()
    assert many_clips.folder.joinpath("clips.parquet").is_file()


def test_silent_shifted_and_drowned(many_clips, tmp_path):
    made = apply_condition(
        many_clips, Condition(silent=0.2, shifted=0.3, drowned=0.3, snr_db=-5, labels=1.0), tmp_path / "made"
    )
    told = extra(made)
    by_kind = {
        kind: [i for i, t in enumerate(told) if t.get("sound") == kind] for kind in ("silent", "shifted", "drowned")
    }
    n = int((many_clips.columns["split"] == "train").sum())
    assert {k: len(v) for k, v in by_kind.items()} == {
        "silent": round(0.2 * n),
        "shifted": round(0.3 * n),
        "drowned": round(0.3 * n),
    }
    for i in by_kind["silent"]:
        assert not made.columns["has_sound"][i]
    for i in by_kind["shifted"]:
        own, moved = many_clips.sound(i), made.sound(i)
        fits = [k for k in range(len(own)) if own[0] == moved[k] and np.array_equal(np.roll(own, k), moved)]
        assert any(0.24 * len(own) <= k <= 0.76 * len(own) for k in fits)
    ids = many_clips.columns["id"].tolist()
    for i in by_kind["drowned"]:
        own = many_clips.sound(i).astype(float)
        donor = np.resize(many_clips.sound(ids.index(told[i]["sound_source"])), len(own)).astype(float)
        # The mix is a times own plus b times the other: solved by least squares, the ratio is the one asked for.
        (a, b), *_ = np.linalg.lstsq(np.stack([own, donor], 1), made.sound(i).astype(float), rcond=None)
        ratio = 10 * np.log10(np.mean((a * own) ** 2) / np.mean((b * donor) ** 2))
        assert ratio == pytest.approx(-5, abs=0.1)
        assert told[i]["snr_db"] == "-5"
    assert made.verify() == []


def test_a_share_of_labels_is_kept_in_every_class_and_the_rest_is_remembered_for_scoring(many_clips, tmp_path):
    made = apply_condition(many_clips, Condition(labels=0.3), tmp_path / "made")
    train = np.flatnonzero(many_clips.columns["split"] == "train")
    for name in many_clips.classes:
        members = [i for i in train if many_clips.labels[i] == (name,)]
        kept = [i for i in members if made.labels[i]]
        assert len(kept) == max(1, round(0.3 * len(members)))
        for i in set(members) - set(kept):
            assert extra(made)[i]["true_label"] == name
    outside = np.flatnonzero(many_clips.columns["split"] != "train")
    assert [made.labels[i] for i in outside] == [many_clips.labels[i] for i in outside]


def test_unlabelled_clips_get_another_label_too_where_it_is_known(many_clips, tmp_path):
    """Labels are taken after sounds are swapped; a store that already lacks them remembers them as true_label."""
    few = apply_condition(many_clips, Condition(labels=0.2), tmp_path / "few")
    made = apply_condition(few, Condition(unrelated=0.9, seed=5), tmp_path / "made")
    ids = many_clips.columns["id"].tolist()
    swapped = [(i, t) for i, t in enumerate(extra(made)) if t.get("sound") == "unrelated"]
    assert any(not made.labels[i] for i, _ in swapped)
    for i, told in swapped:
        assert many_clips.labels[ids.index(told["sound_source"])] != many_clips.labels[i]


def test_the_same_condition_is_the_same_store_and_another_is_refused(many_clips, tmp_path):
    first = apply_condition(many_clips, Condition(unrelated=0.4), tmp_path / "made")
    again = apply_condition(many_clips, Condition(unrelated=0.4), tmp_path / "made")
    other = apply_condition(many_clips, Condition(unrelated=0.4), tmp_path / "other")
    assert first.checksum == again.checksum == other.checksum
    assert first.table.equals(other.table)
    with pytest.raises(StoreError, match="already there"):
        apply_condition(many_clips, Condition(unrelated=0.5), tmp_path / "made")


def test_a_larger_share_holds_the_smaller_one(many_clips, tmp_path):
    small, large = (
        apply_condition(many_clips, Condition(unrelated=share), tmp_path / str(share)) for share in (0.2, 0.6)
    )
    chosen = [{i for i, t in enumerate(extra(s)) if t.get("sound") == "unrelated"} for s in (small, large)]
    assert chosen[0] < chosen[1]


def hearing(store, seed=0):
    import torch

    torch.manual_seed(seed)
    network = LogMelCNN(3, width=8, embedding_dim=16, sample_rate_hz=store.sample_rate_hz).eval()
    view = SoundView(seconds=0.5)
    return Teacher(network, view, store.classes, False, None, store.sample_rate_hz, "a test's")


def test_carried_features_are_those_that_embedding_anew_gives(many_clips, tmp_path):
    teacher = hearing(many_clips)
    embed(many_clips, teacher, "ears", maps=True)
    made = apply_condition(Store(many_clips.folder), Condition(unrelated=0.3, silent=0.2), tmp_path / "made")
    carry_features(Store(many_clips.folder), made, "ears")
    embed(made, teacher, "anew", maps=True)
    made = Store(made.folder)
    carried, anew = made.teacher_features("ears"), made.teacher_features("anew")
    assert np.array_equal(carried[2], anew[2])
    assert not carried[2].all()
    for a, b in zip(carried[:2], anew[:2], strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert np.allclose(made.teacher_tokens("ears"), made.teacher_tokens("anew"), atol=1e-5)


def test_new_sound_must_be_heard_by_the_teacher_itself(many_clips, tmp_path):
    teacher = hearing(many_clips)
    embed(many_clips, teacher, "ears")
    base = Store(many_clips.folder)
    made = apply_condition(base, Condition(drowned=0.5), tmp_path / "made")
    with pytest.raises(StoreError, match="must be given"):
        carry_features(base, made, "ears")
    carry_features(base, made, "ears", teacher=teacher)
    after, before = Store(made.folder).teacher_features("ears")[0], base.teacher_features("ears")[0]
    moved = np.abs(after - before).max(1) > 1e-4
    assert np.array_equal(moved, sound_sources(base, made) == -2)


def test_a_head_fitted_on_labels_is_fitted_again(many_clips, tmp_path):
    """Its old logits know labels that the condition takes away, and which sound belongs to which clip."""
    rng = np.random.default_rng(0)
    from avdistill.teachers.head import add_features

    embedding = rng.standard_normal((len(many_clips), 6)).astype(np.float32)
    add_features(many_clips, "plain", modality="sound", source="s", embedding=embedding, logits=None, classes=())
    base = Store(many_clips.folder)
    assert base.teachers["plain"].fitted_head
    made = apply_condition(base, Condition(labels=0.5), tmp_path / "made")
    carry_features(base, made, "plain")
    entry = Store(made.folder).teachers["plain"]
    labelled = sum(bool(made.labels[i]) for i in np.flatnonzero(made.columns["split"] == "train"))
    assert f"{labelled} labelled clips" in entry.source
    assert np.array_equal(Store(made.folder).teacher_features("plain")[0], embedding)
    assert not np.allclose(Store(made.folder).teacher_features("plain")[1], base.teacher_features("plain")[1])


def test_labels_can_be_taken_where_nothing_sounds(many_clips, tmp_path):
    mute = apply_condition(many_clips, Condition(silent=1.0), tmp_path / "mute")
    made = apply_condition(mute, Condition(labels=0.5), tmp_path / "made")
    assert sum(map(bool, made.labels)) < sum(map(bool, mute.labels))
    with pytest.raises(StoreError, match="no clip with sound"):
        apply_condition(mute, Condition(unrelated=0.5), tmp_path / "none")


def test_conditions_are_read_and_named_alike():
    assert parse_condition("clean") == Condition()
    assert Condition().name == "clean"
    text = "unrelated=0.4,labels=0.25"
    assert parse_condition(text) == Condition(unrelated=0.4, labels=0.25)
    assert parse_condition(parse_condition(text).name) == parse_condition(text)
    assert parse_condition(Condition(drowned=1, snr_db=-5, split="all", seed=4).name) == Condition(
        drowned=1, snr_db=-5, split="all", seed=4
    )


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise=0.4", "NAME=VALUE"),
        ("unrelated", "NAME=VALUE"),
        ("unrelated=much", "must be a number"),
        ("unrelated=0.7,silent=0.7", "at most 1"),
        ("labels=0", "labels must lie"),
    ],
)
def test_wrong_conditions_are_one_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_condition(text)


def test_a_split_that_is_not_there(many_clips, tmp_path):
    with pytest.raises(StoreError, match="no clip with sound in split 'nowhere'"):
        apply_condition(many_clips, Condition(unrelated=0.1, split="nowhere"), tmp_path / "made")


def test_the_verb_makes_the_store_and_brings_the_teachers(many_clips, tmp_path, capsys):
    assert main(["condition", str(many_clips.folder), "unrelated=0.5", "--out", str(tmp_path / "made")]) == 0
    assert "teachers: sound" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "made")]) == 0
    assert main(["condition", str(many_clips.folder), "unrelated=5", "--out", str(tmp_path / "x")]) == 2
    assert "at most 1" in capsys.readouterr().err
