"""A small run, and what two runs are compared by."""

import json
from dataclasses import replace
from pathlib import Path

import torch
from safetensors.torch import load_file

from avdistill.inputs import VideoInput
from avdistill.training import ModelConfig, OptimizerConfig, TrainConfig

STUDENT = ModelConfig(
    "shifted_frames", VideoInput(frames=4, size=(24, 32), scale=(0.8, 1.0), ratio=(1.2, 1.6), hflip=False),
    {"width": 8, "embedding_dim": 16},
)  # fmt: skip


def config(dataset, out, **changes):
    base = TrainConfig(
        dataset=Path(dataset),
        out=Path(out),
        student=STUDENT,
        steps=10,
        batch_size=6,
        val_fraction=0.3,
        optimizer=OptimizerConfig("adamw", 1e-2, 1e-2, "cosine", warmup_steps=2, max_grad_norm=1.0),
        eval_every=4,
        save_every=3,
        log_every=1,
    )
    return replace(base, **changes)


def state(run):
    weights = {k: v for f in ("model", "helpers") for k, v in load_file(run / "last" / f"{f}.safetensors").items()}
    return weights, torch.load(run / "last" / "state.pt", weights_only=True)


def same(a, b):
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def lines(run, without=("step_seconds",)):
    entries = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in e.items() if k not in without} for e in entries]
