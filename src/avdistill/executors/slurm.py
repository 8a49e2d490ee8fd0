"""Tasks as jobs of Slurm, by submitit; as processes of this machine where there is no Slurm."""

import logging
import os
import re
import time
from collections.abc import Callable, Hashable
from pathlib import Path
from typing import Any

from avdistill.errors import ConfigError, TaskLostError
from avdistill.executors.executor import ATTEMPTS, Ended, call

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 1.0
_DEFAULT_MINUTES = 240
_DEFAULT_JOBS = 100
# A job that meets its time limit is queued again this often, and goes on with what it finds.
_TIME_LIMITS = 1000


class SlurmExecutor:
    """A job for each task; an `Executor`. Jobs that meet their time limit, or whose machine is lost, are begun again.

    Their scripts and logs are in a folder, which all machines share, and are left there.
    """

    def __init__(self, settings: str, folder: Path, *, cpus: int = 1) -> None:
        """Prepare to submit.

        Args:
            settings: as `parse_settings` reads them.
            folder: for scripts, results and logs; made with the first task.
            cpus: of each task.

        Raises:
            ConfigError: wrong settings, or no submitit.
        """
        self._options, self._minutes, self._gpus, self._jobs = parse_settings(settings)
        try:
            import submitit
            from submitit.core import utils as errors
        except ImportError:
            raise ConfigError(
                "--slurm: expected the package submitit, found none: pip install 'avdistill[slurm]'"
            ) from None
        self._submitit, self._errors, self._folder, self._cpus = submitit, errors, folder, cpus
        self._local = submitit.AutoExecutor.which() == "local"
        if self._local:
            self._jobs = max(1, (os.cpu_count() or 1) // cpus)
            _log.info("no Slurm here: %d processes of this machine do the work", self._jobs)
        self._tasks: dict[Hashable, tuple[Any, int]] = {}  # job, and how often it was begun
        self._calls: dict[Hashable, tuple[Callable[..., Any], tuple[Any, ...], bool]] = {}

    @property
    def free(self) -> bool:
        """Whether fewer jobs than `jobs` of the settings are queued or running."""
        return len(self._tasks) < self._jobs

    @property
    def running(self) -> list[Hashable]:
        """The keys of the jobs that are queued or running."""
        return list(self._tasks)

    def start(self, key: Hashable, function: Callable[..., Any], *arguments: Any, gpu: bool = False) -> None:
        """See `Executor.start`."""
        self._calls[key] = function, arguments, gpu
        self._submit(key, 1)

    def _submit(self, key: Hashable, attempt: int) -> None:
        function, arguments, gpu = self._calls[key]
        executor = self._submitit.AutoExecutor(self._folder, slurm_max_num_timeout=_TIME_LIMITS)
        executor.update_parameters(
            name=f"avdistill-{function.__name__}",
            timeout_min=self._minutes,
            cpus_per_task=self._cpus,
            gpus_per_node=self._gpus if gpu and self._gpus else None,
            slurm_additional_parameters=self._options,
        )
        try:
            job = executor.submit(_Resumable(), function, arguments)
        except (self._errors.FailedSubmissionError, self._errors.FailedJobError) as error:
            raise ConfigError(f"--slurm: sbatch: {' '.join(str(error).split()):.200}") from error
        self._tasks[key] = job, attempt

    def collect(self) -> list[Ended]:
        """See `Executor.collect`."""
        until = time.monotonic() + _WAIT_SECONDS
        while not (done := [key for key, (job, _) in self._tasks.items() if job.done()]) and time.monotonic() < until:
            time.sleep(0.05)
        return [ended for key in done if (ended := self._ended(key)) is not None]

    def _ended(self, key: Hashable) -> Ended | None:
        """The end of a task; None where its job was lost and is begun again."""
        job, attempt = self._tasks.pop(key)
        try:
            ended = Ended(key, *job.result())
        except self._errors.FailedJobError as error:
            lines = [line for line in str(error).splitlines() if re.match(r"\w+(\.\w+)*(Error|Exception)\b", line)]
            ended = Ended(key, error=TaskLostError(f"{lines[-1] if lines else error!r:.200}; see {job.paths.stderr}"))
        except self._errors.UncompletedJobError:
            if attempt < ATTEMPTS:
                self._submit(key, attempt + 1)
                return None
            ended = Ended(key, error=TaskLostError(f"lost {attempt} times; see {job.paths.stderr}"))
        del self._calls[key]
        return ended

    def stop(self) -> None:
        """Cancel all jobs: Slurm sends SIGTERM, upon which a training saves."""
        for job, _ in self._tasks.values():
            job.cancel(check=False)
        self._tasks.clear()


class _Resumable:
    """A call that submitit puts into the queue again, as it is, when the job's time is over."""

    def __call__(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> tuple[Any, Exception | None]:
        return call(function, arguments)

    def checkpoint(self, function: Callable[..., Any], arguments: tuple[Any, ...]) -> Any:
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self, function, arguments)


def parse_settings(text: str) -> tuple[dict[str, str], int, int, int]:
    """The settings of `--slurm`: pairs such as partition=cpu,time=2:00:00, joined by commas.

    `time` is the limit of a job, as sbatch takes it; `gpus` the GPUs of a job that computes on some; `jobs` the most
    jobs at a time. All others are options of sbatch by their names.

    Returns:
        The options of sbatch, the minutes of a job, its GPUs, and the jobs at a time.

    Raises:
        ConfigError: no pairs, or a value that is none.
    """
    options: dict[str, str] = {}
    for pair in text.split(","):
        name, given, value = (part.strip() for part in pair.partition("="))
        if not (given and value and re.fullmatch(r"[a-zA-Z][\w-]*", name)):
            raise ConfigError(f"--slurm: expected pairs such as partition=cpu,time=2:00:00, found {pair!r:.80}")
        options[name.replace("_", "-")] = value
    minutes = _minutes(options.pop("time")) if "time" in options else _DEFAULT_MINUTES
    counts = {name: options.pop(name, str(default)) for name, default in (("gpus", 0), ("jobs", _DEFAULT_JOBS))}
    for name, value in counts.items():
        if not value.isdecimal() or (name == "jobs" and int(value) < 1):
            raise ConfigError(f"--slurm: {name}: expected a number, found {value!r:.80}")
    return options, minutes, int(counts["gpus"]), int(counts["jobs"])


def _minutes(text: str) -> int:
    """A time limit as sbatch takes it (M, M:S, H:M:S, D-H, D-H:M, D-H:M:S) in minutes, at least one."""
    found = re.fullmatch(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?", text)
    if found is None:
        raise ConfigError(f"--slurm: time: expected a limit such as 90, 2:00:00 or 1-12, found {text!r:.80}")
    days, *rest = (None if part is None else int(part) for part in found.groups())
    numbers = [part for part in rest if part is not None]
    if days is not None or len(numbers) == 3:
        hours, minutes, seconds = (*numbers, 0, 0)[:3]
    else:
        hours, (minutes, seconds) = 0, (*numbers, 0)[:2]
    return max(1, -(-((((days or 0) * 24 + hours) * 60 + minutes) * 60 + seconds) // 60))
