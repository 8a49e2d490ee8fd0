"""Learning curves of many methods as small panels: twenty lines on one plot cannot be distinguished."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from avdistill.reporting.plots import PALETTE, Curve, curve_band, save_figure

_MOST_BESIDE = 4


def plot_panels(
    curves: Mapping[str, Sequence[Curve]], path: Path, *, reference: str, xlabel: str, ylabel: str, source: str = ""
) -> None:
    """A panel per method, all on the same axes, as PNG: mean over seeds in a band from the lowest to the highest.

    Args:
        curves: method -> a curve of (step, value) per seed.
        path: of the PNG file.
        reference: the method whose mean stands in grey in every panel, where it is among the curves.
        xlabel, ylabel: with units.
        source: for the PNG's metadata.
    """
    from matplotlib.figure import Figure

    if not curves:
        raise ValueError("no curves to plot")
    columns = min(_MOST_BESIDE, len(curves))
    rows = math.ceil(len(curves) / columns)
    figure = Figure(figsize=(2.4 * columns + 0.5, 1.8 * rows + 0.5), layout="constrained")
    panels = figure.subplots(rows, columns, sharex=True, sharey=True, squeeze=False).flat
    for (method, given), panel in zip(curves.items(), panels, strict=False):  # the curves first: zip takes one too many
        panel.spines[["top", "right"]].set_visible(False)
        panel.grid(color="#e4e4e4", linewidth=0.5)
        if reference in curves:
            steps, mean, *_ = curve_band(reference, curves[reference])
            panel.plot(steps, mean, color="#888888", linewidth=1.2)
        steps, mean, low, high, runs = curve_band(method, given)
        color = "#888888" if method == reference else PALETTE[0]
        panel.plot(steps, mean, color=color, linewidth=1.5)
        if runs > 1:
            panel.fill_between(steps, low, high, color=color, alpha=0.2, linewidth=0)
        # Wrapped: a title wider than its panel would leave the panel no room at all.
        panel.set_title(textwrap.fill(method.replace("$", r"\$"), 28), fontsize=9, loc="left")
        panel.tick_params(labelsize=7)
    for panel in panels:  # panels without a method
        panel.set_visible(False)
    figure.supxlabel(xlabel, fontsize=9)
    figure.supylabel(ylabel, fontsize=9)
    save_figure(figure, path, source=source)
