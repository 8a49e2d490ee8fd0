"""Robust CSC: soft contrast and class probabilities against loops over pairs, and where it is the published method."""

import math
from dataclasses import replace

import pytest
import torch
from torch.nn import functional as F

from avdistill.losses import contrastive_semantic_calibration, soft_contrastive_semantic_calibration
from avdistill.methods.base import MethodContext
from avdistill.methods.mnf_csc import MNFCSCConfig
from avdistill.methods.noise_model import NoiseModel
from avdistill.methods.robust_csc import RobustCSCConfig
from avdistill.types import Batch, Features
from support.method_cases import C, Float64, N, batch, built, student


def embeddings(rows: int = 7, dim: int = 5) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    names = ("student", "guided", "filtered_teacher")
    return {n: torch.rand(rows, dim, generator=generator, dtype=torch.float64).requires_grad_() for n in names}


def cosine(x: list[float], y: list[float]) -> float:
    return sum(a * b for a, b in zip(x, y, strict=True)) / math.dist(x, [0] * len(x)) / math.dist(y, [0] * len(y))


@pytest.mark.parametrize("temperature", ["pairwise", "fixed"])
def test_soft_contrast_against_loops(temperature: str) -> None:
    given = embeddings()
    generator = torch.Generator().manual_seed(4)
    belief = torch.rand(7, 3, generator=generator, dtype=torch.float64).softmax(1)
    matching = torch.rand(7, generator=generator, dtype=torch.float64)
    v, s, a = (given[n].tolist() for n in ("student", "guided", "filtered_teacher"))
    w, total = matching.tolist(), 0.0
    for i in range(7):
        T = [(cosine(v[i], a[j]) if temperature == "pairwise" else 0) + 0.1 for j in range(7)]
        weights = [w[j] * math.exp(cosine(v[i], s[j]) / T[j]) for j in range(7)]
        A = [sum(p * q for p, q in zip(belief[i].tolist(), belief[j].tolist(), strict=True)) for j in range(7)]
        certainty, A[i] = A[i], 1.0
        counts = [A[j] * w[j] for j in range(7)]
        mean = sum(counts[j] * -math.log(weights[j] / sum(weights)) for j in range(7)) / sum(counts)
        total += certainty * mean / 7
    found = soft_contrastive_semantic_calibration(
        **given, same=belief @ belief.T, match_probability=matching, temperature=temperature, threshold=0.1
    )
    assert float(found.detach()) == pytest.approx(total, rel=1e-12)


def test_certain_classes_give_the_published_contrast() -> None:
    ours, published = embeddings(), embeddings()
    labels = torch.tensor([0, 1, 1, 2, 0, 0, 1])
    same = F.one_hot(labels).double() @ F.one_hot(labels).double().T
    soft_contrastive_semantic_calibration(
        **ours, same=same, match_probability=torch.ones(7, dtype=torch.float64)
    ).backward()
    contrastive_semantic_calibration(**published, labels=labels).backward()
    for name in ("student", "guided"):
        torch.testing.assert_close(ours[name].grad, published[name].grad, rtol=1e-12, atol=1e-14)
    assert ours["filtered_teacher"].grad is None


def test_mismatched_audio_leaves_the_contrast() -> None:
    given, labels = embeddings(), torch.tensor([0, 1, 1, 2, 0, 0, 1])
    same = F.one_hot(labels).double() @ F.one_hot(labels).double().T
    matching = torch.ones(7, dtype=torch.float64)
    matching[2] = 0.0
    soft_contrastive_semantic_calibration(**given, same=same, match_probability=matching).backward()
    size = given["guided"].grad.norm(dim=1)
    assert size[2] < 1e-4 * size[[0, 1, 3, 4, 5, 6]].min()


def test_nothing_matches_and_nobody_is_there() -> None:
    given = embeddings()
    loss = soft_contrastive_semantic_calibration(
        **given, same=torch.eye(7).double(), match_probability=torch.zeros(7).double()
    )
    loss.backward()
    assert torch.isfinite(loss)
    assert torch.isfinite(given["student"].grad).all()
    empty = {name: values[:0] for name, values in embeddings().items()}
    assert (
        float(
            soft_contrastive_semantic_calibration(
                **empty, same=torch.zeros(0, 0), match_probability=torch.zeros(0)
            ).detach()
        )
        == 0
    )


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "multi_label"])
def test_posterior_against_loops(several: bool) -> None:
    generator = torch.Generator().manual_seed(5)
    student_logits, teacher = (torch.randn(8, C, generator=generator, dtype=torch.float64) for _ in range(2))
    hot = (torch.rand(8, C, generator=generator) < 0.4).double()
    labels = hot if several else torch.randint(0, C, (8,), generator=generator)
    data = Batch(
        labels=labels,
        labeled=torch.arange(8) % 3 == 0,
        has_teacher=torch.arange(8) != 4,
        clip_ids=(),
        teacher=Features(torch.zeros(8, 2), teacher.masked_fill((torch.arange(8) == 4)[:, None], torch.nan)),
        indices=torch.arange(8),
    )
    model = NoiseModel(MethodContext(C, training_clips=8))
    for _ in range(3):
        model.update(student_logits, data)
    rho, pi = float(model.clean_rate), model.class_prior(several).tolist()
    belief, matching = model.posterior(student_logits, data)
    for i in range(8):
        z, t = student_logits[i].tolist(), teacher[i].tolist()
        if several:
            q, p = [1 / (1 + math.exp(-x)) for x in z], [1 / (1 + math.exp(-x)) for x in t]
        else:
            q = [math.exp(x) / sum(map(math.exp, z)) for x in z]
            p = [math.exp(x) / sum(map(math.exp, t)) for x in t]
        if i % 3 == 0:
            q = hot[i].tolist() if several else [float(c == int(labels[i])) for c in range(C)]
        if several:
            yes = [q[c] * p[c] / pi[c] for c in range(C)]
            no = [(1 - q[c]) * (1 - p[c]) / (1 - pi[c]) for c in range(C)]
            ratio, both = (
                math.prod(y + n for y, n in zip(yes, no, strict=True)),
                [y / (y + n) for y, n in zip(yes, no, strict=True)],
            )
        else:
            ratio = sum(q[c] * p[c] / pi[c] for c in range(C))
            both = [q[c] * p[c] / pi[c] / ratio for c in range(C)]
        w = 0.0 if i == 4 else rho * ratio / (rho * ratio + 1 - rho)
        assert float(matching[i]) == pytest.approx(w, rel=1e-9)
        assert belief[i].tolist() == pytest.approx(
            [w * b + (1 - w) * a for a, b in zip(q, both, strict=True)], rel=1e-9
        )
    assert torch.equal(belief[0], hot[0] if several else F.one_hot(labels[0], C).double())


def test_with_every_label_and_clean_audio_it_is_the_published_method() -> None:
    ours, published = (
        built(config, student_network=Float64(student())).double() for config in (RobustCSCConfig(), MNFCSCConfig())
    )
    ours.noise_model.clean_counts += torch.tensor([1e12, 1e12])
    data = batch(torch.float64)
    losses, expected = ours(data), published(data)
    assert float(losses.pop("likelihood").detach()) == 0
    for name, value in expected.items():
        assert float(losses[name].detach()) == pytest.approx(float(value.detach()), rel=1e-9), name
    sum(losses.values()).backward()
    sum(expected.values()).backward()
    for p, q in zip(ours.student.parameters(), published.student.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-8, atol=1e-12)


def test_unlabeled_clips_teach_by_likelihood_and_contrast() -> None:
    labeled = [True, False, True, False, False, True]
    method = built(RobustCSCConfig())
    for _ in range(2):
        losses = method(batch(labeled=labeled))
    assert set(losses) >= {
        "classification",
        "calibration",
        "likelihood",
        "filter_classification",
        "triplet",
        "sparsity",
    }
    assert all(torch.isfinite(value) for value in losses.values())
    visits = method.noise_model.visits
    assert visits.sum() == 6
    assert visits[batch().indices[~torch.tensor(labeled)]].tolist() == [2, 2, 2]
    nobody = method(replace(batch(labeled=labeled), has_teacher=torch.zeros(6, dtype=torch.bool)))
    assert float(nobody["calibration"].detach()) == float(nobody["likelihood"].detach()) == 0
    assert len(visits) == N
