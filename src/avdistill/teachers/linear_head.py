"""Logits for a teacher that has none in the dataset's classes: a linear head on its embeddings (METHOD: baselines).

Only labeled clips of the training split are fitted on. Their own logits are those of a head that has not seen them or
another segment of their video (out of fold): a head's opinion of what it was fitted on is too sure to learn from. Of a
class that such a head has not seen it knows nothing, which is not to say that it never occurs (`_scores`).
"""

from __future__ import annotations

import warnings
from typing import Any

import numpy as np
from sklearn.dummy import DummyClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold
from sklearn.multiclass import OneVsRestClassifier
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from threadpoolctl import threadpool_limits

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import split_names

_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
_FOLDS = 5
# A class without a labeled clip cannot be believed in, but a logit of minus infinity would turn losses into NaN.
_NEVER = -20.0


def fit_head(
    dataset: ClipDataset, embedding: np.ndarray, *, split: str = "train"
) -> tuple[np.ndarray | None, dict[str, int | float]]:
    """Logits of every clip that has an embedding, from a logistic regression on the labeled ones of a split.

    The strength of its regularisation is the one with the best likelihood on the first fold.

    Args:
        dataset: whose labels are used.
        embedding: (N, D), rows of NaN where a clip has none.
        split: the clips to fit on; several splits are joined by "+", as in "train+teacher".

    Returns:
        float32 (N, C) log-probabilities (with several labels per clip: log-odds), NaN where there is no embedding; and
        the number of `labeled_clips` and the regularization `C`. None and {} where fewer than two videos or classes of
        the split are labeled.
    """
    present = ~np.isnan(embedding).any(axis=1)
    labeled = np.array([bool(row) for row in dataset.labels])
    rows = np.flatnonzero(present & labeled & np.isin(dataset.columns["split"], split_names(dataset, split)))
    groups = dataset.columns["group"][rows]
    occurring = sorted({name for i in rows for name in dataset.labels[i]})
    if len(set(groups)) < 2 or len(occurring) < 2:
        return None, {}
    several = dataset.multi_label
    targets: Any = np.array([dataset.labels[i][0] for i in rows])
    if several:
        targets = np.array([[name in dataset.labels[i] for name in occurring] for i in rows], dtype=int)

    # At random: in the order of their names all videos of a class may fall into one fold.
    splitter = GroupKFold(min(_FOLDS, len(set(groups))), shuffle=True, random_state=0)
    folds = list(splitter.split(rows, groups=groups))
    x = embedding[rows]
    fitted_on, held_out = folds[0]
    strength = max(_STRENGTHS, key=lambda c: _likelihood(x, targets, occurring, fitted_on, held_out, c, several))
    own = np.zeros((len(rows), len(occurring)))
    for fitted_on, held_out in folds:
        head = _fitted(x[fitted_on], targets[fitted_on], strength, several)
        own[held_out] = _scores(head, targets[fitted_on], x[held_out], occurring, several)
    columns = np.array([dataset.classes.index(name) for name in occurring])
    logits = np.full((len(dataset), len(dataset.classes)), np.nan, dtype=np.float32)
    logits[present] = _NEVER
    whole = _fitted(x, targets, strength, several)
    logits[np.ix_(np.flatnonzero(present), columns)] = _scores(whole, targets, embedding[present], occurring, several)
    logits[np.ix_(rows, columns)] = own
    return logits, {"labeled_clips": len(rows), "C": strength}


def _likelihood(
    x: np.ndarray,
    targets: Any,
    classes: list[str],
    fitted_on: np.ndarray,
    held_out: np.ndarray,
    strength: float,
    several: bool,
) -> float:
    """Mean log-likelihood of the clips held out."""
    head = _fitted(x[fitted_on], targets[fitted_on], strength, several)
    scores = _scores(head, targets[fitted_on], x[held_out], classes, several)
    if several:
        return float(-np.logaddexp(0, np.where(targets[held_out] == 1, -scores, scores)).mean())
    return float(scores[np.arange(len(scores)), [classes.index(name) for name in targets[held_out]]].mean())


def _fitted(x: np.ndarray, targets: Any, strength: float, several: bool) -> Pipeline:
    head: Any = LogisticRegression(C=strength, max_iter=300)
    if not several and len(set(targets)) < 2:  # a fold of so few clips that one class is left
        head = DummyClassifier()
    head = make_pipeline(StandardScaler(), OneVsRestClassifier(head) if several else head)
    # One thread: those of the linear algebra wait for each other where other processes work.
    with warnings.catch_warnings(), threadpool_limits(1):
        # A head that is nearly there serves; what a fold lacks, or holds alone, `_scores` knows.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        warnings.filterwarnings("ignore", message="Label not .* is present in all training examples")
        head.fit(x, targets)
    return head


def _scores(head: Pipeline, targets: Any, x: np.ndarray, classes: list[str], several: bool) -> np.ndarray:
    """(n, C) in the order of `classes`, of a head that was fitted on `targets`.

    Laplace's rule for what those cannot tell: a class that is not among them has one clip of as many more, and one that
    none of them has, or all have (several labels), is one clip away from the contrary.
    """
    clips = len(targets)
    if several:
        p = np.clip(head.predict_proba(x), 1e-9, 1 - 1e-9)
        counts = targets.sum(0)
        untold = (counts == 0) | (counts == clips)
        p[:, untold] = (counts[untold] + 1) / (clips + 2)
        return np.maximum(np.log(p) - np.log1p(-p), _NEVER)
    known = [classes.index(name) for name in head.classes_]
    everyone = clips + len(classes) - len(known)
    scores = np.full((len(x), len(classes)), -np.log(everyone))
    scores[:, known] = np.log(np.maximum(head.predict_proba(x), np.exp(_NEVER))) + np.log(clips / everyone)
    return scores
