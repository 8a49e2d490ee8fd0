"""What scripts that train one run after another share: a run is continued, and its row is appended as it ends."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from pathlib import Path


def append_row(table: Path, row: Mapping[str, object]) -> None:
    """Write a row of a CSV file, with a header before the first."""
    new = not table.is_file()
    with table.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(row), lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)


def read_rows(table: Path) -> list[dict[str, str]]:
    """The rows of a CSV file; none where there is no file."""
    if not table.is_file():
        return []
    with table.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))
