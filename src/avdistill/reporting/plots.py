"""Plots of results; a method has the same color and line on every plot that is given the same `styles`."""

from __future__ import annotations

import io
import statistics
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import numpy as np

from avdistill.fsio import replacing
from avdistill.reporting.tables import format_value

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Curve: TypeAlias = Sequence[tuple[float, float]]  # (step, value)


Style: TypeAlias = tuple[str, str]  # color, line style


# Okabe and Ito 2008, distinct for any color vision; without their yellow, too pale for a line on white.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")


LINE_STYLES = ("-", "--", ":", "-.")


def method_styles(methods: Iterable[str]) -> dict[str, Style]:
    """A color and line style per method, in order: seven colors solid, then dashed, dotted, dash-dotted."""
    styles: dict[str, Style] = {}
    for method in methods:
        turn, color = divmod(len(styles), len(PALETTE))
        styles.setdefault(method, (PALETTE[color], LINE_STYLES[turn % len(LINE_STYLES)]))
    return styles


# A confusion matrix names every class up to the first number, at most so many of more classes as the second, and has
# at most so many rows of cells as the third.
_MOST_NAMES, _SOME_NAMES, _MOST_CELLS = 101, 51, 512
_LONGEST_NAME = 40


def plot_confusion(matrix: np.ndarray | Sequence[Sequence[int]], class_names: Sequence[str], path: Path) -> None:
    """A confusion matrix as PNG: colors are shares of each true class (row), counts are printed up to 20 classes.

    Its size is bounded: of more than 101 classes about 50 are named, at equal distances, and of more than 512 classes
    neighbors are added up in one row and column of cells.

    Args:
        matrix: C rows of C counts, `[true][predicted]`. The row of a class without clips is blank.
        class_names: C names.
        path: of the PNG file.
    """
    classes = len(class_names)
    if not classes or len(matrix) != classes or any(len(row) != classes for row in matrix):
        raise ValueError(f"the matrix must be {classes} x {classes} for {classes} class names, and not empty")
    width = -(-classes // _MOST_CELLS)  # classes in a row of cells
    firsts = range(0, classes, width)
    counts = np.add.reduceat(np.add.reduceat(np.asarray(matrix), firsts, axis=0), firsts, axis=1)
    clips = counts.sum(1, keepdims=True)
    shares = np.where(clips > 0, counts / np.maximum(clips, 1), np.nan)
    named = range(0, classes, 1 if classes <= _MOST_NAMES else -(-classes // _SOME_NAMES))
    side = 3.5 + 0.14 * len(named) if classes > 20 else 3 + 0.35 * classes
    figure, axes = _new_plot(width=side + 0.8, height=side)
    end = width * len(firsts) - 0.5  # class i is at i, whatever a cell's width
    image = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1, interpolation="nearest", extent=(-0.5, end, end, -0.5))
    each = "true class" if width == 1 else f"true classes, {width} to a row"
    figure.colorbar(image, ax=axes, fraction=0.04, pad=0.02, label=f"share of the {each}")
    size = 9 if classes <= 20 else 6
    chosen = [class_names[index] for index in named]
    names = [_plain(name if len(name) <= _LONGEST_NAME else name[: _LONGEST_NAME - 1] + "…") for name in chosen]
    axes.set_xticks(named, names, rotation=90, fontsize=size)
    axes.set_yticks(named, names, fontsize=size)
    axes.set_xlabel("predicted")
    axes.set_ylabel("true")
    if classes <= 20:
        for true, row in enumerate(counts.tolist()):
            for predicted, count in enumerate(row):
                color = "white" if shares[true, predicted] > 0.5 else "black"
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


def plot_estimates(
    panels: Mapping[str, Mapping[str, tuple[float, float, float]]], path: Path, *, title: str = "", source: str = ""
) -> None:
    """Means as bars with their intervals, as PNG: a panel per metric, side by side, the same methods in all.

    Args:
        panels: metric -> method -> (mean, low, high). The first method is drawn gray, as the baseline.
        path: of the PNG file.
        title: of the plot.
        source: see `save_figure`.
    """
    from matplotlib.figure import Figure

    methods = list(next(iter(panels.values()), {}))
    if not methods or any(list(values) != methods for values in panels.values()):
        raise ValueError(f"every panel needs the same methods, at least one: {dict(panels)}")
    colors = ["#999999", *(color for color, _ in method_styles(methods).values())][: len(methods)]
    figure = Figure(figsize=(1.2 + 3.4 * len(panels), 1.2 + 0.36 * len(methods)), layout="constrained")
    every = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, (metric, values) in zip(every, panels.items(), strict=True):
        for place, (mean, low, high) in enumerate(values.values()):
            axes.barh(place, mean, height=0.66, color=colors[place], alpha=0.75, linewidth=0)
            axes.plot([low, high], [place, place], color="black", linewidth=1.2, solid_capstyle="butt")
            label = format_value(float(mean))
            axes.annotate(label, (high, place), (5, 0), textcoords="offset points", va="center", fontsize=9)
        axes.margins(x=0.16)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="x", color="#dddddd", linewidth=0.6)
        axes.set_xlabel(_plain(metric))
    every[0].set_yticks(range(len(methods)), [_plain(method) for method in methods])
    every[0].invert_yaxis()
    if title:
        figure.suptitle(_plain(title), x=0.01, ha="left", fontsize=11)
    save_figure(figure, path, source=source)


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
    content = io.BytesIO()
    # A figure without pyplot draws PNG with Agg, whatever the display; "tight" keeps labels outside the layout's guess.
    figure.savefig(content, format="png", dpi=150, bbox_inches="tight", pad_inches=0.1, metadata={"Source": source})
    with replacing(path, "xb") as file:
        file.write(content.getbuffer())


def _plain(text: str) -> str:
    """The text as written: dollar signs make no formula, and a leading underscore does not hide it in a legend.

    A character that cannot be printed is one replacement mark: matplotlib would warn of it by printing it.
    """
    text = "".join(ch if ch.isprintable() or ch == "\n" else "\ufffd" for ch in text)
    return (" " if text.startswith("_") else "") + text.replace("$", r"\$")
