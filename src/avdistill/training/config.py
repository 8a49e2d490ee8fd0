"""The config of a training run: frozen dataclasses, written to `config.json` of the run folder."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from avdistill.config_io import decode, read_json
from avdistill.distributed import TIMEOUT_SECONDS, Precision
from avdistill.errors import ConfigError
from avdistill.inputs import VideoInput, View
from avdistill.methods import MethodConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.types import Option

LARGEST_BATCH_BYTES = 2**36


@dataclass(frozen=True)
class ModelConfig:
    """The student: the network that is trained.

    Attributes:
        model: The name of a model; `avdistill recipes` lists them.
        view: The part of a clip that the model is given; its modality is the student's.
        options: Further arguments of the model, as names and values.
    """

    model: str = "tiny_r2plus1d"
    view: View = field(default_factory=VideoInput)
    options: dict[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class OptimizerConfig:
    """The optimizer and its learning rate schedule.

    Attributes:
        name: The optimizer: "adam" (with L2 weight decay), "adamw", or "sgd" with momentum 0.9.
        learning_rate: The learning rate of the student; a method may scale it for its helper networks.
        weight_decay: The weight decay, as the optimizer defines it.
        schedule: The learning rate over the run: "constant", "multistep" (times `gamma` at each of `milestones`),
            "cosine" (to zero at the last step) or "plateau" (times `gamma` after `patience` validations without
            improvement).
        milestones: The steps at which multistep acts, as fractions of the run.
        gamma: The factor of multistep and plateau.
        patience: The number of validations that plateau waits for an improvement.
        warmup_steps: The optimizer steps of a linear rise from zero, before any schedule but plateau.
        max_grad_norm: The largest gradient norm of each parameter group; None does not clip.
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
        """Raise ConfigError for an impossible value."""
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
    """A training run, from a dataset to a run folder.

    Attributes:
        dataset: The folder of the prepared dataset.
        out: The run folder to make; an empty folder is taken, another is refused.
        student: The network that is trained.
        method: The training method and its settings.
        teacher: The name of the teacher's features in the dataset, which distillation methods need; "+" joins several
            teachers, as in "yamnet+cnn14", of which the mean is taken.
        decisions: A CSV file of decisions about clips (clip,decision,by), as `avdistill audit --decide` writes it:
            keep, drop_audio, drop_clip or relabel:NAME. The dataset's folder is not changed.
        train_split: The split to train on; "+" joins several, as in "train+teacher".
        val_fraction: The fraction of the labeled source videos of `train_split` that is held out to choose the best
            model; with 0 the best model is the last one.
        steps: The number of optimizer steps; an epoch of N clips is N / batch_size steps.
        batch_size: The clips of one forward pass, over all processes; a contrastive loss spans these.
        labeled_per_batch: The labeled clips in each batch, the rest is unlabeled. None draws from all clips alike; a
            method that cannot use unlabeled clips draws labeled clips only.
        gradient_accumulation_steps: The forward passes per optimizer step; they do not enlarge a contrastive loss.
        optimizer: The optimizer and its schedule.
        precision: The precision of the forward pass; "auto" is bfloat16 on GPUs that compute it natively, else float32.
        eval_every: The optimizer steps between validations.
        validation_windows: The evenly spaced windows per clip in validation.
        save_every: The optimizer steps between saves of `last/`.
        log_every: The optimizer steps between lines of `metrics.jsonl`.
        workers: The threads that read batches ahead; 0 reads each batch when it is needed.
        device: The device: "cpu", "cuda", "cuda:1", "mps" or the like; "auto" is CUDA where available, else the CPU.
        sync_batchnorm: With several processes, let BatchNorm layers of the student take their statistics of the whole
            batch; otherwise each process takes those of its share.
        process_timeout_seconds: The time that a process waits for the others before the run ends; it must be longer
            than what process 0 does alone, such as fitting a head.
        tensorboard: Write TensorBoard events as well (needs the extra `log`).
        seed: The seed of weights, order, windows and crops.
    """

    dataset: Path
    out: Path
    student: ModelConfig = ModelConfig()
    method: MethodConfig = field(default_factory=SupervisedConfig)
    teacher: str | None = None
    decisions: Path | None = None
    train_split: str = "train"
    val_fraction: float = 0.1
    steps: int = 1000
    batch_size: int = 32
    labeled_per_batch: int | None = None
    gradient_accumulation_steps: int = 1
    optimizer: OptimizerConfig = OptimizerConfig()
    precision: Precision = "auto"
    eval_every: int = 500
    validation_windows: int = 3
    save_every: int = 500
    log_every: int = 20
    workers: int = 0
    device: str = "auto"
    sync_batchnorm: bool = False
    process_timeout_seconds: float = TIMEOUT_SECONDS
    tensorboard: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        """Raise ConfigError for an impossible value."""
        counts = ("steps", "batch_size", "gradient_accumulation_steps", "validation_windows")
        for name in (*counts, "eval_every", "save_every", "log_every", "workers"):
            minimum = 0 if name == "workers" else 1
            if getattr(self, name) < minimum:
                raise ConfigError(f"config.{name}: must be at least {minimum}, got {getattr(self, name)}")
        if max(self.batch_size, self.gradient_accumulation_steps, self.validation_windows, self.workers) > 2**16:
            raise ConfigError("config: expected at most 65536 clips per batch, batches per step, windows and workers")
        if self.batch_size * self.student.view.window_bytes > LARGEST_BATCH_BYTES:
            raise ConfigError(f"config.batch_size: expected at most 64 GiB per batch, got {self.batch_size} windows")
        if self.steps > 10**9:
            raise ConfigError(f"config.steps: must be at most 10^9, got {self.steps}")
        if not 0 <= self.seed < 2**62:
            raise ConfigError(f"config.seed: must not be negative, and below 2^62, got {self.seed}")
        if not 1 <= self.process_timeout_seconds <= 10**7:
            raise ConfigError(
                f"config.process_timeout_seconds: must lie in [1, 10^7], got {self.process_timeout_seconds:g}"
            )
        if not 0 <= self.val_fraction < 1:
            raise ConfigError(f"config.val_fraction: must lie in [0, 1), got {self.val_fraction}")
        if self.labeled_per_batch is not None and not 1 <= self.labeled_per_batch <= self.batch_size:
            raise ConfigError(f"config.labeled_per_batch: must lie in [1, batch_size], got {self.labeled_per_batch}")


def read_config(path: Path) -> TrainConfig:
    """A TrainConfig from a JSON file.

    Raises:
        ConfigError: the file is missing or not JSON, or a key is unknown, missing or of the wrong type.
    """
    try:
        value = read_json(path)
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror or error}") from None
    except ValueError as error:  # of the text or of the JSON
        raise ConfigError(f"{path}: not JSON: {error}") from None
    return decode(TrainConfig, value)
