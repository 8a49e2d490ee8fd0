"""Logits for a teacher without logits in the dataset's classes: a linear head on its embeddings.

The head is fitted on the labeled clips of the training split. Their own logits are out of fold, from a head fitted
without them and without other segments of their video: in-sample predictions are too confident to learn from. A class
that is missing in the other folds has an unknown, not a zero probability there (`_scores`).
"""

import warnings
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from threadpoolctl import threadpool_limits

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import label_values, split_names

if TYPE_CHECKING:
    from sklearn.pipeline import Pipeline

_STRENGTHS = (0.001, 0.01, 0.1, 1.0)
_FOLDS = 5
# The logit of a class without a labeled clip: minus infinity would turn losses into NaN.
_MINIMUM_LOGIT = -20.0


@dataclass(frozen=True, eq=False)
class LinearHead:
    """A fitted head: log-probabilities (with several labels per clip: log-odds) of all classes of a dataset.

    Attributes:
        record: the number of `labeled_clips` and the regularization `C`.
    """

    record: dict[str, int | float]
    _classes: int
    _columns: np.ndarray
    _rows: np.ndarray
    _own: np.ndarray
    _fit: Callable[[np.ndarray], np.ndarray]

    def logits(self, embedding: np.ndarray, clips: np.ndarray) -> np.ndarray:
        """float32 (n, C) of clips with embeddings (n, D); clips that the head was fitted on have theirs out of fold.

        Args:
            embedding: float (n, D).
            clips: int (n,) rows of the dataset.
        """
        logits = np.full((len(clips), self._classes), _MINIMUM_LOGIT, dtype=np.float32)
        logits[:, self._columns] = self._fit(embedding)
        place = {int(clip): i for i, clip in enumerate(clips)}
        fitted = [(place[row], i) for i, row in enumerate(self._rows.tolist()) if row in place]
        for here, own in fitted:
            logits[here, self._columns] = self._own[own]
        return logits


def linear_head(
    dataset: ClipDataset, valid: np.ndarray, rows_of: Callable[[np.ndarray], np.ndarray], *, split: str = "train"
) -> LinearHead | None:
    """A head by logistic regression on the labeled clips of a split.

    The regularization is the one with the best out-of-fold likelihood.

    Args:
        dataset: whose labels are used.
        valid: bool (N,), which clips have an embedding.
        rows_of: float (n, D) embeddings of rows of the dataset.
        split: of the clips to fit on; several are joined by "+", as in "train+teacher".

    Returns:
        None where fewer than two videos or classes of the split are labeled.
    """
    labeled = np.array([bool(row) for row in dataset.labels])
    rows = np.flatnonzero(valid & labeled & np.isin(dataset.columns["split"], split_names(dataset, split)))
    groups = dataset.columns["group"][rows]
    occurring = sorted({name for i in rows for name in dataset.labels[i]})
    if len(set(groups)) < 2 or len(occurring) < 2:
        return None
    multi_label = dataset.multi_label
    targets = label_values([dataset.labels[i] for i in rows], occurring, multi_label).numpy().astype(int)

    from sklearn.model_selection import GroupKFold

    # Shuffled: in the order of their names all videos of a class may fall into one fold.
    splitter = GroupKFold(min(_FOLDS, len(set(groups))), shuffle=True, random_state=0)
    folds = list(splitter.split(rows, groups=groups))
    x = rows_of(rows)
    # All folds choose: with ten clips a class one fold is too few clips, and chose heads that were sure of nothing.
    tried = {strength: _out_of_fold(x, targets, len(occurring), folds, strength) for strength in _STRENGTHS}
    strength = max(tried, key=lambda strength: _likelihood(tried[strength], targets))
    head = _fitted(x, targets, strength)
    return LinearHead(
        record={"labeled_clips": len(rows), "C": strength},
        _classes=len(dataset.classes),
        _columns=np.array([dataset.classes.index(name) for name in occurring]),
        _rows=rows,
        _own=tried[strength],
        _fit=lambda embedding: _scores(head, targets, embedding, len(occurring)),
    )


def fit_head(
    dataset: ClipDataset, embedding: np.ndarray, *, split: str = "train"
) -> tuple[np.ndarray | None, dict[str, int | float]]:
    """Logits of all clips with an embedding by `linear_head`.

    Args:
        dataset: whose labels are used.
        embedding: float (N, D), a row of NaN for a clip without one.
        split: of the clips to fit on.

    Returns:
        float32 (N, C), NaN where there is no embedding, and the head's record; None and {} where none can be fitted.
    """
    valid = ~np.isnan(embedding).any(axis=1)
    head = linear_head(dataset, valid, lambda rows: embedding[rows], split=split)
    if head is None:
        return None, {}
    logits = np.full((len(dataset), len(dataset.classes)), np.nan, dtype=np.float32)
    logits[valid] = head.logits(embedding[valid], np.flatnonzero(valid))
    return logits, head.record


def _out_of_fold(
    x: np.ndarray, targets: np.ndarray, classes: int, folds: list[tuple[np.ndarray, np.ndarray]], strength: float
) -> np.ndarray:
    """(n, C) scores of each clip by the head that was fitted without its fold."""
    scores = np.zeros((len(x), classes))
    for fitted_on, held_out in folds:
        head = _fitted(x[fitted_on], targets[fitted_on], strength)
        scores[held_out] = _scores(head, targets[fitted_on], x[held_out], classes)
    return scores


def _likelihood(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean log-likelihood of the targets, int (n,) or multi-hot (n, C), under scores (n, C)."""
    if targets.ndim == 2:
        return float(-np.logaddexp(0, np.where(targets == 1, -scores, scores)).mean())
    return float(scores[np.arange(len(scores)), targets].mean())


def _fitted(x: np.ndarray, targets: np.ndarray, strength: float) -> "Pipeline":
    """A head fitted on x (n, D) and targets, int (n,) or multi-hot (n, C)."""
    # Here, not above: scikit-learn takes a second to import, of every verb.
    from sklearn.dummy import DummyClassifier
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression
    from sklearn.multiclass import OneVsRestClassifier
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    head: Any = LogisticRegression(C=strength, max_iter=300)
    if targets.ndim == 1 and len(set(targets)) < 2:  # so few clips that a fold has one class
        head = DummyClassifier()
    head = make_pipeline(StandardScaler(), OneVsRestClassifier(head) if targets.ndim == 2 else head)
    # One thread: on a busy machine the threads of the linear algebra wait for each other.
    with warnings.catch_warnings(), threadpool_limits(1):
        # A head that has almost converged is good enough; constant labels are handled by `_scores`.
        warnings.simplefilter("ignore", ConvergenceWarning)
        warnings.filterwarnings("ignore", message="Label .* is present in all training examples")
        warnings.filterwarnings("ignore", message="The number of unique classes is greater than 50%")  # few labels
        head.fit(x, targets)
    return head


def _scores(head: "Pipeline", targets: np.ndarray, x: np.ndarray, classes: int) -> np.ndarray:
    """Log-probabilities or, of several labels, log-odds (n, C) at x, of a head that was fitted on `targets`.

    What the targets do not determine follows Laplace's rule of succession: a class without a clip counts one more clip;
    a label that no clip or every clip has counts one clip of the opposite.
    """
    clips = len(targets)
    if targets.ndim == 2:
        p = np.clip(head.predict_proba(x), 1e-9, 1 - 1e-9)
        counts = targets.sum(0)
        constant = (counts == 0) | (counts == clips)
        p[:, constant] = (counts[constant] + 1) / (clips + 2)
        return np.maximum(np.log(p) - np.log1p(-p), _MINIMUM_LOGIT)
    total = clips + classes - len(head.classes_)
    scores = np.full((len(x), classes), -np.log(total))
    scores[:, head.classes_] = np.log(np.maximum(head.predict_proba(x), np.exp(_MINIMUM_LOGIT))) + np.log(clips / total)
    return scores
