"""Verbs of a run: train, resume, teacher train, recipes."""

from collections.abc import Callable
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path

import tyro

from avdistill.commands.console import Printed, is_first_process, output, say, take_option, training_bar
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import ConfigError
from avdistill.methods import METHODS, parse_method, teacher_requirement
from avdistill.models.registry import MODELS
from avdistill.storage.copies import working_copy
from avdistill.storage.url import as_path
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
    if not is_first_process():
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
