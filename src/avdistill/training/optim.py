"""Optimizer, schedule and gradient clipping of a run."""

import math
from typing import Any

import torch
from torch.optim import SGD, Adam, AdamW, Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler, ReduceLROnPlateau

from avdistill.methods.base import Method
from avdistill.training.config import OptimizerConfig


def build_optimizer(config: OptimizerConfig, method: Method) -> Optimizer:
    """One optimizer over the method's parameter groups, each with its scale of the learning rate."""
    groups: list[dict[str, Any]] = [
        {"params": group["params"], "name": group["name"], "lr": config.learning_rate * group["lr_scale"]}
        for group in method.parameter_groups()
    ]
    rate, decay = config.learning_rate, config.weight_decay
    # One kernel for a group's weights: in a small network the update otherwise takes a tenth of the step.
    fused = all(p.device.type in ("cpu", "cuda") for group in groups for p in group["params"])
    if config.name == "sgd":
        return SGD(groups, lr=rate, momentum=0.9, weight_decay=decay, fused=fused)
    return (Adam if config.name == "adam" else AdamW)(groups, lr=rate, weight_decay=decay, fused=fused)


def build_schedule(config: OptimizerConfig, optimizer: Optimizer, steps: int) -> LRScheduler:
    """A scheduler to step once per optimizer step; "plateau" once per validation, with the value to maximize."""
    if config.schedule == "plateau":
        return ReduceLROnPlateau(optimizer, mode="max", factor=config.gamma, patience=config.patience)

    def factor(step: int) -> float:
        if step < config.warmup_steps:
            return (step + 1) / config.warmup_steps
        if config.schedule == "multistep":
            return float(config.gamma ** sum(step >= share * steps for share in config.milestones))
        if config.schedule == "cosine":
            progress = (step - config.warmup_steps) / max(1, steps - config.warmup_steps)
            return 0.5 * (1 + math.cos(math.pi * min(1.0, progress)))
        return 1.0

    return LambdaLR(optimizer, factor)


def clip_gradients(optimizer: Optimizer, limit: float | None) -> dict[str, float]:
    """Clip each parameter group, student or helper, by its own norm; returns the norms before clipping, by name."""
    norms = {}
    for group in optimizer.param_groups:
        norm = torch.nn.utils.get_total_norm([p.grad for p in group["params"] if p.grad is not None])
        if limit is not None:
            torch.nn.utils.clip_grads_with_norm_(group["params"], limit, norm)
        norms[str(group["name"])] = float(norm)
    return norms
