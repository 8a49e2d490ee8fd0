"""Several processes as one. The only place that knows of process groups; with one process everything is a no-op.

How a run is shared: every process computes the student's features of its own rows of the batch, all rows are gathered
(`all_gather_with_grad`), and *every process computes the loss of the whole batch*. Losses and helper networks then
see what one
process would see, a contrast spans the whole batch, and no method knows that there are others. The student, which is
where the time goes, is what is shared out; losses are small beside it.
"""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avdistill.errors import ConfigError, ProcessLostError

M = TypeVar("M", bound=nn.Module)
# A process may be alone for long: rank 0 fits a head on a large dataset. One that ends is noticed at once.
_TIMEOUT = timedelta(hours=12)


def best_device(wanted: str = "auto") -> torch.device:
    """ "auto": CUDA where there is one, else the CPU. Raises ConfigError for a device that is not there."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"device: expected auto, cpu, cuda, cuda:1 or the like, got {wanted!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {wanted!r}: there is no GPU that this PyTorch ({torch.__version__}) can use")
    return device


def supports_float64(device: torch.device) -> bool:
    """Whether the device computes in double precision; Apple's MPS does not."""
    return device.type != "mps"


def move_module(module: M, device: torch.device) -> M:
    """The module on the device; its float64 buffers become float32 on a device without double precision."""
    if not supports_float64(device):
        for buffer in module.buffers():
            if buffer.dtype == torch.float64:
                buffer.data = buffer.data.float()
    return module.to(device)


@contextmanager
def init_distributed(device: str = "auto") -> Iterator[torch.device]:
    """Join the processes that torchrun started; yields this process's device.

    Without torchrun, or where a group is already there, nothing is started. A group lasts until the process ends:
    one that is ended and started again waits for addresses of its first life.

    Args:
        device: "auto" is CUDA where there is one (each process its own), else the CPU; or a device's name.

    Raises:
        ProcessLostError: another process ended while this one waited for it.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    chosen = best_device(device)
    if chosen == torch.device("cuda"):
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if several else torch.cuda.current_device())
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if several and not dist.is_initialized():
        dist.init_process_group("cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=_TIMEOUT)
        atexit.register(dist.destroy_process_group)
    try:
        yield chosen
    except RuntimeError as error:
        if world_size() > 1 and _is_lost_connection(error):
            reason = str(error).strip().splitlines()[0]
            raise ProcessLostError(f"another process of this run ended or does not answer ({reason:.120})") from error
        raise


def rank() -> int:
    """This process's number in its group; 0 is the one that writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """How many processes shard_by_rank the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Return when every process has come here."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_any(flag: bool) -> bool:
    """Whether the flag is set in any process: all of them get the same answer, so all stop at the same step."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def shard_by_rank(rows: Any) -> Any:
    """This process's part of a sequence or array: every `world_size()`-th, so that a sorted one is shared evenly."""
    return rows[rank() :: world_size()]


def all_gather_with_grad(rows: Tensor) -> Tensor:
    """The rows (B, ...) of all processes in the order `shard_by_rank` took them from, (world_size B, ...), with
    gradient.

    All processes must hold equally many rows, and each must go on to compute the same loss from what it gets: the
    gradient of the own rows is then complete without another exchange. It is multiplied by the number of processes,
    because DDP takes the mean of the processes' gradients where their sum is meant.
    """
    if world_size() == 1:
        return rows
    if rows.dtype == torch.bool:
        return all_gather_with_grad(rows.to(torch.uint8)).bool()
    return _AllGather.apply(rows)


def all_reduce_sum(total: Tensor) -> Tensor:
    """The sum over all processes, in place."""
    if world_size() > 1:
        dist.all_reduce(total)
    return total


def broadcast_buffers(module: nn.Module) -> None:
    """Give every process the buffers (running statistics) of process 0."""
    if world_size() > 1:
        for buffer in module.buffers():
            dist.broadcast(buffer, src=0)


def wrap_ddp(module: nn.Module, device: torch.device) -> nn.Module:
    """The module with its gradients averaged over the processes in the backward pass (DDP); with one, the module.

    Buffers are not sent at each forward pass: helpers, which get the whole batch, have the same everywhere, and of the
    student's running statistics those of process 0 count (`broadcast_buffers`).
    """
    if world_size() == 1:
        return module
    devices = [device.index] if device.type == "cuda" else None
    return DistributedDataParallel(module, device_ids=devices, broadcast_buffers=False)


@contextmanager
def no_sync(module: nn.Module, wanted: bool) -> Iterator[None]:
    """Gradients are only accumulated in the block, for all but the last forward pass of a step."""
    if wanted and isinstance(module, DistributedDataParallel):
        with module.no_sync():
            yield
    else:
        yield


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return world_size() * shard_by_rank(gradient)


def _is_lost_connection(error: RuntimeError) -> bool:
    # Gloo reports a vanished peer as a plain RuntimeError; only its text tells.
    text = str(error).lower()
    signs = ("connection closed", "connection reset", "broken pipe", "timed out", "gloo", "nccl", "socket")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)
