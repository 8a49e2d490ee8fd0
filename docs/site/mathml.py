"""Equations as MathML, which browsers draw themselves: no script and no font is asked for.

In Markdown they stand as GitHub shows them: a fence ```math for a display, $`x`$ in a line.
"""

from __future__ import annotations

from typing import Any
from xml.etree.ElementTree import Element

from latex2mathml.converter import convert
from markdown import Markdown
from markdown.extensions import Extension
from markdown.inlinepatterns import InlineProcessor

# Above that of `code` in backticks, 190, which would take the inner part.
_PRIORITY = 195


def display(source: str, language: str, css_class: str, options: dict[str, Any], md: Markdown, **_: Any) -> str:
    """A fence ```math: the `format` of a custom fence of pymdownx.superfences."""
    # GitHub knows `aligned`, the converter the same table by the name `align*`.
    latex = source.strip().replace("{aligned}", "{align*}")
    return f'<div class="{css_class}">{convert(latex, display="block")}</div>'


class _Inline(InlineProcessor):
    def handleMatch(self, m: Any, data: str) -> tuple[Element | str, int, int]:  # noqa: N802 (Markdown's name)
        return self.md.htmlStash.store(convert(m[1])), m.start(0), m.end(0)


class MathExtension(Extension):
    """$`x`$ in a line."""

    def extendMarkdown(self, md: Markdown) -> None:  # noqa: N802 (Markdown's name)
        """Add the pattern."""
        md.inlinePatterns.register(_Inline(r"\$`([^`]+)`\$", md), "mathml", _PRIORITY)


def makeExtension(**settings: Any) -> MathExtension:  # noqa: N802 (Markdown's name)
    """What Markdown calls."""
    return MathExtension(**settings)
