"""Preparation in parts: the oracle of `join` is the dataset that one preparation of the whole list makes."""

import csv
import json
import os
import pickle
import shutil
import signal
import subprocess
import sys
from dataclasses import asdict, replace

import numpy as np
import pytest

from avdistill.annotations import Annotation
from avdistill.cli import main
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.schema import staging_dir
from avdistill.errors import ConfigError, DatasetError
from avdistill.preparation.join import join
from avdistill.preparation.parts import share_of
from avdistill.preparation.prepare import PrepareConfig, prepare
from support.folders import contents
from support.media_files import numbered_frames, tone, write_video

RAW, JPEG = PrepareConfig(fps=10, short_side=16), PrepareConfig(fps=10, short_side=16, jpeg_quality=90)
PARTS = 3
SMALL_SHARDS = ("avdistill.dataset.shards._SHARD_BYTES", 9000)


class Killed(BaseException):
    pass


@pytest.fixture(scope="module")
def mixed(small_set, tmp_path_factory):
    """A list in no order: three sizes, silent clips, clips without video or audio, files that cannot be read."""
    videos = tmp_path_factory.mktemp("mixed")
    folder, small = small_set
    for a in small[:4] + small[18:20]:  # of 32 x 48, two of them silent
        shutil.copy2(folder / a.path, videos)
    for i in range(4):  # widths of their own at the same height
        write_video(videos / f"wide_{i}.mp4", frames=numbered_frames(4, 32, 64 + 16 * (i % 2)), waveform=tone(0.4, 300))
    write_video(videos / "audio.m4a", frames=None, waveform=tone(0.5, 500))
    (videos / "broken.mp4").write_bytes(b"\x07" * 999)
    (videos / "broken_too.mp4").write_bytes(b"\x08" * 999)
    names = [a.path for a in small[:4] + small[18:20]] + [f"wide_{i}.mp4" for i in range(4)]
    names += ["audio.m4a", "broken.mp4", "broken_too.mp4", "missing.mp4"]
    clips = [Annotation(name, name, (f"c{i % 3}",) if i % 4 else (), "train") for i, name in enumerate(names)]
    # Four segments of one video, far apart in the list.
    clips += [Annotation(f"part_{i}", "wide_0.mp4", ("c1", "c2"), "train", 0.1 * i, 0.1 * i + 0.2) for i in range(3)]
    clips[3] = replace(clips[3], extra=(("note", "x"),), group="a group")
    clips[9] = replace(clips[9], group="a group")
    order = np.random.default_rng(2).permutation(len(clips))
    return videos, [clips[i] for i in order]


@pytest.fixture(scope="module", params=[RAW, JPEG], ids=["raw", "jpeg"])
def made(request, mixed, tmp_path_factory):
    """The config, the dataset of one preparation and the parts; shards hold a few clips, as with `small_shards`."""
    videos, clips = mixed
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(*SMALL_SHARDS)
        single = prepare(clips, videos, folder / "single", request.param, workers=1)
        return request.param, single, make_parts(mixed, folder, request.param)


@pytest.fixture
def small_shards(monkeypatch):
    """Several shards of each frame size, and of audio."""
    monkeypatch.setattr(*SMALL_SHARDS)


@pytest.fixture(scope="module")
def raw_parts(mixed, tmp_path_factory):
    """Parts with raw frames; tests must not write into them."""
    return make_parts(mixed, tmp_path_factory.mktemp("raw"), RAW)


@pytest.fixture
def own_parts(raw_parts, tmp_path):
    """Copies to write into."""
    return [shutil.copytree(part, tmp_path / part.name) for part in raw_parts]


def make_parts(mixed, folder, config, count=PARTS, numbers=None):
    videos, clips = mixed
    numbers = range(1, count + 1) if numbers is None else numbers
    return [prepare(clips, videos, folder / f"{i}", config, part=(i, count), workers=1).folder for i in numbers]


def assert_the_same(joined, single):
    """In all that a reader of the dataset sees, and in the records."""
    assert joined.checksum == single.checksum
    assert joined.verify() == single.verify() == []
    places = ["frame_shard", "frame_offset", "audio_shard", "audio_offset"]
    assert joined.table.drop_columns(places).equals(single.table.drop_columns(places))
    for i in range(len(single)):
        if single.columns["has_video"][i]:
            assert np.array_equal(np.asarray(joined.frames(i)), np.asarray(single.frames(i)))
        if single.columns["has_audio"][i]:
            assert np.array_equal(joined.audio(i), single.audio(i))
    for name in ("skipped.csv", "sources.csv"):
        assert (joined.folder / name).read_bytes() == (single.folder / name).read_bytes()
    ours, theirs = joined.describe(), single.describe()
    assert {**ours, "folder": "", "bytes": 0} == {**theirs, "folder": "", "bytes": 0}


def test_a_joined_dataset_is_that_of_one_preparation(mixed, made, small_shards, tmp_path):
    config, single, parts = made
    assert len(list(single.folder.glob("frames-*.npy"))) > 4  # more shards than sizes
    assert len(list(single.folder.glob("audio-*.npy"))) > 2
    assert single.columns["silent"].any()
    assert not single.columns["has_video"].all()
    joined = join(reversed(parts), tmp_path / "joined")
    assert_the_same(joined, single)
    assert not staging_dir(joined.folder).exists()
    groups = [set(ClipDataset(part).columns["group"]) for part in parts]
    assert len(set.union(*groups)) == sum(map(len, groups))
    # It is the dataset of its list: the same command without --part has nothing to do.
    before = contents(joined.folder)
    videos, clips = mixed
    prepare(clips, videos, joined.folder, config, on_progress=lambda progress: pytest.fail("prepared anew"))
    join(parts, tmp_path / "joined")
    assert contents(joined.folder) == before


def test_one_part_of_one_is_the_whole(mixed, raw_parts, tmp_path):
    (part,) = make_parts(mixed, tmp_path, RAW, 1)
    assert join([part], tmp_path / "joined").checksum == join(raw_parts, tmp_path / "of_three").checksum
    assert ClipDataset(part).checksum == ClipDataset(tmp_path / "joined").checksum  # a part has that of its own list


def test_no_byte_of_a_shard_is_copied(made, tmp_path):
    _, _, prepared = made
    parts = [shutil.copytree(part, tmp_path / part.name) for part in prepared]
    joined = join(parts, tmp_path / "joined").folder
    theirs, ours = (
        {file.stat().st_ino for folder in folders for file in folder.iterdir() if file.name[:5] in ("frame", "audio")}
        for folders in (parts, [joined])
    )
    assert ours == theirs
    for part in parts:
        assert ClipDataset(part).verify() == []
        shutil.rmtree(part)
    assert ClipDataset(joined).verify() == []


def test_another_file_system_gets_copies(raw_parts, tmp_path, monkeypatch):
    def refusing(*_):
        raise OSError(18, "Invalid cross-device link")

    linked = join(raw_parts, tmp_path / "linked")
    monkeypatch.setattr(os, "link", refusing)
    copied = join(raw_parts, tmp_path / "copied")
    assert copied.checksum == linked.checksum
    assert copied.verify() == []
    assert not any(file.stat().st_nlink > 1 or file.is_symlink() for file in copied.folder.iterdir())


# The shares


def test_groups_are_whole_and_every_clip_is_in_one_part():
    rng = np.random.default_rng(0)
    for groups, clips, count in [(40, 200, 7), (5, 60, 5), (1000, 1000, 3), (9, 9, 1)]:
        of = np.concatenate([np.arange(groups), rng.integers(0, groups, clips - groups)])
        rng.shuffle(of)
        listed = [Annotation(str(i), f"{i}.mp4", (), "train", group=f"g{group}") for i, group in enumerate(of)]
        shares = [share_of(listed, (i, count)) for i in range(1, count + 1)]
        assert all(share == sorted(share) and share for share in shares)
        assert sorted(position for share in shares for position in share) == list(range(clips))
        in_parts = [{of[position] for position in share} for share in shares]
        assert sum(map(len, in_parts)) == groups
        largest = np.bincount(of).max()
        assert max(map(len, shares)) - min(map(len, shares)) <= 2 * largest


def test_one_large_group_leaves_no_part_empty():
    listed = [Annotation(str(i), f"{i}.mp4", (), "train", group="g" if i < 90 else str(i)) for i in range(92)]
    assert [len(share_of(listed, (i, 3))) for i in (1, 2, 3)] == [90, 1, 1]
    with pytest.raises(ConfigError, match="expected at most a part for each of 3 source videos, found 4 parts"):
        share_of(listed, (1, 4))


def test_a_part_without_a_readable_clip_is_a_part(mixed, tmp_path):
    videos, _ = mixed
    clips = [Annotation(name, name, (), "train") for name in ("missing.mp4", "broken.mp4", "wide_0.mp4", "wide_1.mp4")]
    parts = make_parts((videos, clips), tmp_path, RAW, 2)
    assert len(ClipDataset(parts[0])) == 0
    assert ClipDataset(parts[0]).describe()["skipped"] == 2
    assert_the_same(join(parts, tmp_path / "joined"), prepare(clips, videos, tmp_path / "single", RAW, workers=1))
    (unreadable,) = make_parts((videos, clips[:2]), tmp_path / "unreadable", RAW, 1)
    with pytest.raises(ConfigError, match="expected clips, found none that could be read") as error:
        join([unreadable], tmp_path / "none")
    assert len(str(error.value).splitlines()) == 1


# Kills


def test_a_part_that_is_killed_goes_on(mixed, made, small_shards, tmp_path, warm_python):
    """By `kill -9` of its process at a clip."""
    config, single, (first, _, third) = made
    videos, clips = mixed
    program = (
        "import os, pickle, sys\n"
        "from avdistill.preparation.prepare import prepare\n"
        "clips, videos, out, config = pickle.load(sys.stdin.buffer)\n"
        "kill = lambda progress: os.kill(os.getpid(), 9) if progress.done == 2 else None\n"
        "prepare(clips, videos, out, config, part=(2, 3), workers=1, on_progress=kill)\n"
    )
    given = pickle.dumps((clips, videos, tmp_path / "2", config))
    with warm_python.popen([sys.executable, "-c", program], stdin=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        _, errors = process.communicate(given)
    assert process.returncode == -signal.SIGKILL, errors
    assert staging_dir(tmp_path / "2").is_dir()
    with pytest.raises(ConfigError, match="its preparation was interrupted"):
        join([first, tmp_path / "2", third], tmp_path / "joined")
    assert not (tmp_path / "joined").exists()
    read = []
    prepare(clips, videos, tmp_path / "2", config, part=(2, 3), workers=1, on_progress=lambda p: read.append(p.done))
    assert read == list(range(3, len(share_of(clips, (2, PARTS))) + 1))
    assert_the_same(join([first, tmp_path / "2", third], tmp_path / "joined"), single)


def test_the_joined_folder_is_whole_or_not_there(raw_parts, tmp_path, monkeypatch):
    fsync, calls = os.fsync, []

    def dying(descriptor):
        calls.append(descriptor)
        if len(calls) == die_at:
            raise Killed
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", dying)
    die_at = 1
    while True:
        calls.clear()
        try:
            join(raw_parts, tmp_path / "joined")
            break
        except Killed:
            die_at += 3
        if (tmp_path / "joined").exists():  # the last sync is of its name
            assert ClipDataset(tmp_path / "joined").verify() == []
    assert die_at > 8
    assert ClipDataset(tmp_path / "joined").verify() == []
    assert all(ClipDataset(part).verify() == [] for part in raw_parts)


# What cannot be joined


def refused(parts, out, capsys):
    code = main(["join", *map(str, parts), "--out", str(out)])
    (line,) = capsys.readouterr().err.splitlines()
    assert not out.exists()
    assert not staging_dir(out).exists()
    return code, line.removeprefix("avdistill: ")


def change(folder, settings):
    """Give a part a `dataset.json` with other settings."""
    description = json.loads((folder / "dataset.json").read_text())
    description["settings"] |= settings
    (folder / "dataset.json").write_text(json.dumps(description))


@pytest.mark.parametrize(
    ("settings", "found"),
    [
        ({"config": {**asdict(RAW), "fps": 5.0}}, "fps 5.0, not 10"),
        ({"config": {**asdict(RAW), "jpeg_quality": 90}}, "jpeg_quality 90, not None"),
        ({"part": [2, 4]}, "a part of 4, not of 3"),
        ({"annotations": "0" * 64}, "another list of clips"),
        ({"reader": "mine.read"}, "another reader"),
    ],
)
def test_parts_of_other_settings_are_refused(own_parts, tmp_path, capsys, settings, found):
    change(own_parts[1], settings)
    line = f"{own_parts[1]}: expected the list and settings of {own_parts[0]}, found {found}"
    assert refused(own_parts, tmp_path / "joined", capsys) == (2, line)


def test_what_is_not_the_whole_set_of_parts_is_refused(mixed, raw_parts, prepared, tmp_path, capsys):
    out = tmp_path / "joined"
    assert refused(raw_parts[:1], out, capsys) == (2, "join: expected all 3 parts, found none for 2/3, 3/3")
    found = f"{raw_parts[1]}: expected each part once, found 2/3 in {raw_parts[1]} as well"
    assert refused([*raw_parts, raw_parts[1]], out, capsys) == (2, found)
    expected = "expected a part, made by `avdistill prepare --part`, found"
    assert refused([*raw_parts[:2], prepared], out, capsys) == (
        2,
        f"{prepared}: {expected} a dataset prepared in one go",
    )
    assert main(["corrupt", str(raw_parts[0]), "dropped=0.5", "--out", str(tmp_path / "changed")]) == 0
    capsys.readouterr()
    line = f"{tmp_path / 'changed'}: {expected} a changed copy of a dataset"
    assert refused([tmp_path / "changed", *raw_parts[1:]], out, capsys) == (2, line)
    line = f"{tmp_path / 'nowhere'}: no dataset here (dataset.json is missing)"
    assert refused([*raw_parts[:2], tmp_path / "nowhere"], out, capsys) == (2, line)


def test_clips_in_two_parts_are_refused(own_parts, tmp_path, capsys):
    """As where a hand gave a part another number."""
    one, two, three = own_parts
    shutil.rmtree(two)
    shutil.copytree(one, two)
    change(two, {"part": [2, 3]})
    line = "join: expected each clip of the list in one part, found clips in several or in none"
    assert refused(own_parts, tmp_path / "joined", capsys) == (2, line)
    taken = np.concatenate([np.load(part / "part.npy") for part in (one, three)])
    free = np.setdiff1d(np.arange(2 * len(taken)), taken)
    np.save(two / "part.npy", free[: len(np.load(one / "part.npy"))])
    code, line = refused(own_parts, tmp_path / "joined", capsys)
    assert code == 2
    assert "expected" in line


def test_a_file_that_changed_between_the_parts_is_refused(mixed, tmp_path, capsys):
    """Two segments of one file in groups of their own."""
    folder = tmp_path / "videos"
    folder.mkdir()
    shutil.copy2(mixed[0] / "wide_0.mp4", folder)
    clips = [Annotation(f"c{i}", "wide_0.mp4", (), "train", 0.1 * i, group=f"g{i}") for i in range(2)]
    parts = make_parts((folder, clips), tmp_path, RAW, 2, numbers=[1])
    (folder / "wide_0.mp4").touch()
    parts += make_parts((folder, clips), tmp_path, RAW, 2, numbers=[2])
    line = f"{parts[1]}: expected files unchanged between the parts, found another wide_0.mp4"
    assert refused(parts, tmp_path / "joined", capsys) == (2, line)


def test_damaged_parts_and_places_in_use(own_parts, tmp_path):
    (tmp_path / "joined").mkdir()
    (tmp_path / "joined" / "mine").write_text("")
    with pytest.raises(DatasetError, match=r"joined: no dataset here"):
        join(own_parts, tmp_path / "joined")
    shutil.copytree(own_parts[0], tmp_path / "there")
    with pytest.raises(DatasetError, match="already there, and not the dataset of these parts"):
        join(own_parts, tmp_path / "there")
    shard = own_parts[1] / "frames-00000.npy"
    with shard.open("r+b") as file:
        file.truncate(shard.stat().st_size - 10)
    with pytest.raises(DatasetError, match=r"frames-00000\.npy: ") as error:
        join(own_parts, tmp_path / "damaged")
    assert len(str(error.value).splitlines()) == 1
    (own_parts[2] / "part.npy").unlink()
    with pytest.raises(DatasetError, match=r"part\.npy: missing or damaged"):
        join(own_parts, tmp_path / "damaged")
    assert not (tmp_path / "damaged").exists()


@pytest.mark.parametrize("text", ["0/3", "4/3", "3", "1/", "a/b", "-1/3", "1/3/4", "1.5/3"])
def test_a_part_that_does_not_exist_is_refused(small_set, tmp_path, capsys, text):
    words = ["prepare", str(small_set[0]), "--videos", str(small_set[0]), "--out", str(tmp_path / "out")]
    assert main([*words, f"--part={text}"]) == 2
    assert f"--part: expected i/n with i from 1 to n, such as 2/3, found {text!r}" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="part: expected i/n"):
        prepare(small_set[1], small_set[0], tmp_path / "out", RAW, part=(4, 3))


def test_parts_by_xargs_and_info(mixed, tmp_path, warm_python):
    """Two processes at a time, from a list file to the checksum that `info` prints."""
    if shutil.which("xargs") is None:
        pytest.skip("needs the program xargs")
    videos, clips = mixed
    with (tmp_path / "list.csv").open("w", newline="", encoding="utf-8") as file:
        rows = [
            [a.clip_id, a.path, "|".join(a.labels), a.split, a.group, a.start_seconds, a.end_seconds] for a in clips
        ]
        csv.writer(file).writerows([["id", "path", "label", "split", "group", "start_seconds", "end_seconds"], *rows])
    us = [sys.executable, "-m", "avdistill"]
    given = [tmp_path / "list.csv", "--videos", videos, "--fps", 10, "--short-side", 16, "--workers", 1]
    words = [str(word) for word in [*us, "prepare", *given]]
    numbers = "".join(f"{i}\n" for i in range(1, PARTS + 1))
    xargs = ["xargs", "-P2", "-I{}", *words, "--out", str(tmp_path / "part-{}"), "--part", f"{{}}/{PARTS}"]
    subprocess.run(xargs, input=numbers, text=True, check=True, capture_output=True)
    warm_python.run([*words, "--out", str(tmp_path / "single")], check=True)
    parts = [str(tmp_path / f"part-{i}") for i in range(1, PARTS + 1)]
    warm_python.run([*us, "join", *parts, "--out", str(tmp_path / "joined")], check=True)
    info = [
        warm_python.run([*us, "info", str(tmp_path / name), "--json", "--no-duplicates"], check=True, text=True).stdout
        for name in ("joined", "single")
    ]
    joined, single = (json.loads(text) for text in info)
    assert joined["checksum"] == single["checksum"]
    assert joined["faults"] == single["faults"] == []
