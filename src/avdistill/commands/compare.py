"""Verbs of a benchmark study: compare, corrupt."""

from dataclasses import dataclass, fields, replace
from pathlib import Path

import tyro

from avdistill.analysis.benchmark.report import columns_of
from avdistill.analysis.benchmark.study import Study, run_study, write_report
from avdistill.commands.console import Printed, output, progress_bar, say, take_option
from avdistill.commands.launching import Launched
from avdistill.corruption import corrupt as corrupt_dataset
from avdistill.corruption import parse_corruption
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import open_dataset
from avdistill.dataset.remote import dataset_contents
from avdistill.errors import ConfigError
from avdistill.methods import METHODS
from avdistill.reporting.tables import markdown_table
from avdistill.storage.copies import local_copy
from avdistill.teachers.registry import load_teacher
from avdistill.teachers.transfer import check_teacher, transfer_teachers
from avdistill.training import TrainConfig
from avdistill.training.recipes import RECIPES

# The other columns of the report make lines too long for a terminal.
_SHOWN = {
    "corruption", "method", "n", "top1_accuracy", "std", "difference", "difference_interval", "auc", "d_prime", "rank"
}  # fmt: skip


@dataclass(frozen=True)
class _Compare(Launched, Printed):
    """Train several methods alike on one dataset and test which are better than training without distillation."""

    dataset: tyro.conf.Positional[Path]
    """A prepared dataset with a teacher's features; it is not changed."""
    out: Path
    """The study's folder; the same command resumes an interrupted study."""
    methods: tuple[str, ...] = tuple(sorted(METHODS))
    """Methods by name (`avdistill recipes` lists them) or as FILE.py:Class, each optionally with settings, as in
    crd:negatives=batch. The default is all methods; at and nst need the teacher's tokens (`embed --tokens`), dkd and
    c2kd one label per clip."""
    corruptions: tuple[str, ...] = ("clean",)
    """Corruptions: clean, or pairs such as mismatched=0.4,label_fraction=0.25. Fractions of clips are mismatched,
    dropped, time_shifted and noisy (with snr_db in dB); labels are reduced by label_fraction, or to the counts
    labeled_videos or labeled_per_class."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """The seeds of the runs that are compared."""
    trials: int = 1
    """The number of settings tried for each method under each corruption, 1 to 5; with 1 the published one is taken."""
    trial_steps: int | None = None
    """The optimizer steps of a trial; by default as many as of a compared run."""
    tuning_seed: int = 1000
    """The seed of the trials."""
    teacher: str = "audio"
    """The name of the teacher's features in the dataset; "+" joins several teachers, as in yamnet+cnn14."""
    teacher_run: str | None = None
    """The teacher that computed the features (a run folder or a name), for corruptions that make new audio:
    time_shifted and noisy."""
    test_dataset: Path | None = None
    """Another dataset to test on; the default is DATASET without corruption."""
    test_split: str = "test"
    """The split whose labeled clips are classified."""
    decisions: Path | None = None
    """A CSV file of decisions about clips (clip,decision,by), as `avdistill audit --decide` writes it, that all runs
    are trained with; what is tested on does not change."""
    workers: int = 1
    """The number of runs at a time, without --ray and --slurm."""
    threads: int | None = None
    """The threads of each run; by default the cores divided by the workers, or one with --ray and --slurm."""
    base: TrainConfig = RECIPES["tiny_supervised"]
    """The config that all runs share; `--recipe NAME` takes another."""


def compare(arguments: list[str]) -> None:
    """`avdistill compare DATASET --out STUDY [--recipe NAME] [--methods ...] [--seeds ...] [--corruptions ...]`."""
    recipe, rest = take_option(arguments, "--recipe")
    recipe = recipe or "tiny_supervised"
    if recipe not in RECIPES:
        raise ConfigError(f"--recipe: no recipe {recipe!r}; recipes: {', '.join(RECIPES)}")
    a = tyro.cli(
        _Compare,
        args=rest,
        prog="avdistill compare",
        default=_Compare(dataset=tyro.MISSING, out=tyro.MISSING, base=RECIPES[recipe]),
        config=(tyro.conf.AvoidSubcommands,),
    )
    decisions = a.decisions or a.base.decisions
    test_dataset = None if a.test_dataset is None else local_copy(a.test_dataset, dataset_contents)
    a = replace(a, dataset=local_copy(a.dataset, dataset_contents), test_dataset=test_dataset)
    a = replace(a, base=replace(a.base, decisions=None if decisions is None else decisions.resolve()))
    study = Study(**{each.name: getattr(a, each.name) for each in fields(Study)})
    teacher = None if a.teacher_run is None else load_teacher(a.teacher_run)
    with a.executor(a.out, cpus=a.threads or 1) as executor, progress_bar("compare") as update:
        rows = run_study(
            study, workers=a.workers, threads=a.threads, executor=executor, teacher=teacher, on_progress=update
        )
    result = write_report(study, rows)
    say(f"report: {a.out / 'report.html'}")
    headings = {"corruption": "corruption", **columns_of(result["table"])}
    columns = {key: name for key, name in headings.items() if key in _SHOWN}
    output({"out": str(a.out), **result}, [markdown_table(result["table"], columns)], a.json)


@dataclass(frozen=True)
class _Corruption(Printed):
    """Make a copy of a dataset with some audio mismatched, dropped, time-shifted or noisy, or with fewer labels."""

    dataset: tyro.conf.Positional[Path]
    """The dataset's folder; it is not changed."""
    corruption: tyro.conf.Positional[str]
    """Pairs such as mismatched=0.4,label_fraction=0.25. Fractions of clips are mismatched, dropped, time_shifted and
    noisy (with snr_db in dB); labels are reduced by label_fraction, or to the counts labeled_videos or
    labeled_per_class."""
    out: Path
    """The folder of the new dataset."""
    decisions: Path | None = None
    """A CSV file of decisions about clips (clip,decision,by) that are carried out first; `clean` is a copy with
    nothing else."""
    teacher_run: str | None = None
    """The teacher (a run folder or a name) that embeds new time_shifted or noisy audio. The features of other audio
    teachers are left out; the same command with their --teacher-run adds them."""


def corrupt(arguments: list[str]) -> None:
    """`avdistill corrupt DATASET mismatched=0.4 --out NEW`; teachers' features are brought along."""
    a = tyro.cli(_Corruption, args=arguments, prog="avdistill corrupt")
    base, wanted = open_dataset(a.dataset, a.decisions), parse_corruption(a.corruption)
    teacher = None if a.teacher_run is None else load_teacher(a.teacher_run)
    if teacher is not None:
        check_teacher(base, base.teachers, teacher)
    made = corrupt_dataset(base, wanted, a.out)
    for name in transfer_teachers(base, made, teacher=teacher):
        say(f"teacher {name!r} is left out: {a.teacher_run} is another teacher and cannot embed the new audio for it")
    found = ClipDataset(a.out)
    lines = [f"{len(found)} clips; teachers: {', '.join(found.teachers) or 'none'}"]
    output({"dataset": found.place, "checksum": found.checksum, "teachers": sorted(found.teachers)}, lines, a.json)
