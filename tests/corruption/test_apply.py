"""Datasets under a corruption: what changed, what did not, and that nothing was touched."""

import json
import os
from collections import Counter

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avdistill.cli import main
from avdistill.corruption import Corruption, corrupt, parse_corruption
from avdistill.corruption.labels import surplus_of_each_label
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.copies import linked_copy, rows_of
from avdistill.dataset.schema import CLIP_SCHEMA
from avdistill.errors import ConfigError, DatasetError
from avdistill.fsio import file_checksum
from avdistill.inputs import AudioInput
from avdistill.models.logmel_cnn import LogMelCNN
from avdistill.teachers.base import Teacher
from avdistill.teachers.extraction import embed
from avdistill.teachers.transfer import clip_sources, transfer_features
from support.features import feature_arrays


def extra(dataset):
    return [dict(row or ()) for row in dataset.table["extra"].to_pylist()]


def checksums(folder):
    return {file.name: file_checksum(file) for file in folder.rglob("*") if file.is_file()}


def test_a_share_of_the_audio_is_another_clips_with_a_different_label(many_clips, tmp_path):
    before = checksums(many_clips.folder)
    made = corrupt(many_clips, Corruption(mismatched=0.4, seed=3), tmp_path / "made")
    train = np.flatnonzero(many_clips.columns["split"] == "train")
    ids = many_clips.columns["id"].tolist()
    changed = [i for i in range(len(many_clips)) if not np.array_equal(many_clips.audio(i), made.audio(i))]
    assert len(changed) == round(0.4 * len(train))
    assert set(changed) <= set(train.tolist())
    for i, truth in enumerate(extra(made)):
        assert np.array_equal(many_clips.frames(i), made.frames(i))
        if i not in changed:
            assert truth.get("audio") == ("kept" if i in train else None)
            continue
        donor = ids.index(truth["audio_source"])
        assert truth["audio"] == "mismatched"
        assert np.array_equal(made.audio(i), many_clips.audio(donor))
        assert many_clips.labels[donor] != many_clips.labels[i]
        assert many_clips.columns["split"][donor] == "train"
    assert made.labels == many_clips.labels
    assert made.classes == many_clips.classes
    assert checksums(many_clips.folder) == before
    assert made.verify() == []
    assert made.checksum != many_clips.checksum


def test_images_take_no_room(many_clips, tmp_path):
    made = corrupt(many_clips, Corruption(mismatched=0.2), tmp_path / "made")
    for file in many_clips.folder.glob("frames-*.npy"):
        assert os.path.samefile(file, made.folder / file.name)
    made.folder.joinpath("clips.parquet").unlink()
    assert many_clips.folder.joinpath("clips.parquet").is_file()


def test_dropped_time_shifted_and_noisy(many_clips, tmp_path):
    made = corrupt(
        many_clips,
        Corruption(dropped=0.2, time_shifted=0.3, noisy=0.3, snr_db=-5, label_fraction=1.0),
        tmp_path / "made",
    )
    truth = extra(made)
    by_kind = {
        kind: [i for i, t in enumerate(truth) if t.get("audio") == kind]
        for kind in ("dropped", "time_shifted", "noisy")
    }
    n = int((many_clips.columns["split"] == "train").sum())
    assert {k: len(v) for k, v in by_kind.items()} == {
        "dropped": round(0.2 * n),
        "time_shifted": round(0.3 * n),
        "noisy": round(0.3 * n),
    }
    for i in by_kind["dropped"]:
        assert not made.columns["has_audio"][i]
    for i in by_kind["time_shifted"]:
        own, moved = many_clips.audio(i), made.audio(i)
        fits = [k for k in range(len(own)) if own[0] == moved[k] and np.array_equal(np.roll(own, k), moved)]
        assert any(0.24 * len(own) <= k <= 0.76 * len(own) for k in fits)
    ids = many_clips.columns["id"].tolist()
    for i in by_kind["noisy"]:
        own = many_clips.audio(i).astype(float)
        donor = np.resize(many_clips.audio(ids.index(truth[i]["audio_source"])), len(own)).astype(float)
        # The mix is a times own plus b times the other: solved by least squares, the ratio is the one asked for.
        (a, b), *_ = np.linalg.lstsq(np.stack([own, donor], 1), made.audio(i).astype(float), rcond=None)
        ratio = 10 * np.log10(np.mean((a * own) ** 2) / np.mean((b * donor) ** 2))
        assert ratio == pytest.approx(-5, abs=0.1)
        assert truth[i]["snr_db"] == "-5"
    assert made.verify() == []


def test_a_share_of_labels_is_kept_in_every_class_and_the_rest_is_remembered_for_scoring(many_clips, tmp_path):
    made = corrupt(many_clips, Corruption(label_fraction=0.3), tmp_path / "made")
    train = np.flatnonzero(many_clips.columns["split"] == "train")
    for name in many_clips.classes:
        members = [i for i in train if many_clips.labels[i] == (name,)]
        kept = [i for i in members if made.labels[i]]
        assert len(kept) == max(1, round(0.3 * len(members)))
        for i in set(members) - set(kept):
            assert extra(made)[i]["true_label"] == name
    outside = np.flatnonzero(many_clips.columns["split"] != "train")
    assert [made.labels[i] for i in outside] == [many_clips.labels[i] for i in outside]


def test_unlabeled_clips_get_another_label_too_where_it_is_known(many_clips, tmp_path):
    """Labels are removed after audio is mismatched; a dataset that already lacks them remembers them as true_label."""
    few = corrupt(many_clips, Corruption(label_fraction=0.2), tmp_path / "few")
    made = corrupt(few, Corruption(mismatched=0.9, seed=5), tmp_path / "made")
    ids = many_clips.columns["id"].tolist()
    swapped = [(i, t) for i, t in enumerate(extra(made)) if t.get("audio") == "mismatched"]
    assert any(not made.labels[i] for i, _ in swapped)
    for i, truth in swapped:
        assert many_clips.labels[ids.index(truth["audio_source"])] != many_clips.labels[i]


def test_the_same_corruption_is_the_same_dataset_and_another_is_refused(many_clips, tmp_path):
    first = corrupt(many_clips, Corruption(mismatched=0.4), tmp_path / "made")
    again = corrupt(many_clips, Corruption(mismatched=0.4), tmp_path / "made")
    other = corrupt(many_clips, Corruption(mismatched=0.4), tmp_path / "other")
    assert first.checksum == again.checksum == other.checksum
    assert first.table.equals(other.table)
    with pytest.raises(DatasetError, match="already there"):
        corrupt(many_clips, Corruption(mismatched=0.5), tmp_path / "made")


def test_a_larger_share_holds_the_smaller_one(many_clips, tmp_path):
    small, large = (corrupt(many_clips, Corruption(mismatched=share), tmp_path / str(share)) for share in (0.2, 0.6))
    chosen = [{i for i, t in enumerate(extra(s)) if t.get("audio") == "mismatched"} for s in (small, large)]
    assert chosen[0] < chosen[1]


def audio_teacher(dataset, seed=0):
    import torch

    torch.manual_seed(seed)
    network = LogMelCNN(3, width=8, embedding_dim=16, sample_rate_hz=dataset.sample_rate_hz).eval()
    view = AudioInput(seconds=0.5)
    return Teacher(network, view, dataset.classes, False, None, dataset.sample_rate_hz, {"name": "a test's"})


def test_transferred_features_are_those_of_embedding_anew(many_clips, tmp_path):
    teacher = audio_teacher(many_clips)
    embed(many_clips, teacher, "audio", tokens=True)
    made = corrupt(ClipDataset(many_clips.folder), Corruption(mismatched=0.3, dropped=0.2), tmp_path / "made")
    transfer_features(ClipDataset(many_clips.folder), made, "audio")
    embed(made, teacher, "anew", tokens=True)
    made = ClipDataset(made.folder)
    transferred, anew = feature_arrays(made, "audio"), feature_arrays(made, "anew")
    assert np.array_equal(transferred[2], anew[2])
    assert not transferred[2].all()
    for a, b in zip(transferred[:2], anew[:2], strict=True):
        assert np.allclose(a, b, atol=1e-5)
    assert np.allclose(made.features("audio").tokens, made.features("anew").tokens, atol=1e-5)


def test_new_audio_needs_the_teacher(many_clips, tmp_path):
    teacher = audio_teacher(many_clips)
    embed(many_clips, teacher, "audio")
    base = ClipDataset(many_clips.folder)
    made = corrupt(base, Corruption(noisy=0.5), tmp_path / "made")
    with pytest.raises(DatasetError, match="expected the network of teacher"):
        transfer_features(base, made, "audio")
    transfer_features(base, made, "audio", teacher=teacher)
    after, before = feature_arrays(ClipDataset(made.folder), "audio")[0], feature_arrays(base, "audio")[0]
    moved = np.abs(after - before).max(1) > 1e-4
    assert np.array_equal(moved, clip_sources(base, made, "audio") == -2)


def test_a_head_fitted_on_labels_is_fitted_again(many_clips, tmp_path):
    """Its old logits know labels that the corruption takes away, and which audio belongs to which clip."""
    rng = np.random.default_rng(0)
    from avdistill.teachers.extraction import add_features

    embedding = rng.standard_normal((len(many_clips), 6)).astype(np.float32)
    add_features(
        many_clips, "plain", modality="audio", provenance={"name": "s"}, embedding=embedding, logits=None, classes=()
    )
    base = ClipDataset(many_clips.folder)
    assert base.teachers["plain"].fitted_head
    made = corrupt(base, Corruption(label_fraction=0.5), tmp_path / "made")
    transfer_features(base, made, "plain")
    entry = ClipDataset(made.folder).teachers["plain"]
    labeled = sum(bool(made.labels[i]) for i in np.flatnonzero(made.columns["split"] == "train"))
    assert entry.head["labeled_clips"] == labeled
    assert np.array_equal(feature_arrays(ClipDataset(made.folder), "plain")[0], embedding)
    assert not np.allclose(feature_arrays(ClipDataset(made.folder), "plain")[1], feature_arrays(base, "plain")[1])


def test_a_head_is_fitted_again_on_the_splits_it_was_fitted_on(many_clips, tmp_path):
    from avdistill.teachers.extraction import add_features

    about = {"modality": "audio", "provenance": {"name": "s"}, "logits": None, "classes": ()}
    embedding = np.random.default_rng(0).standard_normal((len(many_clips), 6)).astype(np.float32)
    add_features(many_clips, "plain", embedding=embedding, head_split="train+test", **about)
    base = ClipDataset(many_clips.folder)
    everything = np.isin(base.columns["split"], ["train", "test"])
    assert base.teachers["plain"].head["labeled_clips"] == sum(bool(base.labels[i]) for i in np.flatnonzero(everything))
    made = corrupt(base, Corruption(label_fraction=0.5), tmp_path / "made")
    transfer_features(base, made, "plain")
    entry = ClipDataset(made.folder).teachers["plain"]
    assert entry.head_split == "train+test"
    assert entry.head["labeled_clips"] == sum(bool(made.labels[i]) for i in np.flatnonzero(everything))


def test_labels_can_be_taken_where_nothing_audio(many_clips, tmp_path):
    mute = corrupt(many_clips, Corruption(dropped=1.0), tmp_path / "mute")
    made = corrupt(mute, Corruption(label_fraction=0.5), tmp_path / "made")
    assert sum(map(bool, made.labels)) < sum(map(bool, mute.labels))
    with pytest.raises(DatasetError, match="no clip with audio"):
        corrupt(mute, Corruption(mismatched=0.5), tmp_path / "none")


# Ten training clips of each class: two videos of five; five videos of two; ten videos of one, two of them labeled.
VIDEOS = {"class_0": 2, "class_1": 5, "class_2": 2}
CLIPS = {"class_0": 10, "class_1": 10, "class_2": 2}


@pytest.fixture
def filmed(many_clips):
    """`many_clips` as clips of longer videos; one of them has clips in the test split too."""
    rows = many_clips.table.to_pylist()
    for i, row in enumerate(rows):
        kind, number = i % 3, i // 3
        row["path"] = row["group"] = f"{kind}_{number // (5, 2, 1)[kind]}.mp4" if row["split"] == "train" else "0_0.mp4"
        if row["split"] == "train" and kind == 2 and number >= 2:
            row["labels"] = []
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), many_clips.folder / "clips.parquet")
    return ClipDataset(many_clips.folder)


def labeled(dataset, split="train"):
    """Rows of a split's labeled clips."""
    return {i for i in range(len(dataset)) if dataset.columns["split"][i] == split and dataset.labels[i]}


def under(dataset, tmp_path, text):
    return corrupt(dataset, parse_corruption(text), tmp_path / text)


def assert_only_labels_were_taken(filmed, made):
    assert made.classes == filmed.classes
    for i, truth in enumerate(extra(made)):
        assert made.labels[i] in (filmed.labels[i], ())
        taken = filmed.labels[i] != made.labels[i]
        assert truth.get("true_label") == ("|".join(filmed.labels[i]) if taken else None)
    assert labeled(made, "test") == labeled(filmed, "test")
    assert made.verify() == []


@pytest.mark.parametrize("seed", [0, 3])
def test_so_many_videos_keep_the_labels_of_all_their_clips(filmed, tmp_path, seed):
    path = filmed.columns["path"]
    having = sorted({path[i] for i in labeled(filmed)})
    assert len(having) == sum(VIDEOS.values())
    order = np.random.default_rng([seed, 6]).permutation(having).tolist()
    before = set()
    for count in range(1, 10):
        made = under(filmed, tmp_path, f"labeled_videos={count},seed={seed}")
        kept = labeled(made)
        assert {path[i] for i in kept} == set(order[:count])
        assert len(kept) == sum({"0": 5, "1": 2, "2": 1}[video[0]] for video in order[:count])
        assert kept > before
        assert_only_labels_were_taken(filmed, made)
        before = kept
    assert before == labeled(filmed)


def test_classes_may_be_left_without_a_labeled_clip(filmed, tmp_path):
    made = under(filmed, tmp_path, "labeled_videos=1")
    assert len({made.labels[i] for i in labeled(made)}) == 1
    assert made.classes == ("class_0", "class_1", "class_2")
    mixed = under(filmed, tmp_path, "labeled_videos=3,mismatched=0.4")
    assert len({mixed.columns["path"][i] for i in labeled(mixed)}) == 3
    assert sum(truth.get("audio") == "mismatched" for truth in extra(mixed)) == round(0.4 * 30)


def test_more_videos_than_there_are(filmed, tmp_path):
    with pytest.raises(DatasetError, match="10 labeled videos requested, split 'train' has 9"):
        under(filmed, tmp_path, "labeled_videos=10")
    assert not (tmp_path / "labeled_videos=10").exists()


def test_so_many_clips_of_each_class_keep_their_labels(filmed, tmp_path):
    before = set()
    for count in range(1, 11):
        made = under(filmed, tmp_path, f"labeled_per_class={count}")
        kept = labeled(made)
        for name, clips in CLIPS.items():
            assert sum(made.labels[i] == (name,) for i in kept) == min(count, clips)
        assert kept > before
        assert_only_labels_were_taken(filmed, made)
        before = kept
    assert before == labeled(filmed) == labeled(under(filmed, tmp_path, "labeled_per_class=500"))


# Training clips of `many_clips` that kept their labels with the last version that drew each combination of labels for
# itself: where every clip has one label, what was drawn then must be drawn for ever.
DRAWN = {
    "label_fraction=0.1": [7, 20, 21],
    "label_fraction=0.4": [2, 3, 7, 12, 14, 16, 18, 20, 21, 22, 23, 28],
    "label_fraction=0.4,seed=3": [0, 4, 7, 12, 15, 19, 20, 22, 23, 24, 26, 29],
    "label_fraction=0.2,mismatched=0.3": [3, 7, 14, 20, 21, 22],
    "labeled_per_class=2": [3, 7, 14, 20, 21, 22],
    "labeled_per_class=5,seed=7": [1, 2, 3, 6, 10, 13, 14, 15, 20, 22, 23, 24, 27, 28, 29],
    "labeled_videos=4": [1, 3, 4, 15],
}


@pytest.mark.parametrize("text", DRAWN)
def test_clips_with_one_label_are_drawn_as_ever(many_clips, tmp_path, text):
    assert sorted(labeled(under(many_clips, tmp_path, text))) == DRAWN[text]


def relabeled(dataset, labels):
    """The dataset with other labels for its first clips."""
    rows = dataset.table.to_pylist()
    for row, names in zip(rows, labels, strict=False):
        row["labels"] = names
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), dataset.folder / "clips.parquet")
    described = json.loads((dataset.folder / "dataset.json").read_text())
    classes = sorted({name for row in rows for name in row["labels"]})
    (dataset.folder / "dataset.json").write_text(json.dumps(described | {"classes": classes}))
    return ClipDataset(dataset.folder)


@pytest.fixture
def tagged(many_clips):
    """`many_clips`, whose 30 training clips have one to three of seven labels, in any order."""
    rng = np.random.default_rng(2)
    share = np.array([7, 6, 4, 3, 2, 2, 1]) / 25
    names = [[f"tag_{k}" for k in rng.choice(7, rng.integers(1, 4), replace=False, p=share)] for _ in range(30)]
    return relabeled(many_clips, names)


def of_each(dataset):
    """How many labeled training clips each label has."""
    return Counter(name for i in labeled(dataset) for name in dataset.labels[i])


@pytest.mark.parametrize("share", [0.1, 0.25, 0.5])
@pytest.mark.parametrize("seed", [0, 1])
def test_of_several_labels_each_keeps_its_share(tagged, tmp_path, share, seed):
    made = under(tagged, tmp_path, f"label_fraction={share},seed={seed}")
    for name, before in of_each(tagged).items():
        assert max(1, round(share * before)) <= of_each(made)[name] <= max(1, round(share * before)) + 1
    assert len(labeled(made)) <= share * 30 + 4
    assert_only_labels_were_taken(tagged, made)


def test_of_several_labels_each_keeps_the_number_and_a_smaller_number_is_among_a_larger(tagged, tmp_path):
    before = set()
    for count in range(1, 20):
        made = under(tagged, tmp_path, f"labeled_per_class={count},seed=4")
        for name, clips in of_each(tagged).items():
            assert of_each(made)[name] >= min(count, clips)
        if count == 1:
            assert max(of_each(made).values()) <= 2
        assert labeled(made) >= before
        assert_only_labels_were_taken(tagged, made)
        before = labeled(made)
    assert before == labeled(tagged)
    assert labeled(under(tagged, tmp_path, "labeled_per_class=1000000")) == before


def test_many_clips_with_up_to_three_of_fifty_labels():
    """Each label keeps a tenth, and so do the clips. Most combinations occur once: drawn from those, 685 are kept."""
    rng = np.random.default_rng(0)
    rows = [{"labels": [f"{k}" for k in rng.choice(50, rng.integers(1, 4), replace=False)]} for _ in range(1000)]
    size = Counter(name for row in rows for name in row["labels"])
    for corruption, wanted, clips in (
        (Corruption(label_fraction=0.1), {name: round(0.1 * count) for name, count in size.items()}, (90, 120)),
        (Corruption(labeled_per_class=5), dict.fromkeys(size, 5), (100, 150)),
    ):
        lost = {id(row) for row in surplus_of_each_label(corruption, rows)}
        kept = [row for row in rows if id(row) not in lost]
        counts = Counter(name for row in kept for name in row["labels"])
        assert clips[0] <= len(kept) <= clips[1]
        assert all(wanted[name] <= counts[name] <= wanted[name] + 1 for name in size)


def test_the_order_of_a_clips_labels_does_not_matter(tagged, tmp_path):
    first = labeled(under(tagged, tmp_path, "label_fraction=0.3"))
    turned = relabeled(tagged, [list(row)[::-1] for row in tagged.labels])
    assert labeled(corrupt(turned, Corruption(label_fraction=0.3), tmp_path / "turned")) == first


def test_several_splits_and_a_default_that_is_another(many_clips, tmp_path):
    rows = many_clips.table.to_pylist()
    for i, row in enumerate(rows[:30]):
        row["split"] = "more" if i % 3 else "training"
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), many_clips.folder / "clips.parquet")
    dataset = ClipDataset(many_clips.folder)
    corruption = parse_corruption("labeled_per_class=2,mismatched=0.5", "training+more")
    assert corruption == parse_corruption("labeled_per_class=2,mismatched=0.5,split=training+more")
    made = corrupt(dataset, corruption, tmp_path / "made")
    assert len([i for i in range(30) if made.labels[i]]) == 6
    assert sum(truth.get("audio") == "mismatched" for truth in extra(made)[:30]) == 15
    assert all("audio" not in truth for truth in extra(made)[30:])
    with pytest.raises(DatasetError, match="no clip in split 'none'; found more, test"):
        corrupt(dataset, parse_corruption("label_fraction=0.5", "training+none"), tmp_path / "absent")


def test_a_head_is_fitted_again_where_a_class_has_no_label_left(filmed, tmp_path):
    from avdistill.teachers.extraction import add_features

    embedding = np.random.default_rng(0).standard_normal((len(filmed), 6)).astype(np.float32)
    add_features(
        filmed, "plain", modality="audio", provenance={"name": "s"}, embedding=embedding, logits=None, classes=()
    )
    base = ClipDataset(filmed.folder)
    # The first seed whose two videos are of two classes, and the first whose two are of one.
    for classes in (2, 1):
        datasets = (under(base, tmp_path, f"labeled_videos=2,seed={seed}") for seed in range(50))
        made = next(s for s in datasets if len({s.labels[i] for i in labeled(s)}) == classes)
        transfer_features(base, made, "plain")
        logits = feature_arrays(ClipDataset(made.folder), "plain")[1]
        if classes == 1:
            assert logits is None
            continue
        absent = ({0, 1, 2} - {made.classes.index(made.labels[i][0]) for i in labeled(made)}).pop()
        assert np.isfinite(logits).all()
        assert (logits[:, absent] == -20).all()


def test_corruptions_are_read_and_named_alike():
    assert parse_corruption("clean") == Corruption()
    assert Corruption().name == "clean"
    text = "mismatched=0.4,label_fraction=0.25"
    assert parse_corruption(text) == Corruption(mismatched=0.4, label_fraction=0.25)
    assert parse_corruption(parse_corruption(text).name) == parse_corruption(text)
    assert parse_corruption(Corruption(noisy=1, snr_db=-5, split="all", seed=4).name) == Corruption(
        noisy=1, snr_db=-5, split="all", seed=4
    )
    text = "labeled_videos=20,mismatched=0.4"
    assert parse_corruption(text) == Corruption(mismatched=0.4, labeled_videos=20)
    for made in (parse_corruption(text), Corruption(labeled_per_class=1_234_567, seed=10_000_000)):
        assert parse_corruption(made.name) == made
    assert Corruption(labeled_per_class=5, split="all").name == "labeled_per_class=5,split=all"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("noise=0.4", "NAME=VALUE"),
        ("mismatched", "NAME=VALUE"),
        ("mismatched=much", "must be a number"),
        ("mismatched=0.7,dropped=0.7", "at most 1"),
        ("label_fraction=0", "label_fraction must lie"),
        ("labeled_videos=-1", "labeled_videos must be at least 0, got -1"),
        ("labeled_per_class=-2", "labeled_per_class must be at least 0, got -2"),
        ("labeled_videos=0.5", "labeled_videos must be a whole number"),
        ("label_fraction=0.5,labeled_videos=2", "only one of label_fraction"),
        ("label_fraction=0.5,labeled_per_class=2", "only one of label_fraction"),
        ("labeled_videos=2,labeled_per_class=2", "only one of label_fraction"),
    ],
)
def test_wrong_corruptions_are_one_line(text, message):
    with pytest.raises(ConfigError, match=message):
        parse_corruption(text)


def test_a_split_that_is_not_there(many_clips, tmp_path):
    for change in ({"mismatched": 0.1}, {"label_fraction": 0.5}):
        with pytest.raises(DatasetError, match="no clip in split 'nowhere'"):
            corrupt(many_clips, Corruption(split="nowhere", **change), tmp_path / "made")


def test_the_verb_makes_the_dataset_and_brings_the_teachers(many_clips, tmp_path, capsys):
    assert main(["corrupt", str(many_clips.folder), "mismatched=0.5", "--out", str(tmp_path / "made")]) == 0
    assert "teachers: audio" in capsys.readouterr().out
    assert main(["info", str(tmp_path / "made")]) == 0
    assert main(["corrupt", str(many_clips.folder), "labeled_videos=7", "--out", str(tmp_path / "few")]) == 0
    assert len(labeled(ClipDataset(tmp_path / "few"))) == 7
    assert main(["corrupt", str(many_clips.folder), "labeled_videos=31", "--out", str(tmp_path / "more")]) == 1
    assert "31 labeled videos requested, split 'train' has 30" in capsys.readouterr().err
    assert main(["corrupt", str(many_clips.folder), "mismatched=5", "--out", str(tmp_path / "x")]) == 2
    assert "at most 1" in capsys.readouterr().err


def test_the_one_clip_that_fits_is_found_among_many(many_clips, tmp_path):
    """Its share of random draws is a fortieth."""

    def rows(_):
        changed = rows_of(many_clips)
        for row in changed:
            row["labels"] = ["class_1" if row["id"] == "clip7" else "class_0"]
        return changed

    one = linked_copy(many_clips, tmp_path / "one", {}, "this", rows)
    made = corrupt(one, Corruption(mismatched=0.5, split="train"), tmp_path / "made")
    sources = {row["id"]: row["extra"]["audio_source"] for row in rows_of(made) if "audio_source" in row["extra"]}
    assert len(sources) == 15
    assert {source for clip, source in sources.items() if clip != "clip7"} == {"clip7"}
    assert sources.get("clip7") != "clip7"
