"""Verbs that set methods against each other: compare, condition."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import tyro

from avdistill.commands.console import output, progress_bar, say, take_option
from avdistill.data.conditions import apply_condition, parse_condition
from avdistill.data.store import Store
from avdistill.decoding import ConfigError
from avdistill.methods import METHODS
from avdistill.studies.comparison import Study, run_study, write_report
from avdistill.studies.comparison_report import columns_of
from avdistill.studies.report import markdown_table
from avdistill.teachers import load_teacher
from avdistill.teachers.carrying import carry_teachers, check_teacher
from avdistill.training import TrainConfig
from avdistill.training.recipes import RECIPES

# Of the report's columns; the others make lines too long for a terminal.
_SHOWN = {"condition", "method", "n", "figure", "std", "difference", "difference_interval", "auc", "d_prime", "rank"}


@dataclass(frozen=True)
class _Compare:
    """Train many methods alike on one store, and say which are better than no distillation."""

    store: tyro.conf.Positional[Path]
    """A prepared store with a teacher's features; no file of it is touched."""
    out: Path
    """The study's folder; a stopped study goes on when the same command is given."""
    methods: tuple[str, ...] = tuple(sorted(METHODS))
    """Names (`avdistill recipes` lists them) or FILE.py:Class, each optionally with settings: crd:negatives=batch.
    at and nst need the teacher's maps (`embed --maps`), dkd and c2kd one label per clip."""
    conditions: tuple[str, ...] = ("clean",)
    """clean, or pairs: unrelated=0.4,labels=0.25. Shares: unrelated, silent, shifted, drowned (with snr_db), labels.
    Numbers, in place of the share of labels: labelled_videos, labelled_per_class."""
    seeds: tuple[int, ...] = (0, 1, 2)
    """Of the runs that count."""
    trials: int = 1
    """Settings tried for each method under each condition, 1 to 5; 1 takes the published one."""
    trial_steps: int | None = None
    """Of a trial; default: as many as of a run that counts."""
    tuning_seed: int = 1000
    """Of the trials."""
    teacher: str = "sound"
    """Name of the teacher's features in the store."""
    teacher_run: str | None = None
    """The teacher itself (a run folder or a name), for conditions that make new sound: shifted, drowned. It must be
    what made the features."""
    test_store: Path | None = None
    """Another store to test on; default: the same, without any condition."""
    test_split: str = "test"
    """Its labelled clips are classified."""
    workers: int = 1
    """Runs at a time."""
    threads: int | None = None
    """Of each run; default: the cores shared between the workers."""
    base: TrainConfig = RECIPES["tiny_supervised"]
    """What all runs have in common; `--recipe NAME` names another."""
    json: bool = False
    """Print one JSON object."""


def compare(arguments: list[str]) -> None:
    """`avdistill compare STORE --out STUDY [--recipe NAME] [--methods ...] [--seeds ...] [--conditions ...]`."""
    recipe, rest = take_option(arguments, "--recipe")
    recipe = recipe or "tiny_supervised"
    if recipe not in RECIPES:
        raise ConfigError(f"--recipe: no recipe {recipe!r}; recipes: {', '.join(RECIPES)}")
    a = tyro.cli(
        _Compare,
        args=rest,
        prog="avdistill compare",
        default=_Compare(store=tyro.MISSING, out=tyro.MISSING, base=RECIPES[recipe]),
        config=(tyro.conf.AvoidSubcommands,),
    )
    study = Study(
        store=a.store,
        out=a.out,
        base=a.base,
        methods=a.methods,
        conditions=a.conditions,
        seeds=a.seeds,
        trials=a.trials,
        trial_steps=a.trial_steps,
        tuning_seed=a.tuning_seed,
        teacher=a.teacher,
        test_store=a.test_store,
        test_split=a.test_split,
    )
    teacher = None if a.teacher_run is None else load_teacher(a.teacher_run)
    with progress_bar("compare") as update:
        rows = run_study(study, workers=a.workers, threads=a.threads, teacher=teacher, on_progress=update)  # type: ignore[arg-type]
    result = write_report(study, rows)
    say(f"report: {a.out / 'report.html'}")
    headings = {"condition": "condition", **columns_of(result["table"])}
    columns = {key: name for key, name in headings.items() if key in _SHOWN}
    output({"out": str(a.out), **result}, [markdown_table(result["table"], columns)], a.json)


@dataclass(frozen=True)
class _Condition:
    """A new store: the given one with some sounds swapped, silent, shifted or drowned, and fewer labels."""

    store: tyro.conf.Positional[Path]
    """The store's folder; no file of it is touched."""
    condition: tyro.conf.Positional[str]
    """Pairs, such as unrelated=0.4,labels=0.25. Shares: unrelated, silent, shifted, drowned (with snr_db), labels.
    Numbers, in place of the share of labels: labelled_videos, labelled_per_class."""
    out: Path
    """The new store's folder."""
    teacher_run: str | None = None
    """The teacher itself (a run folder or a name), where shifted or drowned sound must be embedded anew. Other teachers
    that hear are then left out; the same command with theirs brings them."""
    json: bool = False
    """Print one JSON object."""


def condition(arguments: list[str]) -> None:
    """`avdistill condition STORE unrelated=0.4 --out NEW`; teachers' features are brought along."""
    a = tyro.cli(_Condition, args=arguments, prog="avdistill condition")
    base, wanted = Store(a.store), parse_condition(a.condition)
    teacher = None if a.teacher_run is None else load_teacher(a.teacher_run)
    if teacher is not None:
        check_teacher(base, base.teachers, teacher)
    made = apply_condition(base, wanted, a.out)
    for name in carry_teachers(base, made, teacher=teacher):
        say(f"teacher {name!r} is left out: {a.teacher_run} is another, and cannot hear the new sounds for it")
    found = Store(a.out)
    lines = [f"{len(found)} clips; teachers: {', '.join(found.teachers) or 'none'}"]
    output({"store": str(a.out), "checksum": found.checksum, "teachers": sorted(found.teachers)}, lines, a.json)
