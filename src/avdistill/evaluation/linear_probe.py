"""A linear classifier on frozen embeddings, its setting chosen by cross-validation on the training clips.

Dimensions: N clips, C classes, D channels. Labels are int64 (N,) class indices or multi-hot float32 (N, C).
"""

import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression, Ridge
from sklearn.model_selection import GroupKFold, StratifiedGroupKFold
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import Normalizer, StandardScaler
from threadpoolctl import threadpool_limits

from avdistill.evaluation.metrics import mean_class_accuracy, per_class_table, top_k_accuracy
from avdistill.evaluation.multilabel import tagging_means, tagging_table
from avdistill.progress import OnProgress, Progress

MAX_STEPS = 1000  # of the solver; 231 were the most that UCF51's audio took


@dataclass(frozen=True)
class ProbeConfig:
    """How the probe is trained.

    Attributes:
        scaling: "unit" makes every embedding one long; "standardized" gives every channel mean 0 and variance 1 over
            the training clips.
        c: inverse strength of the L2 penalty, scikit-learn's C; ridge regression's penalty is 1 / (2 c).
    """

    scaling: Literal["unit", "standardized"]
    c: float


PROBE_CONFIGS = (
    *(ProbeConfig("unit", c) for c in (1.0, 10.0, 100.0)),
    *(ProbeConfig("standardized", c) for c in (0.001, 0.01, 0.1)),
)


def linear_probe(
    *,
    embedding: np.ndarray,
    labels: np.ndarray,
    test_embedding: np.ndarray,
    test_labels: np.ndarray,
    class_names: Sequence[str],
    settings: Sequence[ProbeConfig] = PROBE_CONFIGS,
    folds: Sequence[tuple[np.ndarray, np.ndarray]] = (),
    on_progress: OnProgress | None = None,
) -> dict[str, Any]:
    """Train on `embedding`, evaluate on `test_embedding`.

    With one label per clip it is multinomial logistic regression, chosen by top-1; with several, ridge regression of
    every class, chosen by mean average precision.

    Args:
        embedding, labels: (N, D) float32 and labels of at least two classes.
        test_embedding, test_labels: likewise, of the clips to evaluate.
        class_names: C names.
        settings: to choose from; without folds the first is taken.
        folds: of the cross-validation (`video_folds`).
        on_progress: called after each batch, in fits of the probe.

    Returns:
        JSON-ready: `top1_accuracy`, `top5_accuracy`, `mean_class_accuracy`, `per_class` (`per_class_table`), or `map`,
        `auc`, `d_prime`, `per_class` and counts (`multilabel.py`); `scaling` and `c` of the chosen setting; whether
        the solver `converged`; `cross_validation`, the mean score of the folds for each setting.
    """
    total = len(settings) * len(folds) + 1
    finished = 0

    def metrics_of(setting: ProbeConfig, train: np.ndarray | slice, x: np.ndarray, truth: np.ndarray) -> dict[str, Any]:
        nonlocal finished
        model, converged = _fit(setting, embedding[train], labels[train])
        finished += 1
        if on_progress is not None:
            on_progress(Progress(finished, total))
        return {**_metrics(_scores(model, x, len(class_names)), truth, class_names), "converged": converged}

    tried = []
    for setting in settings if folds else ():
        each = [
            metrics_of(setting, train, embedding[held], labels[held])["map" if labels.ndim == 2 else "top1_accuracy"]
            for train, held in folds
        ]
        tried.append({**asdict(setting), "score": float(np.mean([score or 0.0 for score in each]))})
    best = settings[int(np.argmax([row["score"] for row in tried]))] if tried else settings[0]
    return {**metrics_of(best, slice(None), test_embedding, test_labels), **asdict(best), "cross_validation": tried}


def video_folds(labels: np.ndarray, groups: np.ndarray, folds: int, seed: int) -> list[tuple[np.ndarray, np.ndarray]]:
    """(train, held out) rows of each fold; clips of one group are never on both sides.

    There are fewer folds where groups are too few; one with a single class to train on is left out.

    Raises:
        ValueError: no fold is left.
    """
    count = min(folds, len(np.unique(groups)))
    if labels.ndim == 1:
        count = min(count, int(np.bincount(labels).max()))
    if count < 2:
        raise ValueError("expected at least two clips of a class, from two videos, to choose the probe's setting with")
    several = labels.ndim == 2
    splitter = GroupKFold(count) if several else StratifiedGroupKFold(count, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The least populated class")  # its clips are in fewer folds
        parts = list(splitter.split(groups, None if several else labels, groups))
    usable = [(train, held) for train, held in parts if len(held) and len(np.unique(labels[train], axis=0)) > 1]
    if not usable:
        raise ValueError("expected clips of two classes, from three videos or more, to choose the probe's setting with")
    return usable


def _fit(setting: ProbeConfig, x: np.ndarray, labels: np.ndarray) -> tuple[Pipeline, bool]:
    scaler = Normalizer() if setting.scaling == "unit" else StandardScaler()
    if labels.ndim == 2:
        return make_pipeline(scaler, Ridge(alpha=1 / (2 * setting.c))).fit(x, labels), True  # in closed form
    model = make_pipeline(scaler, LogisticRegression(C=setting.c, max_iter=MAX_STEPS))
    # The solver's steps are short: threads that wait for each other on a busy machine cost ten times what they save.
    with warnings.catch_warnings(), threadpool_limits(1):
        warnings.simplefilter("ignore", ConvergenceWarning)  # reported as `converged`
        model.fit(x, labels)
    return model, bool(model[-1].n_iter_.max() < MAX_STEPS)


def _scores(model: Pipeline, x: np.ndarray, classes: int) -> torch.Tensor:
    """(N, C); a class without a training clip scores lowest."""
    if isinstance(model[-1], Ridge):
        return torch.from_numpy(model.predict(x).reshape(len(x), classes))
    scores = torch.full((len(x), classes), -torch.inf, dtype=torch.float64)
    with np.errstate(divide="ignore"):  # log 0
        scores[:, torch.from_numpy(model.classes_)] = torch.from_numpy(model.predict_log_proba(x)).double()
    return scores


def _metrics(scores: torch.Tensor, truth: np.ndarray, class_names: Sequence[str]) -> dict[str, Any]:
    labels = torch.from_numpy(truth)
    if labels.ndim == 2:
        table = tagging_table(scores=scores, labels=labels, class_names=class_names)
        return {**tagging_means(table), "per_class": table}
    return {
        "top1_accuracy": top_k_accuracy(scores=scores, labels=labels, k=1),
        "top5_accuracy": top_k_accuracy(scores=scores, labels=labels, k=5),
        "mean_class_accuracy": mean_class_accuracy(scores=scores, labels=labels),
        "per_class": per_class_table(scores=scores, labels=labels, class_names=class_names),
    }
