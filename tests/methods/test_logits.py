"""Methods on logits: pseudo-labels, DKD and DIST inside a training pass, against loops."""

import math

import pytest
import torch

from avdistill.methods.base import student_features
from avdistill.methods.dist import DISTConfig
from avdistill.methods.dkd import DKDConfig
from avdistill.methods.pseudo_label import PseudoLabelConfig
from avdistill.types import Batch
from support.literal import kl, softmax
from support.method_cases import B, C, Float64, batch, built, student

LABELED = [True, False, True, False, False, True]
HAS_TEACHER = [True, True, False, False, True, True]


def changed(data, **fields):
    return Batch(**{**vars(data), **fields})


def exact(config):
    return built(config, student_network=Float64(student()))


def several(data):
    """The same clips with several labels each."""
    generator = torch.Generator().manual_seed(5)
    return changed(data, labels=torch.randint(0, 2, (B, C), generator=generator).float())


@pytest.mark.parametrize("confidence", [0.0, 0.4, 0.999999])
def test_pseudo_labels_are_the_teachers_choice_on_unlabeled_clips(confidence):
    method = exact(PseudoLabelConfig(confidence=confidence, weight=0.5))
    data = batch(torch.float64, labeled=LABELED, has_teacher=HAS_TEACHER)
    logits = student_features(method.student, data).logits.tolist()
    terms = []
    for i in range(B):
        believed = softmax(data.teacher.logits[i].tolist())
        if HAS_TEACHER[i] and not LABELED[i] and max(believed) >= confidence:
            terms.append(-math.log(softmax(logits[i])[believed.index(max(believed))]))
    assert len(terms) == {0.0: 2, 0.4: 1, 0.999999: 0}[confidence]
    expected = 0.5 * sum(terms) / max(len(terms), 1)
    losses = method(data)
    assert set(losses) == {"classification", "pseudo_labels"}
    assert losses["pseudo_labels"].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("confidence", [0.0, 0.7, 0.999999])
def test_pseudo_labels_of_several_classes_are_the_teachers_decisions(confidence):
    method = exact(PseudoLabelConfig(confidence=confidence))
    data = several(batch(torch.float64, labeled=LABELED, has_teacher=HAS_TEACHER))
    logits = student_features(method.student, data).logits.tolist()
    terms = []
    for i in range(B):
        for c in range(C):
            yes = 1 / (1 + math.exp(-float(data.teacher.logits[i, c])))
            if HAS_TEACHER[i] and not LABELED[i] and max(yes, 1 - yes) >= confidence:
                p = 1 / (1 + math.exp(-logits[i][c]))
                terms.append(-math.log(p if yes > 0.5 else 1 - p))
    assert (len(terms) == 2 * C) == (confidence == 0.0)
    value = method(data)["pseudo_labels"]
    assert value.item() == pytest.approx(sum(terms) / max(len(terms), 1), rel=1e-9)


def test_dkd_takes_the_label_where_there_is_one_and_the_teachers_choice_elsewhere():
    method = exact(DKDConfig(alpha=0.7, beta=3.0, temperature=2.0, warmup_share=0.0, weight=0.5))
    data = batch(torch.float64, labeled=LABELED, has_teacher=HAS_TEACHER)
    labels = torch.where(data.labeled, data.labels, -1)  # what stands there unlabeled must not matter
    logits, terms = student_features(method.student, data).logits.tolist(), []
    for i in range(B):
        if not HAS_TEACHER[i]:
            continue
        z_t, z_s = data.teacher.logits[i].tolist(), logits[i]
        target = int(data.labels[i]) if LABELED[i] else z_t.index(max(z_t))
        p_t, p_s = softmax(z_t, 2.0)[target], softmax(z_s, 2.0)[target]
        others = [[z for c, z in enumerate(row) if c != target] for row in (z_t, z_s)]
        terms.append(
            0.7 * kl([p_t, 1 - p_t], [p_s, 1 - p_s]) + 3.0 * kl(softmax(others[0], 2.0), softmax(others[1], 2.0))
        )
    expected = 0.5 * 4.0 * sum(terms) / len(terms)
    assert method(changed(data, labels=labels))["decoupled"].item() == pytest.approx(expected, rel=1e-9)


def test_dkd_warms_up_over_its_share_of_the_run():
    """100 passes in the tests' run: a share of 0.05 reaches the full weight with the fifth."""
    method, data = built(DKDConfig(warmup_share=0.05)), batch()
    method.student.eval()  # the same logits in every pass
    values = [method(data)["decoupled"].item() for _ in range(7)]
    full = built(DKDConfig(warmup_share=0.0))
    full.student.eval()
    whole = full(data)["decoupled"].item()
    assert [v / whole for v in values] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0, 1.0, 1.0])


def test_dkd_resumes_its_warm_up_and_does_not_count_evaluation():
    method, data = built(DKDConfig(warmup_share=0.05)), batch()
    for _ in range(3):
        method(data)
    method.eval()
    method(data)
    resumed = built(DKDConfig(warmup_share=0.05))
    resumed.load_state_dict(method.state_dict())
    assert int(resumed.counter.iterations) == 3
    first, second = method.train()(data), resumed(data)
    assert torch.equal(first["decoupled"], second["decoupled"])


def correlation(x, y):
    x, y = ([a - sum(row) / len(row) for a in row] for row in (x, y))
    both = sum(a * b for a, b in zip(x, y, strict=True))
    return both / (math.sqrt(sum(a * a for a in x)) * math.sqrt(sum(b * b for b in y)) + 1e-8)


@pytest.mark.parametrize("multi_hot", [False, True])
def test_dist_correlates_clips_and_classes_that_have_a_teacher(multi_hot):
    method = exact(DISTConfig(beta=0.5, gamma=3.0, temperature=2.0, weight=0.1))
    data = batch(torch.float64, labeled=LABELED, has_teacher=HAS_TEACHER)
    data = several(data) if multi_hot else data

    def probabilities(row):
        return [1 / (1 + math.exp(-z / 2.0)) for z in row] if multi_hot else softmax(row, 2.0)

    rows = [i for i in range(B) if HAS_TEACHER[i]]
    logits = student_features(method.student, data).logits.tolist()
    q_s = [probabilities(logits[i]) for i in rows]
    q_t = [probabilities(data.teacher.logits[i].tolist()) for i in rows]
    inter = sum(1 - correlation(a, b) for a, b in zip(q_s, q_t, strict=True)) / len(rows)
    intra = sum(1 - correlation([q[c] for q in q_s], [q[c] for q in q_t]) for c in range(C)) / C
    losses = method(data)
    assert set(losses) == {"classification", "inter_class", "intra_class"}
    assert losses["inter_class"].item() == pytest.approx(0.1 * 0.5 * 4.0 * inter, rel=1e-8)
    assert losses["intra_class"].item() == pytest.approx(0.1 * 3.0 * 4.0 * intra, rel=1e-8)


def test_dkd_refuses_several_labels():
    with pytest.raises(ValueError, match=r"dkd.*one label"):
        built(DKDConfig())(several(batch()))


@pytest.mark.parametrize("config", [PseudoLabelConfig(), DISTConfig()], ids=str)
def test_several_labels_train(config):
    method = built(config)
    losses = method(several(batch(labeled=LABELED, has_teacher=HAS_TEACHER)))
    sum(losses.values()).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)
