"""What a training run is: frozen values, written whole into the run folder."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from avdistill.config_io import decode
from avdistill.errors import ConfigError
from avdistill.inputs import VideoInput, View
from avdistill.methods import MethodConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.types import Option


@dataclass(frozen=True)
class ModelConfig:
    """The network that is trained.

    Attributes:
        model: a name of `MODELS` (`avdistill recipes` lists them).
        view: what it is shown; its modality is the student's.
        options: further arguments of the model.
    """

    model: str = "tiny_r2plus1d"
    view: View = field(default_factory=VideoInput)
    options: dict[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerConfig:
    """Optimizer and its schedule; every count is in optimizer steps.

    Attributes:
        name: "adam" (L2 weight decay, as in the release), "adamw" or "sgd" (momentum 0.9).
        learning_rate: of the student; a method may scale it for its helpers.
        weight_decay: as the optimizer means it.
        schedule: "constant", "multistep" (x `gamma` at each of `milestones`), "cosine" (to zero at the last step) or
            "plateau" (x `gamma` after `patience` validations without a better one).
        milestones: shares of the run.
        gamma: factor of multistep and plateau.
        patience: validations.
        warmup_steps: linear rise from zero, before any schedule but plateau.
        max_grad_norm: largest gradient norm of each parameter group; None does not clip.
    """

    name: Literal["adam", "adamw", "sgd"] = "adam"
    learning_rate: float = 3e-4
    weight_decay: float = 5e-4
    schedule: Literal["constant", "multistep", "cosine", "plateau"] = "multistep"
    milestones: tuple[float, ...] = (0.75,)
    gamma: float = 0.1
    patience: int = 10
    warmup_steps: int = 0
    max_grad_norm: float | None = None

    def __post_init__(self) -> None:
        """Raise ConfigError for values that no run can have."""
        if not 0 < self.learning_rate < float("inf"):
            raise ConfigError(f"config.optimizer.learning_rate: must be above 0, got {self.learning_rate:g}")
        for name in ("weight_decay", "warmup_steps", "patience"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ConfigError(f"config.optimizer.{name}: must not be negative, got {getattr(self, name):g}")
        if not 0 < self.gamma <= 1 or (self.schedule == "plateau" and self.gamma == 1):
            raise ConfigError(
                f"config.optimizer.gamma: must be above 0 and at most 1, with plateau below it, got {self.gamma:g}"
            )
        if self.max_grad_norm is not None and self.max_grad_norm <= 0:
            raise ConfigError(f"config.optimizer.max_grad_norm: must be above 0, got {self.max_grad_norm:g}")


@dataclass(frozen=True)
class TrainConfig:
    """One run, from a dataset to a run folder.

    Attributes:
        dataset: the prepared dataset.
        out: the run folder; must not exist yet.
        student: the network.
        method: how it is trained.
        teacher: name of the features in the dataset; needed by methods that distil.
        train_split: clips to train on; several splits are joined by "+", as in "train+teacher".
        val_fraction: share of the labeled *videos* of `train_split` set aside to choose the best model by;
            0 takes the last one.
        steps: optimizer steps. An epoch of N clips is N / batch_size of them.
        batch_size: clips of one forward pass; the contrast of a method spans these.
        labeled_per_batch: labeled clips in each batch, the rest unlabeled; None draws from all alike. A method
            that has no use for unlabeled clips draws labeled ones only.
        gradient_accumulation_steps: forward passes per optimizer step. It does not enlarge the contrast.
        optimizer: and schedule.
        precision: "auto" is bfloat16 where the device computes it natively, else float32.
        eval_every: steps.
        validation_windows: evenly spaced windows per clip.
        save_every: steps between saves of `last/`.
        log_every: steps between lines of `metrics.jsonl`.
        workers: threads that read ahead; 0 reads each batch when it is needed.
        device: "auto", "cpu", "cuda", ...
        tensorboard: also write TensorBoard events (extra `log`).
        seed: of weights, order, windows and crops.
    """

    dataset: Path
    out: Path
    student: ModelConfig = ModelConfig()
    method: MethodConfig = field(default_factory=SupervisedConfig)
    teacher: str | None = None
    train_split: str = "train"
    val_fraction: float = 0.1
    steps: int = 1000
    batch_size: int = 32
    labeled_per_batch: int | None = None
    gradient_accumulation_steps: int = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    eval_every: int = 500
    validation_windows: int = 3
    save_every: int = 500
    log_every: int = 20
    workers: int = 0
    device: str = "auto"
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for values that no run can have."""
        least = {
            "steps": 1,
            "batch_size": 1,
            "gradient_accumulation_steps": 1,
            "eval_every": 1,
            "save_every": 1,
            "log_every": 1,
        }
        for name, minimum in (least | {"workers": 0, "validation_windows": 1}).items():
            if getattr(self, name) < minimum:
                raise ConfigError(f"config.{name}: must be at least {minimum}, got {getattr(self, name)}")
        if self.seed < 0:
            raise ConfigError(f"config.seed: must not be negative, got {self.seed}")
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"config.val_fraction: must lie in [0, 1), got {self.val_fraction}")
        if self.labeled_per_batch is not None and not 1 <= self.labeled_per_batch <= self.batch_size:
            raise ConfigError(f"config.labeled_per_batch: must lie in [1, batch_size], got {self.labeled_per_batch}")


def read_config(path: Path) -> TrainConfig:
    """A TrainConfig from a JSON file, strictly.

    Raises:
        ConfigError: the file is missing or no JSON, or a key is unknown, missing or of the wrong type.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except ValueError as error:  # of the text or of the JSON
        raise ConfigError(f"{path}: not JSON: {error}") from None
    return decode(TrainConfig, value)
