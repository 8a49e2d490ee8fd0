"""Verbs of videos and datasets: synthesize, prepare, join, info."""

import os
import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from avdistill.annotations import Annotation, read_annotations
from avdistill.annotations.class_sets import Catalog, keep_class_set
from avdistill.annotations.readers import keep_labels
from avdistill.commands.console import Printed, output, progress_bar, region_of, say
from avdistill.commands.launching import LaunchedInParts
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError, DatasetError
from avdistill.preparation.join import join as join_parts
from avdistill.preparation.parts import parse_part
from avdistill.preparation.prepare import PrepareConfig
from avdistill.preparation.prepare import prepare as prepare_dataset
from avdistill.storage.copies import copy_of
from avdistill.storage.url import Url, as_path
from avdistill.synthetic.generator import SyntheticConfig
from avdistill.synthetic.generator import synthesize as synthesize_videos


@dataclass(frozen=True)
class _Synthesize(Printed):
    """Make video files of twelve classes of moving objects, some with their own audio, some with mismatched audio."""

    out: Path
    """Folder for videos/, annotations.csv and synthetic.json."""
    config: Annotated[SyntheticConfig, tyro.conf.arg(name="")] = field(default_factory=SyntheticConfig)
    workers: int = os.cpu_count() or 1
    """The processes that draw and encode; the default is the number of cores."""


def synthesize(arguments: list[str]) -> None:
    """`avdistill synthesize --out DIR`."""
    a = tyro.cli(_Synthesize, args=arguments, prog="avdistill synthesize")
    with progress_bar("synthesize") as update:
        annotations = synthesize_videos(a.out, a.config, workers=a.workers, on_progress=update)
    clips = len(read_annotations(annotations))
    output(
        {"annotations": str(annotations), "videos": str(a.out / "videos"), "clips": clips},
        [f"{clips} videos in {a.out / 'videos'}, listed in {annotations}"],
        a.json,
    )


@dataclass(frozen=True)
class _Prepare(LaunchedInParts, Printed):
    """Read the listed videos into a dataset of frames and audio; the same command resumes an interrupted one."""

    list: tyro.conf.Positional[tuple[Path, ...]]
    """Lists of clips, taken as one: a CSV or JSONL file, a folder per class, or the list of UCF101, ActivityNet,
    VGGSound, Kinetics, AudioSet or the release. A list, the videos and the dataset may be at s3://, gs:// or hf://."""
    videos: Path
    """The folder that the paths of the list start from, and that is searched where a list has no paths."""
    out: Path
    """The folder of the dataset to make."""
    format: Literal[
        "auto", "csv", "jsonl", "folder", "ucf101", "ucf51", "activitynet", "vggsound", "kinetics", "audioset",
        "gewu_lab",
    ] = "auto"  # fmt: skip
    """The format of the list; auto recognizes it by its content."""
    labels: Path | None = None
    """A file with a label per line; clips with other labels are left out."""
    catalog: Catalog | None = None
    """A class set that comes with avdistill, in place of --labels; clips of other classes are left out."""
    scenes: bool = False
    """Cut files that are listed whole at their shots: a clip per shot, all with the file's labels and in one group.
    Needs the extra scenes; what is found is kept beside the dataset in OUT.scenes.jsonl."""
    scene_seconds: float = 2.0
    """With --scenes, the seconds that a shot lasts at least; a shorter one stays with the next."""
    fps: float = 4.0
    """Frames per second to store; 0 stores every frame."""
    short_side: int | None = None
    """The length of the shorter side in pixels; the default is 128."""
    size: tuple[int, int] | None = None
    """The height and width in pixels, in place of --short-side."""
    region: str | None = None
    """The region x,y,width,height in pixels that is cut out before scaling; by default the whole frame."""
    sample_rate_hz: int = 16000
    """The sample rate of the stored audio in Hz."""
    jpeg: int | None = None
    """The JPEG quality of stored frames, 1 to 100; 90 is good, ten times smaller and slower to read. By default frames
    are stored uncompressed."""
    teacher: tuple[str, ...] = ()
    """Run folders of teachers that embed the new dataset; each gives its features the name of its folder."""
    part: str | None = None
    """Prepare the i-th of n parts, such as 2/3, of the list; `avdistill join` makes one dataset of all parts. The clips
    of one source video are in one part."""
    workers: int | None = None
    """The processes that decode; the default is the number of cores, with --ray and --slurm one for each part."""
    time_limit: float = 1800.0
    """The seconds that reading one clip may take before it is skipped; 0 sets no limit."""
    clip_limit: float = 8.0
    """The GiB that the decoded frames of one clip may take before it is skipped; 0 sets no limit."""
    strict: bool = False
    """Stop at the first file that cannot be read or was skipped before."""


def prepare(arguments: list[str]) -> None:
    """`avdistill prepare LIST --videos DIR --out DATASET`."""
    a = tyro.cli(_Prepare, args=arguments, prog="avdistill prepare")
    config = PrepareConfig(
        fps=a.fps or None,
        short_side=128 if a.short_side is None and a.size is None else a.short_side,
        size=a.size,
        region=region_of(a.region),
        sample_rate_hz=a.sample_rate_hz,
        jpeg_quality=a.jpeg,
    )
    a = replace(a, videos=as_path(a.videos), out=as_path(a.out))
    _check(a)
    part = None if a.part is None else parse_part(a.part)
    annotations = _annotations(a)
    if a.teacher:
        from avdistill.teachers.registry import load_teacher

        for run in a.teacher:  # a missing one is reported now, not after everything is decoded
            load_teacher(run)
        names = [_name_of(run) for run in a.teacher]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise ConfigError(f"--teacher: two have the name {twice[0]!r}; embed them by `avdistill embed --name`")
    if a.scenes:
        annotations = _cut(a, annotations)
    limits: dict[str, Any] = {
        "time_limit_seconds": a.time_limit or None,
        "clip_limit_bytes": round(a.clip_limit * 2**30) or None,
        "strict": a.strict,
    }
    if a.ray is not None or a.slurm is not None:
        _print_dataset(_prepare_in_parts(a, annotations, config, limits), a.out, a.json)
        return
    with progress_bar("prepare") as update:
        dataset = prepare_dataset(
            annotations,
            a.videos,
            a.out,
            config,
            part=part,
            workers=a.workers or os.cpu_count() or 1,
            on_progress=update,
            **limits,
        )
    for run in a.teacher:
        from avdistill.teachers.extraction import embed
        from avdistill.teachers.registry import load_teacher

        with progress_bar("embed") as update:
            embed(dataset, load_teacher(run), _name_of(run), on_progress=update)
    _print_dataset(dataset, a.out, a.json)


def _check(a: _Prepare) -> None:
    """Raise ConfigError for options that do not go together."""
    if not a.videos.is_dir():
        raise ConfigError(f"--videos: expected a folder, found none at {a.videos}")
    if a.labels is not None and a.catalog is not None:
        raise ConfigError("--labels: expected it or --catalog, found both")
    if not a.list:
        raise ConfigError("LIST: expected at least one list of clips, found none")
    if a.scenes and a.part is not None:
        raise ConfigError("--scenes: expected without --part, each of which would look at every file")
    a.check_parts()
    if a.part is not None and (a.ray is not None or a.slurm is not None):
        raise ConfigError("--part: expected without --ray and --slurm, which make the parts by --parts")


def _prepare_in_parts(
    a: _Prepare, annotations: list[Annotation], config: PrepareConfig, limits: dict[str, Any]
) -> ClipDataset:
    """By the machines of a cluster, which embed parts while they prepare others."""
    from avdistill.preparation.part_tasks import Limits
    from avdistill.teachers.launch import Encoder, prepare_in_parts

    workers = a.workers or 1
    with a.executor(a.out, cpus=workers) as executor, progress_bar("prepare") as update:
        assert executor is not None
        return prepare_in_parts(
            annotations,
            a.videos,
            a.out,
            config,
            executor=executor,
            parts=a.parts,
            encoders=[Encoder(run, _name_of(run)) for run in a.teacher],
            limits=Limits(workers, **limits),
            on_progress=update,
        )


def _print_dataset(dataset: ClipDataset, out: Path, as_json: bool) -> None:
    """What a dataset that was just made holds."""
    report = dataset.describe()
    line = (
        f"{report['clips']} clips of {report['videos']} videos in {out}: {report['with_video']} with video, "
        f"{report['with_audio']} with audio ({report['silent']} silent), {report['labeled']} labeled; "
        f"{report['skipped']} skipped"
    )
    output(report, [line + (f", see {out / 'skipped.csv'}" if report["skipped"] else "")], as_json)


def _annotations(a: _Prepare) -> list[Annotation]:
    """The listed clips with the wanted labels."""
    annotations = read_annotations(a.list, format=a.format, videos=a.videos)
    if a.labels is not None:
        annotations = keep_labels(annotations, a.labels)
    return annotations if a.catalog is None else keep_class_set(annotations, a.catalog)


def _cut(a: _Prepare, annotations: list[Annotation]) -> list[Annotation]:
    """A clip per shot of the files that are listed whole."""
    from avdistill.preparation.scenes import cut_at_scenes

    out = copy_of(a.out) if isinstance(a.out, Url) else a.out
    out.parent.mkdir(parents=True, exist_ok=True)
    with progress_bar("find shots") as update:
        return cut_at_scenes(
            annotations,
            a.videos,
            out.with_name(f"{out.name}.scenes.jsonl"),
            scene_seconds=a.scene_seconds,
            workers=a.workers or os.cpu_count() or 1,
            time_limit_seconds=a.time_limit or None,
            on_progress=update,
        )


def _name_of(run: str) -> str:
    """The default name of a teacher's features: the name of its folder."""
    return re.sub(r"[^\w.]", "_", Path(run).resolve().name if Path(run).exists() else Path(run).name).lstrip(".")


@dataclass(frozen=True)
class _Join(Printed):
    """Make one dataset of all parts that `prepare --part` made, with the checksum of a dataset prepared in one go.

    The parts stay as they are; their files get a second name and are not copied on one file system. Features that
    `avdistill embed` put into the parts are joined as well.
    """

    parts: tyro.conf.Positional[tuple[Path, ...]]
    """The folders of all parts, in any order."""
    out: Path
    """The folder of the dataset to make."""


def join(arguments: list[str]) -> None:
    """`avdistill join PART... --out DATASET`."""
    a = tyro.cli(_Join, args=arguments, prog="avdistill join")
    if not a.parts:
        raise ConfigError("PART: expected the folders of all parts, found none")
    with progress_bar("join") as update:
        dataset = join_parts(a.parts, a.out, on_progress=update)
    if any(ClipDataset(part).teachers for part in a.parts):
        from avdistill.teachers.joining import join_features

        for name in join_features(a.parts, dataset):
            say(f"features of teacher {name!r}: joined")
    _print_dataset(dataset, as_path(a.out), a.json)


@dataclass(frozen=True)
class _Info(Printed):
    """Describe a dataset, verify its checksums and list near-duplicates."""

    dataset: tyro.conf.Positional[Path]
    """The dataset's folder."""
    verify: bool = True
    """Recompute and compare every checksum."""
    duplicates: bool = True
    """Compare the audio and the frames of all clips: list clips of different source videos that share them, those in
    different splits first."""


def info(arguments: list[str]) -> None:
    """`avdistill info DATASET`."""
    a = tyro.cli(_Info, args=arguments, prog="avdistill info")
    dataset = ClipDataset(a.dataset)
    faults = []
    if a.verify:
        say("verifying checksums ...")
        faults = dataset.verify()
    try:
        report = dataset.describe() | ({"faults": faults} if a.verify else {})
    except DatasetError:
        if not faults:
            raise
        report = {"faults": faults}
    lines = [f"{name:<16} {value}" for name, value in report.items()]
    if a.duplicates and not faults:
        # It needs PyTorch, which takes seconds to import and which no other verb of this file needs.
        from avdistill.preparation.duplicates import duplicate_report, find_duplicates

        with progress_bar("duplicates") as update:
            report["duplicates"] = duplicate_report(dataset, find_duplicates(dataset, on_progress=update))
        lines += _duplicate_lines(report["duplicates"])
    output(report, lines, a.json)
    if report.get("faults"):
        raise DatasetError(f"{a.dataset}: damaged: {'; '.join(report['faults'])}")


def _duplicate_lines(report: dict[str, Any]) -> list[str]:
    pairs = report["examples"]
    return [
        f"{'duplicates':<16} {report['pairs']} pairs of clips of different source videos, {report['across_splits']} of "
        f"them across splits{f'; the first {len(pairs)}:' if len(pairs) < report['pairs'] else ''}",
        *(f"  {a['clip']} ({a['split']}), {b['clip']} ({b['split']}): same {what}" for a, b, what in pairs),
    ]
