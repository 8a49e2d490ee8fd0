"""One HTML page of text, tables and images, with nothing loaded from outside."""

from __future__ import annotations

import base64
import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from avdistill.reporting.tables import Row, _is_numeric, format_value


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
