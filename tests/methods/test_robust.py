"""Robust distillation: several steps against loops over single clips, whom it mismatch_probability, and what it must
not look at.
"""

import math
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import roc_auc_score
from torch.nn import functional as F

from avdistill.methods import MethodContext, build_method
from avdistill.methods.noise_model import label_logits, log_likelihood_ratio
from avdistill.methods.robust import RobustConfig
from avdistill.methods.supervised import SupervisedConfig
from avdistill.types import Batch, Features
from support.method_cases import C, D, N, batch, built, step, student

# Of 12 clips: every third is labeled, every fourth has no teacher. Clips 2 and 0 come twice in the third batch, 5 (no
# teacher), 9 (labeled, no teacher) and 11 (never seen before) in the fourth.
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
        labeled=rows % 3 == 0,
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
        self.prior_counts, self.visits = [0.0 for _ in self.classes], 0
        self.clean_counts, self.told = 0.0, 0
        self.posterior_sum = {}

    @property
    def share(self):
        return (self.clean_counts + 1) / (self.told + 2)

    def probabilities(self, logits, temperature=1.0):
        logits = [z / temperature for z in logits]
        if self.several:
            return [1 / (1 + math.exp(-z)) for z in logits]
        return [math.exp(z) / sum(math.exp(y) for y in logits) for z in logits]

    def class_prior(self):
        even = 0.5 if self.several else 1 / len(self.classes)
        return [(self.prior_counts[c] + even) / (self.visits + 1) for c in self.classes]

    def label(self, label):
        return [float(x) for x in label] if self.several else [float(c == label) for c in self.classes]

    def log_ratio(self, q, p):
        pi = self.class_prior()
        if not self.several:
            return sum(q[c] * p[c] / pi[c] for c in self.classes)
        return math.prod(q[c] * p[c] / pi[c] + (1 - q[c]) * (1 - p[c]) / (1 - pi[c]) for c in self.classes)

    def belongs(self, log_ratio):
        return self.share * log_ratio / (self.share * log_ratio + 1 - self.share)

    def pull(self, s, p):
        """The gradient by the student's logits: probability of belonging x (student - what both sides say)."""
        pi, log_ratio = self.class_prior(), self.log_ratio(s, p)
        both = [s[c] * p[c] / pi[c] for c in self.classes]
        if self.several:
            both = [x / (x + (1 - s[c]) * (1 - p[c]) / (1 - pi[c])) for c, x in enumerate(both)]
        else:
            both = [x / log_ratio for x in both]
        return [self.belongs(log_ratio) * (s[c] - both[c]) for c in self.classes]

    def __call__(self, seen, data):
        """(likelihood, its gradient), by what was prior_counts until this batch."""
        rows = list(zip(seen.logits.tolist(), data.teacher.logits.tolist(), strict=True))
        spoken = [self.probabilities(t, self.config.temperature) for _, t in rows]
        there, labeled = data.has_teacher.tolist(), data.labeled.tolist()
        fits = [
            self.log_ratio(self.label(data.labels[i].tolist()), p)
            for i, p in enumerate(spoken)
            if there[i] and labeled[i]
        ]
        clean_counts = [self.belongs(log_ratio) for log_ratio in fits]
        unlabeled = sum(not x for x in labeled)
        scale = self.config.weight / unlabeled / (len(self.classes) if self.several else 1)
        loss, gradient = 0.0, []
        for i, (logits, _) in enumerate(rows):
            pull = [0.0 for _ in self.classes]
            if there[i] and not labeled[i]:
                s = self.probabilities(logits)
                loss -= scale * math.log(self.share * self.log_ratio(s, spoken[i]) + 1 - self.share)
                pull = [scale * x for x in self.pull(s, spoken[i])]
                self.posterior_sum.setdefault(int(data.indices[i]), []).append(
                    self.belongs(self.log_ratio(s, spoken[i]))
                )
            gradient.append(pull)
        self.clean_counts, self.told = self.clean_counts + sum(clean_counts), self.told + len(clean_counts)
        for p, has in zip(spoken, there, strict=True):
            self.visits += has
            self.prior_counts = [h + has * x for h, x in zip(self.prior_counts, p, strict=True)]
        return loss, gradient


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "multi_label"])
@pytest.mark.parametrize("config", [RobustConfig(), RobustConfig(weight=0.7, temperature=2.0)], ids=str)
def test_it_equals_loops_over_single_clips_through_several_steps(config, several):
    method, literal = built(config).double(), Literal(config, several)
    for seed, indices in enumerate(STEPS):
        seen, data = random_batch(indices, seed, several=several)
        seen = Features(seen.embedding, seen.logits.detach().double().requires_grad_())
        data = replace(data, teacher=Features(data.teacher.embedding, data.teacher.logits.double()))
        expected, gradient = literal(seen, data)
        losses = step(method, seen, data)
        assert value(losses)["likelihood"] == pytest.approx(expected, rel=1e-9)
        (found,) = torch.autograd.grad(losses["likelihood"], seen.logits)
        assert (found - torch.tensor(gradient, dtype=torch.float64)).abs().max() <= 1e-9
        assert found.abs().max() > 1e-3
        assert float(method.noise_model.clean_rate) == pytest.approx(literal.share, rel=1e-9)
        assert method.noise_model.class_prior(several).tolist() == pytest.approx(literal.class_prior(), rel=1e-9)
        for clip in range(N):
            past = literal.posterior_sum.get(clip, [])
            assert float(method.noise_model.visits[clip]) == len(past)
            assert float(method.noise_model.posterior_sum[clip]) == pytest.approx(sum(past), rel=1e-9)
    assert max(len(past) for past in literal.posterior_sum.values()) > 2
    assert literal.told == 11  # visits of labeled clips with a teacher: 0, 3, 6
    assert abs(literal.share - 0.5) > 0.01


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "multi_label"])
def test_mismatch_probability_equal_loops_over_single_clips(several):
    config = RobustConfig(temperature=1.5)
    method, literal = built(config).double(), Literal(config, several)
    for seed, indices in enumerate(STEPS):
        seen, data = random_batch(indices, seed, several=several)
        literal(seen, data)
        step(method, seen, data)
    seen, data = random_batch(list(range(12)), 9, several=several)
    asked = torch.tensor([literal.probabilities(row) for row in seen.logits.tolist()], dtype=torch.float64)
    before = asked.clone()
    outside = torch.arange(12) % 5 == 2  # clips 2 and 7: as if they were not among the training clips
    data = replace(data, indices=data.indices.masked_fill(outside, -1))
    mismatch_probability = method.noise_model.mismatch_probability(asked, data)
    assert torch.equal(asked, before)
    del literal.posterior_sum[11], literal.posterior_sum[2]  # as if never seen without a label, and outside
    method.noise_model.visits[11] = method.noise_model.posterior_sum[11] = 0
    mismatch_probability = method.noise_model.mismatch_probability(asked, data)
    for clip in range(12):
        if not data.has_teacher[clip]:
            assert torch.isnan(mismatch_probability[clip])
            continue
        if clip in literal.posterior_sum and not outside[clip]:
            past = literal.posterior_sum[clip]
            assert float(mismatch_probability[clip]) == pytest.approx(1 - sum(past) / len(past), abs=1e-6)
            continue
        q = literal.label(data.labels[clip].tolist()) if data.labeled[clip] else asked[clip].tolist()
        log_ratio = literal.log_ratio(q, literal.probabilities(data.teacher.logits[clip].tolist(), 1.5))
        assert float(mismatch_probability[clip]) == pytest.approx(1 - literal.belongs(log_ratio), abs=1e-6)


def test_closed_forms():
    class_prior = torch.tensor([0.5, 0.25, 0.25])
    class_logits = torch.tensor([[0.2, 0.3, 0.5], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]).log()
    # The class_prior audio says nothing of the video; against a label only the label's class counts; excluded is
    # excluded.
    teacher = torch.tensor([[0.5, 0.25, 0.25], [0.2, 0.5, 0.3], [0.0, 0.4, 0.6]]).log()
    log_ratio = log_likelihood_ratio(class_logits, teacher, class_prior)
    torch.testing.assert_close(log_ratio.exp(), torch.tensor([1.0, 2.0, 0.0]))
    torch.testing.assert_close(class_logits[1:], label_logits(torch.tensor([1, 0]), 3))
    hot = torch.tensor([[0.0, 1.0, 1.0], [1.0, 0.0, 0.0]])
    assert label_logits(hot, 3).sigmoid().tolist() == hot.tolist()
    unsure = torch.tensor([[0.2, 0.3, 0.5], [0.9, 0.6, 0.1]]).logit()
    torch.testing.assert_close(
        log_likelihood_ratio(unsure, class_prior.logit().expand(2, 3), class_prior, True), torch.zeros(2)
    )
    noise_model = torch.tensor(
        [[0.8, 0.5, 0.0]]
    ).logit()  # against a label: the product of (p or 1 - p) over that of pi
    expected = torch.tensor([0.2 / 0.5 * 0.5 / 0.25 * 0.0, 0.8 / 0.5 * 0.5 / 0.75 * 1.0 / 0.75])
    torch.testing.assert_close(
        log_likelihood_ratio(label_logits(hot, 3), noise_model.expand(2, 3), class_prior, True).exp(), expected
    )


def test_a_audio_at_odds_with_a_sure_student_teaches_nothing():
    """The gradient of plain soft labels stays as large as the disagreement."""
    method = built(RobustConfig())
    data = replace(batch(labeled=[False] * 6), teacher=None)
    audio = 8.0 * F.one_hot(torch.zeros(6, dtype=torch.long), C)
    pulls = []
    for sure in (0.0, 4.0, 8.0, 16.0):
        logits = (sure * F.one_hot(torch.ones(6, dtype=torch.long), C)).float().requires_grad_()
        given = replace(data, teacher=Features(torch.zeros(6, D), audio))
        method.eval().losses(Features(torch.zeros(6, D), logits), given)["likelihood"].backward()
        pulls.append(float(logits.grad.abs().sum()))
    assert pulls == sorted(pulls, reverse=True)
    assert pulls[0] > 0.5
    assert pulls[-1] < 1e-3


def simulated(several, clips=600, classes=8):
    """(labels, labeled, swapped, teacher's logits): two clips of five have the audio of a clip of other classes."""
    generator = torch.Generator().manual_seed(3)
    hot = F.one_hot(torch.randint(0, classes, (clips,), generator=generator), classes)
    if several:
        hot = hot | (torch.rand(clips, classes, generator=generator) < 0.3)
    swapped, labeled = torch.arange(clips) % 5 < 2, torch.arange(clips) % 3 == 0
    shift = torch.randint(1, classes, (clips,), generator=generator)
    source = torch.stack([row.roll(int(s)) for row, s in zip(hot, shift, strict=True)])
    audio = torch.where(swapped[:, None], source, hot)
    teacher = 3 * (2 * audio - 1) + torch.randn(clips, classes, generator=generator)
    return hot, labeled, swapped, teacher


def looks(hot, several, generator):
    """A student's logits of one visit: of a clip right 60 % of the time, of a yes or no 80 %."""
    clips, classes = hot.shape
    if several:
        right = torch.rand(hot.shape, generator=generator) < 0.8
        return 2.0 * torch.where(right, 2 * hot - 1, 1 - 2 * hot)
    right = torch.rand(clips, generator=generator) < 0.6
    guess = torch.where(right, hot.argmax(1), torch.randint(0, classes, (clips,), generator=generator))
    return 2.0 * F.one_hot(guess, classes)


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "multi_label"])
def test_audio_of_other_clips_are_doubted(several):
    hot, labeled, swapped, teacher = simulated(several)
    clips, classes = hot.shape
    labels = hot.float() if several else hot.argmax(1)
    everything = Batch(
        labels=torch.where(labeled[:, None], labels, torch.nan) if several else labels.masked_fill(~labeled, -1),
        labeled=labeled,
        has_teacher=torch.ones(clips, dtype=torch.bool),
        clip_ids=(),
        teacher=Features(embedding=torch.zeros(clips, D), logits=teacher),
        indices=torch.arange(clips),
    )
    method = build_method(RobustConfig(), student(), MethodContext(classes, teacher_dim=D, training_clips=clips))
    generator, views = torch.Generator().manual_seed(4), []
    for _ in range(12):
        logits = looks(hot, several, generator)
        views.append(logits.sigmoid() if several else logits.softmax(1))
        for rows in torch.randperm(clips, generator=generator).split(100):
            step(method, Features(torch.zeros(100, D), logits[rows]), everything.map(lambda x, r=rows: x[r]))
    assert float(method.noise_model.clean_rate) == pytest.approx(0.6, abs=0.06)
    seen = torch.stack(views).mean(0)
    mismatch_probability = method.noise_model.mismatch_probability(torch.full(hot.shape, 1 / classes), everything)
    for rows in (labeled, ~labeled):
        assert roc_auc_score(swapped[rows], mismatch_probability[rows]) > 0.9
        assert mismatch_probability[rows & swapped].mean() > 0.5 > mismatch_probability[rows & ~swapped].mean()
    strange = replace(everything, labeled=torch.zeros_like(labeled), indices=torch.full((clips,), -1))
    assert roc_auc_score(swapped, method.noise_model.mismatch_probability(seen, strange)) > 0.9
    blind = method.noise_model.mismatch_probability(torch.full(hot.shape, 0.5 if several else 1 / classes), strange)
    assert roc_auc_score(swapped, blind) < 0.7  # without the student there is nothing to mismatch_probability by


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
        losses = step(method, seen, replace(data, labeled=torch.zeros_like(data.labeled)))
        sum(losses.values()).backward()
        assert torch.isfinite(seen.logits.grad).all()
        assert seen.logits.grad.abs().max() > 0.01
    assert float(method.noise_model.clean_rate) == 0.5
    assert value(losses)["classification"] == 0


@pytest.mark.parametrize("several", [False, True], ids=["one_label", "multi_label"])
def test_what_means_nothing_changes_nothing(several):
    first, second = built(RobustConfig()), built(RobustConfig())
    for seed, indices in enumerate(STEPS):
        seen, data = random_batch(indices, seed, several=several)
        logits, labels = data.teacher.logits.clone(), data.labels.clone()
        logits[~data.has_teacher] = torch.nan
        labels[~data.labeled] = torch.nan if several else -1
        other = replace(data, labels=labels, teacher=replace(data.teacher, logits=logits))
        losses = value(step(first, seen, data))
        assert value(step(second, seen, other)) == losses
    assert losses["likelihood"] != 0
    for (name, x), (_, y) in zip(first.noise_model.named_buffers(), second.noise_model.named_buffers(), strict=True):
        assert torch.equal(x, y), name


def test_evaluation_remembers_nothing():
    method = built(RobustConfig())
    for seed, indices in enumerate(STEPS):
        step(method, *random_batch(indices, seed))
    before = {name: x.clone() for name, x in method.noise_model.named_buffers()}
    seen, data = random_batch(STEPS[0], 9)
    evaluated = value(method.eval().losses(seen, data))
    method.noise_model.mismatch_probability(seen.logits.detach().softmax(1), data)
    assert all(torch.equal(x, before[n]) for n, x in method.noise_model.named_buffers())
    assert value(step(method.train(), seen, data)) == evaluated
    assert all(not torch.equal(x, before[name]) for name, x in method.noise_model.named_buffers())


def test_a_resumed_run_goes_on_bit_equal():
    straight, resumed = built(RobustConfig()), built(RobustConfig())
    for seed, indices in enumerate(STEPS[:3]):
        step(straight, *random_batch(indices, seed))
    resumed.load_state_dict(straight.state_dict())
    for seed, indices in enumerate(STEPS[2:], start=3):
        assert value(step(straight, *random_batch(indices, seed))) == value(step(resumed, *random_batch(indices, seed)))


@pytest.mark.parametrize("loud", [1e4, -1e4])
@pytest.mark.parametrize("spoken", [1e4, -1e4, 0.0])
@pytest.mark.parametrize(("classes", "several"), [(1, False), (1, True), (4, False), (4, True)])
def test_extremes_are_finite(classes, several, spoken, loud):
    method = build_method(RobustConfig(), student(), MethodContext(classes, teacher_dim=D, training_clips=N))
    for one in (False, True, False, True):  # of one class, then of all
        for seed, indices in enumerate(STEPS[:2]):
            seen, data = random_batch(indices, seed, several=several, classes=classes)
            mask = F.one_hot(torch.tensor(indices) % classes, classes) if one else 1
            logits = (torch.zeros_like(seen.logits) + loud * mask).detach().requires_grad_()
            teacher = replace(data.teacher, logits=torch.zeros_like(logits.detach()) + spoken * mask)
            losses = step(method, replace(seen, logits=logits), replace(data, teacher=teacher))
            assert all(math.isfinite(x) for x in value(losses).values())
            sum(losses.values()).backward()
            assert torch.isfinite(logits.grad).all()
            said = logits.detach().sigmoid() if several else logits.detach().softmax(1)
            mismatch_probability = method.noise_model.mismatch_probability(said, replace(data, teacher=teacher))
            assert torch.isfinite(mismatch_probability[data.has_teacher]).all()
    assert all(torch.isfinite(values).all() for values in method.noise_model.buffers())
    assert 0 < float(method.noise_model.clean_rate) < 1


def test_mistakes_have_clear_errors():
    with pytest.raises(ValueError, match=r"Batch\.indices"):
        built(RobustConfig())(replace(batch(), indices=None))
    with pytest.raises(ValueError, match="training clips"):
        build_method(RobustConfig(), student(), MethodContext(C, teacher_dim=D))
