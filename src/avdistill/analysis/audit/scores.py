"""The scores of an audit, each HIGHER for a clip whose audio says LESS about its video, and how they are ranked.

Dimensions: N scored clips, D the student's width, C classes. Scores are float64 (N,), NaN where a clip has none.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.splits import Labels
from avdistill.inference.runner import run_network
from avdistill.losses import calibration
from avdistill.methods import Method
from avdistill.methods.mnf_csc import MNFCSC
from avdistill.methods.robust import Robust
from avdistill.progress import OnProgress, Progress
from avdistill.types import Batch, Features, StudentConfig

#: what each score needs, for the message where it is missing
SCORES: dict[str, str] = {
    "gate": "a run of method mnf_csc",
    "similarity": "a run of method mnf_csc",
    "calibration": "a run of method mnf_csc",
    "teacher_nll": "a teacher with logits in the student's classes, and labeled clips",
    "disagreement": "a teacher with logits in the student's classes",
    "mismatch_probability": "a run of method robust",
}


@dataclass(frozen=True)
class Looked:
    """float32 on the CPU, a row per scored clip; the last three only where the method has a filter."""

    probabilities: Tensor
    embedding: Tensor
    gate: Tensor | None = None
    purified: Tensor | None = None
    guided: Tensor | None = None


def look(
    method: Method,
    dataset: ClipDataset,
    clips: np.ndarray,
    teacher: Features,
    description: StudentConfig,
    *,
    batch_size: int,
    on_progress: OnProgress | None,
) -> Looked:
    """Student and filter over all clips, a few at a time: maps are dropped as soon as the filter has seen them."""
    with_filter = isinstance(method, MNFCSC)
    parts: list[list[Tensor]] = []
    for start in range(0, len(clips), batch_size):
        part = slice(start, start + batch_size)
        outputs = run_network(
            method.student,
            dataset,
            clips[part],
            description.view,
            multi_label=description.multi_label,
            batch_size=batch_size,
            with_tokens=with_filter,
        )
        kept = [outputs.probabilities, outputs.embedding]
        if isinstance(method, MNFCSC):
            assert outputs.tokens is not None
            device = next(method.parameters()).device
            inputs = {"teacher": teacher.embedding[part], "tokens": outputs.tokens, "embedding": outputs.embedding}
            with torch.inference_mode():
                filtered = method.filter(**{name: values.to(device) for name, values in inputs.items()})
            kept += [x.float().cpu() for x in (filtered.gate, filtered.embedding, filtered.guided)]
        parts.append(kept)
        if on_progress is not None:
            on_progress(Progress(min(start + batch_size, len(clips)), len(clips)))
    return Looked(*(torch.cat(column) for column in zip(*parts, strict=True)))


def label_scores(student: Tensor, logits: Tensor | None, labels: Labels, multi_label: bool) -> dict[str, Tensor]:
    """`teacher_nll` and `disagreement`, float64 (N,); NaN where there is no such score."""
    nothing = torch.full((len(student),), torch.nan, dtype=torch.float64)
    if logits is None:
        return {"teacher_nll": nothing, "disagreement": nothing.clone()}
    logits, p_student = logits.double(), student.double()
    if multi_label:
        hot = labels.values.double()
        label = -(hot * F.logsigmoid(logits)).sum(1) / hot.sum(1).clamp(min=1)
        p_teacher = logits.sigmoid()
        p_student, p_teacher = (p / p.sum(1, keepdim=True).clamp(min=_TINY) for p in (p_student, p_teacher))
    else:
        label = F.cross_entropy(logits, labels.values, reduction="none")
        p_teacher = logits.softmax(1)
    same = (p_student * p_teacher).sum(1).clamp(min=_TINY)
    return {"teacher_nll": label.where(labels.labeled, nothing), "disagreement": -same.log()}


_TINY = torch.finfo(torch.float64).tiny


def filter_scores(
    method: Method, looked: Looked, logits: Tensor | None, labels: Labels, batch_size: int
) -> dict[str, Tensor]:
    """`gate`, `similarity` and `calibration`, float64 (N,); NaN where there is no filter."""
    if not isinstance(method, MNFCSC):
        nothing = torch.full((len(looked.embedding),), torch.nan, dtype=torch.float64)
        return dict.fromkeys(("gate", "similarity", "calibration"), nothing)
    assert looked.gate is not None
    assert looked.purified is not None
    assert looked.guided is not None
    v, a, s = (F.normalize(x.double(), dim=1) for x in (looked.embedding, looked.purified, looked.guided))
    labeled = labels.labeled
    if method.config.unlabeled == "pseudo_label" and logits is not None:  # every clip has a class in the contrast
        labeled = torch.ones_like(labeled)
    pull = torch.empty(len(v), dtype=torch.float64)
    for rows in contrast_batches(labeled.numpy(), batch_size):
        pull[rows] = _pull(v[rows], s[rows], a[rows], labeled[rows], method)
    return {"gate": 1 - looked.gate.double().mean(1), "similarity": 1 - (v * a).sum(1), "calibration": pull}


def _pull(v: Tensor, s: Tensor, a: Tensor, labeled: Tensor, method: MNFCSC) -> Tensor:
    """(1 - P_ii) / T_ii of a batch: what -log P_ii gives to cos(v_i, s_i) as gradient, but for the sign."""
    # The loss's own temperatures: a second way to compute them would drift away from it.
    T = calibration.temperatures(v, a, method.config.temperature, method.config.threshold).expand(len(v), len(v))
    itself = torch.eye(len(v), dtype=torch.bool)
    scores = ((v @ s.T) / T).masked_fill(~(labeled[None, :] | itself), -torch.inf)
    return (1 - scores.softmax(1).diagonal()) / T.diagonal()


def mismatch_probability_scores(
    method: Method, looked: Looked, teacher: Features, labels: Labels, indices: Tensor
) -> dict[str, Tensor]:
    """`mismatch_probability`, float64 (N,) in [0, 1]; NaN where the method knows nothing of audio.

    Args:
        method: on the CPU.
        looked: of the scored clips.
        teacher: their features.
        labels: of the audited dataset.
        indices: int64 (N,) which of the run's training clips each is, -1 for none.
    """
    if not isinstance(method, Robust) or teacher.logits is None:
        return {"mismatch_probability": torch.full((len(looked.probabilities),), torch.nan, dtype=torch.float64)}
    batch = Batch(
        labels=labels.values,
        labeled=labels.labeled,
        has_teacher=torch.ones_like(labels.labeled),
        clip_ids=(),
        teacher=Features(teacher.embedding, teacher.logits.double()),
        indices=indices,
    )
    return {"mismatch_probability": method.mismatch_probability(looked.probabilities.double(), batch)}


def contrast_batches(labeled: np.ndarray, batch_size: int) -> list[Tensor]:
    """Batches of about `batch_size` rows (int64) for the `calibration` score, the same for the same input.

    Labeled and unlabeled rows are shuffled (seed 0) and dealt out like cards: batches differ by at most one of each,
    so that every clip is contrasted with equally many columns, but for one.

    Args:
        labeled: bool (N,).
        batch_size: of the run.
    """
    rng = np.random.default_rng(0)
    cards = np.concatenate([rng.permutation(np.flatnonzero(labeled)), rng.permutation(np.flatnonzero(~labeled))])
    hands = -(-len(cards) // batch_size)
    return [torch.from_numpy(cards[hand::hands]) for hand in range(hands)]


def percentiles(values: Tensor, labeled: Tensor, *, apart: bool) -> Tensor:
    """The share of clips with a lower value, equal ones (the clip itself among them) counting half; NaN stays NaN.

    Args:
        values: float64 (N,).
        labeled: bool (N,).
        apart: a clip is compared with those of its own group only, labeled or unlabeled, instead of with all.
    """
    result = torch.full_like(values, torch.nan)
    for group in (labeled, ~labeled) if apart else (torch.ones_like(labeled),):
        members = group & ~values.isnan()
        own = values[members]
        ordered = own.sort().values
        below, upto = (torch.searchsorted(ordered, own, right=right) for right in (False, True))
        result[members] = (below + upto).to(values.dtype) / (2 * max(1, len(own)))
    return result
