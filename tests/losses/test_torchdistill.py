"""The same numbers as another library's: torchdistill's losses on inputs given by rule (golden/README.md)."""

import json
from pathlib import Path

import pytest

from avdistill import losses
from support.golden_rule import loss_inputs

GOLDEN = json.loads((Path(__file__).resolve().parents[1] / "golden" / "torchdistill.json").read_text())["values"]
X = loss_inputs()
EMBEDDINGS = {"student": X["student"], "teacher": X["teacher"]}
LOGITS = {"student": X["student_logits"], "teacher": X["teacher_logits"]}
B = len(X["student"])

# What differs by definition stands here: KD's T^2, CC's norm instead of its square over B^2.
OURS = {
    "kd": lambda: losses.kd_loss(**LOGITS, temperature=4.0) / 16,
    "rkd_distance": lambda: losses.rkd_distance_loss(**EMBEDDINGS),
    "rkd_angle": lambda: losses.rkd_angle_loss(**EMBEDDINGS),
    "pkt": lambda: losses.pkt_loss(**EMBEDDINGS),
    "cc": lambda: (losses.correlation_congruence(**EMBEDDINGS, gamma=0.4, order=2) * B**2).sqrt(),
    "at": lambda: losses.attention_transfer(student=X["student_map"], teacher=X["teacher_map"]),
    "vid": lambda: losses.variational_information(
        mean=X["student_in_teacher_width"], raw_variance=X["raw_variance"], teacher=X["teacher"]
    ),
    "dist": lambda: (
        losses.dist_inter_loss(**LOGITS, temperature=2.0) + losses.dist_intra_loss(**LOGITS, temperature=2.0)
    ),
}


def test_nothing_golden_is_left_out():
    assert set(OURS) == set(GOLDEN)


@pytest.mark.parametrize("name", sorted(OURS))
def test_torchdistill_gives_the_same(name):
    assert float(OURS[name]()) == pytest.approx(GOLDEN[name], rel=1e-5)
