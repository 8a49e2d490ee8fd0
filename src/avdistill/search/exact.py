"""The exact form: a folder of arrays, every clip compared with the query; up to about a million clips. No package.

`index.json` (description), `clips.parquet`, and for each space `vectors-<i>.npy`, float32 (N, D) of length 1, and
`present-<i>.npy`, bool (N,): which clips have one. While it is made, all of this is in `<index>.partial/`, with
`progress.json`.
"""

import threading
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from avdistill.config_io import encode, read_json
from avdistill.errors import SearchError
from avdistill.fsio import (
    LOCK,
    commit,
    create_file,
    error_message,
    is_vacant,
    load_array,
    open_lock,
    open_regular,
    own_folder,
    regular_file,
    remove_tree,
    replacing,
    sync,
    write_json,
)
from avdistill.progress import OnProgress, Progress
from avdistill.search.columns import Content
from avdistill.search.index import Index
from avdistill.search.knn import nearest_units
from avdistill.search.schema import COLUMNS, Hit, IndexDescription, Space, checked_description, hit_of
from avdistill.search.where import Comparison, Condition

if TYPE_CHECKING:
    import pyarrow as pa

DESCRIPTION, CLIPS = "index.json", "clips.parquet"
_VECTORS, _PRESENT, _PROGRESS = "vectors-{}.npy", "present-{}.npy", "progress.json"


@dataclass(eq=False)
class _Request:
    """What one thread asks for, and the hits of each of its vectors once they are there."""

    vectors: np.ndarray
    space: str
    k: int
    condition: Condition | None
    hits: list[list[Hit]] | None = None


class ExactIndex(Index):
    """A folder of arrays, memory-mapped. Threads that search at the same time are answered together."""

    def __init__(self, folder: Path) -> None:
        """Open `folder`. Raises SearchError where there is no index, or a damaged one."""
        import pyarrow as pa
        import pyarrow.parquet as pq

        super().__init__(str(folder), read_folder_description(folder))
        N = self.description.clips
        try:
            self._clips: pa.Table = pq.read_table(regular_file(folder / CLIPS), partitioning=None)
            spaces = list(enumerate(self.description.spaces))
            self._vectors = {space.name: load_array(folder / _VECTORS.format(i), mapped=True) for i, space in spaces}
            self._present = {space.name: load_array(folder / _PRESENT.format(i)) for i, space in spaces}
        except (OSError, ValueError, pa.ArrowException) as error:
            raise SearchError(f"{folder}: damaged: {error_message(error)}; remove it and index again") from error
        self._turn, self._waiting = threading.Lock(), list[_Request]()
        whole = self._clips.num_rows == N and self._clips.column_names == list(COLUMNS)
        for space in self.description.spaces:
            whole &= self._vectors[space.name].shape == (N, space.dim)
            whole &= self._present[space.name].shape == (N,)
        if not whole:
            raise SearchError(f"{folder}: damaged: expected {N} clips in all its files; remove it and index again")

    def search_vectors(
        self, vectors: np.ndarray, space: Space, *, k: int, condition: Condition | None
    ) -> list[list[Hit]]:
        """See `Index`; equal cosines in the order of the index."""
        request = _Request(vectors, space.name, k, condition)
        self._waiting.append(request)
        with self._turn:
            if request.hits is None:  # the thread before answered those that asked the same of other vectors
                asked, waiting = (space.name, k, condition), self._waiting
                alike = [each for each in waiting if (each.space, each.k, each.condition) == asked]
                self._waiting = [each for each in waiting if each not in (request, *alike)]
                self._answer([request, *(each for each in alike if each is not request)])
        assert request.hits is not None
        return request.hits

    def _answer(self, requests: list[_Request]) -> None:
        first = requests[0]
        used = self._present[first.space]
        if first.condition is not None:
            used = used & matching(first.condition, self._clips)
        vectors = np.concatenate([each.vectors for each in requests])
        scores, rows = nearest_units(vectors, self._vectors[first.space], first.k, used)
        hits = iter(
            [hit_of(row, s) for row, s in zip(self._clips.take(found).to_pylist(), score.tolist(), strict=True)]
            for found, score in zip(rows, scores, strict=True)
        )
        for each in requests:
            each.hits = [next(hits) for _ in each.vectors]

    def vectors(self, space: Space, condition: Condition, *, most: int) -> tuple[list[tuple[str, str]], np.ndarray]:
        """See `Index`."""
        rows = np.flatnonzero(self._present[space.name] & matching(condition, self._clips))[:most]
        taken = self._clips.select(["dataset", "id"]).take(rows).to_pylist()
        return [(row["dataset"], row["id"]) for row in taken], np.array(self._vectors[space.name][rows])


def read_folder_description(folder: Path) -> IndexDescription:
    """`index.json`. Raises SearchError where it is missing, damaged or of another version."""
    if not (folder / DESCRIPTION).is_file():
        unfinished = "; its indexing was interrupted: run the same `avdistill index` again"
        hint = unfinished if (folder.with_name(folder.name + ".partial") / DESCRIPTION).is_file() else ""
        raise SearchError(f"{folder}: no index here ({DESCRIPTION} is missing{hint})")
    try:
        return checked_description(read_json(folder / DESCRIPTION))
    except (OSError, ValueError) as error:
        raise SearchError(f"{folder}: {DESCRIPTION} is damaged: {error_message(error)}; index again") from error


def write_exact(content: Content, folder: Path, on_progress: OnProgress | None = None) -> None:
    """Make the index, or go on where a killed call of the same content stopped; an older index is then replaced.

    Raises:
        SearchError: another process makes it, or something else than an index has its name.
        OSError: it cannot be written.
    """
    import pyarrow.parquet as pq

    folder = folder.resolve()  # "." has no name, and a link is not what is replaced
    if not is_vacant(folder) and not (folder / DESCRIPTION).is_file():
        raise SearchError(f"{folder}: expected an index or a free name, found something else; it is not replaced")
    partial = own_folder(folder.parent, folder.name + ".partial")
    partial.mkdir(parents=True, exist_ok=True)
    try:
        lock = open_lock(partial)
    except BlockingIOError:
        raise SearchError(f"{folder}: another process is making it") from None
    with lock:
        description = encode(content.description)
        done = _resumable(partial, description)
        if done == 0:
            for left in partial.iterdir():
                if left.name != LOCK:
                    remove_tree(left)
            with replacing(partial / CLIPS, "xb") as file:
                pq.write_table(content.clips, file)
            write_json(partial / DESCRIPTION, description)
        total = content.description.clips
        files = []
        for i, space in enumerate(content.description.spaces):
            files.append(_open_array(partial / _VECTORS.format(i), np.dtype(np.float32), (total, space.dim), done))
            files.append(_open_array(partial / _PRESENT.format(i), np.dtype(bool), (total,), done))
        try:
            for part in content.parts(done):
                for i, vectors in enumerate(part.vectors):
                    for file, array in zip(files[2 * i : 2 * i + 2], (vectors, vectors.any(1)), strict=True):
                        file.write(np.ascontiguousarray(array).data)
                        sync(file)
                done = part.start + part.clips.num_rows
                write_json(partial / _PROGRESS, {"rows": done})
                if on_progress is not None:
                    on_progress(Progress(done, total))
        finally:
            for file in files:
                file.close()
        old = folder.with_name(folder.name + ".old")
        if folder.exists():
            remove_tree(old)
            folder.rename(old)
        commit(partial, folder)
        remove_tree(old)
        (folder / _PROGRESS).unlink(missing_ok=True)


def _resumable(partial: Path, description: dict[str, Any]) -> int:
    """How many rows of this content are on the disk."""
    try:
        if read_json(partial / DESCRIPTION) != description:
            return 0
        return int(read_json(partial / _PROGRESS)["rows"])
    except (OSError, ValueError, KeyError, TypeError):
        return 0


def _open_array(path: Path, dtype: np.dtype, shape: tuple[int, ...], done: int) -> IO[bytes]:
    """An .npy file that holds `done` rows, to append the others; what a kill left behind them is cut off."""
    if done == 0:
        file = create_file(path, "xb")
        header = np.lib.format.header_data_from_array_1_0(np.empty((0, *shape[1:]), dtype)) | {"shape": shape}
        np.lib.format.write_array_header_1_0(file, header)
        return file
    file = open_regular(path, "r+b")
    np.lib.format.read_magic(file)
    np.lib.format.read_array_header_1_0(file)
    end = file.tell() + done * dtype.itemsize * int(np.prod(shape[1:]))
    file.truncate(end)
    file.seek(end)
    return file


def matching(condition: Condition, clips: "pa.Table") -> np.ndarray:
    """bool (N,): which rows meet the condition."""
    if isinstance(condition, Comparison):
        return _compared(condition, clips)
    parts = [matching(part, clips) for part in condition.parts]
    return np.logical_and.reduce(parts) if condition.joined_by == "and" else np.logical_or.reduce(parts)


def _compared(c: Comparison, clips: "pa.Table") -> np.ndarray:
    import pyarrow as pa
    import pyarrow.compute as pc

    column = clips[c.column]
    if c.operator in ("is null", "is not null"):
        missing = column.is_null().to_numpy()
        return np.asarray(missing if c.operator == "is null" else ~missing, bool)
    negative = c.operator in ("!=", "not in")
    if c.operator in ("=", "!=", "in", "not in"):
        texts = c.kind == "texts"
        flat = pc.list_flatten(column) if texts else column
        found = pc.is_in(flat, value_set=pa.array(c.values, flat.type)).to_numpy(zero_copy_only=False).astype(bool)
        if texts:
            rows = pc.list_parent_indices(column).to_numpy()
            found = np.bincount(rows[found], minlength=len(column)) > 0
        return (~found & ~column.is_null().to_numpy().astype(bool)) if negative else found
    compare = {"<": pc.less, "<=": pc.less_equal, ">": pc.greater, ">=": pc.greater_equal}[c.operator]
    return np.asarray(
        pc.fill_null(compare(column, pa.scalar(c.values[0], column.type)), False).to_numpy(zero_copy_only=False), bool
    )
