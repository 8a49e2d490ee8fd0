"""What a built site must be: whole, without a dead end, and without anything from outside."""

from __future__ import annotations

import re
from collections import deque
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit


class _Page(HTMLParser):
    """Links, anchors and what a page loads."""

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.links: list[str] = []
        self.loads: list[str] = []
        self.anchors: set[str] = set()
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Collect what a tag refers to."""
        attributes = {name: value or "" for name, value in attrs}
        self.anchors |= {attributes[name] for name in ("id", "name") if name in attributes}
        if tag == "a" and "href" in attributes:
            self.links.append(attributes["href"])
        elif tag in ("script", "img", "source", "video", "iframe") and "src" in attributes:
            self.loads.append(attributes["src"])
        elif tag == "link" and attributes.get("rel") not in ("canonical", "next", "prev", "edit", "alternate"):
            self.loads.append(attributes.get("href", ""))


def check(site: Path, first: str) -> list[str]:
    """Faults of a site, a line each: what is broken, unreachable or from outside."""
    # The page of errors is shown in the place of any address, so its links begin at the site's root.
    pages = {
        path.relative_to(site).as_posix(): _Page(path.read_text(encoding="utf-8"))
        for path in sorted(site.rglob("*.html"))
        if path.name != "404.html"
    }
    faults = []
    leads: dict[str, set[str]] = {}
    for name, page in pages.items():
        faults += [f"{name}: loads {link} from outside" for link in page.loads if _outside(link)]
        leads[name] = set()
        for link in [*page.links, *page.loads]:
            if _outside(link):
                continue
            target, anchor = _target(name, link)
            if not (site / target).is_file():
                faults.append(f"{name}: {link} leads nowhere")
            elif target in pages:
                leads[name].add(target)
                if anchor and anchor not in pages[target].anchors:
                    faults.append(f"{name}: {link}: {target} has no #{anchor}")
    for style in site.rglob("*.css"):
        text = style.read_text(encoding="utf-8")
        outside = re.findall(r"(?:url\(|@import\s+)[\"']?((?:https?:)?//[^\"')]+)", text)
        faults += [f"{style.relative_to(site)}: loads {link} from outside" for link in outside]
    return faults + [f"{name}: no page leads to it" for name in sorted(set(pages) - _reached(leads, first))]


def _outside(link: str) -> bool:
    return bool(urlsplit(link).scheme in ("http", "https", "mailto") or link.startswith("//"))


def _target(page: str, link: str) -> tuple[str, str]:
    parts = urlsplit(link)
    if not parts.path:
        return page, unquote(parts.fragment)
    folder = Path("/", page).parent
    target = (folder / unquote(parts.path)).as_posix()
    clean: list[str] = []
    for part in target.split("/")[1:]:
        if part == "..":
            if clean:
                clean.pop()
        elif part not in ("", "."):
            clean.append(part)
    if link.split("#")[0].split("?")[0].endswith(("/", "/.", "/..", ".")) or not clean:
        clean.append("index.html")
    return "/".join(clean), unquote(parts.fragment)


def _reached(leads: dict[str, set[str]], first: str) -> set[str]:
    found, waiting = {first}, deque([first])
    while waiting:
        new = leads.get(waiting.popleft(), set()) - found
        found |= new
        waiting += new
    return found
