"""One HTML page of text, tables and images, with nothing loaded from outside."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from avdistill.fsio import replace_text
from avdistill.reporting.tables import Row, format_value, is_numeric


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
        heading: plain text, as everywhere here; it is escaped.
        paragraphs: plain text, one string each.
        rows: the table, one mapping per row; `columns` maps the keys to show to their headings, in order.
        columns: see `rows`.
        table_caption: printed above the table.
        images: printed after the table, in order.
        markup: HTML printed last, as `render` gives it; plain text is escaped.
    """

    heading: str
    paragraphs: Sequence[str] = ()
    rows: Sequence[Row] = ()
    columns: Mapping[str, str] = field(default_factory=dict)
    table_caption: str = ""
    images: Sequence[Image] = ()
    markup: str = ""


def write_page(path: Path, *, title: str, sections: Sequence[Section], style: str = "") -> None:
    """One HTML file that needs nothing else: style, images and media are inside, no script, no network.

    Args:
        path: of the HTML file.
        title: of the page; escaped, as all text of the sections.
        sections: in order; tables and images are numbered through the page.
        style: name of a CSS template for the sections' `markup`.
    """
    for section in sections:
        if section.rows and not section.columns:
            raise ValueError(f"section {section.heading!r} has rows but no columns")
    text = render("page.html", title=title, sections=sections, style=style)
    path.parent.mkdir(parents=True, exist_ok=True)
    replace_text(path, text)


def render(template: str, **values: object) -> Markup:
    """A template of `reporting/templates` with these values, which are escaped unless they are `Markup`."""
    return Markup(_environment().get_template(template).render(values))


def data_url(kind: str, content: bytes) -> str:
    """A file within a page: `kind` is its MIME type."""
    return f"data:{kind};base64,{base64.b64encode(content).decode('ascii')}"


@cache
def _environment() -> Environment:
    environment = Environment(
        loader=PackageLoader("avdistill.reporting"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    environment.filters |= {"value": format_value, "png": _png}
    environment.globals["Markup"] = Markup
    environment.globals["number"] = lambda rows, key: Markup(' class="number"' if is_numeric(rows, key) else "")
    return environment


def _png(image: Image) -> Markup:
    """Attributes of an `img`: its source and width."""
    content = image.path.read_bytes()
    if not content.startswith(b"\x89PNG\r\n\x1a\n"):
        raise ValueError(f"{image.path} is not a PNG file")
    width = int.from_bytes(content[16:20]) * 2 // 3  # the plots' 150 dots per inch, on a screen's 100
    # A matrix of many classes scrolls sideways: shrunk to the page, its names could not be read.
    wide = Markup(' class="wide"') if width > 1200 else ""
    return Markup('{} width="{}" src="{}"').format(wide, width, data_url("image/png", content))
