"""What is shown of several runs: tables, plots and one HTML page. Plain dicts and lists in, files out; no torch.

Plots are PNG files drawn through matplotlib's objects, without pyplot: no global state, no display. A method has the
same color and line on every plot that is given the same `styles`.
"""

from __future__ import annotations

import base64
import html
import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Row: TypeAlias = Mapping[str, object]
Curve: TypeAlias = Sequence[tuple[float, float]]  # (step, value)
Style: TypeAlias = tuple[str, str]  # color, line style

# Okabe and Ito 2008, told apart with any color vision; their yellow is left out: too pale for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
LINE_STYLES = ("-", "--", ":", "-.")


@dataclass(frozen=True)
class Image:
    """A PNG file on a page. `alt` says in words what it shows; the caption does where `alt` is empty."""

    path: Path
    caption: str
    alt: str = ""


@dataclass(frozen=True)
class Section:
    """A part of a page: heading, then paragraphs, table and images, each only if given.

    Attributes:
        heading: plain text, like everything here; it is escaped, not interpreted.
        paragraphs: plain text, one string each.
        rows: the table, one mapping per row; `columns` maps the keys to show to their headings, in order.
        columns: see `rows`.
        table_caption: printed above the table.
        images: printed after the table, in order.
        markup: HTML printed last, as it is: whoever gives it has escaped what is in it.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    rows: Sequence[Row] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    table_caption: str = ""
    images: Sequence[Image] = ()
    markup: str = ""


def markdown_table(rows: Sequence[Row], columns: Mapping[str, str]) -> str:
    """A Markdown table without a final newline. Columns of numbers are aligned right; an absent value or None is "–".

    Args:
        rows: one mapping per row; keys not in `columns` are not shown.
        columns: key -> heading, in the order shown; at least one.
    """
    if not columns:
        raise ValueError("a table needs at least one column")
    rules = ["---:" if _is_numeric(rows, key) else "---" for key in columns]
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


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """A color and line style per method, in order: seven colors solid, then dashed, dotted, dash-dotted."""
    styles: dict[str, Style] = {}
    for method in methods:
        turn, color = divmod(len(styles), len(PALETTE))
        styles.setdefault(method, (PALETTE[color], LINE_STYLES[turn % len(LINE_STYLES)]))
    return styles


def plot_confusion(matrix: Sequence[Sequence[int]], class_names: Sequence[str], path: Path) -> None:
    """A confusion matrix as PNG: colors are shares of each true class (row), counts are printed up to 20 classes.

    Args:
        matrix: C rows of C counts, `[true][predicted]`. The row of a class without clips is blank.
        class_names: C names; every one is printed, the video grows with C.
        path: of the PNG file.
    """
    classes = len(class_names)
    if not classes or len(matrix) != classes or any(len(row) != classes for row in matrix):
        raise ValueError(f"the matrix must be {classes} x {classes} for {classes} class names, and not empty")
    shares = [[count / sum(row) if sum(row) else math.nan for count in row] for row in matrix]
    side = 3.5 + 0.14 * classes if classes > 20 else 3 + 0.35 * classes
    figure, axes = _new_plot(width=side + 0.8, height=side)
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest")
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label="share of the true class")
    size = 9 if classes <= 20 else 6
    names = [_plain(name) for name in class_names]
    axes.set_xticks(range(classes), names, rotation=90, fontsize=size)
    axes.set_yticks(range(classes), names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes <= 20:
        for true, row in enumerate(matrix):
            for predicted, count in enumerate(row):
                color = "white" if shares[true][predicted] > 0.5 else "black"
                axes.text(predicted, true, str(count), ha="center", va="center", fontsize=8, color=color)
    save_figure(figure, path)


def plot_curves(
    curves: Mapping[str, Curve | Sequence[Curve]],
    path: Path,
    *,
    xlabel: str,
    ylabel: str,
    title: str,
    styles: Mapping[str, Style] | None = None,
) -> None:
    """Curves as PNG: one line per method; for several seeds their mean, in a band from the lowest to the highest.

    Args:
        curves: label -> one curve of (step, value), or one such curve per seed. Several seeds are compared at the steps
            that all of them have, so that the mean never changes its members along the line. Of a step that comes twice
            (a resumed log) the last value counts.
        path: of the PNG file.
        xlabel: of the steps, with unit.
        ylabel: of the values, with unit.
        title: of the plot.
        styles: as from `method_styles`; by default in the order of `curves`.
    """
    if not curves:
        raise ValueError("no curves to plot")
    styles = styles or method_styles(curves)
    figure, axes = _new_plot(width=7.5, height=4.5)
    for label, given in curves.items():
        steps, mean, low, high, runs = curve_band(label, given)
        color, line = styles[label]
        name = _plain(label if runs == 1 else f"{label} (n = {runs})")
        axes.plot(steps, mean, line, color=color, linewidth=1.6, label=name, marker="o" if len(steps) == 1 else "")
        if runs > 1:
            axes.fill_between(steps, low, high, color=color, alpha=0.18, linewidth=0)
    axes.set_title(_plain(title), loc="left", fontsize=11)
    axes.set_xlabel(_plain(xlabel))
    axes.set_ylabel(_plain(ylabel))
    axes.grid(color="#dddddd", linewidth=0.6)
    axes.legend(loc="upper left", bbox_to_anchor=(1.01, 1), frameon=False, fontsize=9)
    save_figure(figure, path)


def plot_bars(
    values: Mapping[str, Sequence[float]],
    path: Path,
    *,
    xlabel: str,
    title: str,
    styles: Mapping[str, Style] | None = None,
) -> None:
    """Means as bars from zero, one dot per seed, as PNG; methods from top to bottom in the order given.

    Args:
        values: method -> one value per seed, at least one.
        path: of the PNG file.
        xlabel: of the values, with unit.
        title: of the plot.
        styles: as from `method_styles`; by default in the order of `values`.
    """
    if not values or not all(values.values()):
        raise ValueError(f"every method needs a value: {dict(values)}")
    styles = styles or method_styles(values)
    figure, axes = _new_plot(width=7.5, height=1.4 + 0.34 * len(values))
    for place, (method, seeds) in enumerate(values.items()):
        mean = statistics.fmean(seeds)
        axes.barh(place, mean, height=0.62, color=styles[method][0], alpha=0.35, linewidth=0)
        axes.plot(seeds, [place] * len(seeds), "o", color=styles[method][0], markersize=4)
        right = max(0.0, *seeds)
        axes.annotate(format_value(mean), (right, place), (6, 0), textcoords="offset points", va="center", fontsize=8)
    axes.margins(x=0.1)
    axes.set_axisbelow(True)
    axes.set_yticks(range(len(values)), [_plain(f"{method} (n = {len(seeds)})") for method, seeds in values.items()])
    axes.invert_yaxis()
    axes.set_xlabel(_plain(xlabel))
    axes.set_title(_plain(title), loc="left", fontsize=11)
    axes.grid(axis="x", color="#dddddd", linewidth=0.6)
    save_figure(figure, path)


def write_page(path: Path, *, title: str, sections: Sequence[Section], style: str = "") -> None:
    """One HTML file that needs nothing else: style, images and media are inside, no script, no network.

    Args:
        path: of the HTML file.
        title: of the page; escaped, as all text of the sections.
        sections: in order; tables and metrics are numbered through the page.
        style: CSS beyond the page's own, for the sections' `markup`.
    """
    parts: list[str] = []
    tables = metrics = 0
    for section in sections:
        parts.append(f"<section>\n<h2>{html.escape(section.heading)}</h2>")
        parts += [f"<p>{html.escape(paragraph)}</p>" for paragraph in section.paragraphs]
        if section.columns:
            tables += 1
            parts.append(_html_table(section, number=tables))
        elif section.rows:
            raise ValueError(f"section {section.heading!r} has rows but no columns")
        for image in section.images:
            metrics += 1
            parts.append(_html_image(image, number=metrics))
        parts += [section.markup] if section.markup else []
        parts.append("</section>")
    path.parent.mkdir(parents=True, exist_ok=True)
    page = _PAGE.format(title=html.escape(title), style=_STYLE + style, body="\n".join(parts))
    path.write_text(page, encoding="utf-8")


# The policy makes the browser itself refuse anything from outside.
_PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; media-src data:; style-src 'unsafe-inline'">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<main>
<h1>{title}</h1>
{body}
</main>
</body>
</html>
"""

_STYLE = """
:root { color-scheme: light; }
body { margin: 0; background: #fff; color: #1a1a1a; font: 17px/1.55 Georgia, "Times New Roman", serif; }
main { max-width: 72rem; margin: 0 auto; padding: 2.5rem 1.25rem 4rem; }
h1, h2, table, figcaption, caption { font-family: system-ui, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.8rem; line-height: 1.2; margin: 0 0 2rem; }
h2 { font-size: 1.2rem; margin: 2.5rem 0 0.6rem; padding-top: 0.8rem; border-top: 1px solid #ccc; }
p, caption, figcaption { max-width: 46rem; }
p { margin: 0 0 0.9rem; }
.table { overflow-x: auto; margin: 1.4rem 0; }
table { border-collapse: collapse; font-size: 0.85rem; font-variant-numeric: tabular-nums; }
caption, figcaption { text-align: left; font-size: 0.85rem; color: #444; margin: 0.4rem 0; }
caption { padding-bottom: 0.5rem; }
th, td { padding: 0.35rem 0.9rem 0.35rem 0; text-align: left; vertical-align: top; }
thead th { border-top: 2px solid #1a1a1a; border-bottom: 1px solid #1a1a1a; white-space: nowrap; }
tbody td { border-bottom: 1px solid #e4e4e4; }
tbody tr:last-child td { border-bottom: 2px solid #1a1a1a; }
.number { text-align: right; white-space: nowrap; }
figure { margin: 1.6rem 0; overflow-x: auto; }
img { max-width: 100%; height: auto; }
img.wide { max-width: none; }
@media print { section { break-inside: avoid-page; } }
"""


def _html_table(section: Section, *, number: int) -> str:
    classes = {key: ' class="number"' if _is_numeric(section.rows, key) else "" for key in section.columns}
    head = "".join(f'<th scope="col"{classes[key]}>{html.escape(name)}</th>' for key, name in section.columns.items())
    body = "\n".join(
        "<tr>"
        + "".join(f"<td{classes[key]}>{html.escape(format_value(row.get(key)))}</td>" for key in classes)
        + "</tr>"
        for row in section.rows
    )
    caption = f"<b>Table {number}.</b> {html.escape(section.table_caption)}".rstrip()
    return (
        f'<div class="table"><table>\n<caption>{caption}</caption>\n'
        f"<thead><tr>{head}</tr></thead>\n<tbody>\n{body}\n</tbody>\n</table></div>"
    )


def _html_image(image: Image, *, number: int) -> str:
    content = image.path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{image.path} is not a PNG file")
    source = f"data:image/png;base64,{base64.b64encode(content).decode('ascii')}"
    alt = html.escape(image.alt or image.caption)
    caption = f"<b>Figure {number}.</b> {html.escape(image.caption)}"
    width = int.from_bytes(content[16:20]) * 2 // 3  # the plots' 150 dots per inch, on a screen's 100
    # A matrix of many classes scrolls sideways: shrunk to the page, its names could not be read.
    wide = ' class="wide"' if width > 1200 else ""
    return f'<figure><img{wide} width="{width}" src="{source}" alt="{alt}"><figcaption>{caption}</figcaption></figure>'


def curve_band(
    label: str, given: Curve | Sequence[Curve]
) -> tuple[list[float], list[float], list[float], list[float], int]:
    """Shared steps, the mean, lowest and highest value at each, and the number of runs."""
    first = given[0] if given else ()
    single = bool(first) and not isinstance(first[0], Sequence)  # a (step, value), not a run of them
    runs: list[dict[float, float]] = [dict(run) for run in ([given] if single else given)]  # type: ignore[arg-type]
    steps = sorted(set.intersection(*(set(run) for run in runs))) if runs else []
    if not steps:
        raise ValueError(f"the curves of {label!r} have no step in common, or there are none")
    columns = [[run[step] for run in runs] for step in steps]
    mean = [statistics.fmean(column) for column in columns]
    return steps, mean, [min(column) for column in columns], [max(column) for column in columns], len(runs)


def _new_plot(*, width: float, height: float) -> tuple[Figure, Axes]:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def save_figure(figure: Figure, path: Path, *, source: str = "") -> None:
    """Write a figure as PNG, making its folder if need be; `source` stands in its metadata and tells what it shows."""
    path.parent.mkdir(parents=True, exist_ok=True)
    # A figure without pyplot draws PNG with Agg, whatever the display; "tight" keeps labels outside the layout's guess.
    figure.savefig(path, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1, metadata={"Source": source})


def _plain(text: str) -> str:
    """The text as written: dollar signs make no formula, and a leading underscore does not hide it in a legend."""
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")


def _is_numeric(rows: Sequence[Row], key: str) -> bool:
    values = [row[key] for row in rows if row.get(key) is not None]
    return bool(values) and all(isinstance(value, int | float) and not isinstance(value, bool) for value in values)


def _markdown_cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())


def _number(value: object, name: str) -> float:
    if not isinstance(value, int | float):
        raise ValueError(f"{name} must be a number, not {value!r}")
    return float(value)
