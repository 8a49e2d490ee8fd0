"""The mean of several teachers' features, weighed by calibrated confidence.

Teacher k has logits z_k of a clip in the dataset's classes. Its temperature T_k minimizes the cross-entropy of
softmax(z_k / T_k) on the labeled clips that its head was fitted on, whose logits are out of fold
(`teachers/linear_head.py`); Guo et al. 2017 (arXiv 1706.04599) calibrate so. With p_k = softmax(z_k / T_k):

    c_k = max p_k                              the confidence, the probability that the guess is right
    w_k = c_k / sum of the c of the clip's teachers,      0 where the clip has no features of teacher k
    logits = log sum_k w_k p_k
    embedding = sqrt(D) [sqrt(w_1) e_1 / |e_1| ; sqrt(w_2) e_2 / |e_2| ; ...]

so that D, the sum of the widths, times the weighed mean of the teachers' cosines is the product of two clips with equal
weights. With several labels per clip p_k are sigmoids, c_k is the mean over classes of max(p, 1 - p), and the logits
are the log-odds of the mean.
"""

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from avdistill.dataset.stored_features import Provenance, StoredFeatures

# Between names of teachers, as between names of splits.
JOINT = "+"
_LOG_TEMPERATURES = (np.log(0.05), np.log(20.0))
# A probability of 0 would have an infinite logit.
_LEAST = 1e-9


def teacher_names(name: str) -> list[str]:
    """The teachers that "yamnet+cnn14" means."""
    return name.split(JOINT)


def joint_provenance(parts: dict[str, Provenance]) -> Provenance:
    """The provenance of the mean of the teachers of these names."""
    every = {f"{name}.{key}": value for name, provenance in parts.items() for key, value in provenance.items()}
    return {"name": JOINT.join(parts), **every}


def mean_of_teachers(
    teachers: dict[str, StoredFeatures], classes: tuple[str, ...], targets: np.ndarray, fitted_on: Sequence[np.ndarray]
) -> StoredFeatures:
    """The mean, with the teachers themselves in `teachers`.

    Args:
        teachers: features of the same N clips by name.
        classes: the dataset's C.
        targets: int (N,), -1 for a clip without a label, or multi-hot (N, C), a row of zeros for one.
        fitted_on: for each teacher bool (N,), the clips that calibrate it, where they have a label.

    Returns:
        No tokens. No logits where a teacher has none in the dataset's classes; the teachers then count alike.
    """
    each_teacher = tuple(replace(each.with_classes(classes), tokens=None) for each in teachers.values())
    valid = np.stack([each.valid for each in each_teacher], axis=1)  # (N, K)
    any_valid = np.asarray(valid.any(1))
    multi_label = targets.ndim == 2
    probabilities = [
        _calibrated(each, targets, rows & each.valid)
        for each, rows in zip(each_teacher, fitted_on, strict=True)
        if each.classes
    ]
    complete = len(probabilities) == len(each_teacher)
    weights = valid.astype(np.float64)
    if complete:
        weights *= np.stack([_confidence(p, multi_label) for p in probabilities], axis=1)
    weights /= np.maximum(weights.sum(1, keepdims=True), _LEAST)
    logits = None
    if complete:
        mean = np.einsum("nk,knc->nc", weights, np.stack(probabilities))
        logits = np.log(np.maximum(mean, _LEAST))
        if multi_label:
            logits -= np.log(np.maximum(1 - mean, _LEAST))
        logits = (logits * any_valid[:, None]).astype(np.float32)
    return StoredFeatures(
        embedding=_joint_embedding([each.embedding for each in each_teacher], weights),
        logits=logits,
        tokens=None,
        valid=any_valid,
        classes=classes if complete else (),
        provenance=joint_provenance({name: each.provenance for name, each in teachers.items()}),
        teachers=each_teacher,
    )


def calibrated_temperature(logits: np.ndarray, targets: np.ndarray) -> float:
    """The T that minimizes the cross-entropy of the targets under logits / T, between 0.05 and 20.

    Args:
        logits: (n, C).
        targets: int (n,) or multi-hot (n, C). Without any the temperature is 1.
    """
    if not len(targets):
        return 1.0
    from scipy.optimize import minimize_scalar  # only here: no other verb has to wait for it

    z = logits.astype(np.float64)

    def cross_entropy(log_temperature: float) -> float:
        scaled = z / np.exp(log_temperature)
        if targets.ndim == 2:
            return float(np.logaddexp(0, np.where(targets == 1, -scaled, scaled)).mean())
        return float(-_log_softmax(scaled)[np.arange(len(z)), targets].mean())

    # Convex in 1/T, so it has one minimum.
    return float(np.exp(minimize_scalar(cross_entropy, bounds=_LOG_TEMPERATURES, method="bounded").x))


def _calibrated(teacher: StoredFeatures, targets: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """float64 (N, C) probabilities at the temperature of the labeled ones among the rows, bool (N,)."""
    assert teacher.logits is not None
    rows = rows & (targets.any(1) if targets.ndim == 2 else targets >= 0)
    scaled = teacher.logits.astype(np.float64) / calibrated_temperature(teacher.logits[rows], targets[rows])
    return (1 + np.tanh(scaled / 2)) / 2 if targets.ndim == 2 else np.exp(_log_softmax(scaled))


def _log_softmax(scores: np.ndarray) -> np.ndarray:
    return scores - np.logaddexp.reduce(scores, axis=1, keepdims=True)


def _confidence(probabilities: np.ndarray, multi_label: bool) -> np.ndarray:
    return np.maximum(probabilities, 1 - probabilities).mean(1) if multi_label else probabilities.max(1)


def _joint_embedding(embeddings: Sequence[np.ndarray], weights: np.ndarray) -> np.ndarray:
    width = sum(each.shape[1] for each in embeddings)
    blocks = [
        np.sqrt(width * w)[:, None] * each / np.maximum(np.linalg.norm(each, axis=1, keepdims=True), _LEAST)
        for w, each in zip(weights.T, embeddings, strict=True)
    ]
    return np.concatenate(blocks, axis=1).astype(np.float32)
