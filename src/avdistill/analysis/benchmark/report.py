"""What a study found: from the rows of its runs to tables, curves and one page. No torch, no training."""

import csv
import hashlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from avdistill.analysis.benchmark.panels import plot_panels
from avdistill.config_io import parse_json
from avdistill.errors import RunError
from avdistill.evaluation.statistics import interval, mean_ranks, paired_difference
from avdistill.fsio import replace_text, replacing, result_folder
from avdistill.reporting.page import Image, Section, write_page
from avdistill.reporting.plots import method_styles, plot_bars
from avdistill.reporting.tables import markdown_table

BASELINE = "supervised"
COLUMNS = {
    "method": "method",
    "n": "seeds",
    "top1_accuracy": "top-1",
    "std": "± (seeds)",
    "interval": "95% interval",
    "difference": "vs supervised",
    "difference_interval": "95% interval of the difference",
    "map": "mAP (retrieval)",
    "auc": "AUC",
    "d_prime": "d-prime",
    "rank": "mean rank",
    "setting": "setting chosen",
    "time": "time per step",
    "memory": "memory (MB)",
}


def read_lines(path: Path, key: str = "step") -> list[dict[str, Any]]:
    """The lines of a run's `metrics.jsonl` or another list; a last one that is being written, or no file, is no error.

    Args:
        path: of the file.
        key: that every line has.

    Raises:
        RunError: a line is damaged; the message names it.
    """
    if not path.is_file():
        return []
    lines = []
    for number, text in enumerate(path.read_bytes().split(b"\n")[:-1], start=1):
        try:
            line = parse_json(text.decode("utf-8"))
            if not isinstance(line, dict) or key not in line or not isinstance(line.get("step", 0), int):
                raise ValueError(f"no {key}")
        except ValueError as error:
            found = f"{text[:40]!r}"
            raise RunError(f"{path}: line {number}: expected a JSON object with a {key}, found {found}") from error
        lines.append(line)
    return lines


def summarize_study(
    rows: Sequence[Mapping[str, Any]], groups: Sequence[int]
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """(a row per corruption and method, a row for every failed run) of the runs that count.

    Methods of a corruption are sorted by their metric; one whose runs failed, even one of them, has none and comes
    last: a mean over the runs that survived would flatter.

    Args:
        rows: as `run_study` returns them; those of trials are ignored.
        groups: (N,) video of each test clip.
    """
    final = [row for row in rows if row["run"].startswith("seed-")]
    methods = list(dict.fromkeys(row["method"] for row in final))
    corruptions = list(dict.fromkeys(row["corruption"] for row in final))
    failed = [dict(row) for row in final if "failed" in row]
    runs = {
        (c, m): [r for r in final if (r["corruption"], r["method"]) == (c, m)] for c in corruptions for m in methods
    }
    whole = [m for m in methods if not any(row["method"] == m for row in failed)]
    ranks = _ranks(runs, corruptions, whole)
    table: list[dict[str, Any]] = []
    for corruption in corruptions:
        lines = []
        for method in methods:
            of_method = runs[corruption, method]
            reasons = [row["failed"] for row in of_method if "failed" in row]
            if reasons:
                lines.append({"corruption": corruption, "method": method, "n": 0, "setting": reasons[0]})
            else:
                lines.append(_line(of_method, runs.get((corruption, BASELINE), []), groups, ranks[corruption]))
        table += sorted(lines, key=lambda line: -line.get("top1_accuracy", -1.0))
    return table, failed


def _ranks(
    runs: Mapping[tuple[str, str], Sequence[Mapping[str, Any]]], corruptions: Sequence[str], methods: Sequence[str]
) -> dict[str, dict[str, float]]:
    if not methods:
        return {corruption: {} for corruption in corruptions}
    metrics = {c: {m: [row_accuracy(row) for row in runs[c, m]] for m in methods} for c in corruptions}
    return {corruption: mean_ranks(metrics[corruption]) for corruption in corruptions}


def row_accuracy(row: Mapping[str, Any]) -> float:
    """The share of test clips a run is right about."""
    return row["correct"].count("1") / len(row["correct"])


def correct_matrix(rows: Sequence[Mapping[str, Any]]) -> np.ndarray:
    """(runs, clips), 1 where a run is right about a test clip."""
    return np.array([[ch == "1" for ch in row["correct"]] for row in rows], dtype=np.float64)


def _line(
    rows: Sequence[Mapping[str, Any]],
    baseline: Sequence[Mapping[str, Any]],
    groups: Sequence[int],
    ranks: Mapping[str, float],
) -> dict[str, Any]:
    first, correct = rows[0], correct_matrix(rows)
    seeds = correct.mean(1)
    overall = interval(correct, np.asarray(groups))
    line: dict[str, Any] = {
        "corruption": first["corruption"],
        "method": first["method"],
        "n": len(rows),
        "top1_accuracy": overall.mean,
        "std": float(seeds.std(ddof=1)) if len(rows) > 1 else None,
        "interval": f"{overall.low:.3f} to {overall.high:.3f}",
        "rank": ranks.get(first["method"]),
        "setting": ", ".join(f"{k} {v}" for k, v in first["setting"].items()) or "published",
        "step_seconds": float(np.median([row["step_seconds"] for row in rows])),
    }
    for key in ("map", "auc", "d_prime", "hit@1", "mean_class_accuracy", "expected_calibration_error"):
        if all(row.get(key) is not None for row in rows):
            line[key] = float(np.mean([row[key] for row in rows]))
    memory = [row["peak_memory_bytes"] for row in rows]
    if None not in memory:
        line["memory"] = round(float(np.median(memory)) / 1e6)
    usable = baseline and not any("failed" in row for row in baseline)
    if usable and [r["seed"] for r in baseline] == [r["seed"] for r in rows]:
        reference = float(np.median([row["step_seconds"] for row in baseline]))
        line["time"] = f"{line['step_seconds'] / reference:.2f}x"
        if first["method"] != BASELINE:
            gain = paired_difference(correct, correct_matrix(baseline), np.asarray(groups))
            line |= {
                "difference": gain.mean,
                "difference_interval": f"{gain.low:+.3f} to {gain.high:+.3f}",
                "clearly": int(gain.low > 0) - int(gain.high < 0),
            }
    return line


def write_study_report(
    out: Path,
    record: Mapping[str, Any],
    rows: Sequence[Mapping[str, Any]],
    groups: Sequence[int],
    facts: Sequence[str],
    *,
    title: str,
) -> dict[str, Any]:
    """Write `results.json`, tables (Markdown, CSV), plots (PNG) and `report.html` into a study's folder, all or none.

    Args:
        out: the folder.
        record: what the study is, as JSON.
        rows: of its runs.
        groups: (N,) video of each test clip.
        facts: sentences about the data, for the page.
        title: of the page.

    Returns:
        What `results.json` holds.
    """
    table, failed = summarize_study(rows, groups)
    result = {**record, "groups": list(map(int, groups)), "table": table, "failed": failed, "runs": list(rows)}
    plain = [{k: v for k, v in row.items() if k not in ("curve", "losses", "correct")} for row in rows]
    sections = [_what_was_done(record, facts)]
    markdown = []
    with result_folder(out) as fresh:
        _write_csv(fresh / "table.csv", table)
        _write_csv(fresh / "runs.csv", plain)
        for corruption in record["corruptions"]:
            lines = [line for line in table if line["corruption"] == corruption]
            if not lines:
                continue
            columns = columns_of(lines)
            markdown += [f"## {corruption}", "", markdown_table(lines, columns), ""]
            images = plot_corruption(fresh, corruption, rows)
            sections.append(Section(corruption, rows=lines, columns=columns, images=images))
        replace_text(fresh / "table.md", "\n".join(markdown))
        write_page(fresh / "report.html", title=title, sections=sections)
        replace_text(fresh / "results.json", json.dumps(result, indent=1, allow_nan=False) + "\n")
    return result


def columns_of(lines: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Key -> heading of what a table's lines hold."""
    columns = {key: name for key, name in COLUMNS.items() if any(line.get(key) is not None for line in lines)}
    if "auc" in columns:  # clips have several labels: the mAP is that of `evaluate`, there is no retrieval
        columns |= {"top1_accuracy": "top-1 (the surest label is right)", "map": "mAP"}
    return columns


def plot_corruption(out: Path, corruption: str, rows: Sequence[Mapping[str, Any]]) -> list[Image]:
    """`top1_accuracy-<corruption>.png` and `curves-<corruption>.png` in the folder `out`, of the runs that count."""
    runs = _best_first(corruption, rows)
    if not runs:
        return []
    slug = "".join(ch if ch.isalnum() or ch in "=.-" else "-" for ch in corruption)
    bars = {name: [row_accuracy(row) for row in of_method] for name, of_method in runs.items()}
    top1_accuracy, curves = out / f"top1_accuracy-{slug}.png", out / f"curves-{slug}.png"
    plot_bars(
        bars, top1_accuracy, xlabel="top-1 on the test clips", title=corruption, styles=method_styles(sorted(runs))
    )
    images = [Image(top1_accuracy, f"{corruption}: top-1 on the test clips, mean and each seed.", "top-1 per method")]
    if all(row["curve"] for of_method in runs.values() for row in of_method):
        plot_learning_curves(curves, corruption, rows)
        caption = (
            f"{corruption}: top-1 on the clips set aside for validation, mean and range over seeds; grey: supervised."
        )
        images.append(Image(curves, caption, "learning curves per method"))
    return images


def plot_learning_curves(path: Path, corruption: str, rows: Sequence[Mapping[str, Any]]) -> None:
    """A PNG with a panel per method, best first: validation metrics over the steps of the runs that count."""
    plot_panels(
        {name: [row["curve"] for row in of_method] for name, of_method in _best_first(corruption, rows).items()},
        path,
        reference=BASELINE,
        xlabel="step",
        ylabel="validation top-1",
        source=curves_digest(corruption, rows),
    )


def _best_first(corruption: str, rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    """The runs that count, by method, the method with the highest mean first; failed ones left out."""
    runs: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        if row["corruption"] == corruption and row["run"].startswith("seed-") and "failed" not in row:
            runs.setdefault(row["method"], []).append(row)
    return dict(sorted(runs.items(), key=lambda item: -float(np.mean([row_accuracy(row) for row in item[1]]))))


def curves_digest(corruption: str, rows: Sequence[Mapping[str, Any]]) -> str:
    """SHA-256 of the learning curves of a corruption; stands in the metadata of `curves-<corruption>.png`."""
    shown = [[row["method"], row["run"], row.get("curve")] for row in rows if row["corruption"] == corruption]
    return hashlib.sha256(json.dumps(shown).encode()).hexdigest()


def _what_was_done(record: Mapping[str, Any], facts: Sequence[str]) -> Section:
    base, trials = record["base"], record["trials"]
    tuning = (
        f"Before that, {trials} settings of each method were tried under each corruption on seed "
        f"{record['tuning_seed']} for {record['trial_steps']} steps (the published one, and others drawn from learning "
        "rates and the method's own settings); the one that was best on labeled training clips set aside for "
        "validation was taken."
        if trials > 1
        else "Every method has its published setting."
    )
    seeds = f"{len(record['seeds'])} seed" + ("s" if len(record["seeds"]) > 1 else "")
    paragraphs = (
        f"{len(record['methods'])} methods, {seeds}, {len(record['corruptions'])} corruptions; the same student "
        f"({base['student']['model']}), {base['steps']} steps of {base['batch_size']} clips each. {tuning}",
        "Intervals are 95% percentile intervals of a bootstrap over seeds and test videos; differences are paired by "
        "seed and clip. Ranks are means over seeds (1 is best). Time and memory are those of training on one machine.",
        *facts,
    )
    return Section("What was done", paragraphs=paragraphs)


def _write_csv(path: Path, rows: Sequence[Mapping[str, Any]]) -> None:
    names = list(dict.fromkeys(key for row in rows for key in row))
    with replacing(path, newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows({k: json.dumps(v) if isinstance(v, dict) else v for k, v in row.items()} for row in rows)
