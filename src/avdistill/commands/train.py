"""Verbs of a run: train, resume, teacher train, embed, recipes."""

import re
from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Literal

import tyro

from avdistill.commands.console import FIRST_PROCESS, Printed, output, progress_bar, say, take_option, training_bar
from avdistill.commands.launching import LaunchedInParts
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.features import PART_CLIPS
from avdistill.dataset.schema import TeacherEntry
from avdistill.dataset.splits import clips_of_splits
from avdistill.dataset.stored_features import format_provenance
from avdistill.errors import ConfigError
from avdistill.methods import METHODS, parse_method, teacher_requirement
from avdistill.models.registry import MODELS
from avdistill.storage.copies import working_copy
from avdistill.storage.url import as_path
from avdistill.teachers.extraction import Unfinished
from avdistill.teachers.extraction import embed as embed_dataset
from avdistill.teachers.launch import Encoder, embed_in_parts
from avdistill.teachers.precomputed import PRECOMPUTED, embed_precomputed
from avdistill.teachers.registry import load_teacher
from avdistill.training import TrainConfig, read_config
from avdistill.training import resume as resume_run
from avdistill.training import train as train_run
from avdistill.training.recipes import RECIPES
from avdistill.training.run_dir import data_manifest, is_begun, run_config, run_state


def train(arguments: list[str]) -> None:
    """`avdistill train RECIPE --dataset DATASET --out RUN`, or `--config FILE.json`; options change the config."""
    if arguments[:1] in ([], ["-h"], ["--help"]):
        print("usage: avdistill train RECIPE --dataset DATASET --out RUN [--OPTION VALUE ...]")
        print("       avdistill train --config FILE.json [--OPTION VALUE ...]")
        print("       --method NAME or --method FILE.py:Class replaces the recipe's method")
        print("       --trust-method runs the Python file of a config's custom method")
        print("       --resume continues the run if its folder holds it already, as after a restart\n\nrecipes:")
        print("\n".join(f"  {name}" for name in RECIPES))
        print("\noptions: avdistill train RECIPE --help")
        return
    if arguments[0] == "--config":
        if len(arguments) < 2:
            raise ConfigError("--config: expected a file")
        base, rest = read_config(Path(arguments[1])), arguments[2:]
    elif arguments[0] in RECIPES:
        unset = {"dataset": tyro.MISSING, "out": tyro.MISSING}
        base, rest = replace(RECIPES[arguments[0]], **unset), arguments[1:]
    else:
        raise ConfigError(f"no recipe {arguments[0]!r}; recipes: {', '.join(RECIPES)}")
    trust_method, rest = "--trust-method" in rest, [word for word in rest if word != "--trust-method"]
    given, rest = take_option(rest, "--method")
    if given is not None:
        method = parse_method(given)
        teacher = (base.teacher or "audio") if teacher_requirement(method) else None
        base = replace(base, method=method, teacher=teacher)
    _train(base, rest, f"avdistill train {arguments[0]}", trust_method)


def train_teacher(arguments: list[str]) -> None:
    """`avdistill teacher train DATASET --out RUN`: an ordinary supervised run on the labeled clips' audio."""
    usage = "usage: avdistill teacher train DATASET --out RUN [--train-split teacher] [--OPTION VALUE ...]"
    if arguments[:1] in (["-h"], ["--help"]):
        print(f"{usage}\n\noptions: avdistill train audio_teacher --help")
        return
    if not arguments or arguments[0].startswith("-"):
        raise ConfigError(usage)
    dataset = ClipDataset(arguments[0])
    splits = set(dataset.columns["split"].tolist())
    split = "teacher" if "teacher" in splits else "train"
    base = replace(RECIPES["audio_teacher"], dataset=as_path(dataset.place), out=tyro.MISSING, train_split=split)
    _train(base, arguments[1:], "avdistill teacher train")


def _train(base: TrainConfig, arguments: list[str], program: str, trust_method: bool = False) -> None:
    resumed, arguments = "--resume" in arguments, [word for word in arguments if word != "--resume"]
    config = tyro.cli(TrainConfig, default=base, args=arguments, prog=program, config=(tyro.conf.AvoidSubcommands,))
    with training_bar(f"train {config.method.name}", config.steps) as on_step:
        if resumed and is_begun(config):
            run = resume_run(config.out, on_step=on_step, trust_method=trust_method)
        else:
            run = train_run(config, on_step=on_step, trust_method=trust_method)
    _report_run(run, as_path(config.out))


def _report_run(run: Path, place: Path) -> None:
    """What became of a run in a folder, which may be the copy of one at a URL."""
    if not FIRST_PROCESS:
        return
    state, data = run_state(run), data_manifest(run)
    if state.step < run_config(run).steps:
        say(f"stopped after step {state.step}, state saved; `avdistill resume {place}` continues")
    else:
        best = f"best validation top-1 {state.best:.3f} at step {state.best_step}" if state.best >= 0 else "last step"
        taught = data["with_teacher"]
        seen = "" if taught is None else f"; {taught} of {len(data['training'])} training clips have a teacher"
        say(f"finished {state.step} steps; best/ is the {best}{seen}")
    print(place)


@dataclass(frozen=True)
class _Resume:
    """Continue an interrupted run exactly from its last save."""

    run: tyro.conf.Positional[Path]
    """The run folder."""
    dataset: Path | None = None
    """The folder of the run's dataset, if it was moved."""
    trust_method: bool = False
    """Run the Python file of the run's custom method; read it first if the run is somebody else's."""


def resume(arguments: list[str]) -> None:
    """`avdistill resume RUN`."""
    a = tyro.cli(_Resume, args=arguments, prog="avdistill resume")
    with working_copy(a.run) as folder, training_bar("resume", run_config(folder).steps) as on_step:
        run = resume_run(folder, on_step=on_step, dataset=a.dataset, trust_method=a.trust_method)
    _report_run(run, as_path(a.run))


@dataclass(frozen=True)
class _Embed(LaunchedInParts, Printed):
    """Add a frozen teacher's embedding and logits of every clip to the dataset."""

    dataset: tyro.conf.Positional[Path]
    """The dataset's folder."""
    teacher: str
    """A teacher's name (`avdistill teacher list`), the run folder or hf:// address of a trained one, or
    precomputed:FILE.npz."""
    weights: Path | None = None
    """The file of a named teacher's weights, where it is not found; `random` gives random weights, for trials."""
    name: str | None = None
    """The name of the features in the dataset; the default is the teacher's modality."""
    modality: Literal["audio", "video"] | None = None
    """The modality that `precomputed:` embeddings were computed from, audio by default; not for other teachers."""
    batch_size: int = 32
    """Windows per batch."""
    workers: int = 2
    """Threads that read ahead; with a GPU as many as there are cores to spare."""
    windows: int | None = None
    """Evenly spaced windows per clip; by default windows slide over the whole clip, which takes long for networks of
    images."""
    tokens: bool = False
    """Store the teacher's tokens as well, which the methods at and nst need."""
    head_split: str = "train"
    """The split whose labeled clips a linear head is fitted on, where the teacher has no logits for the dataset's
    classes; "+" joins several, as in train+teacher."""
    part: str = "1/1"
    """The share of this call, as 2/3 for the second of three: every call computes its share, on any machine that has
    the dataset's folder, and the one that finds all there stores the features."""
    part_clips: int = PART_CLIPS
    """Clips that are computed and stored at a time: what a kill costs at most."""


def embed(arguments: list[str]) -> None:
    """`avdistill embed DATASET --teacher NAME [--weights PATH]`, or `--teacher RUN`."""
    a = tyro.cli(_Embed, args=arguments, prog="avdistill embed")
    dataset = ClipDataset(a.dataset)
    if a.head_split != _Embed.head_split:
        clips_of_splits(dataset, a.head_split)  # a missing one is reported now, not after everything is embedded
    if a.teacher.startswith(PRECOMPUTED):
        if a.tokens:
            raise ConfigError(f"--tokens: {a.teacher} holds embeddings, no tokens")
        files = Path(a.teacher.removeprefix(PRECOMPUTED))
        modality = a.modality or "audio"
        entry = embed_precomputed(dataset, files, a.name or modality, modality, head_split=a.head_split)
    elif a.ray is not None or a.slurm is not None:
        entry = _embed_in_parts(a, dataset)
    elif a.modality is not None:
        raise ConfigError(f"--modality: expected with {PRECOMPUTED}<folder or .npz> only, found {a.teacher}")
    else:
        teacher = load_teacher(a.teacher, weights=a.weights)
        with progress_bar("embed") as update:
            found = embed_dataset(
                dataset,
                teacher,
                a.name or teacher.view.modality,
                batch_size=a.batch_size,
                workers=a.workers,
                windows=a.windows,
                tokens=a.tokens,
                head_split=a.head_split,
                part=share_of(a.part),
                part_clips=a.part_clips,
                on_progress=update,
            )
        if isinstance(found, Unfinished):
            line = (
                f"features {found.name!r}: {found.finished} of {found.clips} clips are there, other shares are missing"
            )
            output(vars(found), [line], a.json)
            return
        entry = found
    report = {**vars(entry), "dataset": dataset.place, "clips_in_dataset": len(dataset)}
    made_by = format_provenance(entry.provenance)
    line = f"teacher {entry.name!r}: {entry.clips} of {len(dataset)} clips, {entry.embedding_dim}-d, from {made_by}"
    output(report, [line], a.json)


def _embed_in_parts(a: _Embed, dataset: ClipDataset) -> TeacherEntry:
    """By the machines of a cluster."""
    a.check_parts()
    if a.part != _Embed.part or a.part_clips != _Embed.part_clips:
        raise ConfigError("--part, --part-clips: expected without --ray and --slurm, which make the parts by --parts")
    name = a.name or load_teacher(a.teacher, weights=a.weights).view.modality
    encoder = Encoder(a.teacher, name, a.weights, None, a.batch_size, a.windows, a.tokens, a.head_split)
    with a.executor(a.dataset) as executor, progress_bar("embed") as update:
        assert executor is not None
        return embed_in_parts(dataset, encoder, executor=executor, parts=a.parts, on_progress=update)


def share_of(text: str) -> tuple[int, int]:
    """ "2/3" as (2, 3). Raises ConfigError."""
    found = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if found is None or not 1 <= int(found[1]) <= int(found[2]):
        raise ConfigError(f"--part: expected i/n with i from 1 to n, such as 2/3, found {text!r}")
    return int(found[1]), int(found[2])


@dataclass(frozen=True)
class _Recipes(Printed):
    """List recipes, models and methods."""


def recipes(arguments: list[str]) -> None:
    """`avdistill recipes`."""
    a = tyro.cli(_Recipes, args=arguments, prog="avdistill recipes")
    report = {
        "recipes": {
            name: {"student": c.student.model, "method": c.method.name, "steps": c.steps} for name, c in RECIPES.items()
        },
        "models": sorted(MODELS),
        "methods": {name: _defaults(method.config_class) for name, method in METHODS.items()},
    }
    lines = [f"{name:<24} {c.student.model:<20} {c.method.name:<12} {c.steps} steps" for name, c in RECIPES.items()]
    lines += ["", "models:  " + ", ".join(sorted(MODELS)), "methods: " + ", ".join(METHODS)]
    output(report, lines, a.json)


def _defaults(config: Callable[..., object]) -> dict[str, object]:
    return {f.name: f.default for f in fields(config) if f.default is not MISSING}  # type: ignore[arg-type]
