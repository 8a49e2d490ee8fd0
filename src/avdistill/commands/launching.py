"""What the verbs share that can work on many machines: `--ray` and `--slurm`."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from avdistill.errors import ConfigError
from avdistill.executors.executor import Executor
from avdistill.storage.url import Url, as_path


@dataclass(frozen=True, kw_only=True)
class Launched:
    """Options of verbs whose work may be done by a cluster."""

    ray: str | None = None
    """The address of a Ray cluster that does the work, or auto for the one that this machine belongs to. Needs the
    extra ray, and files on a file system that all machines share."""
    slurm: str | None = None
    """Do the work in jobs of Slurm, with settings such as partition=cpu,time=2:00:00 (options of sbatch; gpus=1 for
    jobs that compute on one, jobs=50 for at most so many at a time). Needs the extra slurm and a shared file system;
    without Slurm, processes of this machine do the work."""

    @contextmanager
    def executor(self, out: Path, *, cpus: int = 1) -> Iterator[Executor | None]:
        """The executor that was asked for, stopped at the end of the block; None for work in this process.

        Args:
            out: of the verb; what Slurm's jobs leave is in the folder `<out>.slurm`.
            cpus: of each task.

        Raises:
            ConfigError: both are asked for, or one that cannot be had.
        """
        if self.ray is not None and self.slurm is not None:
            raise ConfigError("--ray: expected it or --slurm, found both")
        if (self.ray is not None or self.slurm is not None) and isinstance(as_path(out), Url):
            raise ConfigError(f"--ray, --slurm: expected a folder that all machines share, found {out}")
        executor: Executor | None = None
        with ExitStack() as stack:
            if self.ray is not None:
                from avdistill.executors.ray import RayExecutor

                # Ray prints the log of a lost node to standard output, which is for the result.
                stack.enter_context(redirect_stdout(stack.enter_context(open(os.devnull, "w"))))
                executor = RayExecutor(self.ray, cpus=cpus)
            elif self.slurm is not None:
                from avdistill.executors.slurm import SlurmExecutor

                executor = SlurmExecutor(self.slurm, out.absolute().with_name(f"{out.name}.slurm"), cpus=cpus)
            if executor is not None:
                stack.callback(executor.stop)
            yield executor


@dataclass(frozen=True, kw_only=True)
class LaunchedInParts(Launched):
    """The same, for verbs that cut their work into parts."""

    parts: int = 16
    """With --ray or --slurm, the number of parts of the work, each a task; a few times as many as machines. The same
    number continues an interrupted call."""

    def check_parts(self) -> None:
        """Raise ConfigError for no part."""
        if self.parts < 1:
            raise ConfigError(f"--parts: expected at least 1, found {self.parts}")
