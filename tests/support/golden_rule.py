"""The golden file of the released implementation, and the rule by which its weights and inputs are made."""

from __future__ import annotations

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import torch

GOLDEN = json.loads((Path(__file__).parents[1] / "golden" / "release_d5ceee6.json").read_text())
# The release's names of the filter's parts, and ours.
FILTER_NAMES = {
    "gated_feature_composer": "gate",
    "attn": "attention",
    "trans_sv": "guide",
    "sv_cls_classifier": "classifier",
}


def renamed(key: str) -> str:
    head, rest = key.split(".", 1)
    return f"{FILTER_NAMES[head]}.{rest}"


def ruled_weights(spec: Iterable[tuple[str, list[int]]], seed: int) -> dict[str, torch.Tensor]:
    rng = np.random.default_rng(seed)
    weights = {}
    for key, shape in spec:
        x = rng.standard_normal(shape)
        if key.endswith("running_var"):
            x = 0.5 + np.abs(x)
        elif key.endswith("running_mean"):
            x = 0.1 * x
        elif x.ndim >= 2:
            x = x / np.sqrt(np.prod(shape[1:]))
        elif key.endswith("weight"):
            x = 1 + 0.1 * x
        else:
            x = 0.1 * x
        weights[key] = torch.tensor(x, dtype=torch.float32)
    return weights


def filter_inputs(case: dict) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Tokens (B, K, D) that take a gradient, audio (B, D), labels (B,)."""
    rng = np.random.default_rng(case["seed"] + 1000)
    B, K, D = case["B"], case["K"], case["D"]
    tokens = torch.tensor(np.abs(rng.standard_normal((B, K, D))), dtype=torch.float32, requires_grad=True)
    audio = torch.tensor(np.abs(rng.standard_normal((B, D))), dtype=torch.float32)
    return tokens, audio, torch.tensor(rng.integers(0, case["C"], B))


def student_input(case: dict) -> torch.Tensor:
    video = np.random.default_rng(case["seed"] + 1000).standard_normal(case["shape"])
    return torch.tensor(video, dtype=torch.float32)


def assert_golden(value: torch.Tensor, expected: object) -> None:
    expected = torch.tensor(expected, dtype=torch.float64)
    value = value.detach().double()
    assert value.shape == expected.shape
    assert (value - expected).abs().max() <= 2e-5 * (1 + expected.abs().max())


def loss_inputs() -> dict[str, torch.Tensor]:
    """What `golden/torchdistill.json` was computed on: float64, drawn in this order from one generator."""
    rng = np.random.default_rng(7)
    B, C, D, E, K = 6, 5, 8, 10, 7
    shapes = {
        "student": (B, D),
        "teacher": (B, E),
        "student_logits": (B, C),
        "teacher_logits": (B, C),
        "student_map": (B, K, D),
        "teacher_map": (B, K, E),
        "student_in_teacher_width": (B, E),
        "raw_variance": (E,),
    }
    return {name: torch.from_numpy(rng.standard_normal(shape)) for name, shape in shapes.items()}
