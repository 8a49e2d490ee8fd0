"""What a power cut may leave of a preparation: names and lengths without the bytes, journal lines that speak of them.

The oracle is the dataset of a run that nobody disturbed, file by file.
"""

import os
from pathlib import Path

import numpy as np
import pytest

from avdistill.corruption import Corruption, corrupt
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import staging_dir
from avdistill.dataset.shards import JpegShardRecovery, ShardRecovery
from avdistill.preparation import journal as journal_module
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.folders import contents

RAW, JPEG = PrepareConfig(fps=10, short_side=32), PrepareConfig(fps=10, short_side=32, jpeg_quality=90)
CLIPS = 9


class Killed(BaseException):
    pass


@pytest.fixture(scope="module", params=[RAW, JPEG], ids=["raw", "jpeg"])
def whole(request, small_set, tmp_path_factory):
    """The config and the undisturbed dataset."""
    folder, annotations = small_set
    out = tmp_path_factory.mktemp("whole") / "dataset"
    return request.param, prepare(annotations[:CLIPS], folder, out, request.param, workers=1)


def begin(small_set, out, config, clips):
    """Stop a preparation after some clips; returns its folder."""
    folder, annotations = small_set

    def on_progress(progress):
        if progress.done == clips:
            raise Killed

    with pytest.raises(Killed):
        prepare(annotations[:CLIPS], folder, out, config, workers=1, on_progress=on_progress)
    return staging_dir(out)


def go_on(small_set, out, config, dataset):
    """Finish it; returns how many clips were prepared again or for the first time."""
    folder, annotations = small_set
    read = []
    prepare(annotations[:CLIPS], folder, out, config, workers=1, on_progress=lambda p: read.append(p.done))
    assert contents(out) == contents(dataset.folder)
    return len(read)


def cut(file, size):
    with file.open("r+b") as opened:
        opened.truncate(size)


def blank(file, first, last):
    with file.open("r+b") as opened:
        opened.seek(first)
        opened.write(b"\0" * (last - first))


SHARDS = pytest.mark.parametrize("name", ["frames-00000.npy", "frames-00000.jpeg", "audio-00000.npy"])


def begun_shard(small_set, out, config, name):
    """A shard of a preparation that ended after 6 clips."""
    shard = begin(small_set, out, config, 6) / name
    if not shard.exists():
        pytest.skip("the other format")
    return shard


@SHARDS
@pytest.mark.parametrize("left", [0.01, 0.95])
def test_a_shard_that_lost_its_end(whole, small_set, tmp_path, name, left):
    config, dataset = whole
    shard = begun_shard(small_set, tmp_path / "dataset", config, name)
    cut(shard, int(left * shard.stat().st_size))
    again = go_on(small_set, tmp_path / "dataset", config, dataset)
    assert CLIPS - 6 < again <= CLIPS
    if left == 0.95:
        assert again < CLIPS  # what is there is not read anew


@SHARDS
@pytest.mark.parametrize("first", [0.0, 0.9])
def test_a_shard_whose_end_is_zeros(whole, small_set, tmp_path, name, first):
    config, dataset = whole
    shard = begun_shard(small_set, tmp_path / "dataset", config, name)
    size = shard.stat().st_size
    blank(shard, int(first * size), size)
    assert CLIPS - 6 < go_on(small_set, tmp_path / "dataset", config, dataset) <= CLIPS


def test_a_shard_that_is_gone(whole, small_set, tmp_path):
    config, dataset = whole
    (begin(small_set, tmp_path / "dataset", config, 6) / "audio-00000.npy").unlink()
    go_on(small_set, tmp_path / "dataset", config, dataset)


def test_a_journal_with_zeros(whole, small_set, tmp_path):
    """A block that never reached the disk, with the next one behind it."""
    config, dataset = whole
    journal = begin(small_set, tmp_path / "dataset", config, 6) / "journal.jsonl"
    blank(journal, 700, 900)
    go_on(small_set, tmp_path / "dataset", config, dataset)


class Disk:
    """Knows of every file what a power cut leaves for sure: its bytes when it was last forced onto the disk."""

    def __init__(self, monkeypatch):
        self.kept = {}
        fsync = os.fsync

        def noting(descriptor):
            fsync(descriptor)
            path = Path(f"/proc/self/fd/{descriptor}").resolve()
            status = path.stat()
            self.kept[status.st_ino] = sorted(p.name for p in path.iterdir()) if path.is_dir() else path.read_bytes()

        monkeypatch.setattr(os, "fsync", noting)

    def lose(self, folder, *, but=(), zeros=False):
        """Put the folder's files back to what is sure, all but some; with `zeros` they keep their length."""
        for file in folder.iterdir():
            if file.name not in but:
                kept, size = self.kept.get(file.stat().st_ino, b""), file.stat().st_size
                file.write_bytes(kept + b"\0" * ((size - len(kept)) if zeros else 0))

    def holds(self, folder):
        """Whether every file in it is on the disk as it is now, and the folder with all their names."""
        names = sorted(file.name for file in folder.iterdir())
        return self.kept.get(folder.stat().st_ino) == names and all(
            self.kept.get(file.stat().st_ino) == file.read_bytes() for file in folder.iterdir()
        )


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at open files through /proc")
@pytest.mark.parametrize("most_open", [1, 16])  # with one open shard, frames and audio take turns
@pytest.mark.parametrize("clips", [1, 7])
@pytest.mark.parametrize("left", ["nothing more", "the journal", "the journal and zeros"])
def test_a_power_cut_costs_what_came_after_the_last_mark(
    whole, small_set, tmp_path, monkeypatch, clips, left, most_open
):
    """Each file as it was last forced onto the disk, and the journal perhaps further."""
    config, dataset = whole
    monkeypatch.setattr(journal_module, "_SYNC_EVERY_CLIPS", 3)
    monkeypatch.setattr(journal_module, "_MOST_OPEN_SHARDS", most_open)
    disk = Disk(monkeypatch)
    folder = begin(small_set, tmp_path / "dataset", config, clips)
    disk.lose(folder, but=["journal.jsonl"] if "journal" in left else [], zeros="zeros" in left)
    assert go_on(small_set, tmp_path / "dataset", config, dataset) == CLIPS - clips // 3 * 3


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at open files through /proc")
def test_two_power_cuts_in_a_row(whole, small_set, tmp_path, monkeypatch):
    """What a run has gone on from is on the disk: it is neither lost nor looked at a second time."""
    config, dataset = whole
    disk = Disk(monkeypatch)
    folder = begin(small_set, tmp_path / "dataset", config, 4)
    begin(small_set, tmp_path / "dataset", config, 6)
    disk.lose(folder, but=["journal.jsonl"])
    looked_at = []
    for kind in (ShardRecovery, JpegShardRecovery):
        crc = kind.crc
        monkeypatch.setattr(kind, "crc", lambda *given, crc=crc: looked_at.append(given) or crc(*given))
    assert go_on(small_set, tmp_path / "dataset", config, dataset) == CLIPS - 4
    assert len({first for _, first, *_ in looked_at}) <= 2


@pytest.mark.skipif(not Path("/proc/self/fd").exists(), reason="looks at open files through /proc")
def test_a_dataset_gets_its_name_when_all_of_it_is_on_the_disk(prepared, small_set, tmp_path, monkeypatch):
    folder, annotations = small_set
    disk, renamed = Disk(monkeypatch), []
    rename = Path.rename

    def looking(source, target):
        renamed.append((target.name, disk.holds(source), (source / "journal.jsonl").exists()))
        return rename(source, target)

    monkeypatch.setattr(Path, "rename", looking)
    prepare(annotations[:3], folder, tmp_path / "dataset", RAW, workers=1)
    assert "dataset" in disk.kept[tmp_path.stat().st_ino]
    corrupt(ClipDataset(prepared), Corruption(time_shifted=0.5), tmp_path / "made")
    assert "made" in disk.kept[tmp_path.stat().st_ino]
    assert renamed == [("dataset", True, True), ("made", True, False)]
    assert np.array_equal(ClipDataset(tmp_path / "dataset").frames(0), ClipDataset(prepared).frames(0))


def test_a_kill_when_a_dataset_has_just_got_its_name(whole, small_set, tmp_path, monkeypatch):
    config, dataset = whole
    folder, annotations = small_set
    rename = Path.rename

    def dying(source, target):
        rename(source, target)
        raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(Path, "rename", dying)
        with pytest.raises(Killed):
            prepare(annotations[:CLIPS], folder, tmp_path / "dataset", config, workers=1)
    assert go_on(small_set, tmp_path / "dataset", config, dataset) == 0
