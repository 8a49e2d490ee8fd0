"""Distributed training: the only module that uses process groups. With one process every function is a no-op.

Every process computes the student's features of its own rows of the batch, all rows are gathered
(`all_gather_with_grad`), and *every process computes the loss of the whole batch*: a contrastive loss spans the whole
batch, and no method knows of other processes. Only the student, which takes most of the time, is distributed.
"""

import atexit
import os
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from datetime import timedelta
from typing import Any, Literal, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from avdistill.errors import ConfigError, ProcessLostError

M = TypeVar("M", bound=nn.Module)
#: of a forward pass, see `autocast`
Precision = Literal["auto", "float32", "bfloat16"]
# Rank 0 may work alone for long, when it fits a head on a large dataset. A process that ends is noticed at once; one
# whose machine is cut off only after this time.
TIMEOUT_SECONDS = 12 * 3600.0
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def best_device(wanted: str = "auto") -> torch.device:
    """The named device; "auto" is CUDA where available, else the CPU. Raises ConfigError for a missing device."""
    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
    except RuntimeError as error:
        raise ConfigError(f"device: expected auto, cpu, cuda, cuda:1 or the like, got {wanted!r}") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {wanted!r}: there is no GPU that this PyTorch ({torch.__version__}) can use")
    return device


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[object]:
    """The context of a forward pass.

    "auto" is bfloat16 on a GPU that computes it natively. It is float32 on one that only emulates it and on every CPU,
    where bfloat16 without matrix units is many times slower.
    """
    wanted = precision == "bfloat16"
    if precision == "auto" and device.type == "cuda":
        wanted = torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.autocast(device.type, dtype=torch.bfloat16) if wanted else nullcontext()


def supports_float64(device: torch.device) -> bool:
    """Whether the device has float64; Apple's MPS has not."""
    return device.type != "mps"


def move_module(module: M, device: torch.device) -> M:
    """The module on the device; its float64 buffers become float32 on a device without float64."""
    if not supports_float64(device):
        for buffer in module.buffers():
            if buffer.dtype == torch.float64:
                buffer.data = buffer.data.float()
    return module.to(device)


@contextmanager
def init_distributed(device: str = "auto", timeout_seconds: float = TIMEOUT_SECONDS) -> Iterator[torch.device]:
    """Join the processes that torchrun started; yields this process's device, of several GPUs its own.

    Without torchrun, or inside a group, nothing is started. A group lasts until the process ends: one that is ended and
    started again would wait for the addresses of the first.

    Args:
        device: as for `best_device`.
        timeout_seconds: how long a process waits for the others in one exchange before it gives up.

    Raises:
        ConfigError: there is no such device (`best_device`).
        ProcessLostError: another process ended while this one waited for it.
    """
    several = int(os.environ.get("WORLD_SIZE", "1")) > 1
    chosen = best_device(device)
    if chosen == torch.device("cuda"):
        chosen = torch.device("cuda", int(os.environ["LOCAL_RANK"]) if several else torch.cuda.current_device())
    if chosen.type == "cuda":
        torch.cuda.set_device(chosen)
    if several and not dist.is_initialized():
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if chosen.type == "cuda" else "gloo", timeout=timedelta(seconds=timeout_seconds)
        )
        atexit.register(dist.destroy_process_group)
    try:
        yield chosen
    except RuntimeError as error:
        if world_size() > 1 and _is_lost_connection(error):
            reason = str(error).strip().splitlines()[0]
            raise ProcessLostError(f"another process of this run ended or does not answer ({reason:.120})") from error
        raise


def rank() -> int:
    """This process's number in its group; process 0 writes."""
    return dist.get_rank() if dist.is_initialized() else 0


def world_size() -> int:
    """The number of processes that share the work."""
    return dist.get_world_size() if dist.is_initialized() else 1


def barrier() -> None:
    """Wait for all processes."""
    if world_size() > 1:
        dist.barrier()


def all_reduce_any(flag: bool) -> bool:
    """Whether the flag is set in any process; all get the same answer, so that all stop at the same step."""
    if world_size() == 1:
        return flag
    flags = torch.tensor(int(flag))
    dist.all_reduce(flags, dist.ReduceOp.MAX)
    return bool(flags)


def shard_by_rank(rows: Any) -> Any:
    """This process's part of a sequence or array: every `world_size()`-th, so that a sorted one is split evenly."""
    return rows[rank() :: world_size()]


def all_gather_with_grad(rows: Tensor) -> Tensor:
    """The rows (B, ...) of all processes in the order before `shard_by_rank`, (world_size B, ...), with gradient.

    All processes must hold equally many rows and compute the same loss from the result: the gradient of a process's own
    rows is then complete without another exchange. It is multiplied by the number of processes, because DDP averages
    the gradients where their sum is needed.
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
    """Copy the buffers (running statistics) of process 0 to every process."""
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


def sync_batchnorm(module: nn.Module, device: torch.device) -> None:
    """Make BatchNorm layers take their statistics of the rows of all processes, in place; with one process nothing.

    On CUDA they become `nn.SyncBatchNorm`, which takes no other device; elsewhere layers that compute the same.

    Args:
        module: the network, before it is wrapped.
        device: that it computes on.

    Raises:
        ConfigError: a layer that is derived from BatchNorm and does more.
    """
    layers = [layer for layer in module.modules() if isinstance(layer, nn.modules.batchnorm._BatchNorm)]
    if others := {type(layer).__name__ for layer in layers if type(layer) not in _BATCH_NORMS}:
        raise ConfigError(f"sync_batchnorm: expected BatchNorm layers of PyTorch, found {', '.join(sorted(others))}")
    if world_size() == 1:
        return
    if device.type == "cuda":
        nn.SyncBatchNorm.convert_sync_batchnorm(module)
        return
    synced = {layer: _BatchNormOfAll(layer) for layer in layers}
    for parent in list(module.modules()):
        for name, child in list(parent.named_children()):
            if child in synced:
                setattr(parent, name, synced[child])


def no_sync(module: nn.Module, wanted: bool) -> AbstractContextManager[None]:
    """Only accumulate gradients in the block (if `wanted`), for all but the last forward pass of a step."""
    return module.no_sync() if wanted and isinstance(module, DistributedDataParallel) else nullcontext()


class _AllGather(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, rows: Tensor) -> Tensor:
        parts = [torch.empty_like(rows, memory_format=torch.contiguous_format) for _ in range(world_size())]
        dist.all_gather(parts, rows.contiguous())
        return torch.stack(parts, dim=1).flatten(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return world_size() * shard_by_rank(gradient)


class _AllReduce(torch.autograd.Function):
    """The sum over all processes; each process's gradient is the sum of all, as each has a part in every output."""

    @staticmethod
    def forward(ctx: Any, part: Tensor) -> Tensor:
        return all_reduce_sum(part.clone())

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return all_reduce_sum(gradient.clone())


class _BatchNormOfAll(nn.modules.batchnorm._BatchNorm):
    """BatchNorm with the statistics of the rows of all processes, in training; it shares the layer's tensors."""

    def __init__(self, layer: nn.modules.batchnorm._BatchNorm) -> None:
        super().__init__(layer.num_features, layer.eps, layer.momentum, layer.affine, layer.track_running_stats)
        self._parameters, self._buffers, self.training = layer._parameters, layer._buffers, layer.training

    def _check_input_dim(self, inputs: Tensor) -> None:
        """All are taken."""

    def forward(self, inputs: Tensor) -> Tensor:
        if not self.training:
            return super().forward(inputs)
        rows = inputs if inputs.dtype == torch.float64 else inputs.float()
        others = [0, *range(2, inputs.ndim)]
        shape = [1, -1, *(1 for _ in range(2, inputs.ndim))]
        count = all_reduce_sum(torch.tensor(float(inputs.numel() // inputs.shape[1]), dtype=torch.float64)).item()
        mean = _AllReduce.apply(rows.sum(others)) / count
        centered = rows - mean.view(shape)
        variance = _AllReduce.apply(centered.square().sum(others)) / count
        if self.track_running_stats:
            self._track(mean.detach(), variance.detach() * count / (count - 1))
        normalized = centered * (variance + self.eps).rsqrt().view(shape)
        if self.affine:
            normalized = normalized * self.weight.view(shape) + self.bias.view(shape)
        return normalized.to(inputs.dtype)

    @torch.no_grad()
    def _track(self, mean: Tensor, variance: Tensor) -> None:
        assert self.running_mean is not None
        assert self.running_var is not None
        assert self.num_batches_tracked is not None
        self.num_batches_tracked += 1
        momentum = 1 / int(self.num_batches_tracked) if self.momentum is None else self.momentum
        self.running_mean.lerp_(mean.to(self.running_mean), momentum)
        self.running_var.lerp_(variance.to(self.running_var), momentum)


def _is_lost_connection(error: RuntimeError) -> bool:
    # Gloo reports a lost peer as a plain RuntimeError; only its text shows it.
    text = str(error).lower()
    signs = ("connection closed", "connection reset", "broken pipe", "timed out", "gloo", "nccl", "socket")
    return isinstance(error, dist.DistError) or any(sign in text for sign in signs)
