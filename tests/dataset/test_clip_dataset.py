"""Preparation: what is written, what a kill leaves, what is skipped; the dataset's own checks."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from functools import partial

import numpy as np
import pyarrow.parquet as pq
import pytest

from avdistill.annotations import Annotation
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import staging_dir
from avdistill.errors import DatasetError, MediaError
from avdistill.media import read_clip
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.features import feature_arrays, part_files
from support.media_files import SMALL, numbered_frames, tone, write_video

CONFIG = PrepareConfig(fps=10, short_side=32)


def test_dataset_holds_what_the_files_hold(prepared, small_set):
    folder, _ = small_set
    dataset = ClipDataset(prepared)
    assert dataset.columns["id"].tolist() == [name for name, *_ in SMALL]
    for i, (name, _, split, labeled, audio) in enumerate(SMALL):
        clip = read_clip(folder / f"{name}.mp4", fps=10, short_side=32)
        assert (dataset.frames(i) == clip.frames).all()
        assert dataset.columns["split"][i] == split
        assert bool(dataset.labels[i]) == labeled
        assert dataset.columns["has_audio"][i] == (audio != "none")
        assert dataset.columns["silent"][i] == (audio == "zeros")
        if audio == "none":
            with pytest.raises(DatasetError, match="no audio"):
                dataset.audio(i)
        else:
            np.testing.assert_allclose(dataset.audio(i) / 32767, clip.waveform, atol=1 / 32767)


def test_others_can_read_it_without_us(prepared):
    table = pq.read_table(prepared / "clips.parquet").to_pylist()
    frames = np.load(prepared / "frames-00000.npy", mmap_mode="r")
    audio = np.load(prepared / "audio-00000.npy", mmap_mode="r")
    assert frames.dtype == np.uint8
    assert frames.shape[1:] == (32, 48, 3)
    assert audio.dtype == np.int16
    assert len(frames) == sum(row["frame_count"] for row in table)
    assert len(audio) == sum(row["audio_count"] for row in table)
    assert json.loads((prepared / "dataset.json").read_text())["version"] == 4
    assert [row["group"] for row in table] == [row["path"] for row in table]  # none is a part of a longer video


def test_workers_change_nothing(prepared, small_set, tmp_path):
    folder, annotations = small_set
    again = prepare(annotations, folder, tmp_path / "dataset", CONFIG, workers=2)
    assert again.checksum == ClipDataset(prepared).checksum


def test_unreadable_files_are_listed_not_lost(tmp_path):
    write_video(tmp_path / "good.mp4", frames=numbered_frames(10), waveform=tone(1.0, 440))
    (tmp_path / "bad.mp4").write_bytes(b"x" * 1000)
    annotations = [Annotation(n, f"{n}.mp4", ("a",), "train") for n in ("bad", "good", "absent")]
    dataset = prepare(annotations, tmp_path, tmp_path / "dataset", CONFIG, workers=1)
    assert dataset.columns["id"].tolist() == ["good"]
    with (tmp_path / "dataset" / "skipped.csv").open() as file:
        skipped = {row["clip"]: row["reason"] for row in csv.DictReader(file)}
    assert skipped.keys() == {"bad", "absent"}
    assert "no such file" in skipped["absent"]
    with pytest.raises((MediaError, FileNotFoundError), match=r"bad\.mp4"):
        prepare(annotations, tmp_path, tmp_path / "strict", CONFIG, workers=1, strict=True)
    with pytest.raises(DatasetError, match="no clip could be read"):
        prepare(annotations[1:2], tmp_path / "wrong", tmp_path / "none", CONFIG, workers=1)
    # The wrong folder, put right: nothing of the first attempt is in the way.
    assert len(prepare(annotations[1:2], tmp_path, tmp_path / "none", CONFIG, workers=1)) == 1


def test_sizes_get_their_own_shards(tmp_path):
    for i, size in enumerate([(48, 64), (64, 48), (48, 64)]):
        write_video(tmp_path / f"{i}.mp4", frames=numbered_frames(6, *size))
    annotations = [Annotation(str(i), f"{i}.mp4", (), "train") for i in range(3)]
    dataset = prepare(annotations, tmp_path, tmp_path / "dataset", CONFIG, workers=1)
    assert [dataset.frames(i).shape for i in range(3)] == [(6, 32, 43, 3), (6, 43, 32, 3), (6, 32, 43, 3)]
    assert dataset.describe()["frame_sizes"] == ["32x43", "43x32"]


@pytest.mark.parametrize("stop_after", [1, 7, 20])
def test_interrupted_preparation_goes_on_to_the_same_checksum(prepared, small_set, tmp_path, stop_after):
    folder, annotations = small_set
    out = tmp_path / "dataset"

    class Killed(BaseException):
        pass

    def on_progress(progress):
        if progress.done == stop_after:
            raise Killed

    with pytest.raises(Killed):
        prepare(annotations, folder, out, CONFIG, workers=1, on_progress=on_progress)
    assert not out.exists()
    # What a kill leaves between a clip's bytes and its line in the journal: bytes nobody vouches for, half a line.
    with (staging_dir(out) / "frames-00000.npy").open("ab") as file:
        file.write(b"\x07" * 12345)
    with (staging_dir(out) / "journal.jsonl").open("a") as file:
        file.write('{"row": {"id": "hal')
    (staging_dir(out) / "spool-1-7.frames").write_bytes(b"\x07" * 999)  # a clip on its way from a worker
    with pytest.raises(DatasetError, match="interrupted"):
        ClipDataset(out)
    counts = []
    dataset = prepare(annotations, folder, out, CONFIG, workers=1, on_progress=lambda p: counts.append(p.done))
    assert counts[0] == stop_after + 1
    assert dataset.checksum == ClipDataset(prepared).checksum
    assert dataset.verify() == []
    assert sorted(p.name for p in out.iterdir()) == sorted(p.name for p in prepared.iterdir())


def test_kill_9_goes_on_to_the_same_checksum(prepared, small_set, tmp_path, warm_python):
    folder, annotations = small_set
    listed = tmp_path / "list.csv"
    with listed.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["id", "path", "label", "split"])
        writer.writerows([a.clip_id, a.path, "|".join(a.labels), a.split] for a in annotations)
    command = [sys.executable, "-m", "avdistill", "prepare", str(listed), "--videos", str(folder), "--out"]
    command += [str(tmp_path / "dataset"), "--fps", "10", "--short-side", "32", "--workers", "2"]
    process = warm_python.popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL, start_new_session=True)
    journal = tmp_path / "dataset.partial" / "journal.jsonl"
    while process.poll() is None and not (journal.exists() and len(journal.read_bytes().splitlines()) >= 3):
        time.sleep(0.01)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    finished = warm_python.run(command, check=True, text=True)
    assert f"{len(SMALL)} clips" in finished.stdout
    assert ClipDataset(tmp_path / "dataset").checksum == ClipDataset(prepared).checksum


def test_other_settings_never_mix(prepared, small_set, tmp_path):
    folder, annotations = small_set
    prepare(annotations[:2], folder, tmp_path / "dataset", CONFIG, workers=1)
    same = prepare(annotations[:2], folder, tmp_path / "dataset", CONFIG, workers=1)
    assert len(same) == 2
    with pytest.raises(DatasetError, match="other settings"):
        prepare(annotations[:3], folder, tmp_path / "dataset", CONFIG, workers=1)


def test_two_processes_do_not_prepare_one_dataset(small_set, tmp_path):
    folder, annotations = small_set
    out = tmp_path / "dataset"

    def on_progress(progress):
        if progress.done == 1:
            with pytest.raises(DatasetError, match="another process"):
                prepare(annotations, folder, out, CONFIG, workers=1)

    prepare(annotations[:3], folder, out, CONFIG, workers=1, on_progress=on_progress)


def test_damage_is_found(prepared, small_set, tmp_path):
    folder, annotations = small_set
    dataset = prepare(annotations[:4], folder, tmp_path / "dataset", CONFIG, workers=1)
    assert dataset.verify() == []
    with (tmp_path / "dataset" / "frames-00000.npy").open("r+b") as file:
        file.seek(5000)
        byte = file.read(1)[0]
        file.seek(5000)
        file.write(bytes([byte ^ 1]))
    (tmp_path / "dataset" / "skipped.csv").unlink()
    assert sorted(dataset.verify()) == ["frames-00000.npy: content differs from its checksum", "skipped.csv: missing"]


def test_foreign_folders_and_versions(tmp_path, prepared):
    with pytest.raises(DatasetError, match=r"dataset\.json is missing"):
        ClipDataset(tmp_path)
    (tmp_path / "store.json").write_text("{}")
    with pytest.raises(DatasetError, match=r"expected format 4, found store\.json of an older one; prepare it again"):
        ClipDataset(tmp_path)
    assert str(ClipDataset(str(prepared)).folder) == str(prepared)
    for folder in (tmp_path, str(tmp_path)):
        with pytest.raises(DatasetError, match=str(tmp_path)):
            ClipDataset(folder)


def test_a_shard_that_becomes_shorter_while_it_is_mapped_is_an_error(taught, tmp_path):
    """Beyond the end of its file a memory map ends the process: bus error."""
    dataset = ClipDataset(shutil.copytree(taught.folder, tmp_path / "dataset"))
    with_audio = int(np.flatnonzero(dataset.columns["has_audio"])[0])
    reads = {"frames-00000.npy": lambda: dataset.frames(0), "audio-00000.npy": lambda: dataset.audio(with_audio)}
    tokens = np.ones((len(dataset), 2, 4), np.float32)
    said = {"modality": "audio", "provenance": {"name": ""}, "logits": None, "classes": ()}
    dataset.add_features("t", embedding=tokens[:, 0], tokens=tokens, **said)
    features = dataset.map_features("t")
    for kind in ("tokens", "embedding"):
        reads[str(part_files(dataset, "t", kind)[0])] = partial(features.rows, kind, np.arange(2))
    for name, read in reads.items():
        read()
        os.truncate(dataset.folder / name, (dataset.folder / name).stat().st_size // 2)
        with pytest.raises(DatasetError, match=f"{name}: damaged.*the file has become shorter since it was opened"):
            read()


def test_teacher_features_come_back_with_a_mask(taught):
    embedding, logits, present = feature_arrays(taught, "audio")
    assert embedding.shape == (len(SMALL), 24)
    assert logits.shape == (len(SMALL), 3)
    assert present.tolist() == [audio == "tone" for *_, audio in SMALL]
    assert not np.isnan(embedding).any()
    with pytest.raises(DatasetError, match=r"no teacher 'other' .*found: audio"):
        feature_arrays(taught, "other")
    with pytest.raises(DatasetError, match="rows"):
        taught.add_features(
            "x", modality="audio", provenance={"name": ""}, embedding=embedding[:3], logits=None, classes=()
        )
    with pytest.raises(DatasetError, match="name"):
        taught.add_features(
            "../x", modality="audio", provenance={"name": ""}, embedding=embedding, logits=None, classes=()
        )
    assert taught.verify() == []
