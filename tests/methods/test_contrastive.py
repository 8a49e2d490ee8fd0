"""CRD and CMC: several steps against loops over single clips, and what the memory may and may not do."""

import math
from dataclasses import replace

import pytest
import torch

from avdistill.methods import MethodContext, build_method
from avdistill.methods.cmc import CMCConfig
from avdistill.methods.crd import CRDConfig
from avdistill.types import Features
from support.method_cases import B, C, D, Float64, N, batch, built, step, student


def random_batch(seed, *, has_teacher=None, indices=None, dtype=torch.float64):
    """A batch of other clips each time, with its student features: `Method.losses` is called without a network."""
    generator = torch.Generator().manual_seed(seed)
    data = batch(dtype, has_teacher=has_teacher)
    drawn = torch.randperm(N, generator=generator)[:B] if indices is None else torch.tensor(indices)
    teacher = Features(embedding=torch.randn(B, D, generator=generator).to(dtype))
    seen = Features(
        embedding=torch.randn(B, D, generator=generator).to(dtype).requires_grad_(),
        logits=torch.randn(B, C, generator=generator).to(dtype),
    )
    return seen, replace(data, teacher=teacher, indices=drawn)


def unit(row):
    length = math.sqrt(sum(float(x.detach()) ** 2 for x in row))
    assert length > 0
    return row / (row * row).sum().sqrt()


class LiteralCRD:
    """One clip at a time, with dictionaries for the memory and the random vectors it starts from."""

    def __init__(self, method):
        self.method, self.Z = method, {}
        self.random = {"s": method.memory.student.clone(), "t": method.memory.teacher.clone()}
        self.entries = {"s": {}, "t": {}}

    def __call__(self, seen, data, tau=0.07):
        method, count = self.method, int(data.has_teacher.sum())
        clips = [i for i in range(B) if data.has_teacher[i]]
        now = {
            "s": {i: unit(method.student_projection(seen.embedding[i])) for i in clips},
            "t": {i: unit(method.teacher_projection(data.teacher.embedding[i])) for i in clips},
        }
        total = 0.0
        for anchor, other in (("s", "t"), ("t", "s")):
            if anchor not in self.Z:
                scores = [
                    math.exp(float((now[anchor][i].detach() * self.random[other][n]).sum()) / tau)
                    for i in clips
                    for n in range(N)
                ]
                self.Z[anchor] = N * sum(scores) / len(scores)
            for i in clips:
                clip = int(data.indices[i])
                negatives = [entry for n, entry in self.entries[other].items() if n != clip]
                m = len(negatives)
                if m == 0:
                    continue
                own = self.entries[other].get(clip, now[other][i].detach())
                P = ((now[anchor][i] * own).sum() / tau).exp() / self.Z[anchor]
                total = total - (P / (P + m / N)).log() / count
                for entry in negatives:
                    P = ((now[anchor][i] * entry).sum() / tau).exp() / self.Z[anchor]
                    total = total - ((m / N) / (P + m / N)).log() / count
        for side in ("s", "t"):
            done = set()
            for i in clips:
                clip, row = int(data.indices[i]), now[side][i].detach()
                if clip not in done:
                    old = self.entries[side].get(clip)
                    self.entries[side][clip] = row if old is None else unit(0.5 * old + 0.5 * row)
                done.add(clip)
        return 0.8 * total


def crd(**options):
    return built(CRDConfig(**options), student_network=Float64(student())).double()


def test_crd_equals_loops_over_single_clips_through_several_steps():
    method = crd()
    literal = LiteralCRD(method)
    steps = [
        random_batch(1),
        random_batch(2, has_teacher=[True, False] * 3),
        random_batch(3, has_teacher=[False] * 6),
        random_batch(4, indices=[0, 1, 2, 3, 0, 1]),  # a batch over the end of an epoch
        random_batch(5, has_teacher=[True] * 5 + [False]),
    ]
    seen_loss = 0.0
    for seen, data in steps:
        parameters = [*method.student_projection.parameters(), *method.teacher_projection.parameters()]
        expected = literal(seen, data)
        value = step(method, seen, data)["contrast"]
        number = float(expected.detach()) if isinstance(expected, torch.Tensor) else expected
        assert float(value.detach()) == pytest.approx(number, rel=1e-9, abs=1e-12)
        seen_loss += float(value.detach())
        ours = torch.autograd.grad(value, [seen.embedding, *parameters])
        if not isinstance(expected, torch.Tensor):
            assert all(g.abs().sum() == 0 for g in ours)
            continue
        theirs = torch.autograd.grad(expected, [seen.embedding, *parameters])
        for a, b in zip(ours, theirs, strict=True):
            assert (a - b).abs().max() <= 1e-10
    assert seen_loss > 1
    assert set(method.memory.filled.nonzero()[:, 0].tolist()) == set(literal.entries["s"])
    for side, memory in (("s", method.memory.student), ("t", method.memory.teacher)):
        for clip, entry in literal.entries[side].items():
            assert (memory[clip] - entry).abs().max() <= 1e-12


def test_a_clip_that_never_had_a_teacher_is_no_negative():
    first, second = crd(), crd()
    lacking = [True, True, False, True, False, True]
    for seen, data in (random_batch(1, has_teacher=lacking), random_batch(2, has_teacher=lacking)):
        step(first, seen, data)
        step(second, seen, data)
    assert 0 < int(first.memory.filled.sum()) < N
    assert not first.memory.filled[random_batch(1)[1].indices[2]]
    for memory in (second.memory.student, second.memory.teacher):
        memory[~second.memory.filled] = 1e6
    values = [float(step(m, *random_batch(3))["contrast"].detach()) for m in (first, second)]
    assert values[0] == values[1] > 0
    second.memory.teacher[second.memory.filled] *= -1
    other = [float(step(m, *random_batch(4))["contrast"].detach()) for m in (first, second)]
    assert other[0] != other[1]


def test_the_first_batch_only_fills_the_memory():
    method = crd()
    seen, data = random_batch(1)
    random = method.memory.student.clone()
    assert float(step(method, seen, data)["contrast"].detach()) == 0
    assert method.memory.filled.nonzero()[:, 0].tolist() == sorted(data.indices.tolist())
    assert torch.equal(method.memory.student[~method.memory.filled], random[~method.memory.filled])
    lengths = method.memory.student[method.memory.filled].norm(dim=1)
    assert torch.allclose(lengths, torch.ones_like(lengths))
    assert not method.memory.student.requires_grad


def test_random_entries_have_unit_length_on_average():
    method = build_method(CRDConfig(), student(), MethodContext(C, teacher_dim=D, training_clips=2000))
    assert float(method.memory.teacher.square().sum(1).mean()) == pytest.approx(1, abs=0.01)
    assert float(method.memory.teacher.abs().max()) <= math.sqrt(3 / 128)


def test_evaluation_leaves_no_trace():
    method = crd().eval()
    before = {name: value.clone() for name, value in method.memory.named_buffers()}
    assert torch.isfinite(step(method, *random_batch(1))["contrast"])
    step(method.train(), *random_batch(1))
    assert float(method.memory.student_normalizer) > 0
    trained = {name: value.clone() for name, value in method.memory.named_buffers()}
    assert all(not torch.equal(before[name], trained[name]) for name in before)
    method.eval().losses(*random_batch(2))
    assert all(torch.equal(value, trained[name]) for name, value in method.memory.named_buffers())


def test_the_normalisers_are_those_of_the_first_batch_with_a_teacher():
    method = crd()
    step(method, *random_batch(1, has_teacher=[False] * 6))
    assert float(method.memory.student_normalizer) == 0
    step(method, *random_batch(2))
    kept = float(method.memory.student_normalizer)
    step(method, *random_batch(3))
    assert float(method.memory.student_normalizer) == kept > 0


def test_drawn_negatives_are_filled_entries_and_evenly_drawn():
    method = crd(drawn=5)
    for seed in range(2):
        step(method, *random_batch(seed, has_teacher=[True] * 5 + [False]))
    filled = set(method.memory.filled.nonzero()[:, 0].tolist())
    assert len(filled) > 5
    indices = torch.tensor([min(filled), max(filled)])
    torch.manual_seed(0)
    counts = dict.fromkeys(filled, 0)
    for _ in range(2000):
        rows, used = method.memory.negatives(indices, 5)
        assert rows.shape == (5,)
        assert used.tolist() == [[row != clip for row in rows.tolist()] for clip in indices.tolist()]
        for clip in rows.tolist():
            counts[clip] += 1
    assert sum(counts.values()) == 10000
    expected = 10000 / len(filled)
    assert all(abs(count - expected) < 6 * math.sqrt(expected) for count in counts.values())


def test_all_others_are_taken_without_randomness_where_there_are_fewer():
    method = crd()
    step(method, *random_batch(1))
    state = torch.get_rng_state()
    seen, data = random_batch(2)
    step(method, seen, data)
    assert torch.equal(torch.get_rng_state(), state)
    rows, used = method.memory.negatives(data.indices, 16384)
    filled = set(method.memory.filled.nonzero()[:, 0].tolist())
    for clip, count in zip(data.indices.tolist(), used.tolist(), strict=True):
        assert {row for row, counts in zip(rows.tolist(), count, strict=True) if counts} == filled - {clip}


def test_a_step_copies_of_the_memory_only_what_it_drew():
    """Largest tensor kept for the backward pass: of the drawn negatives, not of all clips."""
    method = build_method(CRDConfig(drawn=50), Float64(student()), MethodContext(C, teacher_dim=D, training_clips=5000))
    method = method.double()
    method.memory.filled.fill_(True)
    method.memory.student_normalizer.fill_(5000)
    method.memory.teacher_normalizer.fill_(5000)
    seen, data = random_batch(1)
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: (kept.append(x.numel()), x)[1], lambda x: x):
        step(method, seen, data)
    assert 0 < max(kept) <= 50 * 128


@pytest.mark.parametrize("drawn", [4, 16384])
def test_a_resumed_run_goes_on_bit_equal(drawn):
    straight, resumed = crd(drawn=drawn), crd(drawn=drawn)
    torch.manual_seed(3)
    for seed in range(4):
        step(straight, *random_batch(seed))
    resumed.load_state_dict(straight.state_dict())
    state = torch.get_rng_state()
    values = []
    for method in (straight, resumed):
        torch.set_rng_state(state)
        values.append([float(step(method, *random_batch(seed))["contrast"].detach()) for seed in range(4, 8)])
    assert values[0] == values[1]


def test_the_memory_may_change_between_forward_and_backward():
    method = built(CRDConfig())
    data = batch()
    losses = [sum(method(data).values()) for _ in range(3)]
    sum(losses).backward()
    assert all(torch.isfinite(p.grad).all() for p in method.parameters() if p.grad is not None)


def test_equal_and_zero_embeddings_are_finite():
    method = built(CRDConfig())
    with torch.no_grad():
        method.student_projection.bias.zero_()
    for values in (torch.zeros(B, D), torch.ones(B, D)):
        seen = Features(embedding=values.clone().requires_grad_(), logits=torch.zeros(B, C))
        value = step(method, seen, batch())["contrast"] + step(method, seen, batch())["contrast"]
        assert torch.isfinite(value)
        value.backward()
        assert torch.isfinite(seen.embedding.grad).all()


def test_mistakes_have_clear_errors():
    with pytest.raises(ValueError, match="indices"):
        built(CRDConfig())(replace(batch(), indices=None))
    with pytest.raises(ValueError, match="'memory' or 'batch'"):
        built(CRDConfig(negatives="queue"))
    with pytest.raises(ValueError, match="training clips"):
        build_method(CRDConfig(), student(), MethodContext(C, teacher_dim=D))


def test_the_batch_form_has_no_memory_and_is_cmc_at_another_weight():
    within, cmc = crd(negatives="batch"), built(CMCConfig(), student_network=Float64(student())).double()
    assert not [name for name, _ in within.named_buffers() if name.startswith("memory")]
    seen, data = random_batch(1, has_teacher=[True, True, False] * 2)
    data = replace(data, indices=None)
    ours, theirs = step(within, seen, data)["contrast"], step(cmc, seen, data)["contrast"]
    assert float(ours.detach()) == pytest.approx(0.8 * float(theirs.detach()))


def test_cmc_equals_loops_over_pairs():
    method = built(CMCConfig(), student_network=Float64(student())).double()
    seen, data = random_batch(1, has_teacher=[True, True, False] * 2)
    clips = [0, 1, 3, 4]
    s = {i: unit(method.student_projection(seen.embedding[i])).detach() for i in clips}
    t = {i: unit(method.teacher_projection(data.teacher.embedding[i])).detach() for i in clips}
    expected = 0.0
    for anchors, others in ((s, t), (t, s)):
        for i in clips:
            exps = {j: math.exp(float((anchors[i] * others[j]).sum()) / 0.07) for j in clips}
            expected -= math.log(exps[i] / sum(exps.values())) / len(clips)
    value = step(method, seen, data)["contrast"]
    assert float(value.detach()) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("config", [CRDConfig(negatives="batch"), CMCConfig()], ids=str)
def test_batch_forms_train_student_and_both_projections(config):
    method = built(config)
    method(batch())["contrast"].backward()
    weights = dict(method.named_parameters())
    for name in ("student.stem.0.weight", "student_projection.weight", "teacher_projection.weight"):
        assert weights[name].grad.abs().sum() > 0


@pytest.mark.parametrize("config", [CRDConfig(), CRDConfig(negatives="batch"), CMCConfig()], ids=str)
def test_several_labels_and_other_widths(config):
    labels = (torch.arange(B)[:, None] % torch.tensor([2, 3, 4, 5]) == 0).float()
    method = built(config, teacher_dim=7)
    for _ in range(2):
        losses = method(replace(batch(teacher_dim=7), labels=labels))
        assert set(losses) == {"classification", "contrast"}
        sum(losses.values()).backward()
