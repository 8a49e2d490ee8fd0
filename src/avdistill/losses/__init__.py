"""Losses: pure functions of named tensors, a scalar back. No state, no device names."""

from avdistill.losses.calibration import contrastive_semantic_calibration, filter_triplet, gate_sparsity
from avdistill.losses.contrastive import (
    class_contrast,
    noise_contrastive_estimation,
    symmetric_info_nce,
    two_way_divergence,
)
from avdistill.losses.divergence import (
    classification,
    decoupled_divergence,
    inter_class_divergence,
    intra_class_divergence,
    non_target_divergence,
    rank_agreement,
    soft_label_divergence,
)
from avdistill.losses.features import (
    attention_transfer,
    hint_regression,
    neuron_selectivity,
    variational_information,
)
from avdistill.losses.relational import (
    angle_relations,
    correlation_congruence,
    distance_relations,
    hybrid_transfer,
    probabilistic_transfer,
    similarity_preservation,
)

__all__ = [
    "angle_relations",
    "attention_transfer",
    "class_contrast",
    "classification",
    "contrastive_semantic_calibration",
    "correlation_congruence",
    "decoupled_divergence",
    "distance_relations",
    "filter_triplet",
    "gate_sparsity",
    "hint_regression",
    "hybrid_transfer",
    "inter_class_divergence",
    "intra_class_divergence",
    "neuron_selectivity",
    "noise_contrastive_estimation",
    "non_target_divergence",
    "probabilistic_transfer",
    "rank_agreement",
    "similarity_preservation",
    "soft_label_divergence",
    "symmetric_info_nce",
    "two_way_divergence",
    "variational_information",
]
