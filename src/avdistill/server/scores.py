"""How suspicious each clip is, by the newest audit of the dataset: `clips.csv` of `avdistill audit`."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv

from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.errors import DatasetError
from avdistill.fsio import error_message, regular_file

# Scores on one scale from 0 to 1, higher for the more suspicious clip; the first that an audit has is shown.
_COLUMNS = {
    "correspondence": "correspondence (0.5: chance)",
    "mismatch_probability": "p(mismatched)",
    "percentile": "share of clips that are less suspicious",
}


@dataclass(frozen=True)
class Scores:
    """An audit's scores of a dataset's clips.

    Attributes:
        path: of the table.
        name: of the score, for people.
        values: float64 (N,), NaN where the audit did not score the clip.
        places: int64 (N,) ranks, those without one behind all others.
    """

    path: Path
    name: str
    values: np.ndarray
    places: np.ndarray

    def of(self, row: int) -> float | None:
        """The score of a clip."""
        value = float(self.values[row])
        return None if np.isnan(value) else value


def newest_audit(dataset: Path, runs: Sequence[Path]) -> Path | None:
    """`clips.csv` of the last audit: DATASET-audit, or RUN/audit-SPLIT of one of the runs."""
    whole = dataset.resolve()
    found = [whole.parent / f"{whole.name}-audit" / "clips.csv"]
    found += [table for run in runs for table in run.glob("audit-*/clips.csv")]
    there = [table for table in found if table.is_file()]
    return max(there, key=lambda table: table.stat().st_mtime, default=None)


def read_scores(path: Path, dataset: ClipDataset) -> Scores | None:
    """The scores of an audit's table; None where it knows none of the clips.

    Raises:
        DatasetError: the table is damaged or is that of no audit.
    """
    types = {"id": pa.string(), "rank": pa.int64()} | dict.fromkeys(_COLUMNS, pa.float64())
    options = pyarrow.csv.ConvertOptions(
        column_types=types, include_columns=list(types), include_missing_columns=True, null_values=[""]
    )
    parse = pyarrow.csv.ParseOptions(newlines_in_values=True)
    try:
        table = pyarrow.csv.read_csv(regular_file(path), convert_options=options, parse_options=parse)
    except (OSError, pa.ArrowException, ValueError) as error:
        raise DatasetError(f"{path}: expected the table of an audit, found another: {error_message(error)}") from error
    name = next((name for name in _COLUMNS if table[name].null_count < len(table)), None)
    if name is None:
        raise DatasetError(f"{path}: expected one of the columns {', '.join(_COLUMNS)}, found none with values")
    rows = {clip: row for row, clip in enumerate(dataset.columns["id"].tolist())}
    at = np.array([rows.get(clip, -1) for clip in table["id"].to_pylist()], dtype=np.int64)
    known = at >= 0
    if not known.any():
        return None
    values, places = np.full(len(dataset), np.nan), np.full(len(dataset), len(dataset) + 1, np.int64)
    values[at[known]] = table[name].to_numpy()[known]
    places[at[known]] = table["rank"].fill_null(len(dataset) + 1).to_numpy()[known]
    return Scores(path, _COLUMNS[name], values, places)
