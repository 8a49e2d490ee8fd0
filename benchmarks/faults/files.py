"""Faults of files: targets that cannot be written, clips that change, odd names, long, lopsided and mutated files."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

import crafted
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.training import read_config, train
from tools import (
    PREPARE,
    NotRunError,
    Pipeline,
    Running,
    check_ended,
    dataset_facts,
    expect,
    expect_same,
    run,
    skipped,
    wait_until,
    without_root,
    write_clip,
    write_list,
)

_MUTATED = 500
_CRAFTED = 300
_MUTATED_BYTES = 1536 * 2**20
_HOUR_BYTES = 1536 * 2**20
_LIMIT_SECONDS = 1200
_MANY = 50_000
_CLIP_BYTES = 2 * 1024
_MANY_SECONDS = 3600


def read_only(pipeline: Pipeline) -> str:
    """`prepare` into a folder that may not be written to, and below a path that is a file"""
    folder = pipeline.folder("read_only")
    words = _one_clip(folder)
    target = folder / "locked"
    target.mkdir(mode=0o555)
    ended = Running(*without_root(*words, "--out", target / "dataset"), prefix=()).wait()
    check_ended(ended, 1)
    expect("locked" in ended.last_line, f"the line does not name the folder: {ended.last_line}")
    (folder / "file").write_text("in the way")
    ended = run(*words, "--out", folder / "file" / "dataset", code=1)
    expect("file" in ended.last_line, f"the line does not name the path: {ended.last_line}")
    return "exit 1 and one line that names the path, both times"


def no_videos(pipeline: Pipeline) -> str:
    """`prepare` with a folder of videos that is missing or may not be read, then with the right one"""
    folder = pipeline.folder("no_videos")
    words = _one_clip(folder)
    out = folder / "dataset"
    missing = [str(word).replace(str(folder / "videos"), str(folder / "absent")) for word in words]
    run(*missing, "--out", out, code=2)  # a wrong option
    (folder / "videos").chmod(0)
    try:
        ended = Running(*without_root(*words, "--out", out), prefix=()).wait()
    finally:
        (folder / "videos").chmod(0o755)
    check_ended(ended, 1)
    run(*words, "--out", out)
    return "exit 2 and exit 1 and one line each; nothing is left in the way of the right folder"


def _one_clip(folder: Path) -> tuple[object, ...]:
    """`prepare` of one clip in `folder`, without `--out`."""
    (folder / "videos").mkdir()
    write_clip(folder / "videos" / "clip.avi")
    return ("prepare", write_list(folder / "list.csv", ["clip.avi"]), "--videos", folder / "videos", *PREPARE)


def changed_clip_interrupted(pipeline: Pipeline) -> str:
    """a clip that changes between an interrupted `prepare` and the next"""
    folder = pipeline.folder("changed_clip_interrupted")
    videos = folder / "videos"
    shutil.copytree(pipeline.data / "videos", videos)
    words = ("prepare", pipeline.data / "annotations.csv", "--videos", videos, *PREPARE)
    out = folder / "dataset"
    running = Running(*words, "--out", out)
    journal = folder / "dataset.partial" / "journal.jsonl"
    if not wait_until(lambda: journal.is_file() and journal.read_bytes().count(b"\n") >= 5, running):
        raise NotRunError("the preparation was over before it could be interrupted")
    running.kill()
    running.wait()
    first = json.loads(journal.read_text(encoding="utf-8").splitlines()[0])["row"]["path"]
    write_clip(videos / first, seed=9)
    return _after_the_change(pipeline, words, out, folder / "afresh", first)


def changed_clip_finished(pipeline: Pipeline) -> str:
    """a clip that changes after a finished `prepare`, and the same command once more"""
    folder = pipeline.folder("changed_clip_finished")
    videos = folder / "videos"
    videos.mkdir()
    names = [f"{i}.avi" for i in range(3)]
    for i, name in enumerate(names):
        write_clip(videos / name, seed=i)
    words = ("prepare", write_list(folder / "list.csv", names), "--videos", videos, *PREPARE)
    run(*words, "--out", folder / "dataset")
    write_clip(videos / names[1], seed=9)
    return _after_the_change(pipeline, words, folder / "dataset", folder / "afresh", names[1])


def _after_the_change(pipeline: Pipeline, words: tuple[object, ...], out: Path, afresh: Path, changed: str) -> str:
    """Either refused with a line that names the clip, or the dataset is the one made afresh; never a silent mixture."""
    ended = run(*words, "--out", out, code=None)
    if ended.code:
        check_ended(ended, 1)
        expect(Path(changed).stem in ended.last_line, f"the line does not name the clip: {ended.last_line}")
        return "refused: exit 1 and a line that names the clip"
    if Path(changed).stem in ended.error:
        return "exit 0, and standard error names the clip that has changed"
    run(*words, "--out", afresh)
    expect_same(dataset_facts(out), dataset_facts(afresh), "after the change, in silence")
    return "read again: the same checksum as prepared afresh"


def names(pipeline: Pipeline) -> str:
    """names with `..` or an absolute path; spaces, Unicode, leading dash, quotes, colon, percent sign, `--videos .`"""
    folder = pipeline.folder("names")
    secret = write_clip(folder / "outside.avi")
    videos = folder / "my videos"
    videos.mkdir()
    for name in ("../outside.avi", "a/../../outside.avi", str(secret)):
        listed = write_list(folder / "bad.csv", [name])
        ended = run("prepare", listed, "--videos", videos, "--out", folder / "bad", code=1)
        expect("'..'" in ended.last_line, f"{name} is not refused for its '..': {ended.last_line}")
    odd = [
        "two words.avi",
        "-rf.avi",
        "naïve 東京 🎬.avi",
        'it\'s "quoted".avi',
        "12:30.avi",
        "pipe:0.avi",
        "%05d.avi",
        "semi;colon&co.avi",
        "deep/er/-x.avi",
        ".hidden.avi",
    ]
    for i, name in enumerate(odd):
        (videos / name).parent.mkdir(parents=True, exist_ok=True)
        write_clip(videos / name, seed=i)
    listed = write_list(folder / "odd list.csv", odd)
    for number, (where, given) in enumerate(((None, videos), (videos, Path(".")))):
        out = folder / f"the dataset {number}"
        run("prepare", listed, "--videos", given, "--out", out, *PREPARE, cwd=where)
        failed = skipped(out)
        expect(not failed, f"--videos {given.name or '.'}: not read: {'; '.join(failed.values())[:200]}")
        expect(pq.read_table(out / "clips.parquet")["path"].to_pylist() == odd, "names changed on the way")
    return f"3 names refused (exit 1); {len(odd)} odd names read, through an absolute folder and through `--videos .`"


def hour_long(pipeline: Pipeline) -> str:
    """an hour of video in one file (64 x 48 at 5 frames a second, audio at 8 kHz)"""
    folder = pipeline.folder("hour_long")
    (folder / "videos").mkdir()
    hour = write_clip(folder / "videos" / "hour.avi", seconds=3600, fps=5, rate=8000)
    write_clip(folder / "videos" / "short.avi")
    listed = write_list(folder / "list.csv", ["hour.avi", "short.avi"])
    small = ("--fps", 2, "--short-side", 32, "--workers", 2)
    ended = run("prepare", listed, "--videos", folder / "videos", "--out", folder / "dataset", *small)
    rows = pq.read_table(folder / "dataset" / "clips.parquet").to_pylist()
    expect(abs(rows[0]["frame_count"] - 7200) <= 2, f"{rows[0]['frame_count']} frames at 2 a second, expected 7200")
    expect(abs(rows[0]["audio_count"] - 3600 * 16000) < 16000, f"{rows[0]['audio_count']} samples, expected 57600000")
    _expect_memory(ended.peak_bytes, _HOUR_BYTES)
    said = f"prepare: {ended.seconds:.0f} s, all processes together at most {ended.peak_bytes / 2**20:.0f} MB"
    limited = folder / "limited"
    run("prepare", listed, "--videos", folder / "videos", "--out", limited, *small, "--time-limit", 2)
    expect(
        set(skipped(limited)) == {"hour"}, f"--time-limit 2 skips {sorted(skipped(limited))}, expected the hour alone"
    )
    said += "; with --time-limit 2: skipped, the next clip read"
    if "predict" not in run("--help").out:
        return f"{said}; predict: not run, no such verb yet"
    predicted = run("predict", pipeline.trained[0], hour, "--json", limit_seconds=_LIMIT_SECONDS)
    json.loads(predicted.out)
    _expect_memory(predicted.peak_bytes, _HOUR_BYTES)
    return f"{said}; predict: {predicted.seconds:.0f} s, {predicted.peak_bytes / 2**20:.0f} MB"


def many_clips(pipeline: Pipeline) -> str:
    """`evaluate` of 50,000 test clips, each of a video of its own, beside 5,000"""
    folder = pipeline.folder("many_clips")
    ended = {}
    for count in (_MANY // 10, _MANY):
        dataset = _repeated(pipeline.prepared[0], folder / f"dataset-{count}", count)
        words = ("evaluate", pipeline.trained[0], dataset, "--batch-size", 256, "--json")
        ended[count] = run(*words, "--out", folder / f"out-{count}", limit_seconds=_MANY_SECONDS)
        told = json.loads(ended[count].out)
        expect(told["clips"] == count, f"{told['clips']} clips evaluated, expected {count}")
    few, many = ended.values()
    more = (many.peak_bytes - few.peak_bytes) / (_MANY - _MANY // 10)
    expect(more < _CLIP_BYTES, f"{more / 1024:.1f} KiB of memory for a clip more, bound {_CLIP_BYTES / 1024:.0f} KiB")
    return (
        f"{few.seconds:.0f} s and {few.peak_bytes / 2**20:.0f} MB; {many.seconds:.0f} s and "
        f"{many.peak_bytes / 2**20:.0f} MB: {more / 1024:.1f} KiB for a clip more"
    )


def _repeated(dataset: Path, out: Path, count: int) -> Path:
    """The test clips of a dataset over and over, half a second each, under names of their own, in the same shards."""
    shutil.copytree(dataset, out)
    table = pq.read_table(dataset / "clips.parquet")
    test = np.flatnonzero(np.array(table["split"].to_pylist()) == "test")
    rows = table.take(np.resize(test, count))
    for name in ("id", "path", "group"):
        place = rows.column_names.index(name)
        rows = rows.set_column(place, rows.schema.field(name), pa.array([f"clip-{i:06d}" for i in range(count)]))
    place = rows.column_names.index("frame_count")
    rows = rows.set_column(place, rows.schema.field(place), pa.array([4] * count, rows.schema.field(place).type))
    pq.write_table(rows, out / "clips.parquet")
    told = json.loads((dataset / "dataset.json").read_text(encoding="utf-8"))
    (out / "dataset.json").write_text(json.dumps(told | {"clips": count}), encoding="utf-8")
    return out


def _expect_memory(found: int, bound: int) -> None:
    expect(found < bound, f"{found / 2**20:.0f} MB of memory, bound {bound / 2**20:.0f} MB")


def lopsided(pipeline: Pipeline) -> str:
    """audio longer and shorter than the video: `prepare`, then `embed`"""
    folder = pipeline.folder("lopsided")
    (folder / "videos").mkdir()
    seconds = {"longer.avi": (2, 5), "shorter.avi": (5, 2)}
    for name, (video, audio) in seconds.items():
        write_clip(folder / "videos" / name, seconds=video, audio_seconds=audio)
    listed = write_list(folder / "list.csv", list(seconds))
    dataset = folder / "dataset"
    run("prepare", listed, "--videos", folder / "videos", "--out", dataset, *PREPARE)
    for row, (video, audio) in zip(pq.read_table(dataset / "clips.parquet").to_pylist(), seconds.values(), strict=True):
        # The last frame lasts until the audio ends. AVI counts a frame more after a hole in the clock; MP3 fills up its
        # last frame and has a delay.
        expect(abs(row["frame_count"] - 8 * max(video, audio)) <= 2, f"{row['path']}: {row['frame_count']} frames")
        expect(abs(row["audio_count"] - 16000 * audio) <= 3000, f"{row['path']}: {row['audio_count']} samples")
    run("embed", dataset, "--teacher", pipeline.teacher)
    expect(bool(ClipDataset(dataset).features("audio").valid.all()), "a clip has no teacher although it has audio")
    return "samples as in the files, frames until the later of both ends; both clips get a teacher"


def playlists(pipeline: Pipeline) -> str:
    """playlists, patterns and text art under the names of videos, beside a video that they lead to"""
    folder = pipeline.folder("playlists")
    videos = folder / "videos"
    videos.mkdir()
    other = write_clip(folder / "other.avi")
    shutil.copy(other, videos / "video.avi")
    for name, text in _PLAYLISTS.items():
        (videos / name).write_text(text.replace("OTHER", str(other)), encoding="utf-8")
    listed = write_list(folder / "list.csv", ["video.avi", *_PLAYLISTS])
    run("prepare", listed, "--videos", videos, "--out", folder / "dataset", *PREPARE)
    failed = skipped(folder / "dataset")
    expect(pq.read_table(folder / "dataset" / "clips.parquet")["path"].to_pylist() == ["video.avi"], "one was read")
    expect(len(failed) == len(_PLAYLISTS), f"skipped: {', '.join(failed)}")
    ended = run("predict", pipeline.trained[0], *(videos / name for name in _PLAYLISTS), code=None)
    expect(ended.code == 1 and not ended.out, f"predict: exit code {ended.code}: {ended.out[:200]}")
    expect("Traceback" not in ended.error, f"a traceback: {ended.last_line}")
    return (
        f"{len(_PLAYLISTS)} refused by `prepare`, with a reason in skipped.csv, and by `predict`; nothing else was read"
    )


_HLS = "#EXTM3U\n#EXT-X-TARGETDURATION:2\n#EXTINF:2.0,\nOTHER\n#EXT-X-ENDLIST\n"
_PLAYLISTS = {
    "concat.avi": "ffconcat version 1.0\nfile 'OTHER'\n",
    "concat.mkv": "ffconcat version 1.0\nfile 'file:OTHER'\n",
    "hls.mp4": _HLS,
    "hls.avi": _HLS.replace("OTHER", "video.avi"),
    "dash.webm": '<?xml version="1.0"?><MPD xmlns="urn:mpeg:dash:schema:mpd:2011" type="static"><Period><AdaptationSet>'
    '<Representation id="1" bandwidth="1000"><BaseURL>OTHER</BaseURL></Representation></AdaptationSet></Period></MPD>',
    "sdp.avi": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 5004 RTP/AVP 96\n",
    "art.avi": "\x1b[31mroot:x:0:0:root:/root:/bin/sh\x1b[0m\n" * 50,
    "text.mp4": "the password is swordfish\n" * 100,
}


def crafted_folders(pipeline: Pipeline) -> str:
    """300 crafted datasets, runs, checkpoints, lists and embeddings, one thing changed in each, opened with limits"""
    folder = pipeline.folder("crafted")
    config = read_config(pipeline.trained[0] / "config.json")
    run_ = train(replace(config, out=folder / "run", steps=2, save_every=1, eval_every=1), stop_after=1)
    good = crafted.Good(pipeline.embedded[0], run_, pipeline.data / "annotations.csv", pipeline.data / "videos")
    wrong = crafted.faults_of(good, folder / "cases", range(pipeline.seed, pipeline.seed + _CRAFTED))
    expect(not wrong, "; ".join(wrong))
    return f"{_CRAFTED} commands end in time, in a line or rightly; no traceback, no file outside touched, no code run"


def mutated(pipeline: Pipeline) -> str:
    """500 mutated copies (bits flipped, cut short, blocks zeroed, doubled, shuffled, headers damaged), one `prepare`"""
    rng = pipeline.generator("mutated")
    folder = pipeline.folder("mutated")
    (folder / "videos").mkdir()
    source = pipeline.clips or pipeline.data / "videos"
    originals = sorted(file for file in source.rglob("*") if file.is_file())
    expect(bool(originals), f"{source}: no clips")
    if pipeline.clips is None:  # as many of each container
        kinds = [[file for file in originals if file.suffix == suffix][:12] for suffix in (".avi", ".mp4")]
        originals = [file for files in kinds for file in files]
    made = []
    for number in range(_MUTATED):
        original = originals[number % len(originals)]
        kind = list(_MUTATIONS)[number // len(originals) % len(_MUTATIONS)]
        made.append(f"{number:03d}-{kind}{original.suffix}")
        data = np.frombuffer(original.read_bytes(), np.uint8).copy()
        (folder / "videos" / made[-1]).write_bytes(_MUTATIONS[kind](data, rng).tobytes())
    listed = write_list(folder / "list.csv", made)
    words = ("--fps", 4, "--short-side", 32, "--workers", 2, "--time-limit", 60)
    ended = run(
        *("prepare", listed, "--videos", folder / "videos", "--out", folder / "dataset", *words),
        limit_seconds=_LIMIT_SECONDS,
    )
    dataset_facts(folder / "dataset")
    table = pq.read_table(folder / "dataset" / "clips.parquet")
    read, failed = table["path"].to_pylist(), skipped(folder / "dataset")
    expect(
        sorted([*(Path(name).stem for name in read), *failed]) == sorted(Path(name).stem for name in made),
        f"{len(read)} read and {len(failed)} in skipped.csv do not make up the {len(made)} files",
    )
    expect(all(failed.values()), "a file is skipped without a reason")
    _expect_memory(ended.peak_bytes, _MUTATED_BYTES)
    noted = sum(bool(notes) for notes in table["notes"].to_pylist())
    which = f"{len(originals)} {'given' if pipeline.clips else 'generated'} clips"
    return (
        f"of {which}: {len(read)} read ({noted} with notes), {len(failed)} in skipped.csv; {ended.seconds:.0f} s, "
        f"all processes together at most {ended.peak_bytes / 2**20:.0f} MB"
    )


def _flipped(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    places = rng.integers(0, len(data), max(1, len(data) // 2000))
    data[places] ^= (1 << rng.integers(0, 8, len(places))).astype(np.uint8)
    return data


def _truncated(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return data[: rng.integers(0, len(data))]


def _block(data: np.ndarray, rng: np.random.Generator) -> slice:
    start = int(rng.integers(0, len(data)))
    return slice(start, start + int(rng.integers(1, max(2, len(data) // 8))))


def _zeroed(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    data[_block(data, rng)] = 0
    return data


def _doubled(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    block = _block(data, rng)
    return np.concatenate([data[: block.stop], data[block], data[block.stop :]])


def _shuffled(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    blocks = np.array_split(data, 16)
    return np.concatenate([blocks[i] for i in rng.permutation(16)])


def _header(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    head = data[: min(1024, len(data))]
    places = rng.integers(0, len(head), 16)
    head[places] = rng.integers(0, 256, 16)
    return data


# MP4 has its index at the end: damage there is a header's too.
def _footer(data: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    return _header(data[::-1], rng)[::-1]


_MUTATIONS = {
    "flipped": _flipped,
    "truncated": _truncated,
    "zeroed": _zeroed,
    "doubled": _doubled,
    "shuffled": _shuffled,
    "header": _header,
    "footer": _footer,
}
