"""Training runs: `train(config) -> run folder`, `resume(run)`."""

from avdistill.training.config import ModelConfig, OptimizerConfig, TrainConfig, read_config
from avdistill.training.trainer import resume, train, train_to_end

__all__ = ["ModelConfig", "OptimizerConfig", "TrainConfig", "read_config", "resume", "train", "train_to_end"]
