"""Losses: pure functions of named tensors, a scalar back (0 with a graph for an empty batch). No state."""

from avdistill.losses.calibration import (
    contrastive_semantic_calibration,
    filter_triplet,
    gate_sparsity,
    soft_contrastive_semantic_calibration,
)
from avdistill.losses.contrastive import (
    ccl_nce,
    noise_contrastive_estimation,
    supervised_contrast,
    symmetric_info_nce,
    two_way_divergence,
)
from avdistill.losses.divergence import (
    dist_inter_loss,
    dist_intra_loss,
    dkd_loss,
    kd_loss,
    kendall_tau,
    masked_cross_entropy,
    non_target_divergence,
)
from avdistill.losses.features import attention_transfer, hint_regression, neuron_selectivity, variational_information
from avdistill.losses.relational import (
    correlation_congruence,
    ifd_loss,
    pkt_loss,
    rkd_angle_loss,
    rkd_distance_loss,
    sp_loss,
)

__all__ = [
    "attention_transfer",
    "ccl_nce",
    "contrastive_semantic_calibration",
    "correlation_congruence",
    "dist_inter_loss",
    "dist_intra_loss",
    "dkd_loss",
    "filter_triplet",
    "gate_sparsity",
    "hint_regression",
    "ifd_loss",
    "kd_loss",
    "kendall_tau",
    "masked_cross_entropy",
    "neuron_selectivity",
    "noise_contrastive_estimation",
    "non_target_divergence",
    "pkt_loss",
    "rkd_angle_loss",
    "rkd_distance_loss",
    "soft_contrastive_semantic_calibration",
    "sp_loss",
    "supervised_contrast",
    "symmetric_info_nce",
    "two_way_divergence",
    "variational_information",
]
