"""Parity with the released implementation: every value and gradient in the golden file."""

import pytest
import torch
from torch.nn import functional as F

from avdistill.losses import contrastive_semantic_calibration, filter_triplet, gate_sparsity
from avdistill.models.noise_filter import NoiseFilter
from avdistill.models.r2plus1d import r2plus1d_xia2023
from support.golden_rule import GOLDEN, assert_golden, filter_inputs, renamed, ruled_weights, student_input


def load(module, weights):
    missing, unexpected = module.load_state_dict(weights, strict=False)
    assert not unexpected
    assert all(key.endswith("num_batches_tracked") for key in missing)


def golden_filter(case, mode):
    noise_filter = NoiseFilter(case["D"], case["C"])
    load(noise_filter, {renamed(k): w for k, w in ruled_weights(case["spec"], case["seed"]).items()})
    return noise_filter.train(mode == "train"), *filter_inputs(case)


@pytest.mark.parametrize("mode", ["eval", "train"])
@pytest.mark.parametrize("case", GOLDEN["mnf_csc"], ids=lambda c: f"seed{c['seed']}")
def test_filter_and_losses(case, mode):
    expected = dict(case["results"][mode])
    noise_filter, tokens, audio, labels = golden_filter(case, mode)
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
    student = r2plus1d_xia2023(case["C"], depth=case["depth"], embedding_dim=case["vid_dim"]).eval()
    load(student, ruled_weights(case["spec"], case["seed"]))
    assert sum(p.numel() for p in student.parameters()) == case["n_params"]
    with torch.no_grad():
        features = student(student_input(case))
    assert list(features.tokens.shape) == case["map_shape"]
    assert_golden(features.embedding[:, :16], case["feature_first16"])
    assert_golden(features.logits, case["logits"])
    assert_golden(features.tokens[0, 0, :8], case["map_0_0_first8"])
    assert_golden(features.tokens.double().sum(), case["map_sum"])
