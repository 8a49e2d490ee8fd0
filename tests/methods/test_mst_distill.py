"""MST-Distill against loops in float64: three stages, what each moves, missing teachers, a run across them."""

import math
from dataclasses import replace

import pytest
import torch

from avdistill.errors import ConfigError
from avdistill.methods import MethodContext, build_method
from avdistill.methods.base import student_features
from avdistill.methods.mst_distill import MSTDistillConfig
from avdistill.training import resume, train
from avdistill.types import Features
from support.literal import softmax
from support.method_cases import B, C, Float64, N, batch, student
from support.training_cases import config, same, state

LABELED = [True, False, True, True, False, True]
HAS = [[True, True], [True, False], [False, True], [False, False], [True, True], [True, True]]
DIMS = (5, 9)
# Of 100 iterations 10 are co-training, the next 20 adaptation.
STAGES = MSTDistillConfig(co_training=0.1, adaptation=0.2, temperature=3.0)
TERMS = {"classification", "teacher_classification", "co_training", "adaptation", "routed", "balance"}


def clips(multi_label=False, has=HAS):
    data = batch(torch.float64, labeled=LABELED, has_teacher=[any(row) for row in has])
    generator = torch.Generator().manual_seed(7)
    each = tuple(Features(torch.randn(B, dim, generator=generator).double()) for dim in DIMS)
    labels = torch.randint(0, 2, (B, C), generator=generator).double() if multi_label else data.labels
    return replace(data, labels=labels, each_teacher=each, has_each=torch.tensor(has))


def method_at(iteration, settings=STAGES):
    torch.manual_seed(2)
    context = MethodContext(C, sum(DIMS), N, B, total_iterations=100, teacher_dims=DIMS)
    method = build_method(settings, Float64(student()), context).double()
    method.counter.iterations.fill_(iteration)
    return method


def sigmoid(x):
    return 1 / (1 + math.exp(-x))


def divergence(teacher, own, T, multi_label):
    """T^2 KL(teacher || own) of one clip; of several labels the mean of the classes' binary ones."""
    if multi_label:
        pairs = [(sigmoid(t / T), sigmoid(s / T)) for t, s in zip(teacher, own, strict=True)]
        return T * T * sum(p * math.log(p / q) + (1 - p) * math.log((1 - p) / (1 - q)) for p, q in pairs) / len(pairs)
    return T * T * sum(p * math.log(p / q) for p, q in zip(softmax(teacher, T), softmax(own, T), strict=True))


def linear(layer, row):
    return [sum(w * x for w, x in zip(ws, row, strict=True)) + b
            for ws, b in zip(layer.weight.tolist(), layer.bias.tolist(), strict=True)]  # fmt: skip


def teacher_logits(method, data, k, i, masked):
    e = data.each_teacher[k].embedding[i].tolist()
    if masked:
        first, _, second, _ = method.teachers.masks[k]
        hidden = [max(0.0, h) for h in linear(first, e)]
        e = [sigmoid(m) * x for m, x in zip(linear(second, hidden), e, strict=True)]
    return linear(method.teachers.classifiers[k], e)


def label_loss(logits, label, multi_label):
    if multi_label:
        terms = [-math.log(sigmoid(x)) if y else -math.log(sigmoid(-x)) for x, y in zip(logits, label, strict=True)]
        return sum(terms) / len(terms)
    return -math.log(softmax(logits, 1.0)[label])


def mean(values):
    return sum(values) / len(values) if values else 0.0


def literal(method, data, multi_label):
    """The terms of the method's stage; the others are 0."""
    s, T = method.config, method.config.temperature
    z = student_features(method.student, data).logits.tolist()
    y = data.labels.tolist()
    has = data.has_each.tolist()
    found = dict.fromkeys(TERMS, 0.0)
    found["classification"] = mean([label_loss(z[i], y[i], multi_label) for i in range(B) if LABELED[i]])
    iteration = int(method.counter.iterations)
    for k in range(2) if iteration < 30 else ():
        losses = [label_loss(teacher_logits(method, data, k, i, False), y[i], multi_label)
                  for i in range(B) if LABELED[i] and has[i][k]]  # fmt: skip
        found["teacher_classification"] += mean(losses)
    if iteration < 10:

        def network(which, i):
            return z[i] if which is None else teacher_logits(method, data, which, i, False)

        def there(which, i):
            return which is None or has[i][which]

        for a in (None, 0, 1):
            for b in (None, 0, 1):
                if a != b:
                    rows = [i for i in range(B) if there(a, i) and there(b, i)]
                    found["co_training"] += mean(
                        [divergence(network(a, i), network(b, i), T, multi_label) for i in rows]
                    )
    elif iteration < 30:
        for k in range(2):
            rows = [i for i in range(B) if has[i][k]]
            pairs = [divergence(z[i], teacher_logits(method, data, k, i, True), T, multi_label) for i in rows]
            found["adaptation"] += mean(pairs)
    else:
        rows = [i for i in range(B) if any(has[i])]
        gates, shares, terms = [], [], []
        for i in rows:
            opened = linear(method.gate[1], linear(method.gate[0], z[i]))
            exps = [math.exp(x) * known for x, known in zip(opened, has[i], strict=True)]
            gates.append([e / sum(exps) for e in exps])
            shares.append([there / sum(has[i]) for there in has[i]])
            ways = sorted(range(2), key=lambda k: -gates[-1][k])[: s.top_k]
            terms += [divergence(teacher_logits(method, data, k, i, True), z[i], T, multi_label)
                      for k in ways if has[i][k]]  # fmt: skip
        epoch = (100 * (iteration - 30)) // 70
        halved = len([e for e in range(epoch) if e % 30 == 0])  # as the release counts: after epochs 0, 30, 60, 90
        lowered = len([e for e in range(epoch) if e % 10 == 0])
        found["routed"] = s.weight * 0.5**halved * mean(terms)
        balance = 0.0
        for k in range(2):
            u, p = mean([row[k] for row in shares]), mean([row[k] for row in gates])
            balance += u * math.log(u / p) / 2 if u else 0.0
        found["balance"] = s.balance_weight * 0.9**lowered * balance
    return found


@pytest.mark.parametrize("multi_label", [False, True])
@pytest.mark.parametrize(("iteration", "top_k"), [(0, 1), (9, 1), (10, 1), (29, 1), (30, 1), (31, 2), (55, 1), (99, 2)])
def test_each_stage_is_that_of_a_loop(iteration, top_k, multi_label):
    method, data = (
        method_at(iteration, replace(STAGES, top_k=top_k, weight=0.7, balance_weight=0.3)),
        clips(multi_label),
    )
    losses = method.eval()(data)
    assert set(losses) == TERMS
    for name, expected in literal(method, data, multi_label).items():
        assert losses[name].item() == pytest.approx(expected, rel=1e-9, abs=1e-12), name


def moved(method, terms, data):
    """Which parts have a gradient of the given terms."""
    losses = method.eval()(data)
    method.zero_grad()
    sum(losses[name] for name in terms).backward()
    parts = {"student": method.student, "classifiers": method.teachers.classifiers, "masks": method.teachers.masks,
             "gate": method.gate}  # fmt: skip
    return {name for name, part in parts.items() if any(p.grad is not None and p.grad.any() for p in part.parameters())}


def test_each_stage_moves_its_own_parts():
    data = clips()
    assert moved(method_at(0), ["co_training"], data) == {"student", "classifiers"}
    assert moved(method_at(0), TERMS, data) == {"student", "classifiers"}
    assert moved(method_at(15), ["adaptation"], data) == {"masks"}
    assert moved(method_at(15), TERMS - {"adaptation", "classification"}, data) == {"classifiers"}
    assert moved(method_at(50), ["routed"], data) == {"student"}
    assert moved(method_at(50), ["balance"], data) == {"student", "gate"}


def test_the_teachers_of_the_third_stage_are_those_that_the_second_left():
    method, data = method_at(28).train(), clips()
    method.student.eval()
    for _ in range(2):  # iterations 28 and 29
        before = method.specialized.clone()
        kept = [p.detach().clone().flatten() for p in method.teachers.parameters()]
        method(data)
        with torch.no_grad():
            for p in method.teachers.parameters():
                p += 1.0
    assert not torch.equal(method.specialized, before)
    assert torch.equal(method.specialized, torch.cat(kept))
    routed = method.eval()(data)["routed"].item()
    with torch.no_grad():
        for p in method.teachers.parameters():
            p.mul_(-3)
    assert method(data)["routed"].item() == routed
    assert routed > 0


@pytest.mark.parametrize("iteration", [0, 15, 50])
def test_a_teacher_that_no_clip_has_changes_nothing(iteration):
    has = [[True, False]] * 5 + [[False, False]]
    data = clips(has=has)
    method = method_at(iteration).eval()
    changed = replace(data, each_teacher=(data.each_teacher[0], Features(data.each_teacher[1].embedding * 1e6)))
    first, second = method(data), method(changed)
    assert {name: x.item() for name, x in first.items()} == {name: x.item() for name, x in second.items()}
    assert all(torch.isfinite(x) for x in first.values())
    if iteration == 50:
        assert first["balance"].item() == pytest.approx(0)
        sum(first.values()).backward()
        assert all(p.grad is None or torch.isfinite(p.grad).all() for p in method.parameters())


def test_impossible_settings_are_refused():
    with pytest.raises(ConfigError, match="top_k: expected at most the 2 teachers, found 3"):
        method_at(0, replace(STAGES, top_k=3))
    with pytest.raises(ConfigError, match="found no third stage"):
        method_at(0, replace(STAGES, adaptation=0.9))


def test_a_run_with_two_teachers_resumes_within_each_stage(two, tmp_path):
    """Of ten steps two are co-training and two adaptation; the specialized teachers are part of the saved state."""
    settings = MSTDistillConfig(co_training=0.2, adaptation=0.2, top_k=2)
    changes = {"method": settings, "teacher": "audio+other"}
    whole = train(config(two.folder, tmp_path / "whole", **changes))
    for stop in (1, 4):
        broken = train(config(two.folder, tmp_path / f"broken{stop}", **changes), stop_after=stop)
        assert same(state(whole), state(resume(broken)))
    weights = state(whole)[0]
    assert weights["teachers.classifiers.0.weight"].shape == (3, 24)
    assert weights["teachers.classifiers.1.weight"].shape == (3, 7)
