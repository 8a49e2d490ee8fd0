"""Workers encode, and a byte is written once: Pillow on the raw frames is the oracle of the images."""

import io

import numpy as np
import pytest
from PIL import Image

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import staging_dir
from avdistill.errors import SpoolError
from avdistill.media import Clip, read_clip
from avdistill.media.spool import Spool, blocks
from avdistill.preparation.encoding import SPOOL_SUFFIXES, encode_clip
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.folders import contents

RAW, JPEG = PrepareConfig(fps=10, short_side=32), PrepareConfig(fps=10, short_side=32, jpeg_quality=90)
CLIPS = 7
MEMORY = "avdistill.preparation.prepare.MEMORY_BYTES"


def encoded(image):
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90)
    return buffer.getvalue()


def test_the_workers_encode(small_set, prepared, tmp_path, monkeypatch):
    """Where the writing process can encode nothing."""

    def failing(*_arguments, **_options):
        raise AssertionError("encoded in the writing process")

    folder, annotations = small_set
    with monkeypatch.context() as patch:
        patch.setattr(Image.Image, "save", failing)
        dataset = prepare(annotations[:CLIPS], folder, tmp_path / "dataset", JPEG, workers=1)
    raw = ClipDataset(prepared)
    images = [encoded(image) for clip in range(CLIPS) for image in raw.frames(clip)]
    assert (dataset.folder / "frames-00000.jpeg").read_bytes() == b"".join(images)
    assert np.load(dataset.folder / "frames-00000.npy").tolist() == np.cumsum([len(image) for image in images]).tolist()


def test_no_clip_takes_the_way_over_a_file(small_set, tmp_path):
    folder, annotations = small_set
    spools = []

    def on_progress(_):
        spools.extend(file.name for file in staging_dir(tmp_path / "dataset").glob("spool-*"))

    prepare(annotations[:CLIPS], folder, tmp_path / "dataset", RAW, workers=1, on_progress=on_progress)
    assert not spools


@pytest.mark.parametrize("config", [RAW, JPEG], ids=["raw", "jpeg"])
def test_clips_too_large_for_memory_are_the_same(small_set, tmp_path, monkeypatch, config):
    """None, some (audio has 32,000 bytes, raw frames 46,080) and all of them."""
    folder, annotations = small_set
    made = []
    for memory in (2**20, 40_000, 0):
        monkeypatch.setattr(MEMORY, memory)
        dataset = prepare(annotations[:CLIPS], folder, tmp_path / f"{memory}", config, workers=2)
        made.append(contents(dataset.folder))
        assert not [name for name in made[-1] if name.startswith("spool")]
    assert made[0] == made[1] == made[2]


@pytest.mark.parametrize("quality", [None, 90])
@pytest.mark.parametrize("memory", [0, 40_000, 2**20])
def test_what_a_worker_hands_over(small_set, tmp_path, quality, memory):
    folder, annotations = small_set
    path = folder / annotations[1].path
    whole = read_clip(path, fps=10)
    spool = tmp_path / "spool-1"
    clip = read_clip(path, fps=10, spool=spool.with_suffix(".frames"), memory_bytes=memory)
    assert spool.with_suffix(".frames").exists() == (memory < whole.frames.nbytes)
    found = encode_clip(clip, quality, spool=spool, memory_bytes=memory)
    frames, audio = (np.concatenate(list(blocks(array))) for array in (found.frames, found.audio))
    images = [encoded(image) for image in whole.frames]
    assert frames.tobytes() == (whole.frames.tobytes() if quality is None else b"".join(images))
    assert (found.image_bytes is None) if quality is None else (found.image_bytes.tolist() == [*map(len, images)])
    assert found.frame_shape == whole.frames.shape[1:]
    assert audio.tolist() == np.round(np.clip(whole.waveform, -1, 1) * 32767).astype(int).tolist()
    assert {file.suffix for file in tmp_path.iterdir()} <= set(SPOOL_SUFFIXES)
    if quality is not None:
        assert not spool.with_suffix(".frames").exists()


def test_frames_of_a_reader_of_ones_own(tmp_path):
    """A part of a map of another file, and no array of bytes."""
    np.save(tmp_path / "own.npy", np.arange(6 * 4 * 5 * 3, dtype=np.uint8).reshape(6, 4, 5, 3))
    mapped = np.load(tmp_path / "own.npy", mmap_mode="r")[2:5]
    found = encode_clip(Clip(mapped, np.zeros(3), 1.0, None, 16000), None, spool=tmp_path / "spool", memory_bytes=0)
    assert np.array_equal(found.frames[:], np.load(tmp_path / "own.npy")[2:5])
    assert found.audio is None
    assert not found.silent
    with pytest.raises(TypeError, match="same_kind"):
        encode_clip(Clip(mapped.astype(float), np.zeros(3), 1.0, None, 16000), None)


def test_a_spool_without_a_place(tmp_path):
    spool = Spool(tmp_path / "no" / "spool", 4)
    spool.write(b"1234")
    with pytest.raises(SpoolError, match="No such file or directory"):
        spool.write(np.zeros(1, np.uint8))
    in_memory = Spool(None)
    in_memory.write(np.zeros((0, 3), np.int16))
    assert in_memory.result("<i2", (0, 3)).shape == (0, 3)
