"""Decisions about clips, from an audit or a reviewer: a CSV file, and a dataset as they leave it.

A row is `clip,decision,by`. `clip` is an id of the dataset; `by` says who decided and is not read. Decisions:

- `keep`: nothing changes, as for a clip that is not listed;
- `drop_audio`: the clip counts as one without audio: an audio teacher has no features of it, an audio student leaves it
  out;
- `drop_clip`: the clip is left out;
- `relabel:NAME`: it has this label instead of its own (several joined by "|").
"""

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.annotations.schema import annotation_error, csv_table, format_path, parse_labels, truncate_repr
from avdistill.dataset import schema
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.mapped_features import MappedFeatures
from avdistill.dataset.schema import TeacherEntry
from avdistill.errors import AnnotationError, DatasetError
from avdistill.fsio import replacing

COLUMNS = ("clip", "decision", "by")
KEEP, DROP_AUDIO, DROP_CLIP, RELABEL = "keep", "drop_audio", "drop_clip", "relabel"


@dataclass(frozen=True)
class Decision:
    """What becomes of a clip: `kind` is one of the four above; `labels` are those of a `relabel`."""

    clip: str
    kind: str
    labels: tuple[str, ...] = ()
    by: str = ""

    @property
    def text(self) -> str:
        """The cell of the column `decision`."""
        return f"{RELABEL}:{'|'.join(self.labels)}" if self.kind == RELABEL else self.kind


def read_decisions(path: Path, dataset: ClipDataset) -> list[Decision]:
    """The decisions of a file, checked against the dataset.

    Raises:
        AnnotationError: no such file, not CSV, or no columns `clip` and `decision`; an unknown clip or one listed
            twice, an unknown decision, or a label that is not a class of the dataset. The message names the line.
    """
    ids = set(dataset.columns["id"].tolist())
    seen: dict[str, str] = {}
    decisions = []
    try:
        for where, cells in csv_table(path, _check_header):
            clip = cells["clip"] if cells["clip"] in ids else cells["clip"].strip()
            if clip not in ids:
                raise annotation_error(where, f"the id of a clip of {dataset.folder}", truncate_repr(clip))
            if clip in seen:
                raise annotation_error(where, "every clip once", f"{truncate_repr(clip)} as in {seen[clip]}")
            seen[clip] = where
            decisions.append(_parsed(where, clip, cells["decision"].strip(), cells.get("by", ""), dataset))
    except OSError as error:
        raise AnnotationError(f"{format_path(path)}: {error.strerror or error}") from error
    return decisions


def _check_header(where: str, header: list[str]) -> None:
    if missing := [name for name in COLUMNS[:2] if name not in header]:
        raise annotation_error(where, f"the columns {', '.join(COLUMNS)}", f"no column {missing[0]!r}")


def _parsed(where: str, clip: str, text: str, by: str, dataset: ClipDataset) -> Decision:
    kind, colon, names = text.partition(":")
    if kind == RELABEL:
        labels = parse_labels(where, names)
        if not labels or (unknown := [name for name in labels if name not in dataset.classes]):
            found = truncate_repr(unknown[0] if labels else text)
            raise annotation_error(
                where, f"relabel:NAME with one of the dataset's {len(dataset.classes)} classes", found
            )
        return Decision(clip, kind, labels, by)
    if colon or kind not in (KEEP, DROP_AUDIO, DROP_CLIP):
        expected = f"{KEEP}, {DROP_AUDIO}, {DROP_CLIP} or {RELABEL}:NAME"
        raise annotation_error(where, expected, truncate_repr(text))
    return Decision(clip, kind, by=by)


def write_decisions(path: Path, decisions: Iterable[Decision]) -> None:
    """Write or replace the file."""
    with replacing(path, newline="") as file:
        csv.writer(file).writerow(COLUMNS)
        file.writelines(map(csv_row, decisions))


def csv_row(decision: Decision) -> str:
    """A line of the file, with its end."""
    cells = (decision.clip, decision.text, decision.by)
    spaced = any(cell[:1].isspace() for cell in cells)  # only within quotes does a space at the start count
    row = io.StringIO()
    csv.writer(row, quoting=csv.QUOTE_ALL if spaced else csv.QUOTE_MINIMAL).writerow(cells)
    return row.getvalue()


class DecidedDataset(ClipDataset):
    """A dataset as decisions leave it: all readers of the dataset see it so. Its folder is not changed.

    Attributes:
        decisions: by clip id, `keep` included.
    """

    def __init__(self, dataset: ClipDataset, decisions: Iterable[Decision]) -> None:
        """Args: dataset: opened anew; decisions: of its clips, see `read_decisions`."""
        import pyarrow as pa  # only here: training on clips in memory does without it

        super().__init__(dataset.folder)
        self.url = dataset.url
        self.decisions = {decision.clip: decision for decision in decisions}
        rows = self.table.to_pylist()
        kinds = [self.decisions[row["id"]].kind if row["id"] in self.decisions else KEEP for row in rows]
        self._kept = np.array([i for i, kind in enumerate(kinds) if kind != DROP_CLIP], dtype=np.int64)
        self._without_audio = np.array([kinds[i] == DROP_AUDIO for i in self._kept], dtype=bool)
        self.table = pa.Table.from_pylist([self._changed(rows[i]) for i in self._kept], schema=schema.CLIP_SCHEMA)
        if not len(self):
            raise DatasetError(f"{self.folder}: expected decisions that leave a clip, found all {len(rows)} dropped")

    def _changed(self, row: dict[str, Any]) -> dict[str, Any]:
        decision = self.decisions.get(row["id"])
        if decision is not None and decision.kind == DROP_AUDIO:
            row |= {"has_audio": False, "silent": False, "audio_shard": 0, "audio_offset": 0, "audio_count": 0}
        elif decision is not None and decision.kind == RELABEL:
            row["labels"] = list(decision.labels)
        return row

    @property
    def checksum(self) -> str:
        """SHA-256 over the clips' content and what was decided; by whom does not count."""
        changes = sorted(f"{each.clip}\n{each.text}" for each in self.decisions.values() if each.kind != KEEP)
        if not changes:
            return super().checksum
        return hashlib.sha256("\n\n".join([super().checksum, *changes]).encode()).hexdigest()

    def map_features(self, name: str) -> MappedFeatures:
        """A teacher's features of the clips that are left; of dropped audio there are none."""
        dropped = self._without_audio if self.teacher(name).modality == "audio" else np.zeros(len(self), bool)
        return super().map_features(name).of_clips(self._kept, ~dropped)

    def add_features(self, name: str, **_: Any) -> TeacherEntry:
        """Features are those of the dataset itself. Raises DatasetError."""
        raise DatasetError(f"{self.folder}: features {name!r}: expected the dataset itself, found it with decisions")


def open_dataset(folder: Path, decisions: Path | None) -> ClipDataset:
    """A dataset, as the decisions of a file leave it. Raises DatasetError or AnnotationError."""
    dataset = ClipDataset(folder)
    return dataset if decisions is None else DecidedDataset(dataset, read_decisions(decisions, dataset))


def decision_counts(dataset: ClipDataset) -> dict[str, int] | None:
    """How many clips were decided about in each way, for the record of a run; None for a dataset without decisions."""
    if not isinstance(dataset, DecidedDataset):
        return None
    kinds = Counter(decision.kind for decision in dataset.decisions.values())
    return {kind: kinds[kind] for kind in (KEEP, DROP_AUDIO, DROP_CLIP, RELABEL)}
