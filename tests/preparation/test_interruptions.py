"""What disks, changed videos, kills and second processes may do to a dataset: it goes on, or says why not in one
line.
"""

import csv
import errno
import os
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from avdistill import fsio
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import staging_dir
from avdistill.errors import DatasetError
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.features import feature_arrays, part_files

CONFIG = PrepareConfig(fps=10, short_side=32)


class Killed(BaseException):
    pass


def one_line(error):
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


def listing(path, annotations):
    with path.open("w", newline="", encoding="utf-8") as file:
        rows = [[a.clip_id, a.path, "|".join(a.labels), a.split] for a in annotations]
        csv.writer(file).writerows([["id", "path", "label", "split"], *rows])
    return path


def prepare_command(listed, folder, out):
    command = [sys.executable, "-m", "avdistill", "prepare", listed, "--videos", folder, "--out", out]
    return [str(word) for word in [*command, "--fps", "10", "--short-side", "32", "--workers", "2"]]


# The disk


@pytest.mark.parametrize("most_bytes", [20_000, 100_000])  # too small for a spool file, for a shard
def test_a_full_disk_stops_the_run_and_costs_nothing(prepared, small_set, tmp_path, warm_python, most_bytes):
    folder, annotations = small_set
    command = prepare_command(listing(tmp_path / "list.csv", annotations), folder, tmp_path / "dataset")
    limited = (
        "import resource, sys; from avdistill.cli import main; import avdistill.commands.dataset; "
        f"sys.modules['avdistill.preparation.prepare'].MEMORY_BYTES = {0 if most_bytes < 50_000 else 2**20}; "
        f"resource.setrlimit(resource.RLIMIT_FSIZE, ({most_bytes}, {most_bytes})); sys.exit(main(sys.argv[1:]))"
    )
    full = warm_python.run([sys.executable, "-c", limited, *command[3:]], text=True)
    assert full.returncode == 1
    (message,) = (line for line in full.stderr.splitlines() if line.startswith("avdistill:"))
    assert message.startswith(f"avdistill: {tmp_path / 'dataset'}: stopped: ")
    assert message.endswith("File too large; finished clips are kept; fix this and run the same command again")
    assert "Traceback" not in full.stderr
    assert not list((tmp_path / "dataset.partial").glob("spool-*"))
    assert "skipped" not in (tmp_path / "dataset.partial" / "journal.jsonl").read_text()
    warm_python.run(command, check=True)
    assert ClipDataset(tmp_path / "dataset").checksum == ClipDataset(prepared).checksum


def test_a_disk_that_is_full_at_any_moment(prepared, small_set, tmp_path, monkeypatch):
    """Every forced write of a preparation fails once; the run after it goes on."""
    folder, annotations = small_set
    out = tmp_path / "dataset"
    fsync, calls = os.fsync, []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    fail_at = 1
    while not out.exists():
        calls.clear()
        with suppress(DatasetError):
            prepare(annotations[:6], folder, out, CONFIG)
        fail_at += 1
    assert fail_at > 5
    dataset = prepare(annotations[:6], folder, out, CONFIG)  # the last to fail is to force its name onto the disk
    assert dataset.verify() == []
    assert len(dataset) == 6
    assert (out / "skipped.csv").read_text().splitlines() == ["clip,file,reason,bytes,mtime_ns"]


def test_places_that_cannot_be_written(small_set, tmp_path):
    folder, annotations = small_set
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(DatasetError, match="Not a directory") as error:
        prepare(annotations, folder, tmp_path / "file" / "dataset", CONFIG)
    one_line(error)
    if os.geteuid() == 0:
        return  # root may write everywhere
    (tmp_path / "closed").mkdir(mode=0o500)
    with pytest.raises(DatasetError, match="Permission denied"):
        prepare(annotations, folder, tmp_path / "closed" / "dataset", CONFIG)


# Videos that change


def test_going_on_with_changed_files_stops(small_set, tmp_path):
    folder, annotations = small_set
    videos, out = tmp_path / "videos", tmp_path / "dataset"
    videos.mkdir()
    for a in annotations[:6]:
        shutil.copy2(folder / a.path, videos)

    def on_progress(progress):
        if progress.done == 3:
            raise Killed

    with pytest.raises(Killed):
        prepare(annotations[:6], videos, out, CONFIG, on_progress=on_progress)
    second = videos / annotations[1].path
    shutil.copy2(second, tmp_path / "kept")
    second.write_bytes((videos / annotations[2].path).read_bytes())
    with pytest.raises(DatasetError, match=annotations[1].path) as error:
        prepare(annotations[:6], videos, out, CONFIG)
    assert "changed" in one_line(error)
    second.unlink()
    with pytest.raises(DatasetError, match=annotations[1].path):
        prepare(annotations[:6], videos, out, CONFIG)
    with pytest.raises(DatasetError, match=r"train_0.mp4, train_1.mp4, train_2.mp4;"):
        prepare(annotations[:6], tmp_path / "elsewhere", out, CONFIG)
    shutil.copy2(tmp_path / "kept", second)
    (videos / annotations[5].path).touch()  # not read yet: free to change
    assert len(prepare(annotations[:6], videos, out, CONFIG)) == 6
    with (out / "sources.csv").open(newline="") as file:
        sources = list(csv.DictReader(file))
    assert [row["path"] for row in sources] == [a.path for a in annotations[:6]]
    assert int(sources[1]["bytes"]) == second.stat().st_size
    assert int(sources[1]["mtime_ns"]) == second.stat().st_mtime_ns

    os.utime(second, ns=(0, 1))
    with pytest.raises(DatasetError, match=annotations[1].path) as error:
        prepare(annotations[:6], videos, out, CONFIG)
    one_line(error)
    shutil.rmtree(videos)  # a dataset does not need the videos any more
    assert len(prepare(annotations[:6], videos, out, CONFIG)) == 6
    (out / "sources.csv").unlink()
    with pytest.raises(DatasetError, match=r"sources\.csv"):
        prepare(annotations[:6], videos, out, CONFIG)


def test_the_date_of_a_file_is_not_in_the_checksum(prepared, small_set, tmp_path):
    folder, annotations = small_set
    shutil.copytree(folder, tmp_path / "videos", copy_function=shutil.copy)
    again = prepare(annotations, tmp_path / "videos", tmp_path / "dataset", CONFIG)
    assert (again.folder / "sources.csv").read_bytes() != (prepared / "sources.csv").read_bytes()
    assert again.checksum == ClipDataset(prepared).checksum


# Kills and second processes


def running(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="looks at processes through /proc")
def test_workers_end_with_their_parent(small_set, tmp_path):
    folder, annotations = small_set
    for i in range(2):
        shutil.copy(folder / annotations[i].path, tmp_path / f"spins_{i}.mp4")
    program = (
        "from pathlib import Path\n"
        "from avdistill.annotations import Annotation\n"
        "from avdistill.preparation.prepare import PrepareConfig, prepare\n"
        "from support.faulty_readers import read_or_fail\n"
        "clips = [Annotation(f'spins_{i}', f'spins_{i}.mp4', (), 'train') for i in range(2)]\n"
        "prepare(clips, Path('.'), Path('dataset'), PrepareConfig(), read=read_or_fail, workers=2)\n"
    )
    (tmp_path / "program.py").write_text(program)  # without `if __name__ == "__main__"`: workers do not run it again
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    parent = subprocess.Popen([sys.executable, "program.py"], cwd=tmp_path, env=environment)
    notes = [tmp_path / f"spins_{i}.mp4.pid" for i in range(2)]
    deadline = time.monotonic() + 60
    while not all(note.exists() and note.read_text() for note in notes):
        assert time.monotonic() < deadline
        assert parent.poll() is None
        time.sleep(0.02)
    workers = [int(note.read_text()) for note in notes]
    assert all(running(pid) for pid in workers)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    deadline = time.monotonic() + 60
    while any(running(pid) for pid in workers):
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_processes_that_prepare_one_dataset_at_once(prepared, small_set, tmp_path, warm_python):
    folder, annotations = small_set
    command = prepare_command(listing(tmp_path / "list.csv", annotations), folder, tmp_path / "dataset")
    processes = [
        warm_python.popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) for _ in range(3)
    ]
    ends = [(process.communicate()[1], process.returncode) for process in processes]
    assert any(code == 0 for _, code in ends)
    for errors, code in ends:
        if code:
            (line,) = (line for line in errors.splitlines() if line.startswith("avdistill:"))
            assert line == f"avdistill: {tmp_path / 'dataset'}: another process is preparing this dataset"
            assert "Traceback" not in errors
    dataset = ClipDataset(tmp_path / "dataset")
    assert dataset.checksum == ClipDataset(prepared).checksum
    assert dataset.verify() == []
    assert not (tmp_path / "dataset.partial").exists()


@pytest.mark.parametrize("moment", ["before the lock", "with a folder of our own", "with the folder we locked"])
def test_a_dataset_that_is_finished_while_we_start(prepared, small_set, tmp_path, monkeypatch, moment):
    folder, annotations = small_set
    out = tmp_path / "dataset"
    lock = fsio.open_lock

    def finished_meanwhile(partial):
        monkeypatch.undo()
        ours = lock(partial) if moment == "with the folder we locked" else None
        if moment != "with a folder of our own":
            shutil.rmtree(partial)
        shutil.copytree(prepared, out)
        return ours or lock(partial)

    def on_progress(progress):
        raise AssertionError("prepared anew")

    monkeypatch.setattr(fsio, "open_lock", finished_meanwhile)
    dataset = prepare(annotations, folder, out, CONFIG, on_progress=on_progress)
    assert dataset.checksum == ClipDataset(prepared).checksum
    assert not staging_dir(out).exists()


# Features of a teacher


def features(dataset, value, classes=3):
    rows = len(dataset)
    embedding, logits = np.full((rows, 8), value, np.float32), np.full((rows, classes), value, np.float32)
    names = tuple(f"class_{i}" for i in range(classes))
    return {
        "modality": "audio",
        "provenance": {"name": str(value)},
        "embedding": embedding,
        "logits": logits,
        "classes": names,
    }


def values(folder, name="audio"):
    """The value in the embedding and the one in the logits; None where there is no such teacher."""
    dataset = ClipDataset(folder)
    assert dataset.verify() == []
    if name not in dataset.teachers:
        return None
    embedding, logits, _ = feature_arrays(dataset, name)
    assert dataset.teachers[name].provenance["name"] == str(float(embedding[0, 0]))
    return float(embedding[0, 0]), float(logits[0, 0])


def test_a_kill_while_features_are_replaced(prepared, tmp_path, monkeypatch):
    """Stopped at every step on the disk in turn: old or new, never a mixture."""
    steps, seen = [], []

    def dying(function):
        def call(*arguments, **options):
            steps.append(function)
            if len(steps) >= die_at:  # as after a kill, nothing is tidied up either
                raise Killed
            return function(*arguments, **options)

        return call

    die_at, finished = 1, False
    while not finished:
        folder = tmp_path / str(die_at)
        shutil.copytree(prepared, folder)
        dataset = ClipDataset(folder)
        dataset.add_features("audio", **features(dataset, 1.0))
        steps.clear()
        with monkeypatch.context() as patch:
            for owner, name in ((Path, "replace"), (Path, "unlink"), (os, "fsync")):
                patch.setattr(owner, name, dying(getattr(owner, name)))
            with suppress(Killed):
                dataset.add_features("audio", **features(dataset, 2.0))
                finished = True
        seen.append(values(folder))
        ClipDataset(folder).add_features(
            "audio", **features(ClipDataset(folder), 3.0)
        )  # what is left is in nobody's way
        assert values(folder) == (3.0, 3.0)
        assert [file.name for file in (folder / "features").iterdir()] == ["audio"]
        die_at += 1
    assert set(seen) == {(1.0, 1.0), (2.0, 2.0)}
    assert len(seen) > 8


def test_a_full_disk_while_features_are_replaced(prepared, tmp_path, monkeypatch):
    folder = tmp_path / "dataset"
    shutil.copytree(prepared, folder)
    dataset = ClipDataset(folder)
    dataset.add_features("audio", **features(dataset, 1.0))
    before = sorted(folder.rglob("*"))
    fsync, calls = os.fsync, []

    def failing(descriptor):
        calls.append(descriptor)
        if len(calls) == fail_at:
            raise OSError(errno.ENOSPC, "No space left on device")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    for fail_at in range(1, 7):  # three arrays, the record of the part and its folder, the folder of the features
        calls.clear()
        with pytest.raises(DatasetError, match="teacher 'audio' cannot be written: No space left on device"):
            dataset.add_features("audio", **features(dataset, 2.0))
        assert len(calls) == fail_at
        assert values(folder) == (1.0, 1.0)
        assert dataset.teachers["audio"].provenance["name"] == "1.0"
        assert sorted(folder.rglob("*")) == before
    fail_at = 0
    dataset.add_features("audio", **features(dataset, 2.0))
    assert values(folder) == (2.0, 2.0)


def test_features_that_are_replaced_by_some_without_logits(prepared, tmp_path):
    folder = tmp_path / "dataset"
    shutil.copytree(prepared, folder)
    dataset = ClipDataset(folder)
    dataset.add_features("audio", **features(dataset, 1.0))
    dataset.add_features("audio2", **features(dataset, 5.0))
    dataset.add_features("audio", **{**features(dataset, 2.0), "logits": None, "classes": ()})
    assert feature_arrays(ClipDataset(folder), "audio")[1] is None
    assert not part_files(dataset, "audio", "logits")
    assert len(list((folder / "features" / "audio").iterdir())) == 3  # the table, the embedding and which are valid
    assert values(folder, "audio2") == (5.0, 5.0)


def test_teachers_that_are_added_at_the_same_time(prepared, tmp_path, warm_python):
    folder = tmp_path / "dataset"
    shutil.copytree(prepared, folder)
    first, second = ClipDataset(folder), ClipDataset(folder)
    first.add_features("a", **features(first, 1.0))
    second.add_features("b", **features(second, 2.0))
    assert set(ClipDataset(folder).teachers) == {"a", "b"} == set(second.teachers)
    program = (
        "import sys, numpy as np\n"
        "from avdistill.dataset.clip_dataset import ClipDataset\n"
        "dataset = ClipDataset(sys.argv[1])\n"
        "for i in range(10):\n"
        "    dataset.add_features(f'{sys.argv[2]}{i}', modality='audio', provenance={}, classes=(), logits=None,\n"
        "                      embedding=np.ones((len(dataset), 4), np.float32))\n"
    )
    processes = [warm_python.popen([sys.executable, "-c", program, str(folder), name]) for name in ("x", "y")]
    assert [process.wait() for process in processes] == [0, 0]
    assert set(ClipDataset(folder).teachers) == {"a", "b", *(f"{name}{i}" for name in "xy" for i in range(10))}
    assert ClipDataset(folder).verify() == []
