"""Tasks on a Ray cluster, by Ray core: its scheduler places them, and runs those of a lost node elsewhere."""

import logging
import os
from collections.abc import Callable, Hashable
from typing import Any

from avdistill.errors import ConfigError, TaskLostError
from avdistill.executors.executor import ATTEMPTS, Ended, call

_log = logging.getLogger(__name__)
_WAIT_SECONDS = 1.0
# How long trainings may take to finish their step and save.
_SAVE_SECONDS = 30.0


class RayExecutor:
    """Tasks with a number of CPUs each, or a GPU where the cluster has some; an `Executor`.

    All tasks are handed to Ray at once, which runs as many as there is room for.
    """

    def __init__(self, address: str, *, cpus: int = 1) -> None:
        """Args: address: of the cluster, or "auto"; cpus: of each task. Raises ConfigError without ray or cluster."""
        os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # read at the import
        try:
            import ray
        except ImportError:
            raise ConfigError("--ray: expected the package ray, found none: pip install 'avdistill[ray]'") from None
        try:
            # Without `node_ip_address`: with 127.0.0.1 it waits forever.
            ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
        except (ConnectionError, RuntimeError, ValueError) as error:
            reason = str(error).splitlines()[0] if str(error) else type(error).__name__
            raise ConfigError(
                f"--ray: expected a running Ray cluster at {address!r}, found none ({reason:.160}); "
                "`ray start --head` starts one"
            ) from error
        self._ray, self._cpus = ray, cpus
        # A process for each call, as its threads, peak memory and state on the GPU are those of one task.
        self._call = ray.remote(max_calls=1, max_retries=ATTEMPTS - 1)(call)
        self._gpus = bool(ray.cluster_resources().get("GPU"))
        self._nodes = self._count_nodes()
        self._tasks: dict[Hashable, Any] = {}

    @property
    def free(self) -> bool:
        """Always: Ray keeps the queue."""
        return True

    @property
    def running(self) -> list[Hashable]:
        """The keys of the tasks that Ray has."""
        return list(self._tasks)

    def start(self, key: Hashable, function: Callable[..., Any], *arguments: Any, gpu: bool = False) -> None:
        """See `Executor.start`."""
        # Those on GPUs wait for no CPU, which the others may have taken for hours.
        resources = {"num_cpus": 0, "num_gpus": 1} if gpu and self._gpus else {"num_cpus": self._cpus}
        self._tasks[key] = self._call.options(**resources).remote(function, arguments)

    def collect(self) -> list[Ended]:
        """See `Executor.collect`."""
        if not self._tasks:
            return []
        if (nodes := self._count_nodes()) < self._nodes:
            _log.warning("%d of %d nodes are left; the tasks of the lost ones run again elsewhere", nodes, self._nodes)
        self._nodes = nodes
        ready, _ = self._ray.wait(list(self._tasks.values()), num_returns=1, timeout=_WAIT_SECONDS)
        return [self._ended(key) for key, task in list(self._tasks.items()) if task in ready]

    def _count_nodes(self) -> int:
        return sum(node["Alive"] for node in self._ray.nodes())

    def _ended(self, key: Hashable) -> Ended:
        try:
            return Ended(key, *self._ray.get(self._tasks.pop(key)))
        except self._ray.exceptions.RayError as error:
            lines = [line for line in str(error).splitlines() if line.strip()]
            # Of an exception on the other machine, such as a missing package, the last line names it.
            line = lines[-1] if isinstance(error, self._ray.exceptions.RayTaskError) else lines[0]
            return Ended(key, error=TaskLostError(f"lost by Ray: {line.strip():.200}"))

    def stop(self) -> None:
        """Interrupt all tasks, wait until they have ended, and leave the cluster."""
        for task in self._tasks.values():
            self._ray.cancel(task)
        if self._tasks:
            tasks = list(self._tasks.values())
            self._ray.wait(tasks, num_returns=len(tasks), timeout=_SAVE_SECONDS)
        self._tasks.clear()
        self._ray.shutdown()
