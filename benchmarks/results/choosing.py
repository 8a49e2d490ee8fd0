"""Which methods are shown to help, and to harm, in which situation: the table of docs/methods/choose.md.

A method is shown to help where the 95% interval of its paired difference to no distillation lies above zero, to harm
where it lies below; in between nothing is shown.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import ucf51_metrics
from avdistill.evaluation.statistics import Estimate
from study_metrics import Metrics

#: (labels, audio, videos) of a row -> the cell of the study
STUDY = {
    ("20 of 400 clips", "matched", "GRID words"): ("grid", 20, 0.0),
    ("20 of 400 clips", "40% mismatched", "GRID words"): ("grid", 20, 0.4),
    ("70 of 400 clips", "matched", "GRID words"): ("grid", 70, 0.0),
    ("70 of 400 clips", "40% mismatched", "GRID words"): ("grid", 70, 0.4),
    ("all", "matched", "GRID words"): ("grid", 400, 0.0),
    ("all", "40% mismatched", "GRID words"): ("grid", 400, 0.4),
    ("10 a class", "matched, weak", "actor boxes"): ("ucf51_actor_boxes", 70, 0.0),
    ("all", "matched, weak", "actor boxes"): ("ucf51_actor_boxes", 678, 0.0),
    ("360 of 1200 clips", "matched", "synthetic"): ("synthetic", 360, 0.0),
    ("360 of 1200 clips", "20% mismatched", "synthetic"): ("synthetic", 360, 0.2),
    ("360 of 1200 clips", "40% mismatched", "synthetic"): ("synthetic", 360, 0.4),
    ("360 of 1200 clips", "60% mismatched", "synthetic"): ("synthetic", 360, 0.6),
}
#: the same of the conditions of the study on real videos
UCF51 = {
    ("10 a class", "as uploaded", "UCF51, 14 classes"): ucf51_metrics.FEW_LABELS,
    ("10 a class", "40% mismatched", "UCF51, 14 classes"): ucf51_metrics.FEW_AND_MISMATCHED,
    ("all", "as uploaded", "UCF51, 14 classes"): ucf51_metrics.ALL_LABELS,
    ("all", "40% mismatched", "UCF51, 14 classes"): ucf51_metrics.MISMATCHED,
    ("10 a class", "as uploaded", "UCF51, ImageNet student"): ucf51_metrics.PRETRAINED_FEW,
    ("all", "as uploaded", "UCF51, ImageNet student"): ucf51_metrics.PRETRAINED_ALL,
}
COLUMNS = {
    "labels": "labels",
    "audio": "audio",
    "videos": "videos",
    "ahead": "ahead of no distillation in top-1",
    "level": "nothing shown",
    "behind": "behind",
}


def rows(study: Metrics, ucf51: ucf51_metrics.Metrics) -> list[dict[str, str | None]]:
    """A row for each situation in which a method was run beside no distillation."""
    found = []
    for situation, condition in UCF51.items():
        differences = {
            method: ucf51.difference(condition, method, "supervised", "correct")
            for method in ucf51.methods(condition)
            if method != "supervised"
        }
        found.append(_row(situation, differences.items()))
    for situation, cell in STUDY.items():
        # Variants that know the truth, or that were chosen afterwards, are no method that one could choose.
        methods = [name for name in study.cells[cell] if "," not in name and not name.startswith("supervised")]
        found.append(_row(situation, _of_study(study, cell, methods)))
    return [row for row in found if row is not None]


def _of_study(
    study: Metrics, cell: tuple[str, int, float], methods: list[str]
) -> Iterator[tuple[str, Estimate | None]]:
    for method in methods:
        difference = study.difference(cell, method, "supervised")
        yield method, None if difference is None else difference[0]


def _row(
    situation: tuple[str, str, str], differences: Iterable[tuple[str, Estimate | None]]
) -> dict[str, str | None] | None:
    known = sorted(((d, method) for method, d in differences if d is not None), key=lambda pair: -pair[0].mean)
    if not known:
        return None
    ahead = [f"`{method}` {100 * d.mean:+.1f}" for d, method in known if d.low > 0]
    behind = [f"`{method}` {100 * d.mean:+.1f}" for d, method in known if d.high < 0]
    level = [f"`{method}`" for d, method in known if d.low <= 0 <= d.high]
    texts = [", ".join(each) or None for each in (ahead, level, behind)]
    return dict(zip(COLUMNS, [*situation, *texts], strict=True))
