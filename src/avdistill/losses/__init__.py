"""Losses: pure functions of named tensors, a scalar back. No state, no device names."""

from avdistill.losses.calibration import contrastive_semantic_calibration, filter_triplet, gate_sparsity
from avdistill.losses.divergence import classification, soft_label_divergence

__all__ = [
    "classification",
    "contrastive_semantic_calibration",
    "filter_triplet",
    "gate_sparsity",
    "soft_label_divergence",
]
