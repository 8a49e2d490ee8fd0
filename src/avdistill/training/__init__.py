"""Training runs: `train(config) -> run folder`, `resume(run)`."""

from avdistill.training.config import OptimizerConfig, StudentConfig, TrainConfig, read_config
from avdistill.training.loop import resume, train

__all__ = ["OptimizerConfig", "StudentConfig", "TrainConfig", "read_config", "resume", "train"]
