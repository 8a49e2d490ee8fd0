"""Robust distillation: several steps against loops over single clips, whom it doubts, and what it must not look at."""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from avdistill.methods import RobustConfig, Sizes, SupervisedConfig, build_method
from avdistill.methods.robust import agreement, belonging, certainty
from avdistill.types import Batch, Features
from method_cases import C, D, N, batch, built, student

# Of 12 clips: every third is labelled, every fourth has no teacher. Clips 2 and 0 come twice in the third batch, 5 (no
# teacher), 9 (labelled, no teacher) and 11 (never seen before) in the fourth.
STEPS = [
    [0, 1, 2, 3, 4, 5, 6, 7],
    [8, 9, 2, 1, 0, 6, 10, 3],
    [2, 4, 5, 0, 7, 2, 1, 0],
    [5, 5, 9, 9, 11, 11, 2, 8],
    [3, 6, 4, 7, 10, 11, 2, 0],
]


def random_batch(indices, seed, *, several=False, classes=C):
    """Labels and teachers are the clips' own, the student's logits those of this visit."""
    generator = torch.Generator().manual_seed(7)
    teacher = 2 * torch.randn(12, classes, generator=generator)
    labels = torch.randint(0, classes, (12,), generator=generator)
    hot = (torch.rand(12, classes, generator=generator) < 0.4).float()
    rows = torch.tensor(indices)
    visit = torch.Generator().manual_seed(100 + seed)
    logits = torch.randn(len(rows), classes, generator=visit) + 2 * F.one_hot(labels, classes)[rows]
    data = Batch(
        labels=(hot if several else labels)[rows],
        labelled=rows % 3 == 0,
        has_teacher=rows % 4 != 1,
        clip_ids=tuple(map(str, indices)),
        teacher=Features(embedding=torch.zeros(len(rows), D), logits=teacher[rows]),
        indices=rows,
    )
    return Features(embedding=torch.zeros(len(rows), D), logits=logits.requires_grad_()), data


def value(losses):
    return {name: float(loss.detach()) for name, loss in losses.items()}


class Literal:
    """One clip and one class at a time, in Python's floats, with the history of every clip instead of a mean."""

    def __init__(self, config, several, classes=C):
        self.config, self.several, self.classes = config, several, range(classes)
        self.history, self.fits, self.share = {}, {}, 0.5
        self.heard, self.visits = [0.0 for _ in self.classes], 0

    def probabilities(self, logits):
        if self.several:
            return [1 / (1 + math.exp(-z)) for z in logits]
        return [math.exp(z) / sum(math.exp(y) for y in logits) for z in logits]

    def usual(self):
        even = 0.5 if self.several else 1 / len(self.classes)
        return [(self.heard[c] + even) / (self.visits + 1) for c in self.classes]

    def mean(self, clip):
        """Visits weigh momentum^age."""
        weights = [self.config.momentum**age for age in reversed(range(len(self.history[clip])))]
        pairs = list(zip(weights, self.history[clip], strict=True))
        return [sum(w * p[c] for w, p in pairs) / sum(weights) for c in self.classes]

    def sharpened(self, q):
        g = self.config.sharpening
        if self.several:
            return [x**g / (x**g + (1 - x) ** g) for x in q]
        return [x**g / sum(y**g for y in q) for x in q]

    def label(self, label):
        return [float(x) for x in label] if self.several else [float(c == label) for c in self.classes]

    def judge(self, q, p):
        """(fit, what both sides say)."""
        pi = self.usual()
        if not self.several:
            fit = sum(q[c] * p[c] / pi[c] for c in self.classes)
            return fit, [q[c] * p[c] / pi[c] / fit for c in self.classes]
        fit, both = 1.0, []
        for c in self.classes:
            yes, no = q[c] * p[c] / pi[c], (1 - q[c]) * (1 - p[c]) / (1 - pi[c])
            fit *= yes + no
            both.append(yes / (yes + no))
        return fit, both

    def belongs(self, fit):
        return self.share * fit / (self.share * fit + 1 - self.share)

    def sure(self, q):
        """One number for each class: the same for all where a clip has one label."""
        if self.several:
            return [1 + sum(x * math.log(x) for x in (y, 1 - y) if x > 0) / math.log(2) for y in q]
        entropy = -sum(x * math.log(x) for x in q if x > 0)
        return [1 - entropy / math.log(len(q)) for _ in q]

    def surprise(self, logits, target, weights):
        p = self.probabilities(logits)
        if not self.several:
            return -weights[0] * sum(target[c] * math.log(p[c]) for c in self.classes)
        terms = [-t * math.log(x) - (1 - t) * math.log(1 - x) for t, x in zip(target, p, strict=True)]
        return sum(w * term for w, term in zip(weights, terms, strict=True)) / len(p)

    def __call__(self, seen, data):
        """({"both", "own"}, gradient of their sum); then remembers."""
        unlabelled = sum(not x for x in data.labelled.tolist())
        losses, gradient, fits = {"both": 0.0, "own": 0.0}, [], []
        rows = list(zip(seen.logits.tolist(), data.teacher.logits.tolist(), data.indices.tolist(), strict=True))
        for i, (logits, spoken, clip) in enumerate(rows):
            p, t = self.probabilities(logits), self.probabilities(spoken)
            row = [0.0 for _ in self.classes]
            gradient.append(row)
            if data.labelled[i]:
                fits.append(self.judge(self.label(data.labels[i].tolist()), t)[0])
                continue
            fits.append(None)
            if clip in self.history:
                q = self.sharpened(self.mean(clip))
                fit, both = self.judge(q, t)
                sure = self.sure(q)
            else:
                q, fit, both, sure = t, 1.0, t, [0.0 for _ in t]
            belongs = self.belongs(fit) if data.has_teacher[i] else 0.0
            for name, target, weights in (
                ("both", both, [self.config.weight * belongs for _ in t]),
                ("own", q, [self.config.own_weight * (1 - belongs) * s for s in sure]),
            ):
                losses[name] += self.surprise(logits, target, weights) / unlabelled
                for c in self.classes:
                    share = len(self.classes) if self.several else 1
                    row[c] += weights[c] * (p[c] - target[c]) / share / unlabelled
        self.remember(rows, data, fits)
        return losses, gradient

    def remember(self, rows, data, fits):
        done = set()
        for i, (logits, spoken, clip) in enumerate(rows):
            if data.has_teacher[i]:
                self.visits += 1
                for c, x in enumerate(self.probabilities(spoken)):
                    self.heard[c] += x
            if clip in done:
                continue
            done.add(clip)
            self.history.setdefault(clip, []).append(self.probabilities(logits))
            if data.has_teacher[i] and data.labelled[i]:
                self.fits[clip] = fits[i]
        for _ in range(5):
            self.share = (sum(self.belongs(fit) for fit in self.fits.values()) + 1) / (len(self.fits) + 2)


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "several_labels"])
@pytest.mark.parametrize(
    "config", [RobustConfig(), RobustConfig(momentum=0.6, sharpening=3.0, weight=0.7, own_weight=0.3)], ids=str
)
def test_it_equals_loops_over_single_clips_through_several_steps(config, several):
    method, literal = built(config).double(), Literal(config, several)
    for seed, indices in enumerate(STEPS):
        seen, data = random_batch(indices, seed, several=several)
        expected, gradient = literal(seen, data)
        losses = method.losses(seen, data)
        ours = value(losses)
        assert {name: ours[name] for name in expected} == pytest.approx(expected, rel=1e-7, abs=1e-9)
        (found,) = torch.autograd.grad(losses["both"] + losses["own"], seen.logits)
        assert (found - torch.tensor(gradient)).abs().max() <= 1e-6  # float32 logits
        assert float(method.memory.share) == pytest.approx(literal.share, rel=1e-7)
        assert method.memory.usual(several).tolist() == pytest.approx(literal.usual(), rel=1e-7)
        for clip in range(N):
            past = literal.history.get(clip, [])
            assert float(method.memory.visits[clip]) == len(past)
            scale = 1 - config.momentum ** len(past)
            mean = [scale * x for x in literal.mean(clip)] if past else [0.0] * C
            assert method.memory.belief[clip].tolist() == pytest.approx(mean, abs=1e-8)
            fit = float(method.memory.labelled_fit[clip])
            assert fit == pytest.approx(literal.fits.get(clip, math.nan), rel=1e-7, nan_ok=True)
    assert len(literal.fits) == 3  # labelled clips with a teacher: 0, 3, 6
    assert literal.share != 0.5
    assert min(expected.values()) > 0.01


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "several_labels"])
def test_doubts_equal_loops_over_single_clips(several):
    config = RobustConfig()
    method, literal = built(config).double(), Literal(config, several)
    for seed, indices in enumerate(STEPS):
        seen, data = random_batch(indices, seed, several=several)
        literal(seen, data)
        method.losses(seen, data)
    seen, data = random_batch(list(range(12)), 9, several=several)
    outside = torch.arange(12) % 5 == 2  # clips 2 and 7: as if they were not among the training clips
    asked = torch.tensor([literal.probabilities(row) for row in seen.logits.tolist()], dtype=torch.float64)
    doubts = method.doubts(asked, replace(data, indices=data.indices.masked_fill(outside, -1)))
    for clip in range(12):
        if not data.has_teacher[clip]:
            assert torch.isnan(doubts[clip])
            continue
        if data.labelled[clip]:
            q = literal.label(data.labels[clip].tolist())
        else:
            q = literal.sharpened(asked[clip].tolist() if outside[clip] else literal.mean(clip))
        fit, _ = literal.judge(q, literal.probabilities(data.teacher.logits[clip].tolist()))
        assert float(doubts[clip]) == pytest.approx(1 - literal.belongs(fit), abs=1e-6)


def test_closed_forms():
    usual = torch.tensor([0.5, 0.25, 0.25])
    known = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]])
    # The usual sound says nothing of the picture; against a label only the label's class counts; excluded is excluded.
    teacher = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]])
    fit, both = agreement(known=known, teacher=teacher, usual=usual)
    torch.testing.assert_close(fit, torch.tensor([1.0, 2.0, 0.0]))
    torch.testing.assert_close(both, torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [0.0, 0.0, 0.0]]))
    fit, both = agreement(known=known[:2], teacher=usual.expand(2, 3), usual=usual, several_labels=True)
    torch.testing.assert_close(fit, torch.ones(2))
    torch.testing.assert_close(both, known[:2])
    share = torch.tensor(0.3)
    torch.testing.assert_close(belonging(torch.tensor([0.0, 1.0, 7.0]), share), torch.tensor([0.0, 0.3, 0.75]))
    for several, rows in ((False, [[0.25] * 4, [0.0, 1.0, 0.0, 0.0]]), (True, [[0.5] * 4, [1.0, 0.0, 0.0, 1.0]])):
        nothing, all_ = certainty(torch.tensor(rows), several)
        assert nothing.abs().max() <= 1e-6
        assert (all_ - 1).abs().max() <= 1e-6


def simulated(several, clips=600, classes=8):
    """(labels, labelled, swapped, teacher's logits): two clips of five have the sound of a clip of other classes."""
    generator = torch.Generator().manual_seed(3)
    hot = F.one_hot(torch.randint(0, classes, (clips,), generator=generator), classes)
    if several:
        hot = hot | (torch.rand(clips, classes, generator=generator) < 0.3)
    swapped, labelled = torch.arange(clips) % 5 < 2, torch.arange(clips) % 3 == 0
    shift = torch.randint(1, classes, (clips,), generator=generator)
    source = torch.stack([row.roll(int(s)) for row, s in zip(hot, shift, strict=True)])
    sound = torch.where(swapped[:, None], source, hot)
    teacher = 3 * (2 * sound - 1) + torch.randn(clips, classes, generator=generator)
    return hot, labelled, swapped, teacher


def looks(hot, several, generator):
    """A student's logits of one visit: of a clip right 60 % of the time, of a yes or no 80 %."""
    clips, classes = hot.shape
    if several:
        right = torch.rand(hot.shape, generator=generator) < 0.8
        return 2.0 * torch.where(right, 2 * hot - 1, 1 - 2 * hot)
    right = torch.rand(clips, generator=generator) < 0.6
    guess = torch.where(right, hot.argmax(1), torch.randint(0, classes, (clips,), generator=generator))
    return 2.0 * F.one_hot(guess, classes)


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "several_labels"])
def test_sounds_of_other_clips_are_doubted(several):
    hot, labelled, swapped, teacher = simulated(several)
    clips, classes = hot.shape
    labels = hot.float() if several else hot.argmax(1)
    everything = Batch(
        labels=torch.where(labelled[:, None], labels, torch.nan) if several else labels.masked_fill(~labelled, -1),
        labelled=labelled,
        has_teacher=torch.ones(clips, dtype=torch.bool),
        clip_ids=(),
        teacher=Features(embedding=torch.zeros(clips, D), logits=teacher),
        indices=torch.arange(clips),
    )
    method = build_method(RobustConfig(), student(), Sizes(classes, teacher_dim=D, training_clips=clips))
    generator, views = torch.Generator().manual_seed(4), []
    for _ in range(12):
        logits = looks(hot, several, generator)
        views.append(logits.sigmoid() if several else logits.softmax(1))
        for rows in torch.randperm(clips, generator=generator).split(100):
            method.losses(Features(torch.zeros(100, D), logits[rows]), everything.map(lambda x, r=rows: x[r]))
    assert float(method.memory.share) == pytest.approx(0.6, abs=0.06)
    doubts = method.doubts(torch.full(hot.shape, 1 / classes), everything)
    for rows in (labelled, ~labelled):
        assert roc_auc_score(swapped[rows], doubts[rows]) > 0.9
        assert doubts[rows & swapped].mean() > 0.5 > doubts[rows & ~swapped].mean()
    # Clips of a test split: no label, nothing remembered, several views of them.
    strange = replace(everything, labelled=torch.zeros_like(labelled), indices=torch.full((clips,), -1))
    assert roc_auc_score(swapped, method.doubts(torch.stack(views).mean(0), strange)) > 0.9
    blind = method.doubts(torch.full(hot.shape, 0.5 if several else 1 / classes), strange)
    assert roc_auc_score(swapped, blind) < 0.7  # without the student there is nothing to doubt by


def test_a_first_visit_is_soft_labels_at_even_odds():
    method = built(RobustConfig(weight=0.8))
    seen, data = random_batch([2, 4, 7], 0)
    losses = value(method.losses(seen, data))
    teacher = F.cross_entropy(seen.logits.detach(), data.teacher.logits.softmax(1))
    assert losses == pytest.approx({"classification": 0, "both": 0.8 * 0.5 * float(teacher), "own": 0})


def test_with_every_label_it_is_supervised():
    ours, plain = built(RobustConfig()), built(SupervisedConfig())
    for _ in range(3):
        data = batch()
        losses, expected = ours(data), plain(data)
        assert losses["both"].requires_grad
        assert losses["own"].requires_grad
        assert value(losses) == {**value(expected), "both": 0, "own": 0}
        sum(losses.values()).backward()
        sum(expected.values()).backward()
    for p, q in zip(ours.student.parameters(), plain.student.parameters(), strict=True):
        assert torch.equal(p.grad, q.grad)


def test_without_any_label_the_share_stays_even():
    method = built(RobustConfig())
    for seed, indices in enumerate(STEPS):
        seen, data = random_batch(indices, seed)
        losses = method.losses(seen, replace(data, labelled=torch.zeros_like(data.labelled)))
        sum(losses.values()).backward()
        assert torch.isfinite(seen.logits.grad).all()
    assert float(method.memory.share) == 0.5
    assert value(losses)["classification"] == 0
    assert min(value(losses)[name] for name in ("both", "own")) > 0


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "several_labels"])
def test_what_means_nothing_changes_nothing(several):
    first, second = built(RobustConfig()), built(RobustConfig())
    for seed, indices in enumerate(STEPS):
        seen, data = random_batch(indices, seed, several=several)
        logits, labels = data.teacher.logits.clone(), data.labels.clone()
        logits[~data.has_teacher] = 1e6
        labels[~data.labelled] = torch.nan if several else -1
        other = replace(data, labels=labels, teacher=replace(data.teacher, logits=logits))
        losses = value(first.losses(seen, data))
        assert value(second.losses(seen, other)) == losses
    assert losses["own"] > 0
    for (name, x), (_, y) in zip(first.memory.named_buffers(), second.memory.named_buffers(), strict=True):
        assert torch.equal(x.nan_to_num(-1), y.nan_to_num(-1)), name


def test_evaluation_leaves_the_memory_alone():
    method = built(RobustConfig())
    for seed, indices in enumerate(STEPS):
        method.losses(*random_batch(indices, seed))
    before = {name: x.clone() for name, x in method.memory.named_buffers()}
    seen, data = random_batch(STEPS[0], 9)
    evaluated = value(method.eval().losses(seen, data))
    method.doubts(seen.logits.detach().softmax(1), data)
    assert all(torch.equal(x.nan_to_num(-1), before[n].nan_to_num(-1)) for n, x in method.memory.named_buffers())
    assert value(method.train().losses(seen, data)) == evaluated
    assert all(not torch.equal(x, before[name]) for name, x in method.memory.named_buffers())


def test_a_resumed_run_goes_on_bit_equal():
    straight, resumed = built(RobustConfig()), built(RobustConfig())
    for seed, indices in enumerate(STEPS[:3]):
        straight.losses(*random_batch(indices, seed))
    resumed.load_state_dict(straight.state_dict())
    for seed, indices in enumerate(STEPS[2:], start=3):
        assert value(straight.losses(*random_batch(indices, seed))) == value(
            resumed.losses(*random_batch(indices, seed))
        )


@pytest.mark.parametrize("loud", [1e4, -1e4])
@pytest.mark.parametrize("spoken", [1e4, -1e4, 0.0])
@pytest.mark.parametrize(("classes", "several"), [(1, False), (1, True), (4, False), (4, True)])
def test_extremes_are_finite(classes, several, spoken, loud):
    method = build_method(RobustConfig(), student(), Sizes(classes, teacher_dim=D, training_clips=N))
    for one in (False, True, False, True):  # of one class, then of all
        for seed, indices in enumerate(STEPS[:2]):
            seen, data = random_batch(indices, seed, several=several, classes=classes)
            mask = F.one_hot(torch.tensor(indices) % classes, classes) if one else 1
            logits = (torch.zeros_like(seen.logits) + loud * mask).detach().requires_grad_()
            teacher = replace(data.teacher, logits=torch.zeros_like(logits.detach()) + spoken * mask)
            losses = method.losses(replace(seen, logits=logits), replace(data, teacher=teacher))
            assert all(math.isfinite(x) for x in value(losses).values())
            sum(losses.values()).backward()
            assert torch.isfinite(logits.grad).all()
    for name, values in method.memory.named_buffers():
        assert torch.isfinite(values).all() or name == "labelled_fit"
    assert 0 < float(method.memory.share) < 1


def test_mistakes_have_clear_errors():
    with pytest.raises(ValueError, match=r"Batch\.indices"):
        built(RobustConfig())(replace(batch(), indices=None))
    with pytest.raises(ValueError, match="number of training clips"):
        build_method(RobustConfig(), student(), Sizes(C, teacher_dim=D))
