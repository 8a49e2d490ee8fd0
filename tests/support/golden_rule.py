"""The golden file of the released implementation, and the rule by which its weights and inputs are made."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from avdistill.losses import contrastive_semantic_calibration, filter_triplet, gate_sparsity
from avdistill.models.noise_filter import NoiseFilter
from avdistill.models.r2plus1d import r2plus1d_xia2023

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


def load(module: torch.nn.Module, weights: dict[str, torch.Tensor]) -> None:
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)


def golden_filter(case: dict, mode: str) -> NoiseFilter:
    noise_filter = NoiseFilter(case["D"], case["C"])
    load(noise_filter, {renamed(k): w for k, w in ruled_weights(case["spec"], case["seed"]).items()})
    return noise_filter.train(mode == "train")


def filter_results(
    case: dict, mode: str, device: str = "cpu", dtype: torch.dtype = torch.float32
) -> dict[str, torch.Tensor]:
    """All that the golden file has of the filter and the losses, by its names.

    `dtype` is that of the student's tokens when they reach the filter, which computes in float32.
    """
    noise_filter = golden_filter(case, mode).to(device)
    tokens, audio, labels = (x.detach().to(device) for x in filter_inputs(case))
    tokens = tokens.to(dtype).float().requires_grad_()
    student = tokens.mean(1)
    out = noise_filter(teacher=audio, tokens=tokens)
    contrast = {"student": student, "guided": out.guided, "filtered_teacher": out.embedding, "labels": labels}
    csc = contrastive_semantic_calibration(**contrast, threshold=case["threshold"], log_epsilon=1e-10)
    (grad_map,) = torch.autograd.grad(csc, tokens, retain_graph=True)
    fixed = contrastive_semantic_calibration(
        **contrast, temperature="fixed", threshold=case["threshold"], log_epsilon=1e-10
    )
    triplet = filter_triplet(student=student, teacher=audio, filtered_teacher=out.embedding, margin=case["margin"])
    classification = F.cross_entropy(out.logits, labels)
    last = gate_sparsity(noise_filter, layers="last")

    names, parameters = zip(*noise_filter.named_parameters(), strict=True)
    grads = torch.autograd.grad(classification + last + triplet + csc, parameters)
    return {
        "p_sv": out.logits,
        "selected_video": out.guided,
        "selected_audio": out.embedding,
        "gate": out.gate,
        "attn": out.attention[:, None],
        "similarity": F.normalize(student, dim=1) @ F.normalize(out.embedding, dim=1).T,
        "csc": csc,
        "csc_fixed_temperature": fixed,
        "triplet": triplet,
        "cls_n": classification,
        "norm_official_last_only": last,
        "norm_sum": gate_sparsity(noise_filter, layers="both"),
        "grad_csc_wrt_map_first": grad_map[0, 0, :16],
        "grad_csc_wrt_map_norm": grad_map.norm(),
        **{f"grad_mnf_param_norms {name}": g.norm() for name, g in zip(names, grads, strict=True)},
    }


def filter_expected(case: dict, mode: str) -> dict[str, Any]:
    expected = dict(case["results"][mode])
    norms = expected.pop("grad_mnf_param_norms")
    return expected | {f"grad_mnf_param_norms {renamed(key)}": norm for key, norm in norms.items()}


STUDENT_KEYS = ("n_params", "map_shape", "feature_first16", "logits", "map_0_0_first8", "map_sum")


def student_results(case: dict, device: str = "cpu", dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    """All that the golden file has of a student, by its names; `dtype` is that of autocast, none in float32."""
    student = r2plus1d_xia2023(case["C"], depth=case["depth"], embedding_dim=case["vid_dim"]).eval()
    load(student, ruled_weights(case["spec"], case["seed"]))
    with torch.no_grad(), torch.autocast(torch.device(device).type, dtype, enabled=dtype != torch.float32):
        features = student.to(device)(student_input(case).to(device))
    return {
        "n_params": torch.tensor(sum(p.numel() for p in student.parameters())),
        "map_shape": torch.tensor(features.tokens.shape),
        "feature_first16": features.embedding[:, :16],
        "logits": features.logits,
        "map_0_0_first8": features.tokens[0, 0, :8],
        "map_sum": features.tokens.double().sum(),
    }


def student_expected(case: dict) -> dict[str, Any]:
    return {key: case[key] for key in STUDENT_KEYS}


def compared(results: dict[str, torch.Tensor], expected: dict[str, Any]) -> Iterator[tuple[str, torch.Tensor, Any]]:
    """(name, value, expected) of everything, and nothing is missing."""
    assert results.keys() == expected.keys()
    for key, value in results.items():
        yield key, value, expected[key]


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
