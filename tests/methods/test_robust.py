"""Robust distillation: several steps against loops over single clips, whom it doubts, and what it must not look at."""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from avdistill.methods import RobustConfig, Sizes, SupervisedConfig, build_method
from avdistill.methods.robust import label_logits, log_fit
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
    """One clip and one class at a time, in Python's floats."""

    def __init__(self, config, several, classes=C):
        self.config, self.several, self.classes = config, several, range(classes)
        self.heard, self.visits = [0.0 for _ in self.classes], 0
        self.related, self.told = 0.0, 0
        self.judged = {}

    @property
    def share(self):
        return (self.related + 1) / (self.told + 2)

    def probabilities(self, logits, temperature=1.0):
        logits = [z / temperature for z in logits]
        if self.several:
            return [1 / (1 + math.exp(-z)) for z in logits]
        return [math.exp(z) / sum(math.exp(y) for y in logits) for z in logits]

    def usual(self):
        even = 0.5 if self.several else 1 / len(self.classes)
        return [(self.heard[c] + even) / (self.visits + 1) for c in self.classes]

    def label(self, label):
        return [float(x) for x in label] if self.several else [float(c == label) for c in self.classes]

    def fit(self, q, p):
        pi = self.usual()
        if not self.several:
            return sum(q[c] * p[c] / pi[c] for c in self.classes)
        return math.prod(q[c] * p[c] / pi[c] + (1 - q[c]) * (1 - p[c]) / (1 - pi[c]) for c in self.classes)

    def belongs(self, fit):
        return self.share * fit / (self.share * fit + 1 - self.share)

    def pull(self, s, p):
        """The gradient by the student's logits: probability of belonging x (student - what both sides say)."""
        pi, fit = self.usual(), self.fit(s, p)
        both = [s[c] * p[c] / pi[c] for c in self.classes]
        if self.several:
            both = [x / (x + (1 - s[c]) * (1 - p[c]) / (1 - pi[c])) for c, x in enumerate(both)]
        else:
            both = [x / fit for x in both]
        return [self.belongs(fit) * (s[c] - both[c]) for c in self.classes]

    def __call__(self, seen, data):
        """(likelihood, its gradient), by what was heard until this batch."""
        rows = list(zip(seen.logits.tolist(), data.teacher.logits.tolist(), strict=True))
        spoken = [self.probabilities(t, self.config.temperature) for _, t in rows]
        there, labelled = data.has_teacher.tolist(), data.labelled.tolist()
        fits = [
            self.fit(self.label(data.labels[i].tolist()), p) for i, p in enumerate(spoken) if there[i] and labelled[i]
        ]
        related = [self.belongs(fit) for fit in fits]
        unlabelled = sum(not x for x in labelled)
        scale = self.config.weight / unlabelled / (len(self.classes) if self.several else 1)
        loss, gradient = 0.0, []
        for i, (logits, _) in enumerate(rows):
            pull = [0.0 for _ in self.classes]
            if there[i] and not labelled[i]:
                s = self.probabilities(logits)
                loss -= scale * math.log(self.share * self.fit(s, spoken[i]) + 1 - self.share)
                pull = [scale * x for x in self.pull(s, spoken[i])]
                self.judged.setdefault(int(data.indices[i]), []).append(self.belongs(self.fit(s, spoken[i])))
            gradient.append(pull)
        self.related, self.told = self.related + sum(related), self.told + len(related)
        for p, has in zip(spoken, there, strict=True):
            self.visits += has
            self.heard = [h + has * x for h, x in zip(self.heard, p, strict=True)]
        return loss, gradient


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "several_labels"])
@pytest.mark.parametrize("config", [RobustConfig(), RobustConfig(weight=0.7, temperature=2.0)], ids=str)
def test_it_equals_loops_over_single_clips_through_several_steps(config, several):
    method, literal = built(config).double(), Literal(config, several)
    for seed, indices in enumerate(STEPS):
        seen, data = random_batch(indices, seed, several=several)
        seen = Features(seen.embedding, seen.logits.detach().double().requires_grad_())
        data = replace(data, teacher=Features(data.teacher.embedding, data.teacher.logits.double()))
        expected, gradient = literal(seen, data)
        losses = method.losses(seen, data)
        assert value(losses)["likelihood"] == pytest.approx(expected, rel=1e-9)
        (found,) = torch.autograd.grad(losses["likelihood"], seen.logits)
        assert (found - torch.tensor(gradient, dtype=torch.float64)).abs().max() <= 1e-9
        assert found.abs().max() > 1e-3
        assert float(method.sounds.share) == pytest.approx(literal.share, rel=1e-9)
        assert method.sounds.usual(several).tolist() == pytest.approx(literal.usual(), rel=1e-9)
        for clip in range(N):
            past = literal.judged.get(clip, [])
            assert float(method.sounds.visits[clip]) == len(past)
            assert float(method.sounds.judged[clip]) == pytest.approx(sum(past), rel=1e-9)
    assert max(len(past) for past in literal.judged.values()) > 2
    assert literal.told == 11  # visits of labelled clips with a teacher: 0, 3, 6
    assert abs(literal.share - 0.5) > 0.01


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "several_labels"])
def test_doubts_equal_loops_over_single_clips(several):
    config = RobustConfig(temperature=1.5)
    method, literal = built(config).double(), Literal(config, several)
    for seed, indices in enumerate(STEPS):
        seen, data = random_batch(indices, seed, several=several)
        literal(seen, data)
        method.losses(seen, data)
    seen, data = random_batch(list(range(12)), 9, several=several)
    asked = torch.tensor([literal.probabilities(row) for row in seen.logits.tolist()], dtype=torch.float64)
    before = asked.clone()
    outside = torch.arange(12) % 5 == 2  # clips 2 and 7: as if they were not among the training clips
    data = replace(data, indices=data.indices.masked_fill(outside, -1))
    doubts = method.doubts(asked, data)
    assert torch.equal(asked, before)
    del literal.judged[11], literal.judged[2]  # as if never seen without a label, and outside
    method.sounds.visits[11] = method.sounds.judged[11] = 0
    doubts = method.doubts(asked, data)
    for clip in range(12):
        if not data.has_teacher[clip]:
            assert torch.isnan(doubts[clip])
            continue
        if clip in literal.judged and not outside[clip]:
            past = literal.judged[clip]
            assert float(doubts[clip]) == pytest.approx(1 - sum(past) / len(past), abs=1e-6)
            continue
        q = literal.label(data.labels[clip].tolist()) if data.labelled[clip] else asked[clip].tolist()
        fit = literal.fit(q, literal.probabilities(data.teacher.logits[clip].tolist(), 1.5))
        assert float(doubts[clip]) == pytest.approx(1 - literal.belongs(fit), abs=1e-6)


def test_closed_forms():
    usual = torch.tensor([0.5, 0.25, 0.25])
    known = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).log()
    # The usual sound says nothing of the picture; against a label only the label's class counts; excluded is excluded.
    teacher = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]]).log()
    fit = log_fit(known, teacher, usual)
    torch.testing.assert_close(fit.exp(), torch.tensor([1.0, 2.0, 0.0]))
    torch.testing.assert_close(known[1:], label_logits(torch.tensor([1, 0]), 3))
    hot = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert label_logits(hot, 3).sigmoid().tolist() == hot.tolist()
    unsure = torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.6, 0.1]]).logit()
    torch.testing.assert_close(log_fit(unsure, usual.logit().expand(2, 3), usual, True), torch.zeros(2))
    sounds = torch.tensor([[0.8, 0.5, 0.0]]).logit()  # against a label: the product of (p or 1 - p) over that of pi
    expected = torch.tensor([0.2 / 0.5 * 0.5 / 0.25 * 0.0, 0.8 / 0.5 * 0.5 / 0.75 * 1.0 / 0.75])
    torch.testing.assert_close(log_fit(label_logits(hot, 3), sounds.expand(2, 3), usual, True).exp(), expected)


def test_a_sound_at_odds_with_a_sure_student_teaches_nothing():
    """The gradient of plain soft labels stays as large as the disagreement."""
    method = built(RobustConfig())
    data = replace(batch(labelled=[False] * 6), teacher=None)
    sound = 8.0 * F.one_hot(torch.zeros(6, dtype=torch.long), C)
    pulls = []
    for sure in (0.0, 4.0, 8.0, 16.0):
        logits = (sure * F.one_hot(torch.ones(6, dtype=torch.long), C)).float().requires_grad_()
        given = replace(data, teacher=Features(torch.zeros(6, D), sound))
        method.eval().losses(Features(torch.zeros(6, D), logits), given)["likelihood"].backward()
        pulls.append(float(logits.grad.abs().sum()))
    assert pulls == sorted(pulls, reverse=True)
    assert pulls[0] > 0.5
    assert pulls[-1] < 1e-3


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
    assert float(method.sounds.share) == pytest.approx(0.6, abs=0.06)
    seen = torch.stack(views).mean(0)
    doubts = method.doubts(torch.full(hot.shape, 1 / classes), everything)
    for rows in (labelled, ~labelled):
        assert roc_auc_score(swapped[rows], doubts[rows]) > 0.9
        assert doubts[rows & swapped].mean() > 0.5 > doubts[rows & ~swapped].mean()
    strange = replace(everything, labelled=torch.zeros_like(labelled), indices=torch.full((clips,), -1))
    assert roc_auc_score(swapped, method.doubts(seen, strange)) > 0.9
    blind = method.doubts(torch.full(hot.shape, 0.5 if several else 1 / classes), strange)
    assert roc_auc_score(swapped, blind) < 0.7  # without the student there is nothing to doubt by


def test_with_every_label_it_is_supervised():
    ours, plain = built(RobustConfig()), built(SupervisedConfig())
    for _ in range(3):
        data = batch()
        losses, expected = ours(data), plain(data)
        assert losses["likelihood"].requires_grad
        assert value(losses) == {**value(expected), "likelihood": 0}
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
        assert seen.logits.grad.abs().max() > 0.01
    assert float(method.sounds.share) == 0.5
    assert value(losses)["classification"] == 0


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "several_labels"])
def test_what_means_nothing_changes_nothing(several):
    first, second = built(RobustConfig()), built(RobustConfig())
    for seed, indices in enumerate(STEPS):
        seen, data = random_batch(indices, seed, several=several)
        logits, labels = data.teacher.logits.clone(), data.labels.clone()
        logits[~data.has_teacher] = torch.nan
        labels[~data.labelled] = torch.nan if several else -1
        other = replace(data, labels=labels, teacher=replace(data.teacher, logits=logits))
        losses = value(first.losses(seen, data))
        assert value(second.losses(seen, other)) == losses
    assert losses["likelihood"] != 0
    for (name, x), (_, y) in zip(first.sounds.named_buffers(), second.sounds.named_buffers(), strict=True):
        assert torch.equal(x, y), name


def test_evaluation_remembers_nothing():
    method = built(RobustConfig())
    for seed, indices in enumerate(STEPS):
        method.losses(*random_batch(indices, seed))
    before = {name: x.clone() for name, x in method.sounds.named_buffers()}
    seen, data = random_batch(STEPS[0], 9)
    evaluated = value(method.eval().losses(seen, data))
    method.doubts(seen.logits.detach().softmax(1), data)
    assert all(torch.equal(x, before[n]) for n, x in method.sounds.named_buffers())
    assert value(method.train().losses(seen, data)) == evaluated
    assert all(not torch.equal(x, before[name]) for name, x in method.sounds.named_buffers())


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
            said = logits.detach().sigmoid() if several else logits.detach().softmax(1)
            doubts = method.doubts(said, replace(data, teacher=teacher))
            assert torch.isfinite(doubts[data.has_teacher]).all()
    assert all(torch.isfinite(values).all() for values in method.sounds.buffers())
    assert 0 < float(method.sounds.share) < 1


def test_mistakes_have_clear_errors():
    with pytest.raises(ValueError, match=r"Batch\.indices"):
        built(RobustConfig())(replace(batch(), indices=None))
    with pytest.raises(ValueError, match="number of training clips"):
        build_method(RobustConfig(), student(), Sizes(C, teacher_dim=D))
