"""The scores of an audit, each HIGHER for a clip that is MORE suspicious, and how they are ranked.

Dimensions: N scored clips, D the student's width, C classes. Scores are float64 (N,), NaN where a clip has none.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.inference.runner import run_network
from avdistill.methods.base import AuditInputs, Method
from avdistill.progress import OnProgress, Progress
from avdistill.types import Batch, Features, StudentConfig

#: what each score needs, for the message where it is missing
SCORES: dict[str, str] = {
    "gate": "a run of method mnf_csc or robust_csc",
    "similarity": "a run of method mnf_csc or robust_csc",
    "calibration": "a run of method mnf_csc or robust_csc",
    "teacher_nll": "a teacher with logits in the student's classes, and labeled clips",
    "disagreement": "a teacher with logits in the student's classes",
    "mismatch_probability": "a run of method robust or robust_csc",
}


def audit_inputs(
    method: Method,
    dataset: ClipDataset,
    clips: np.ndarray,
    batch: Batch,
    description: StudentConfig,
    *,
    batch_size: int,
    on_progress: OnProgress | None,
) -> AuditInputs:
    """Student and helpers over all clips, `batch_size` at a time: the tokens of more clips are never held.

    Args:
        method: on the device to compute on.
        dataset: holds the clips.
        clips: (N,) rows of the dataset.
        batch: N clips without frames and audio, on the CPU.
        description: of the student.
        batch_size: clips, and windows, at a time.
        on_progress: called after each batch, in clips.
    """
    device, teacher = next(method.parameters()).device, batch.teacher
    assert teacher is not None
    parts: list[dict[str, Tensor]] = []
    for start in range(0, len(clips), batch_size):
        part = slice(start, start + batch_size)
        outputs = run_network(
            method.student,
            dataset,
            clips[part],
            description.view,
            multi_label=description.multi_label,
            batch_size=batch_size,
            with_tokens=bool(method.audits) and method.uses_tokens,
        )
        student = Features(outputs.embedding, tokens=outputs.tokens).map(lambda x: x.to(device))
        with torch.inference_mode():
            helpers = method.audit_helpers(student, teacher.embedding[part].to(device))
        helpers = {name: values.float().cpu() for name, values in helpers.items()}
        parts.append({"probabilities": outputs.probabilities, "embedding": outputs.embedding, **helpers})
        if on_progress is not None:
            on_progress(Progress(min(start + batch_size, len(clips)), len(clips)))
    columns = {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    probabilities, embedding = columns.pop("probabilities"), columns.pop("embedding")
    return AuditInputs(probabilities, embedding, batch, columns)


def label_scores(inputs: AuditInputs) -> dict[str, Tensor]:
    """`teacher_nll` (NaN for an unlabeled clip) and `disagreement`, float64 (N,); none without the teacher's logits."""
    batch, p_student = inputs.batch, inputs.probabilities.double()
    if batch.teacher is None or batch.teacher.logits is None:
        return {}
    logits = batch.teacher.logits.double()
    if batch.labels.ndim == 2:
        hot = batch.labels.double()
        label = -(hot * F.logsigmoid(logits)).sum(1) / hot.sum(1).clamp(min=1)
        p_teacher = logits.sigmoid()
        p_student, p_teacher = (p / p.sum(1, keepdim=True).clamp(min=_TINY) for p in (p_student, p_teacher))
    else:
        label = F.cross_entropy(logits, batch.labels, reduction="none")
        p_teacher = logits.softmax(1)
    same = (p_student * p_teacher).sum(1).clamp(min=_TINY)
    return {"teacher_nll": label.where(batch.labeled, torch.nan), "disagreement": -same.log()}


_TINY = torch.finfo(torch.float64).tiny


def percentiles(values: Tensor, labeled: Tensor, *, by_group: bool) -> Tensor:
    """The share of clips with a lower value, equal ones (the clip itself among them) counting half; NaN stays NaN.

    Args:
        values: float64 (N,).
        labeled: bool (N,).
        by_group: a clip is compared with its group only, labeled or unlabeled, instead of with all.
    """
    result = torch.full_like(values, torch.nan)
    for group in (labeled, ~labeled) if by_group else (torch.ones_like(labeled),):
        members = group & ~values.isnan()
        scores = values[members]
        ordered = scores.sort().values
        below, upto = (torch.searchsorted(ordered, scores, right=right) for right in (False, True))
        result[members] = (below + upto).to(values.dtype) / (2 * max(1, len(scores)))
    return result
