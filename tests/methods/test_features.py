"""Methods that match features: what their terms are made of, what moves, and other widths and positions."""

import math
from dataclasses import replace

import pytest
import torch

from avdistill.methods.attention_transfer import ATConfig
from avdistill.methods.base import student_features
from avdistill.methods.fitnet import FitNetConfig
from avdistill.methods.neuron_selectivity import NSTConfig
from avdistill.methods.vid import VIDConfig
from avdistill.types import Batch
from support.method_cases import B, D, batch, built

CONFIGS = {"hint": FitNetConfig(), "attention": ATConfig(), "selectivity": NSTConfig(), "information": VIDConfig()}
HAS_TEACHER = [True, False, True, True, False, True]


def frozen(config, **changes):
    """In evaluation mode, where BatchNorm does not let the rows see one another."""
    return built(config, **changes).eval()


@pytest.mark.parametrize(("term", "config"), CONFIGS.items(), ids=CONFIGS)
def test_the_term_is_that_of_the_rows_with_a_teacher(term, config):
    """Each of them alone, and the mean: all four are means over clips."""
    data = batch(has_teacher=HAS_TEACHER)
    whole = frozen(config)(data)
    assert set(whole) == {"classification", term}
    alone = []
    for i in [i for i, there in enumerate(HAS_TEACHER) if there]:
        row = data.map(lambda values, i=i: values[i : i + 1])
        alone.append(float(frozen(config)(row)[term].detach()))
    assert float(whole[term].detach()) == pytest.approx(sum(alone) / len(alone), rel=1e-4)


@pytest.mark.parametrize(("term", "config"), CONFIGS.items(), ids=CONFIGS)
def test_the_weight_scales_the_term(term, config):
    data = batch()
    default, doubled = (frozen(c)(data) for c in (config, replace(config, weight=2 * config.weight)))
    assert float(doubled[term].detach()) == pytest.approx(2 * float(default[term].detach()), rel=1e-5)
    assert float(doubled["classification"].detach()) == float(default["classification"].detach())


@pytest.mark.parametrize(("term", "config"), CONFIGS.items(), ids=CONFIGS)
def test_unlabeled_clips_move_the_student(term, config):
    method = built(config)
    method(batch(labeled=[False] * B))[term].backward()
    gradients = [p.grad for p in method.student.parameters() if p.grad is not None]
    assert sum(float(g.abs().sum()) for g in gradients) > 0


@pytest.mark.parametrize(("term", "config"), CONFIGS.items(), ids=CONFIGS)
def test_several_labels_per_clip(term, config):
    data = batch()
    several = torch.nn.functional.one_hot(data.labels, 4).float()
    one, many = frozen(config)(data), frozen(config)(Batch(**{**vars(data), "labels": several}))
    assert float(many[term].detach()) == float(one[term].detach())


@pytest.mark.parametrize(("term", "config"), CONFIGS.items(), ids=CONFIGS)
@pytest.mark.parametrize(("teacher_dim", "positions"), [(7, 1), (40, 9)])
def test_widths_and_positions_are_free(term, config, teacher_dim, positions):
    method = built(config, teacher_dim=teacher_dim)
    losses = method(batch(teacher_dim=teacher_dim, positions=positions))
    sum(losses.values()).backward()
    assert torch.isfinite(losses[term].detach())


def test_the_regressor_makes_the_hint():
    """A regressor that is the identity: the mean of the squared differences of the embeddings themselves."""
    data = batch()
    method = frozen(FitNetConfig(weight=3.0))
    with torch.no_grad():
        method.regressor.weight.copy_(torch.eye(D))
        method.regressor.bias.zero_()
        student = student_features(method.student, data).embedding.tolist()
    teacher = data.teacher.embedding.tolist()
    expected = 0.0
    for i in range(B):
        for c in range(D):
            expected += 3 * (student[i][c] - teacher[i][c]) ** 2 / (B * D)
    assert float(method(data)["hint"].detach()) == pytest.approx(expected, rel=1e-5)


def test_the_likelihood_starts_at_the_variance_of_the_config():
    data = batch()
    for variance in (5.0, 0.5):
        method = frozen(VIDConfig(initial_variance=variance))
        with torch.no_grad():
            method.mean[-1].weight.zero_()  # the mean network expects 0
        squares = sum(x * x for row in data.teacher.embedding.tolist() for x in row) / (B * D)
        expected = (squares / variance + math.log(variance)) / 2
        assert float(method(data)["information"].detach()) == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="initial_variance"):
        built(VIDConfig(initial_variance=0.0))


@pytest.mark.parametrize("config", [FitNetConfig(), VIDConfig()], ids=str)
def test_helpers_learn(config):
    """The distillation term falls when helpers alone are trained on one batch."""
    method, data = frozen(config), batch()
    helpers = method.parameter_groups()[1]["params"]
    term = next(name for name, c in CONFIGS.items() if c == config)
    optimizer = torch.optim.Adam(helpers, lr=0.05)
    values = []
    for _ in range(30):
        value = method(data)[term]
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        values.append(float(value.detach()))
    assert values[-1] < values[0] - 0.1
