"""Tables of results: means over seeds, Markdown."""

import math
import statistics
from collections.abc import Mapping, Sequence
from typing import TypeAlias

Row: TypeAlias = Mapping[str, object]


def markdown_table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """A Markdown table without a final newline. Columns of numbers are aligned right; an absent value or None is "–".

    Args:
        rows: one mapping per row; keys not in `columns` are not shown.
        columns: key -> heading, in the order shown; at least one.
    """
    if not columns:
        raise ValueError("a table needs at least one column")
    rules = ["---:" if is_numeric(rows, key) else "---" for key in columns]
    lines = [list(columns.values()), rules, *([format_value(row.get(key)) for key in columns] for row in rows)]
    return "\n".join("| " + " | ".join(_markdown_cell(cell) for cell in line) + " |" for line in lines)


def format_value(value: object) -> str:
    """A value as a table shows it: three decimals, or three significant digits where those would hide it."""
    if value is None:
        return "–"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.3f}" if value == 0 or 0.01 <= abs(value) < 1000 else f"{value:.3g}"
    return str(value)


def summarize(
    rows: Sequence[Row], *, by: Sequence[str] = ("method",), values: Sequence[str] = ("top1_accuracy",)
) -> list[dict[str, object]]:
    """Mean and sample standard deviation over the runs of each group, groups in order of first appearance.

    A run without one of the values is refused, not left out: a mean over the runs that survived would flatter. A second
    run with the same `seed` in a group is refused too: it would count one experiment twice. NaN stays NaN.

    Args:
        rows: one mapping per run.
        by: keys that define a group.
        values: keys of numbers.

    Returns:
        Per group the `by` keys, `n` runs, and for each value `<value>` (mean) and `<value>_std` (None for one run).
    """
    groups: dict[tuple[object, ...], list[Row]] = {}
    for row in rows:
        missing = [key for key in (*by, *values) if row.get(key) is None]
        if missing:
            raise ValueError(f"run {dict(row)} has no {', '.join(missing)}")
        groups.setdefault(tuple(row[key] for key in by), []).append(row)
    summary: list[dict[str, object]] = []
    for key, members in groups.items():
        seeds = [member["seed"] for member in members if "seed" in member]
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"two runs of {', '.join(map(str, key))} have the same seed: {sorted(map(str, seeds))}")
        line: dict[str, object] = {**dict(zip(by, key, strict=True)), "n": len(members)}
        for name in values:
            numbers = [_number(member[name], name) for member in members]
            mean = statistics.fmean(numbers)
            squares = math.fsum((number - mean) ** 2 for number in numbers)  # statistics.stdev fails on NaN
            line |= {name: mean, f"{name}_std": math.sqrt(squares / (len(numbers) - 1)) if len(numbers) > 1 else None}
        summary.append(line)
    return summary


def is_numeric(rows: Sequence[Row], key: str) -> bool:
    """Whether every value of a column is a number or absent."""
    values = [row[key] for row in rows if row.get(key) is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _markdown_cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def _number(value: object, name: str) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, not {value!r}")
    return float(value)
