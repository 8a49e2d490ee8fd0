"""The training runs of `distill`: how many, of how many steps, fixed before the first begins."""

import math
import shutil
import statistics
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from avdistill.analysis.benchmark.report import read_lines
from avdistill.analysis.distill.config import TRAIN, DistillConfig
from avdistill.analysis.distill.encoders import PRETRAINED, installed_teacher
from avdistill.config_io import read_json
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import open_dataset
from avdistill.dataset.splits import clips_of_split
from avdistill.fsio import write_json
from avdistill.methods import parse_method
from avdistill.training import TrainConfig, train
from avdistill.training.recipes import RECIPES

#: the last one's student is delivered
METHODS = ("supervised", "kd", "robust_csc")
SEEDS = (0, 1, 2)
# Shares of a recipe's steps that a time budget chooses from.
SHARES = (1.0, 0.75, 0.5, 0.33, 0.17)
# For testing the students and for the report.
_REST = 1.2
# Fewer clips than this are for a student that trains within a minute: a larger one learns them by heart.
_FEW_CLIPS = 1000
_RECIPES = {
    ("video", True): "demo_supervised",
    ("video", False): "ucf51_small_supervised",
    ("audio", True): "demo_teacher",
    ("audio", False): "audio_teacher",
}
_PRETRAINED_RECIPE = "ucf51_pretrained_supervised"
_TRIED_STEPS = 6


@dataclass(frozen=True)
class Plan:
    """The training runs.

    Attributes:
        methods: of METHODS.
        seeds: of each method.
        steps: of each run.
        step_seconds: measured, of a run that takes one core.
        estimated_seconds: of all runs together, tests and report included.
    """

    methods: tuple[str, ...]
    seeds: tuple[int, ...]
    steps: int
    step_seconds: float
    estimated_seconds: float

    @property
    def text(self) -> str:
        """One line for people."""
        runs = len(self.methods) * len(self.seeds)
        return (
            f"plan: {runs} training runs ({', '.join(self.methods)}; {len(self.seeds)} seeds) of {self.steps} steps, "
            f"about {max(1, round(self.estimated_seconds / 60))} min"
        )


def base_config(config: DistillConfig, dataset: ClipDataset) -> TrainConfig:
    """Of every run: the student by what is installed and the size of the dataset, its steps at most."""
    name = _RECIPES[config.student_modality, len(dataset) < _FEW_CLIPS]
    if installed_teacher(config.student_modality) == PRETRAINED:
        name = _PRETRAINED_RECIPE
    recipe = RECIPES[name]
    decided = open_dataset(dataset.folder, config.decisions)
    clips = clips_of_split(decided, TRAIN)
    labeled = sum(bool(decided.labels[i]) for i in clips)
    batch = min(recipe.batch_size, 32, len(clips))
    few = 2 <= labeled < len(clips) / 2
    return replace(
        recipe,
        dataset=dataset.folder,
        decisions=config.decisions,
        teacher=None,
        train_split=TRAIN,
        val_fraction=0.0,
        batch_size=batch,
        labeled_per_batch=min(max(2, round(0.375 * batch)), labeled) if few else None,
        eval_every=10_000,
        save_every=100,
        workers=0,
    )


def make_plan(config: DistillConfig, base: TrainConfig, spent_seconds: float) -> Plan:
    """As an earlier call recorded it in `plan.json`, or made from the measured time of a step."""
    file = config.out / "plan.json"
    if file.is_file():
        recorded = read_json(file)
        return Plan(**recorded | {"methods": tuple(recorded["methods"]), "seeds": tuple(recorded["seeds"])})
    trial = replace(base, method=parse_method(METHODS[-1]), teacher=config.features)
    step_seconds = measure_step(trial, config.out / "trial")
    left = None if config.time_budget_seconds is None else config.time_budget_seconds - spent_seconds
    steps, seeds = choose_runs(base.steps, step_seconds, left, config.workers)
    estimate = estimated_seconds(step_seconds, steps, len(seeds), config.workers)
    plan = Plan(METHODS, seeds, steps, step_seconds, round(estimate, 1))
    write_json(file, vars(plan))
    return plan


def choose_runs(
    most_steps: int, step_seconds: float, seconds: float | None, workers: int
) -> tuple[int, tuple[int, ...]]:
    """The most steps with every seed that fit into a time; where even the fewest do not, fewer seeds.

    Args:
        most_steps: of a run.
        step_seconds: of a step on one core.
        seconds: that are left; None is enough for all.
        workers: cores.
    """
    shares = [max(1, round(share * most_steps)) for share in SHARES]
    for seeds in (SEEDS, SEEDS[:2], SEEDS[:1]):
        for steps in shares:
            if seconds is None or estimated_seconds(step_seconds, steps, len(seeds), workers) <= seconds:
                return steps, seeds
    return shares[-1], SEEDS[:1]


def estimated_seconds(step_seconds: float, steps: int, seeds: int, workers: int) -> float:
    """Of all runs, so many at a time."""
    return _REST * step_seconds * steps * math.ceil(len(METHODS) * seeds / workers)


def measure_step(config: TrainConfig, run: Path) -> float:
    """Median seconds of a few training steps on one core."""
    shutil.rmtree(run, ignore_errors=True)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        train(replace(config, out=run, steps=_TRIED_STEPS, log_every=1))
        lines = [each for each in read_lines(run / "metrics.jsonl") if "step_seconds" in each]
    finally:
        torch.set_num_threads(threads)
        shutil.rmtree(run, ignore_errors=True)
    return statistics.median(line["step_seconds"] for line in lines[2:])
