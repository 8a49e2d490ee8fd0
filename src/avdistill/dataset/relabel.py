"""Labels of a list, merged into a copy of a dataset: nothing is decoded again."""

import hashlib
import os
from collections import defaultdict
from pathlib import Path

from avdistill.annotations.schema import annotation_error, csv_table, format_path, parse_labels, truncate_repr
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.copies import Row, linked_copy, rows_of
from avdistill.errors import AnnotationError

Labels = dict[int, tuple[str, ...]]


def relabel(dataset: ClipDataset, labels: str | os.PathLike[str], out: str | os.PathLike[str]) -> ClipDataset:
    """Make a copy of a dataset with labels of a CSV file, without its teacher features (see `teachers.transfer`).

    Args:
        dataset: the source. It is not changed; on another disk it must stay readable, for the copy links to it.
        labels: see `read_labels`.
        out: the new dataset's folder; returned as it is if it already holds exactly this dataset.

    Raises:
        AnnotationError: see `read_labels`.
        DatasetError: `out` holds something else, is in use, or cannot be written.
    """
    found = read_labels(Path(labels), dataset)
    listed = sorted((str(dataset.columns["id"][clip]), list(names)) for clip, names in found.items())
    made_from = {"relabeled": len(found), "labels_sha256": hashlib.sha256(repr(listed).encode()).hexdigest()}

    def rows(_folder: Path) -> list[Row]:
        changed = rows_of(dataset)
        for clip, names in found.items():
            changed[clip]["labels"] = list(names)
            changed[clip]["extra"].pop("true_label", None)  # that of a label that had been taken away
        return changed

    return linked_copy(dataset, out, made_from, f"this dataset with the labels of {format_path(Path(labels))}", rows)


def read_labels(path: Path, dataset: ClipDataset) -> Labels:
    """The labels of a CSV file: row of the dataset -> labels.

    The columns are `label` (several joined by "|"; an empty cell leaves the clip as it is) and `id`, or `path`, which
    means all clips of a file. A file with both goes by `id`, as the list of `suggest` does.

    Raises:
        AnnotationError: no such file, not CSV, columns that are missing, an id or a path that the dataset has not, a
            clip with two different labels, or no label at all. The message names the line.
    """
    clips: dict[str, dict[str, list[int]]] = {key: defaultdict(list) for key in ("id", "path")}
    for key, of_value in clips.items():
        for row, value in enumerate(dataset.columns[key].tolist()):
            of_value[str(value)].append(row)
    found: Labels = {}
    try:
        for where, cells in csv_table(path, _check_header):
            names = parse_labels(where, cells["label"])
            key = "id" if "id" in cells else "path"
            if not names:
                continue
            if cells[key].strip() not in clips[key]:
                raise annotation_error(where, f"the {key} of a clip of {dataset.folder}", truncate_repr(cells[key]))
            for clip in clips[key][cells[key].strip()]:
                if found.setdefault(clip, names) != names:
                    raise annotation_error(where, f"one label for {truncate_repr(cells[key])}", "two")
    except OSError as error:
        raise AnnotationError(f"{format_path(path)}: {error.strerror or error}") from error
    if not found:
        raise AnnotationError(f"{format_path(path)}: expected a label, found none; fill in the column label")
    return found


def _check_header(where: str, header: list[str]) -> None:
    if "label" not in header or not {"id", "path"} & set(header):
        raise annotation_error(where, "the columns label and id, or label and path", ", ".join(header) or "none")
