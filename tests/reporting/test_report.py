"""Tables against values worked out by hand, plots by their pixels and parts, the page by parsing it."""

from __future__ import annotations

import base64
import math
import os
import statistics
import subprocess
import sys
import tracemalloc
from collections.abc import Callable
from html.parser import HTMLParser
from itertools import pairwise
from pathlib import Path

import matplotlib.image
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matplotlib.figure import Figure

from avdistill.analysis.benchmark.panels import plot_panels
from avdistill.reporting import plots, tables
from avdistill.reporting.page import Image, Section, write_page
from support.strategies import CHARACTERS

RUNS = [
    {"method": "none", "seed": 0, "top1_accuracy": 0.5, "epochs": 20},
    {"method": "kd", "seed": 0, "top1_accuracy": 0.625, "epochs": 20},
    {"method": "none", "seed": 1, "top1_accuracy": 0.25, "epochs": 20},
    {"method": "none", "seed": 2, "top1_accuracy": 0.75, "epochs": 20},
]
LABELS = {"xlabel": "epoch", "ylabel": "top-1", "title": "validation"}


@pytest.fixture
def drawn(monkeypatch: pytest.MonkeyPatch) -> list[Figure]:
    """The metrics that are saved, so that a test can look at their parts."""
    metrics: list[Figure] = []
    save = Figure.savefig

    def recording_save(self: Figure, *arguments: object, **options: object) -> None:
        metrics.append(self)
        save(self, *arguments, **options)

    monkeypatch.setattr(Figure, "savefig", recording_save)
    return metrics


# Tables


def test_markdown_table() -> None:
    rows = [
        {"method": "a|b\nc", "top1_accuracy": 0.40278, "n": 3, "rate": 3e-4, "best": True, "hidden": 1},
        {"method": "none", "top1_accuracy": None, "n": 12, "rate": 1234.5, "best": False},
    ]
    columns = {"method": "Method", "n": "Seeds", "top1_accuracy": "Top-1", "rate": "Rate", "best": "Best"}
    assert tables.markdown_table(rows, columns) == "\n".join(
        [
            "| Method | Seeds | Top-1 | Rate | Best |",
            "| --- | ---: | ---: | ---: | --- |",
            r"| a\|b c | 3 | 0.403 | 0.0003 | yes |",
            "| none | 12 | – | 1.23e+03 | no |",
        ]
    )


def test_markdown_table_without_rows_or_columns() -> None:
    assert tables.markdown_table([], {"a": "A"}) == "| A |\n| --- |"
    with pytest.raises(ValueError, match="at least one column"):
        tables.markdown_table([{"a": 1}], {})


@given(st.lists(st.text(CHARACTERS, max_size=20), min_size=1, max_size=4))
@settings(max_examples=40, deadline=None)
def test_no_text_breaks_a_markdown_table(texts: list[str]) -> None:
    table = tables.markdown_table([{"a": text, "b": 1} for text in texts], {"a": "A", "b": "B"})
    lines = table.splitlines()
    assert len(lines) == 2 + len(texts)
    for line in lines:
        unescaped = line.replace("\\\\", "").replace("\\|", "")
        assert unescaped.count("|") == 3


def test_summarize() -> None:
    assert tables.summarize(RUNS) == [
        {"method": "none", "n": 3, "top1_accuracy": 0.5, "top1_accuracy_std": 0.25},
        {"method": "kd", "n": 1, "top1_accuracy": 0.625, "top1_accuracy_std": None},
    ]
    longer = [{**run, "epochs": 40} for run in RUNS[:1]]
    assert tables.summarize([*RUNS[:1], *longer], by=("method", "epochs"), values=("top1_accuracy", "seed")) == [
        {
            "method": "none",
            "epochs": epochs,
            "n": 1,
            "top1_accuracy": 0.5,
            "top1_accuracy_std": None,
            "seed": 0.0,
            "seed_std": None,
        }
        for epochs in (20, 40)
    ]


@given(st.lists(st.floats(-1e3, 1e3), min_size=2, max_size=9))
@settings(max_examples=40, deadline=None)
def test_summarize_equals_statistics(values: list[float]) -> None:
    (line,) = tables.summarize([{"method": "m", "x": value} for value in values], values=("x",))
    assert line["x"] == pytest.approx(statistics.fmean(values), abs=1e-9)
    assert line["x_std"] == pytest.approx(statistics.stdev(values), abs=1e-9)


def test_summarize_does_not_hide_a_run() -> None:
    (line,) = tables.summarize([{"method": "m", "top1_accuracy": 0.5}, {"method": "m", "top1_accuracy": math.nan}])
    assert line["n"] == 2
    assert math.isnan(line["top1_accuracy"])
    assert math.isnan(line["top1_accuracy_std"])
    with pytest.raises(ValueError, match="has no top1_accuracy"):
        tables.summarize([*RUNS, {"method": "kd", "seed": 3}])
    with pytest.raises(ValueError, match="kd have the same seed"):
        tables.summarize([*RUNS, RUNS[1]])
    with pytest.raises(ValueError, match="must be a number, not 'high'"):
        tables.summarize([{"method": "m", "top1_accuracy": "high"}])


# Plots


def test_method_styles_are_distinct_and_keep_their_order() -> None:
    names = [f"method {index}" for index in range(4 * len(plots.PALETTE))]
    styles = plots.method_styles([*names, names[3]])
    assert len(set(styles.values())) == len(names)
    assert plots.method_styles(names[:3]) == {name: styles[name] for name in names[:3]}


def test_confusion_colors_are_shares_of_the_row(tmp_path: Path, drawn: list[Figure]) -> None:
    path = tmp_path / "new folder" / "confusion.png"
    plots.plot_confusion(
        [[3, 1, 0], [0, 0, 0], [0, 0, 5]], ["a", r"$\no$", "_c"], path
    )  # as a formula, the second would not parse
    axes = drawn[0].axes[0]
    shares = axes.images[0].get_array()
    np.testing.assert_array_equal(np.ma.filled(shares, -1), [[0.75, 0.25, 0], [-1, -1, -1], [0, 0, 1]])
    assert axes.images[0].get_clim() == (0, 1)
    assert [text.get_text() for text in axes.texts] == list("310000005")
    assert matplotlib.image.imread(path).std() > 0.05


def test_every_one_of_101_class_names_can_be_read(tmp_path: Path, drawn: list[Figure]) -> None:
    names = [f"ClassWithAName{index}" for index in range(101)]
    path = tmp_path / "confusion.png"
    plots.plot_confusion(np.eye(101, dtype=int).tolist(), names, path)
    labels = drawn[0].axes[0].get_yticklabels()
    assert [label.get_text() for label in labels] == names
    boxes = sorted((label.get_window_extent() for label in labels), key=lambda box: box.y0)
    assert all(lower.y1 <= upper.y0 for lower, upper in pairwise(boxes))  # none overlaps the next
    assert min(box.height for box in boxes) >= 8  # pixels
    height, width = matplotlib.image.imread(path).shape[:2]
    assert max(height, width) < 4000


def test_a_confusion_of_thousands_of_classes_is_small(tmp_path: Path, drawn: list[Figure]) -> None:
    """309 classes took 2.1 GB, 700 took 9.8 GB, for every name was written and every class had pixels of its own."""
    classes = 3000
    matrix = np.zeros((classes, classes), np.int64)
    matrix[np.arange(classes), np.arange(classes)] = 3
    matrix[7, 2999] = 9
    matrix[12:18] = 0  # a whole row of cells without clips
    names = [f"class {index} " + "x" * 100_000 for index in range(classes)]
    tracemalloc.start()
    plots.plot_confusion(matrix, names, tmp_path / "confusion.png")
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 300 * 2**20
    height, width = matplotlib.image.imread(tmp_path / "confusion.png").shape[:2]
    assert height * width < 4_000_000
    axes = drawn[0].axes[0]
    shown = axes.images[0].get_array()
    assert shown.shape == (500, 500)  # six classes to a row of cells
    assert shown[1, 1] == 18 / 27  # classes 6 to 11: six times three clips, nine more of class 7
    assert shown[1, 499] == 9 / 27
    assert shown[0, 0] == shown[499, 499] == 1
    assert np.ma.getmaskarray(shown)[2].all()
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert 40 <= len(labels) <= 51
    assert max(map(len, labels)) == 40
    for place, label in zip(axes.get_yticks(), labels, strict=True):
        assert label.startswith(f"class {place} ")
    assert axes.images[0].get_extent() == [-0.5, 2999.5, 2999.5, -0.5]


def test_curves_of_several_seeds_are_a_mean_in_a_band(tmp_path: Path, drawn: list[Figure]) -> None:
    curves = {
        "none": [[(1, 0.25), (2, 0.5), (3, 0.9)], [(2, 1.0), (1, 0.75)]],  # no third step in the second run
        "kd": [(1, 0.1), (2, 0.1), (2, 0.2)],  # one run; its second step was logged twice
    }
    plots.plot_curves(curves, tmp_path / "curves.png", **LABELS)
    axes = drawn[0].axes[0]
    none, kd = axes.lines
    assert none.get_xydata().tolist() == [[1, 0.5], [2, 0.75]]
    assert kd.get_xydata().tolist() == [[1, 0.1], [2, 0.2]]
    (band,) = axes.collections
    corners = {tuple(corner) for corner in band.get_paths()[0].vertices.tolist()}
    assert corners == {(1, 0.25), (1, 0.75), (2, 0.5), (2, 1.0)}
    assert [text.get_text() for text in axes.get_legend().get_texts()] == ["none (n = 2)", "kd"]
    assert (axes.get_xlabel(), axes.get_ylabel(), axes.get_title(loc="left")) == ("epoch", "top-1", "validation")


def test_a_method_keeps_its_color_across_plots(tmp_path: Path, drawn: list[Figure]) -> None:
    styles = plots.method_styles(["none", "kd"])
    plots.plot_curves({"kd": [(0, 1), (1, 2)]}, tmp_path / "a.png", **LABELS, styles=styles)
    plots.plot_bars({"kd": [0.5], "none": [0.25]}, tmp_path / "b.png", xlabel="x", title="t", styles=styles)
    assert drawn[0].axes[0].lines[0].get_color() == drawn[1].axes[0].lines[0].get_color() == plots.PALETTE[1]


def test_bars_show_the_mean_and_every_seed(tmp_path: Path, drawn: list[Figure]) -> None:
    plots.plot_bars({"none": [0.25, 0.75], "kd_$": [0.625]}, tmp_path / "bars.png", xlabel="top-1", title="test")
    axes = drawn[0].axes[0]
    assert [bar.get_width() for bar in axes.patches] == [0.5, 0.625]
    assert [line.get_xdata().tolist() for line in axes.lines] == [[0.25, 0.75], [0.625]]
    assert [text.get_text() for text in axes.texts] == ["0.500", "0.625"]
    assert axes.get_xlim()[0] <= 0
    assert axes.yaxis_inverted()


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda path: plots.plot_confusion([[1, 0]], ["a", "b"], path), "2 x 2"),
        (lambda path: plots.plot_confusion([[1], [2]], ["a", "b"], path), "2 x 2"),
        (lambda path: plots.plot_confusion([], [], path), "not empty"),
        (lambda path: plots.plot_curves({}, path, **LABELS), "no curves"),
        (lambda path: plots.plot_curves({"kd": []}, path, **LABELS), "'kd' have no step"),
        (lambda path: plots.plot_curves({"kd": [[(0, 1)], [(1, 1)]]}, path, **LABELS), "no step in common"),
        (lambda path: plots.plot_bars({}, path, xlabel="", title=""), "needs a value"),
        (lambda path: plots.plot_bars({"kd": []}, path, xlabel="", title=""), "needs a value"),
    ],
)
def test_nothing_to_plot_is_an_error(call: Callable[[Path], None], message: str, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=message):
        call(tmp_path / "plot.png")
    assert not (tmp_path / "plot.png").exists()


def test_no_pyplot_no_torch_and_no_display(tmp_path: Path) -> None:
    program = f"""
import sys
from pathlib import Path
from avdistill.reporting import plots
assert "matplotlib" not in sys.modules
plots.plot_bars({{"a": [1.0]}}, Path({str(tmp_path / "bars.png")!r}), xlabel="x", title="t")
print("matplotlib.pyplot" in sys.modules, "torch" in sys.modules)
"""
    source = str(Path(plots.__file__).parents[2])
    environment = {**os.environ, "PYTHONPATH": source}
    environment.pop("DISPLAY", None)
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["False", "False"]


# The page


class Page(HTMLParser):
    """What a browser would see: the tags with their attributes, the text by tag. Every tag must be closed in order."""

    VOID = frozenset({"meta", "img", "br", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.texts: dict[str, list[str]] = {}
        self.open: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and data.strip():
            self.texts.setdefault(self.open[-1], []).append(data.strip())


@pytest.fixture
def plot(tmp_path: Path) -> Path:
    path = tmp_path / "plots" / "bars.png"
    plots.plot_bars({"none": [0.5]}, path, xlabel="x", title="t")
    return path


def test_page_says_everything_and_needs_nothing(tmp_path: Path, plot: Path) -> None:
    page = tmp_path / "out" / "report.html"
    sections = [
        Section(
            "Result",
            ["One.", "Two."],
            RUNS,
            {"method": "Method", "top1_accuracy": "Top-1"},
            "All runs.",
            [Image(plot, "Bars")],
        ),
        Section("More", images=[Image(plot, "Again", alt="one bar")]),
        Section("Empty table", columns={"a": "A"}),
    ]
    write_page(page, title="Comparison", sections=sections)
    parsed = Page(page.read_text(encoding="utf-8"))
    assert parsed.texts["h1"] == parsed.texts["title"] == ["Comparison"]
    assert parsed.texts["h2"] == ["Result", "More", "Empty table"]
    assert parsed.texts["p"] == ["One.", "Two."]
    assert parsed.texts["th"] == ["Method", "Top-1", "A"]
    assert parsed.texts["td"] == ["none", "0.500", "kd", "0.625", "none", "0.250", "none", "0.750"]
    assert parsed.texts["b"] == ["Table 1.", "Figure 1.", "Figure 2.", "Table 2."]
    images = [attributes for tag, attributes in parsed.tags if tag == "img"]
    assert [image["alt"] for image in images] == ["Bars", "one bar"]
    pixels = matplotlib.image.imread(plot).shape[1]
    assert [(image["width"], image.get("class")) for image in images] == [(str(pixels * 2 // 3), None)] * 2
    for image in images:
        kind, content = str(image["src"]).split(",")
        assert kind == "data:image/png;base64"
        assert base64.b64decode(content) == plot.read_bytes()
    assert {"script", "link", "iframe"}.isdisjoint(tag for tag, _ in parsed.tags)
    assert all("href" not in attributes for _, attributes in parsed.tags)
    without_images = page.read_text(encoding="utf-8").replace(base64.b64encode(plot.read_bytes()).decode(), "")
    assert "//" not in without_images
    assert "url(" not in without_images
    assert "@import" not in without_images


def test_only_an_image_wider_than_the_page_scrolls(tmp_path: Path) -> None:
    images = []
    for width in (1800, 1803):
        matplotlib.image.imsave(tmp_path / f"{width}.png", np.zeros((2, width, 3)))
        images.append(Image(tmp_path / f"{width}.png", ""))
    write_page(tmp_path / "report.html", title="t", sections=[Section("s", images=images)])
    tags = Page((tmp_path / "report.html").read_text(encoding="utf-8")).tags
    assert [attributes.get("class") for tag, attributes in tags if tag == "img"] == [None, "wide"]


def test_everything_on_a_page_is_escaped(tmp_path: Path, plot: Path) -> None:
    evil = "\"'><script>alert('&amp;')</script>{x}"
    page = tmp_path / "report.html"
    write_page(
        page,
        title=evil,
        sections=[Section(evil, [evil], [{"k": evil}], {"k": evil}, evil, [Image(plot, evil), Image(plot, "", evil)])],
    )
    parsed = Page(page.read_text(encoding="utf-8"))
    assert "script" not in [tag for tag, _ in parsed.tags]
    for tag in ("title", "h1", "h2", "p", "th", "td", "caption"):
        assert parsed.texts[tag] == [evil]
    assert parsed.texts["figcaption"] == [evil]
    assert [attributes["alt"] for tag, attributes in parsed.tags if tag == "img"] == [evil, evil]


def test_a_page_refuses_what_it_cannot_show(tmp_path: Path) -> None:
    page = tmp_path / "report.html"
    video = tmp_path / "video.png"
    video.write_text("not a video")
    with pytest.raises(ValueError, match=r"video\.png is not a PNG"):
        write_page(page, title="t", sections=[Section("s", images=[Image(video, "c")])])
    with pytest.raises(ValueError, match="rows but no columns"):
        write_page(page, title="t", sections=[Section("s", rows=[{"a": 1}])])
    with pytest.raises(FileNotFoundError):
        write_page(page, title="t", sections=[Section("s", images=[Image(tmp_path / "absent.png", "c")])])
    assert not page.exists()


def test_panels_of_long_names_leave_room_for_the_curves(tmp_path):
    curves = {name: [[(1, 0.1), (2, 0.5)]] for name in ("supervised", "mine.py:Method:" + "setting=1.5," * 8)}
    plot_panels(curves, tmp_path / "panels.png", reference="supervised", xlabel="step", ylabel="top-1")  # warns: error
    assert (tmp_path / "panels.png").read_bytes().startswith(b"\x89PNG")
