"""A dataset whose frames are JPEG: PIL is the outside decoder, the raw dataset the outside content."""

import io
import json
import pickle
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from avdistill.annotations import Annotation
from avdistill.corruption import corrupt, parse_corruption
from avdistill.dataset.batches import TrainingBatches
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import staging_dir
from avdistill.dataset.shards import JpegFrames
from avdistill.dataset.splits import clips_of_split, encode_labels
from avdistill.dataset.windows import evaluation_window
from avdistill.errors import ConfigError, DatasetError
from avdistill.inputs import VideoInput
from avdistill.preparation.prepare import PrepareConfig, prepare
from avdistill.training import ModelConfig, TrainConfig, resume, train
from support.media_files import numbered_frames, write_video

CONFIG = PrepareConfig(fps=10, short_side=32, jpeg_quality=90)


@pytest.fixture(scope="session")
def compressed(small_set, tmp_path_factory):
    folder, annotations = small_set
    out = tmp_path_factory.mktemp("compressed") / "dataset"
    return prepare(annotations, folder, out, CONFIG, workers=1)


def decoded(dataset, clip):
    """By the description in docs/formats/dataset.md alone."""
    row = {name: values[clip] for name, values in dataset.columns.items()}
    name = f"frames-{row['frame_shard']:05d}"
    ends = np.load(dataset.folder / f"{name}.npy")
    content = (dataset.folder / f"{name}.jpeg").read_bytes()
    starts = np.concatenate([[0], ends[:-1]])
    return np.stack(
        [
            np.array(Image.open(io.BytesIO(content[starts[i] : ends[i]])))
            for i in range(row["frame_offset"], row["frame_offset"] + row["frame_count"])
        ]
    )


def test_the_frames_are_those_of_the_raw_dataset_but_for_the_compression(compressed, prepared):
    raw = ClipDataset(prepared)
    smaller = sum(f.stat().st_size for f in compressed.folder.glob("frames-*"))
    assert smaller < sum(f.stat().st_size for f in raw.folder.glob("frames-*"))
    for clip in range(len(raw)):
        frames = compressed.frames(clip)
        assert len(frames) == len(raw.frames(clip))
        assert frames.shape == raw.frames(clip).shape
        whole = np.asarray(frames)
        assert np.array_equal(whole, decoded(compressed, clip))
        assert np.abs(whole.astype(int) - raw.frames(clip)).mean() < 6
    assert compressed.describe()["frame_sizes"] == raw.describe()["frame_sizes"]
    assert compressed.verify() == []


def test_only_what_is_asked_for_is_decoded(compressed, monkeypatch):
    frames = compressed.frames(1)
    whole = np.asarray(frames)
    count = len(whole)
    numbers = []
    original = type(frames)._decode
    monkeypatch.setattr(type(frames), "_decode", lambda self, which: numbers.extend(which) or original(self, which))
    assert np.array_equal(frames[2:5], whole[2:5])
    assert numbers == [2, 3, 4]
    assert np.array_equal(frames[-1], whole[-1])
    looped = np.arange(count + 3) % count
    assert np.array_equal(frames[looped], whole[looped])
    assert sorted(numbers[4:]) == list(range(count))  # each once, however often it is repeated
    assert frames[3:3].shape == (0, *whole.shape[1:])
    with pytest.raises(IndexError):
        frames[count]
    with pytest.raises(ValueError, match="without being decoded"):
        np.asarray(frames, copy=False)


def test_without_simplejpeg_the_pixels_are_the_same(compressed, monkeypatch):
    fast = np.asarray(compressed.frames(2))
    monkeypatch.setitem(sys.modules, "simplejpeg", None)  # as if it were not installed
    assert np.array_equal(np.asarray(compressed.frames(2)), fast)


@pytest.mark.parametrize("decoder", ["simplejpeg", "pillow"])
def test_an_image_that_claims_hundreds_of_megabytes_is_not_decoded(decoder, monkeypatch):
    """The size of a JPEG stands in its frame header (SOF0, FF C0): height and width after length and precision."""
    if decoder == "pillow":
        monkeypatch.setitem(sys.modules, "simplejpeg", None)
    content = io.BytesIO()
    Image.new("RGB", (16, 16)).save(content, "JPEG")
    image = bytearray(content.getvalue())
    place = image.index(b"\xff\xc0") + 5
    image[place : place + 4] = (9000).to_bytes(2) * 2
    frames = JpegFrames(np.frombuffer(bytes(image), np.uint8), np.array([len(image)]), 0, 1)
    with pytest.raises(DatasetError, match="frame 0 cannot be decoded: expected at most 67108864 pixels, found 9000 x"):
        frames[0]


def test_windows_and_batches_are_as_from_an_array(compressed):
    view = VideoInput(frames=4, size=(24, 32), hflip=False)
    clips = clips_of_split(compressed, "train")
    data = TrainingBatches(
        pickle.loads(pickle.dumps(compressed)),
        clips,
        encode_labels(compressed, clips, compressed.classes, False),
        view,
        batch_size=4,
        labeled_per_batch=None,
        use_unlabeled=True,
        teacher=None,
        seed=1,
    )
    assert data[0].frames.shape == (4, 4, 24, 32, 3)
    window = evaluation_window(compressed.frames(0), view, 16000, 1)
    assert torch.equal(window, evaluation_window(np.asarray(compressed.frames(0)), view, 16000, 1))


@pytest.mark.parametrize("stop_after", [1, 7, 20])
def test_interrupted_it_goes_on_to_the_same_checksum(compressed, small_set, tmp_path, stop_after):
    folder, annotations = small_set
    out = tmp_path / "dataset"

    class KilledError(BaseException):
        pass

    def on_progress(progress):
        if progress.done == stop_after:
            raise KilledError

    with pytest.raises(KilledError):
        prepare(annotations, folder, out, CONFIG, workers=1, on_progress=on_progress)
    for name in ("frames-00000.npy", "frames-00000.jpeg", "frames-00007.jpeg"):
        with (staging_dir(out) / name).open("ab") as file:
            file.write(b"\x07" * 12345)  # bytes that nobody vouches for
    assert prepare(annotations, folder, out, CONFIG, workers=2).checksum == compressed.checksum


def test_every_size_has_a_shard_of_its_own(tmp_path):
    for i, size in enumerate([(48, 64), (64, 48), (48, 64)]):
        write_video(tmp_path / f"{i}.mp4", frames=numbered_frames(6, *size))
    annotations = [Annotation(str(i), f"{i}.mp4", (), "train") for i in range(3)]
    dataset = prepare(annotations, tmp_path, tmp_path / "dataset", CONFIG, workers=1)
    assert [dataset.frames(i).shape for i in range(3)] == [(6, 32, 43, 3), (6, 43, 32, 3), (6, 32, 43, 3)]


def test_the_description_names_the_encoding(prepared, small_set, compressed):
    for folder, encoding, quality in ((prepared, "raw", None), (compressed.folder, "jpeg", CONFIG.jpeg_quality)):
        description = json.loads((folder / "dataset.json").read_text())
        assert (description["version"], description["frame_encoding"]) == (4, encoding)
        assert description["settings"]["config"]["jpeg_quality"] == quality
    folder, annotations = small_set
    with pytest.raises(DatasetError, match="other settings"):
        prepare(annotations, folder, prepared, CONFIG, workers=1)


def test_a_dataset_under_a_corruption_and_a_run_on_it(compressed, tmp_path):
    made = corrupt(compressed, parse_corruption("mismatched=0.5"), tmp_path / "made")
    assert np.array_equal(np.asarray(made.frames(0)), np.asarray(compressed.frames(0)))
    config = TrainConfig(
        dataset=made.folder,
        out=tmp_path / "run",
        student=ModelConfig("shifted_frames", VideoInput(frames=4, size=(24, 32)), {"width": 8, "embedding_dim": 16}),
        steps=4,
        batch_size=4,
        val_fraction=0.3,
    )
    run = train(config, stop_after=2)
    assert resume(run) == run


@pytest.mark.parametrize("quality", [0, 101])
def test_a_quality_that_is_none_is_refused(quality):
    with pytest.raises(ConfigError, match="jpeg_quality must lie in 1 to 100"):
        PrepareConfig(jpeg_quality=quality)
