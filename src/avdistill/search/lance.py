"""The LanceDB form (extra `search`): embedded, on disk or in a bucket; exact up to 200,000 clips, IVF-PQ beyond.

The table `clips-<key>` holds a row per clip, a column of vectors for each space; `description` names the table that is
whole and what it was made of, and is written last. A batch of rows is one commit of LanceDB: it is there, or it is not.
"""

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import fields
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any
from warnings import catch_warnings, simplefilter

import numpy as np

from avdistill.config_io import encode, parse_json
from avdistill.errors import SearchError
from avdistill.fsio import error_message, is_vacant, open_lock
from avdistill.progress import OnProgress, Progress
from avdistill.search.columns import Content, Part
from avdistill.search.index import Index
from avdistill.search.schema import COLUMNS, Hit, IndexDescription, Space, checked_description, hit_of, key_of
from avdistill.search.where import Comparison, Condition, Value
from avdistill.storage.filesystems import lance_options

if TYPE_CHECKING:
    import pyarrow as pa

#: more vectors than this in a space get an IVF-PQ index
LARGEST_EXACT = 200_000
# At these a search of 1,000,000 x 512 finds what results/performance/search.json says.
_PROBES, _REFINE = 64, 20
# With a condition, whose clips may lie anywhere: all partitions, of which only those clips are compared.
_ALL_PROBES = 100_000
_DESCRIPTION = "description"
_HIT_COLUMNS = [name for name in COLUMNS if name in {"dataset", "id"} | {field.name for field in fields(Hit)}]


class LanceIndex(Index):
    """A table of LanceDB."""

    def __init__(self, location: str) -> None:
        """Open it. Raises SearchError where there is no index, a damaged one, or no LanceDB."""
        if "://" not in location and not Path(location).is_dir():
            raise SearchError(f"{location}: no index here")
        database = _connect(location)
        try:
            if _DESCRIPTION not in _tables(database):
                raise SearchError(f"{location}: no index here, or one whose indexing was interrupted: index again")
            row = database.open_table(_DESCRIPTION).search().limit(1).to_list()[0]
            super().__init__(location, checked_description(parse_json(row["description"])))
            self._table = database.open_table(row["table"])
        except (OSError, ValueError, RuntimeError, LookupError) as error:
            raise SearchError(f"{location}: damaged: {error_message(error):.200}; index again") from error

    def search_vectors(
        self, vectors: np.ndarray, space: Space, *, k: int, condition: Condition | None
    ) -> list[list[Hit]]:
        """See `Index`. The condition comes before the search. Approximate in a space of more than 200,000 vectors."""
        sql = None if condition is None else to_sql(condition)
        found = []
        for vector in vectors:
            query = self._table.search(vector, vector_column_name=self._column(space)).distance_type("cosine")
            query = query.limit(k).select(["row", *_HIT_COLUMNS, "_distance"]).refine_factor(_REFINE)
            query = query.nprobes(_PROBES) if sql is None else query.where(sql, prefilter=True).nprobes(_ALL_PROBES)
            with _errors(self.location):
                answer = query.to_list()
            rows = [row for row in answer if row["_distance"] is not None]  # None: it has no vector
            rows.sort(key=lambda row: (row["_distance"], row["row"]))
            found.append([hit_of(row, 1 - row["_distance"]) for row in rows])
        return found

    def vectors(self, space: Space, condition: Condition, *, most: int) -> tuple[list[tuple[str, str]], np.ndarray]:
        """See `Index`."""
        column, present = self._column(space), _present_column(self.description.spaces.index(space))
        # Not `IS NOT NULL`, for which every vector would be read.
        query = self._table.search().where(f"{present} AND {to_sql(condition)}")
        with _errors(self.location):
            rows = query.limit(most).select(["dataset", "id", column]).to_arrow()
        values = rows[column].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        return list(zip(rows["dataset"].to_pylist(), rows["id"].to_pylist(), strict=True)), values.reshape(
            -1, space.dim
        )

    def _column(self, space: Space) -> str:
        return _vector_column(self.description.spaces.index(space))


def write_lance(content: Content, location: str, on_progress: OnProgress | None = None) -> None:
    """Make the index, or go on where a killed call of the same content stopped; an older one is then removed.

    Raises:
        SearchError: another process makes it, something else has its name, LanceDB is missing or fails.
    """
    folder = None if "://" in location else Path(location)
    if folder is not None:
        if not is_vacant(folder) and not any(folder.glob("clips-*.lance")) and not (folder / "lock").is_file():
            raise SearchError(f"{folder}: expected an index or a free name, found something else; it is not replaced")
        folder.mkdir(parents=True, exist_ok=True)
    database = _connect(location)
    try:
        with nullcontext() if folder is None else open_lock(folder):
            _write(content, database, on_progress)
    except BlockingIOError:
        raise SearchError(f"{location}: another process is making it") from None
    except (RuntimeError, ValueError) as error:
        raise SearchError(f"{location}: LanceDB cannot write it: {error_message(error):.300}") from error


def _write(content: Content, database: Any, on_progress: OnProgress | None) -> None:
    description = content.description
    name = f"clips-{key_of(description)}"
    table = database.create_table(name, schema=_schema(content), exist_ok=True)
    for part in content.parts(table.count_rows()):
        table.add(_rows(part))
        if on_progress is not None:
            on_progress(Progress(part.start + part.clips.num_rows, description.clips))
    with catch_warnings():
        # Joins the parts; without the removal of older versions every row stays on the disk as it was added, too. Of
        # any age: the last may be less than a millisecond old. LanceDB warns of readers of older versions; there are
        # none, as an index opens only where its table is whole.
        simplefilter("ignore", UserWarning)
        table.optimize(cleanup_older_than=timedelta(0))
    _index_vectors(table, description)
    import pyarrow as pa

    current = pa.table({"description": [json.dumps(encode(description))], "table": [name]})
    database.create_table(_DESCRIPTION, current, mode="overwrite")
    for other in _tables(database):
        if other.startswith("clips-") and other != name:
            database.drop_table(other)


def _index_vectors(table: Any, description: IndexDescription) -> None:
    """IVF-PQ for each space with more vectors than are compared one by one."""
    from lancedb.index import IvfPq

    have = {column for index in table.list_indices() for column in index.columns}
    for i in range(len(description.spaces)):
        column = _vector_column(i)
        if column not in have and table.count_rows(_present_column(i)) > LARGEST_EXACT:
            table.create_index(column, config=IvfPq(distance_type="cosine"))


def _schema(content: Content) -> "pa.Schema":
    import pyarrow as pa

    vectors = [
        pa.field(_vector_column(i), pa.list_(pa.float32(), space.dim))
        for i, space in enumerate(content.description.spaces)
    ]
    present = [pa.field(_present_column(i), pa.bool_()) for i in range(len(vectors))]
    return pa.schema([pa.field("row", pa.int64()), *content.clips.schema, *present, *vectors])


def _rows(part: Part) -> "pa.Table":
    import pyarrow as pa

    rows = pa.array(np.arange(part.start, part.start + part.clips.num_rows))
    columns = {"row": rows} | {name: part.clips[name] for name in part.clips.column_names}
    columns |= {_present_column(i): pa.array(vectors.any(1)) for i, vectors in enumerate(part.vectors)}
    for i, vectors in enumerate(part.vectors):
        values = pa.array(np.ascontiguousarray(vectors).reshape(-1))
        missing = pa.array(~vectors.any(1))
        columns[_vector_column(i)] = pa.FixedSizeListArray.from_arrays(values, vectors.shape[1], mask=missing)
    return pa.table(columns)


def to_sql(condition: Condition) -> str:
    """The condition in LanceDB's SQL."""
    if isinstance(condition, Comparison):
        return _comparison_sql(condition)
    return "(" + f" {condition.joined_by.upper()} ".join(map(to_sql, condition.parts)) + ")"


def _comparison_sql(c: Comparison) -> str:
    column = f"`{c.column}`"
    if not c.values:
        return f"{column} {c.operator.upper()}"
    if c.kind == "texts":
        found = " OR ".join(f"array_has({column}, {_literal(value)})" for value in c.values)
        return f"(NOT ({found}))" if c.operator in ("!=", "not in") else f"({found})"
    if c.operator in ("in", "not in"):
        return f"{column} {c.operator.upper()} ({', '.join(map(_literal, c.values))})"
    return f"{column} {c.operator} {_literal(c.values[0])}"


def _literal(value: Value) -> str:
    if isinstance(value, str):
        return "'" + value.replace("'", "''") + "'"
    return str(value).lower() if isinstance(value, bool) else repr(float(value))


def _vector_column(number: int) -> str:
    return f"vector_{number}"


def _present_column(number: int) -> str:
    return f"present_{number}"


def _connect(location: str) -> Any:
    try:
        import lancedb
    except ImportError:
        raise SearchError(f"{location}: LanceDB is not installed: install the extra 'search'") from None
    try:
        return lancedb.connect(os.fspath(location), storage_options=lance_options(location))
    except (OSError, ValueError, RuntimeError) as error:
        raise SearchError(f"{location}: LanceDB cannot open it: {error_message(error):.200}") from error


@contextmanager
def _errors(location: str) -> Iterator[None]:
    """What LanceDB raises, as one line; the index that is open may have been replaced since."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise SearchError(f"{location}: LanceDB cannot read it: {error_message(error):.200}; open it again") from error


def _tables(database: Any) -> list[str]:
    return list(database.list_tables(limit=1000).tables)
