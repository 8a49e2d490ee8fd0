"""Windows, crops, batches: every batch is a function of (seed, number), nothing is skipped, absence is a mask."""

import itertools
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from avdistill.annotations.groups import video_of
from avdistill.dataset.batches import EvaluationWindows, TrainingBatches
from avdistill.dataset.splits import clips_of_split, clips_of_splits, encode_labels, has_modality, split_validation
from avdistill.dataset.windows import evaluation_window, sliding_starts, spaced_starts, take_window, training_window
from avdistill.errors import DatasetError
from avdistill.inputs import AudioInput, VideoInput
from support.features import feature_arrays
from support.media_files import SMALL

VIDEO = VideoInput(frames=4, size=(16, 20))


@given(count=st.integers(1, 200), length=st.integers(1, 40), stride=st.integers(1, 40))
def test_sliding_windows_skip_nothing_and_end_at_the_end(count, length, stride):
    if stride > length:
        with pytest.raises(ValueError, match="stride"):
            sliding_starts(count, length, stride)
        return
    starts = sliding_starts(count, length, stride)
    covered = {i for s in starts for i in range(s, min(s + length, count))}
    assert covered == set(range(count))
    assert all(s < count for s in starts)
    assert sum(s + length >= count for s in starts) == 1  # the first to reach the end is the last
    aligned = sliding_starts(count, length, stride, align_last=True)
    assert aligned[:-1] == starts[:-1]
    assert aligned[-1] == max(0, count - length) <= starts[-1]


@given(count=st.integers(1, 100), length=st.integers(1, 40), windows=st.integers(1, 5))
def test_spaced_windows(count, length, windows):
    starts = spaced_starts(count, length, windows)
    last = max(0, count - length)
    assert all(0 <= s <= last for s in starts)
    if windows > 1:
        assert {starts[0], starts[-1]} == {0, last}
    assert len(starts) <= windows


@given(count=st.integers(1, 30), length=st.integers(1, 40), data=st.data())
def test_short_windows_loop_their_own_items(count, length, data):
    start = data.draw(st.integers(0, count - 1))
    window = take_window(np.arange(count), start, length)
    there = list(range(start, min(start + length, count)))
    assert window.tolist() == (there * length)[:length]


def test_every_start_is_drawn_also_the_last():
    items = np.arange(6 * 2 * 2 * 3, dtype=np.uint8).reshape(6, 2, 2, 3)
    view = VideoInput(frames=4, size=(2, 2), scale=(1.0, 1.0), ratio=(1.0, 1.0), hflip=False)
    first = {
        int(training_window(items, view, 16000, np.random.default_rng(seed))[0, 0, 0, 0]) // 12 for seed in range(60)
    }
    assert first == {0, 1, 2}


def test_training_window_is_a_crop_of_the_clip():
    frames = np.zeros((8, 40, 60, 3), np.uint8)
    frames[..., 0] = np.arange(40)[:, None] * 6
    frames[..., 1] = np.arange(60) * 4
    window = training_window(frames, VIDEO, 16000, np.random.default_rng(3)).numpy().astype(int)
    assert window.shape == (4, 16, 20, 3)
    assert (window[0] == window[3]).all()  # one crop for the whole window
    rows, columns = window[0, :, 10, 0], window[0, 8, :, 1]
    assert (np.diff(rows) >= 0).all()
    assert (np.diff(columns) >= 0).all() or (np.diff(columns) <= 0).all()
    assert rows[-1] > rows[0]


def test_evaluation_window_is_the_center():
    frames = np.zeros((4, 40, 80, 3), np.uint8)
    frames[:, :, 20:60] = 200  # the center square
    window = evaluation_window(frames, VideoInput(frames=4, size=(20, 20)), 16000, 0)
    assert window.shape == (4, 20, 20, 3)
    assert window[:, :, 1:-1].float().mean() > 195


def test_without_resizing_the_pixels_are_those_of_the_dataset():
    frames = np.random.default_rng(0).integers(0, 256, (6, 9, 12, 3), dtype=np.uint8)
    view = VideoInput(frames=4, size=(7, 10), hflip=False, resize=False)
    crops = {
        (t, y, x): frames[t : t + 4, y : y + 7, x : x + 10].tobytes()
        for t, y, x in itertools.product(range(3), range(3), range(3))
    }
    drawn = [training_window(frames, view, 16000, np.random.default_rng(seed)).numpy().tobytes() for seed in range(300)]
    assert set(drawn) == set(crops.values())  # every place in time and video, and nothing else
    assert evaluation_window(frames, view, 16000, 1).numpy().tobytes() == crops[1, 1, 1]


def test_without_resizing_half_of_the_windows_are_mirrored():
    frames = np.arange(2 * 4 * 5 * 3, dtype=np.uint8).reshape(2, 4, 5, 3)
    view = VideoInput(frames=2, size=(4, 5), resize=False)
    drawn = [training_window(frames, view, 16000, np.random.default_rng(seed)).numpy() for seed in range(40)]
    mirrored = [np.array_equal(window, frames[:, :, ::-1]) for window in drawn]
    assert 8 < sum(mirrored) < 32
    assert all(m or np.array_equal(window, frames) for m, window in zip(mirrored, drawn, strict=True))


@pytest.mark.parametrize("look", ["training", "evaluation"])
def test_a_view_larger_than_the_images_is_refused(look):
    view = VideoInput(frames=2, size=(5, 5), resize=False)
    frames = np.zeros((2, 4, 8, 3), np.uint8)
    looks = {
        "training": lambda: training_window(frames, view, 16000, np.random.default_rng(0)),
        "evaluation": lambda: evaluation_window(frames, view, 16000, 0),
    }
    with pytest.raises(ValueError, match=r"frames of 4x8 pixels .* no window of 5x5"):
        looks[look]()


def test_audio_window_is_scaled_and_looped():
    samples = np.array([32767, -32767, 0], np.int16)
    window = evaluation_window(samples, AudioInput(seconds=7 / 16000), 16000, 0)
    assert window.tolist() == [1, -1, 0, 1, -1, 0, 1]
    assert window.dtype == torch.float32


def batches(dataset, **changes):
    clips = clips_of_split(dataset, "train")
    settings = {
        "batch_size": 6,
        "labeled_per_batch": None,
        "use_unlabeled": True,
        "teacher": dataset.features("audio"),
        "seed": 5,
    }
    labels = encode_labels(dataset, clips, dataset.classes)
    return TrainingBatches(dataset, clips, labels, changes.pop("view", VIDEO), **(settings | changes))


def test_a_batch_can_be_made_again(taught):
    first, again, other = batches(taught)[3], batches(taught)[3], batches(taught, seed=6)[3]
    assert first.clip_ids == again.clip_ids
    assert torch.equal(first.frames, again.frames)
    assert first.frames.shape == (6, 4, 16, 20, 3)
    assert first.frames.dtype == torch.uint8
    assert not torch.equal(first.frames, other.frames)


def test_batches_walk_through_every_clip_once_an_epoch(taught):
    data = batches(taught)
    clips = len(data.clips)
    drawn = np.concatenate([data.rows(i) for i in range(clips)])  # six whole epochs
    assert all(sorted(drawn[e * clips : (e + 1) * clips]) == list(range(clips)) for e in range(6))
    assert drawn[:clips].tolist() != drawn[clips : 2 * clips].tolist()


def test_labeled_and_unlabeled_at_a_ratio(taught):
    data = batches(taught, labeled_per_batch=2)
    assert all(int(data[i].labeled.sum()) == 2 for i in range(8))
    only = batches(taught, labeled_per_batch=2, use_unlabeled=False)
    assert bool(only[0].labeled.all())
    assert len(only[0].labeled) == 6


def test_batch_tells_what_is_missing(taught):
    truth = {name: (label, labeled, audio) for name, label, _, labeled, audio in SMALL}
    embedding, logits, _ = feature_arrays(taught, "audio")
    row = {name: i for i, name in enumerate(taught.columns["id"].tolist())}
    seen = set()
    for number in range(8):
        batch = batches(taught)[number]
        for i, name in enumerate(batch.clip_ids):
            label, labeled, audio = truth[name]
            seen.add((labeled, audio))
            assert bool(batch.labeled[i]) == labeled
            assert bool(batch.has_teacher[i]) == (audio == "tone")
            if labeled:
                assert int(batch.labels[i]) == label
            if audio == "tone":
                assert batch.teacher.embedding[i].tolist() == embedding[row[name]].tolist()
                assert batch.teacher.logits[i].tolist() == logits[row[name]].tolist()
    assert {(True, "tone"), (True, "none"), (False, "tone"), (False, "zeros")} <= seen


def test_a_student_that_hears_gets_audio(taught):
    clips = clips_of_split(taught, "train")
    view = AudioInput(seconds=0.5)
    heard = clips[has_modality(taught, clips, view)]
    assert 0 < len(heard) < len(clips)
    data = TrainingBatches(
        taught,
        heard,
        encode_labels(taught, heard, taught.classes),
        view,
        batch_size=4,
        labeled_per_batch=None,
        use_unlabeled=True,
        teacher=None,
        seed=0,
    )
    assert data[0].audio.shape == (4, 8000)
    assert data[0].frames is None
    assert data[0].teacher is None
    assert not data[0].has_teacher.any()


def test_several_splits_are_joined(taught):
    split = taught.columns["split"].tolist()
    both = clips_of_splits(taught, "teacher+train")
    assert both.tolist() == [i for i, name in enumerate(split) if name in ("train", "teacher")]
    assert len(both) == 18 + 2 + 9
    assert clips_of_splits(taught, "train+teacher+train").tolist() == both.tolist()
    assert clips_of_splits(taught, "train").tolist() == clips_of_split(taught, "train").tolist()
    with pytest.raises(DatasetError, match="no clip in split 'dev'; found teacher, test, train"):
        clips_of_splits(taught, "train+dev")
    with pytest.raises(DatasetError, match="no clip in split ''"):
        clips_of_splits(taught, "train+")


def test_a_split_may_have_a_plus_in_its_name():
    dataset = SimpleNamespace(columns={"split": np.array(["a", "a+b", "b", "a+b"], dtype=object)}, folder="x")
    assert clips_of_splits(dataset, "a+b").tolist() == [1, 3]


def test_validation_is_cut_by_video(taught):
    clips = clips_of_split(taught, "train")
    training, validation = split_validation(taught, clips, 0.4, seed=0)
    assert len(validation) == round(0.4 * 9)
    assert not set(taught.columns["group"][training]) & set(taught.columns["group"][validation])
    assert all(taught.labels[i] for i in validation)
    again = split_validation(taught, clips, 0.4, seed=0)[1]
    assert validation.tolist() == again.tolist()
    assert len(split_validation(taught, clips, 0.0, seed=0)[1]) == 0


def test_labels_that_do_not_fit(taught):
    clips = clips_of_split(taught, "train")
    with pytest.raises(DatasetError, match="'class_0' is not a known class"):
        encode_labels(taught, clips, ("class_1", "class_2"))
    with pytest.raises(DatasetError, match="no clip in split 'dev'; found teacher, test, train"):
        clips_of_split(taught, "dev")
    hot = encode_labels(taught, clips, taught.classes, multi_label=True)
    assert hot.values.shape == (len(clips), 3)
    assert hot.values.sum() == hot.labeled.sum() == 9


def test_evaluation_windows_cover_each_clip(taught):
    clips = clips_of_split(taught, "test")
    data = EvaluationWindows(taught, clips, VIDEO)  # 10 frames in windows of 4: starts 0, 4, 8
    assert data.items == [(p, s) for p in range(len(clips)) for s in (0, 4, 8)]
    assert len(EvaluationWindows(taught, clips, VIDEO, windows=3)) == 3 * len(clips)
    position, window = data[5]
    assert position == 1
    assert window.shape == (4, 16, 20, 3)
    assert torch.equal(window[0], window[2])  # the last window holds two frames, looped


@pytest.mark.parametrize(("stored", "size"), [((31, 57), (20, 26)), ((128, 171), (112, 112)), ((24, 42), (48, 48))])
def test_images_are_scaled_and_cut_as_torchvision_does(stored: tuple[int, int], size: tuple[int, int]) -> None:
    functional = pytest.importorskip("torchvision.transforms.v2.functional")
    frames = np.random.default_rng(0).integers(0, 256, (3, *stored, 3), dtype=np.uint8)
    factor = max(size[0] / stored[0], size[1] / stored[1])
    scaled = [max(size[i], round(stored[i] * factor)) for i in range(2)]
    first = torch.from_numpy(frames).permute(0, 3, 1, 2)
    expected = functional.center_crop(functional.resize(first, scaled, antialias=True), list(size))
    found = evaluation_window(frames, VideoInput(frames=3, size=size), 16000, 0)
    assert torch.equal(found, expected.permute(0, 2, 3, 1))


@pytest.mark.parametrize(
    ("path", "video"),
    [
        ("Typing/v_Typing_g08_c03.avi", "v_Typing_g08"),
        ("v_HandstandPushups_g25_c01.avi", "v_HandstandPushups_g25"),
        ("v_-a1b_c2d3e4_12.mp4", "v_-a1b_c2d3e4"),
        ("cats/v_1.mp4", "cats/v_1.mp4"),
        ("kT3hpe1sVbA_000030.mp4", "kT3hpe1sVbA"),
        ("dancing/_abcdefghi-_000030_000040.mkv", "_abcdefghi-"),
        ("abcd_012345_000030.mp4", "abcd_012345"),  # an id of eleven characters
        ("holiday_000030_000040.mp4", "holiday"),
        ("upload7_000030.mp4", "upload7"),
        ("clip_000030.mp4", "clip_000030.mp4"),  # numbered videos
        ("000030.mp4", "000030.mp4"),
        ("upload7_30.mp4", "upload7_30.mp4"),
    ],
)
def test_names_tell_which_files_are_parts_of_a_video(path, video):
    assert video_of(path) == video


def stored(paths, labels):
    columns = {"group": np.array([video_of(path) for path in paths], dtype=object)}
    return SimpleNamespace(columns=columns, labels=[(name,) if name else () for name in labels])


def test_parts_of_a_video_stay_together_in_validation():
    names = [f"v_Typing_g{group:02d}_c{clip:02d}.avi" for group in range(1, 11) for clip in range(1, 5)]
    dataset = stored(names, ["typing"] * 40)
    training, validation = split_validation(dataset, np.arange(40), 0.3, seed=0)
    assert len(validation) == 3 * 4
    groups = [{names[i][:13] for i in part} for part in (training, validation)]
    assert len(groups[1]) == 3
    assert not groups[0] & groups[1]


@pytest.mark.parametrize(("videos", "aside"), [(1, 0), (2, 1), (4, 1), (20, 2)])
def test_few_videos_still_leave_one_for_validation(videos, aside):
    dataset = stored([f"{i}.mp4" for i in range(videos)], ["cat"] * videos)
    assert len(split_validation(dataset, np.arange(videos), 0.1, seed=0)[1]) == aside
    assert len(split_validation(dataset, np.arange(videos), 0.0, seed=0)[1]) == 0
