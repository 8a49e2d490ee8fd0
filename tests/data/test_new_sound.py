"""New sound of a store under a condition: written as it comes, into as many shards as it needs, never into others'."""

import errno
import json
import tracemalloc

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from avdistill.data.conditions import Condition, apply_condition
from avdistill.data.shards import Shard
from avdistill.data.store import CLIP_SCHEMA, Store, StoreError


def told(store):
    return [dict(row or ()).get("sound") for row in store.table["extra"].to_pylist()]


@pytest.mark.parametrize("shard_bytes", [1, 100_000])
def test_as_many_shards_as_it_needs(many_clips, tmp_path, monkeypatch, shard_bytes):
    condition = Condition(shifted=0.4, drowned=0.3, snr_db=-5)
    one = apply_condition(many_clips, condition, tmp_path / "one")
    monkeypatch.setattr("avdistill.data.shards._SHARD_BYTES", shard_bytes)
    several = apply_condition(many_clips, condition, tmp_path / "several")
    shards = sorted(several.folder.glob("sound-*.npy"))[1:]
    assert len(shards) > 3
    # One array after the other they are what a single shard holds.
    assert np.array_equal(np.concatenate([np.load(file) for file in shards]), np.load(one.folder / "sound-00001.npy"))
    for i, change in enumerate(told(several)):
        assert np.array_equal(several.sound(i), one.sound(i))
        assert np.array_equal(several.sound(i), many_clips.sound(i)) == (change not in ("shifted", "drowned"))
    assert several.verify() == []
    assert several.checksum == one.checksum
    assert set(json.loads((several.folder / "store.json").read_text())["files"]) >= {file.name for file in shards}


def test_it_is_never_all_in_memory(many_clips, tmp_path):
    """Clips of 20 seconds, of which a few may be in memory at a time."""
    length = 20 * 16000
    rows = many_clips.table.to_pylist()
    for i, row in enumerate(rows):
        row |= {"sound_shard": 0, "sound_offset": i * length, "sound_count": length}
    pq.write_table(pa.Table.from_pylist(rows, schema=CLIP_SCHEMA), many_clips.folder / "clips.parquet")
    sound = np.random.default_rng(0).integers(-9999, 9999, len(rows) * length).astype(np.int16)
    (many_clips.folder / "sound-00000.npy").unlink()
    np.save(many_clips.folder / "sound-00000.npy", sound)
    store = Store(many_clips.folder)
    tracemalloc.start()
    made = apply_condition(store, Condition(shifted=1.0), tmp_path / "made")
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    new = sum(file.stat().st_size for file in made.folder.glob("sound-*.npy")) - sound.nbytes
    assert new > 30 * 2 * length
    assert most < new / 3


def test_a_shard_that_no_clip_points_into_any_more_is_not_written_into(many_clips, tmp_path):
    """It is a link: the store it was made for would have another sound."""
    shifted = apply_condition(many_clips, Condition(shifted=1.0), tmp_path / "shifted")
    silent = apply_condition(shifted, Condition(silent=1.0), tmp_path / "silent")
    assert not (silent.columns["sound_shard"] == 1).any()
    again = apply_condition(silent, Condition(shifted=1.0, split="test"), tmp_path / "again")
    assert [store.verify() for store in (many_clips, shifted, silent, again)] == [[]] * 4
    assert told(again).count("shifted") == 10


def test_a_full_disk_half_way(many_clips, tmp_path, monkeypatch):
    append, calls = Shard.append, []

    def failing(shard, array, crc=0):
        calls.append(array)
        if len(calls) == 20:
            raise OSError(errno.ENOSPC, "No space left on device")
        return append(shard, array, crc)

    monkeypatch.setattr("avdistill.data.shards._SHARD_BYTES", 100_000)
    whole = apply_condition(many_clips, Condition(shifted=1.0), tmp_path / "whole")
    monkeypatch.setattr(Shard, "append", failing)
    with pytest.raises(StoreError, match="cannot be written: No space left on device"):
        apply_condition(many_clips, Condition(shifted=1.0), tmp_path / "made")
    made = apply_condition(many_clips, Condition(shifted=1.0), tmp_path / "made")
    assert made.table.equals(whole.table)
    assert made.verify() == []
