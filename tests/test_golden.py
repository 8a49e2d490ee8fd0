"""Parity with the released implementation: every value and gradient in the golden file."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from avdistill.losses import contrastive_semantic_calibration, filter_triplet, gate_sparsity
from avdistill.models.noise_filter import NoiseFilter
from avdistill.models.video import released_r2plus1d

GOLDEN = json.loads((Path(__file__).parent / "golden" / "release_d5ceee6.json").read_text())
# The release's names of the filter's parts, and ours.
FILTER_NAMES = {
    "gated_feature_composer": "gate",
    "attn": "attention",
    "trans_sv": "guide",
    "sv_cls_classifier": "classifier",
}


def ruled_weights(spec, seed):
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


def load(module, weights):
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)


def assert_golden(value, expected):
    expected = torch.tensor(expected, dtype=torch.float64)
    value = value.detach().double()
    assert value.shape == expected.shape
    assert (value - expected).abs().max() <= 2e-5 * (1 + expected.abs().max())


def renamed(key):
    head, rest = key.split(".", 1)
    return f"{FILTER_NAMES[head]}.{rest}"


def golden_filter(case, mode):
    noise_filter = NoiseFilter(case["D"], case["C"])
    load(noise_filter, {renamed(k): w for k, w in ruled_weights(case["spec"], case["seed"]).items()})
    rng = np.random.default_rng(case["seed"] + 1000)
    B, K, D = case["B"], case["K"], case["D"]
    tokens = torch.tensor(np.abs(rng.standard_normal((B, K, D))), dtype=torch.float32, requires_grad=True)
    sound = torch.tensor(np.abs(rng.standard_normal((B, D))), dtype=torch.float32)
    labels = torch.tensor(rng.integers(0, case["C"], B))
    return noise_filter.train(mode == "train"), tokens, sound, labels


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", GOLDEN["mnf_csc"], ids=lambda c: f"seed{c['seed']}")
def test_filter_and_losses(case, mode):
    expected = dict(case["results"][mode])
    noise_filter, tokens, sound, labels = golden_filter(case, mode)
    student = tokens.mean(1)
    out = noise_filter(teacher=sound, tokens=tokens)
    contrast = {"student": student, "guided": out.guided, "filtered_teacher": out.embedding, "labels": labels}
    csc = contrastive_semantic_calibration(**contrast, threshold=case["threshold"], log_epsilon=1e-10)
    (grad_map,) = torch.autograd.grad(csc, tokens, retain_graph=True)
    fixed = contrastive_semantic_calibration(
        **contrast, temperature="fixed", threshold=case["threshold"], log_epsilon=1e-10
    )
    triplet = filter_triplet(student=student, teacher=sound, filtered_teacher=out.embedding, margin=case["margin"])
    classification = F.cross_entropy(out.logits, labels)
    last = gate_sparsity(noise_filter, layers="last")

    names, parameters = zip(*noise_filter.named_parameters(), strict=True)
    grads = torch.autograd.grad(classification + last + triplet + csc, parameters)
    norms = dict(zip(names, (g.norm() for g in grads), strict=True))
    for key, norm in expected.pop("grad_mnf_param_norms").items():
        assert_golden(norms.pop(renamed(key)), norm)
    assert not norms

    assert_golden(grad_map[0, 0, :16], expected.pop("grad_csc_wrt_map_first"))
    assert_golden(grad_map.norm(), expected.pop("grad_csc_wrt_map_norm"))
    similarity = F.normalize(student, dim=1) @ F.normalize(out.embedding, dim=1).T
    values = {
        "p_sv": out.logits,
        "selected_video": out.guided,
        "selected_audio": out.embedding,
        "gate": out.gate,
        "attn": out.attention[:, None],
        "similarity": similarity,
        "csc": csc,
        "csc_fixed_temperature": fixed,
        "triplet": triplet,
        "cls_n": classification,
        "norm_official_last_only": last,
        "norm_sum": gate_sparsity(noise_filter, layers="both"),
    }
    assert values.keys() == expected.keys()
    for key, value in values.items():
        assert_golden(value, expected[key])


@pytest.mark.parametrize("case", GOLDEN["backbone"], ids=lambda c: f"depth{c['depth']}")
def test_released_student(case):
    student = released_r2plus1d(case["C"], depth=case["depth"], embedding_dim=case["vid_dim"]).eval()
    load(student, ruled_weights(case["spec"], case["seed"]))
    assert sum(p.numel() for p in student.parameters()) == case["n_params"]
    video = np.random.default_rng(case["seed"] + 1000).standard_normal(case["shape"])
    with torch.no_grad():
        features = student(torch.tensor(video, dtype=torch.float32))
    assert list(features.tokens.shape) == case["map_shape"]
    assert_golden(features.embedding[:, :16], case["feature_first16"])
    assert_golden(features.logits, case["logits"])
    assert_golden(features.tokens[0, 0, :8], case["map_0_0_first8"])
    assert_golden(features.tokens.double().sum(), case["map_sum"])
