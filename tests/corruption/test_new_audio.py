"""New audio of a dataset under a corruption: written as it comes, into as many shards as it needs, never into
others'.
"""

import errno
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avdistill.corruption import Corruption, corrupt
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import CLIP_SCHEMA
from avdistill.dataset.shards import Shard
from avdistill.errors import DatasetError


def audio_truth(dataset):
    return [dict(row or ()).get("audio") for row in dataset.table["extra"].to_pylist()]


@pytest.mark.parametrize("shard_bytes", [1, 100_000])
def test_as_many_shards_as_it_needs(many_clips, tmp_path, monkeypatch, shard_bytes):
    corruption = Corruption(time_shifted=0.4, noisy=0.3, snr_db=-5)
    one = corrupt(many_clips, corruption, tmp_path / "one")
    monkeypatch.setattr("avdistill.dataset.shards._SHARD_BYTES", shard_bytes)
    several = corrupt(many_clips, corruption, tmp_path / "several")
    shards = sorted(several.folder.glob("audio-*.npy"))[1:]
    assert len(shards) > 3
    # One array after the other they are what a single shard holds.
    assert np.array_equal(np.concatenate([np.load(file) for file in shards]), np.load(one.folder / "audio-00001.npy"))
    for i, change in enumerate(audio_truth(several)):
        assert np.array_equal(several.audio(i), one.audio(i))
        assert np.array_equal(several.audio(i), many_clips.audio(i)) == (change not in ("time_shifted", "noisy"))
    assert several.verify() == []
    assert several.checksum == one.checksum
    assert set(json.loads((several.folder / "dataset.json").read_text())["files"]) >= {file.name for file in shards}


def test_it_is_never_all_in_memory(many_clips, tmp_path):
    """Clips of 20 seconds, of which a few may be in memory at a time."""
    length = 20 * 16000
    rows = many_clips.table.to_pylist()
    for i, row in enumerate(rows):
        row |= {"audio_shard": 0, "audio_offset": i * length, "audio_count": length}
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), many_clips.folder / "clips.parquet")
    audio = np.random.default_rng(0).integers(-9999, 9999, len(rows) * length).astype(np.int16)
    (many_clips.folder / "audio-00000.npy").unlink()
    np.save(many_clips.folder / "audio-00000.npy", audio)
    dataset = ClipDataset(many_clips.folder)
    tracemalloc.start()
    made = corrupt(dataset, Corruption(time_shifted=1.0), tmp_path / "made")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    new = sum(file.stat().st_size for file in made.folder.glob("audio-*.npy")) - audio.nbytes
    assert new > 30 * 2 * length
    assert most < new / 3


def test_a_shard_that_no_clip_points_into_any_more_is_not_written_into(many_clips, tmp_path):
    """It is a link: the dataset it was made for would have another audio."""
    shifted = corrupt(many_clips, Corruption(time_shifted=1.0), tmp_path / "time_shifted")
    silent = corrupt(shifted, Corruption(dropped=1.0), tmp_path / "silent")
    assert not (silent.columns["audio_shard"] == 1).any()
    again = corrupt(silent, Corruption(time_shifted=1.0, split="test"), tmp_path / "again")
    assert [dataset.verify() for dataset in (many_clips, shifted, silent, again)] == [[]] * 4
    assert audio_truth(again).count("time_shifted") == 10


def test_a_full_disk_half_way(many_clips, tmp_path, monkeypatch):
    append, calls = Shard.append, []

    def failing(shard, array, crc=0):
        calls.append(array)
        if len(calls) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(shard, array, crc)

    monkeypatch.setattr("avdistill.dataset.shards._SHARD_BYTES", 100_000)
    whole = corrupt(many_clips, Corruption(time_shifted=1.0), tmp_path / "whole")
    monkeypatch.setattr(Shard, "append", failing)
    with pytest.raises(DatasetError, match="cannot be written: No space left on device"):
        corrupt(many_clips, Corruption(time_shifted=1.0), tmp_path / "made")
    made = corrupt(many_clips, Corruption(time_shifted=1.0), tmp_path / "made")
    assert made.table.equals(whole.table)
    assert made.verify() == []
