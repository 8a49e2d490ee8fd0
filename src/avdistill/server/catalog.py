"""The clips of a dataset as pages: filters over columns, never a list of all rows."""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.server.scores import Scores
from avdistill.server.teachers import TeacherLogits

PAGE_CLIPS = 48
# Filters whose rows are kept: a reader pages through one of them.
_FILTERS_KEPT = 32


@dataclass(frozen=True)
class Filter:
    """Which clips, and in which order; an empty field filters nothing.

    Attributes:
        split: name of a split.
        label: name of a class.
        labeled: "yes" or "no".
        notes: "yes" for clips with notes of the preparation, "no" for those without.
        mismatch: lowest score of a mismatch, 0 to 1.
        order: "dataset", or "mismatch" for the most suspicious first.
    """

    split: str = ""
    label: str = ""
    labeled: str = ""
    notes: str = ""
    mismatch: float | None = None
    order: str = "dataset"


@dataclass(frozen=True)
class Page:
    """One page of a selection.

    Attributes:
        clips: int64 (n,) rows of the dataset.
        number, pages: from 1.
        total: clips of the selection.
    """

    clips: np.ndarray
    number: int
    pages: int
    total: int


class Catalog:
    """A dataset's table, prepared to be filtered."""

    def __init__(self, dataset: ClipDataset, scores: Scores | None) -> None:
        self.dataset, self.scores = dataset, scores
        self.ids: np.ndarray = dataset.columns["id"]
        self._rows = {name: row for row, name in enumerate(self.ids.tolist())}
        self._labels: pa.ListArray = dataset.table["labels"].combine_chunks()
        self._notes: pa.ListArray = dataset.table["notes"].combine_chunks()
        self.teachers = TeacherLogits(dataset)
        self._selected: OrderedDict[Filter, np.ndarray] = OrderedDict()

    def row(self, clip: str) -> int | None:
        """The row of an id, None where there is none."""
        return self._rows.get(clip)

    @cached_property
    def splits(self) -> tuple[str, ...]:
        """Names of the splits."""
        return tuple(sorted(pc.unique(self.dataset.table["split"]).to_pylist()))

    @cached_property
    def labeled(self) -> np.ndarray:
        """bool (N,)."""
        return np.asarray(pc.list_value_length(self._labels)) > 0

    @cached_property
    def noted(self) -> np.ndarray:
        """bool (N,), whether the preparation made a note."""
        return np.asarray(pc.list_value_length(self._notes)) > 0

    def select(self, which: Filter) -> np.ndarray:
        """int64 (n,) rows that pass a filter, in its order."""
        if which in self._selected:
            self._selected.move_to_end(which)
            return self._selected[which]
        columns, kept = self.dataset.columns, np.ones(len(self.dataset), bool)
        if which.split:
            kept &= columns["split"] == which.split
        if which.label:
            kept &= self._with_label(which.label)
        for asked, there in ((which.labeled, self.labeled), (which.notes, self.noted)):
            if asked:
                kept &= there == (asked == "yes")
        rows = np.flatnonzero(kept)
        if self.scores is not None:
            if which.mismatch is not None:
                rows = rows[self.scores.values[rows] >= which.mismatch]  # NaN is not
            if which.order == "mismatch":
                rows = rows[np.argsort(self.scores.places[rows], kind="stable")]
        self._selected[which] = rows
        while len(self._selected) > _FILTERS_KEPT:
            self._selected.popitem(last=False)
        return rows

    def page(self, which: Filter, number: int, size: int = PAGE_CLIPS) -> Page:
        """A page of a selection; a number beyond the last is the last."""
        rows = self.select(which)
        pages = max(1, -(-len(rows) // size))
        number = min(max(1, number), pages)
        return Page(rows[(number - 1) * size : number * size], number, pages, len(rows))

    def describe(self, clips: Sequence[int] | np.ndarray) -> list[dict[str, Any]]:
        """What a card or a JSON object says of some clips: JSON-ready."""
        rows = np.asarray(clips, np.int64)
        c, taken = self.dataset.columns, pa.array(rows)
        labels, notes = self._labels.take(taken).to_pylist(), self._notes.take(taken).to_pylist()
        found = []
        for row, own, noted in zip(rows.tolist(), labels, notes, strict=True):
            end = float(c["end_seconds"][row])
            found.append(
                {
                    "id": self.ids[row],
                    "labels": own,
                    "split": c["split"][row],
                    "start_seconds": float(c["start_seconds"][row]),
                    "end_seconds": None if np.isnan(end) else end,
                    "has_video": bool(c["has_video"][row]),
                    "has_audio": bool(c["has_audio"][row]),
                    "silent": bool(c["silent"][row]),
                    "notes": noted,
                    "mismatch": None if self.scores is None else self.scores.of(row),
                }
            )
        return found

    def describe_one(self, clip: int) -> dict[str, Any]:
        """The same of one clip."""
        return self.describe([clip])[0]

    def _with_label(self, label: str) -> np.ndarray:
        """bool (N,): clips of a class."""
        found = np.zeros(len(self.dataset), bool)
        parents, names = pc.list_parent_indices(self._labels), pc.list_flatten(self._labels)
        found[np.asarray(parents.filter(pc.equal(names, label)))] = True
        return found
