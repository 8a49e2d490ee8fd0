"""The repository's Markdown, laid out for the site: README.md is its first page, docs/ its pages.

Links keep their meaning: a link between pages follows them to their new places; a linked file that is no page (a
script, the license) becomes a page that shows it.
"""

from __future__ import annotations

import base64
import json
import os
import re
import shutil
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
SITE = Path(__file__).resolve().parent
# Of the repository's first folder: these Markdown files are pages, too.
PROJECT = ("CHANGELOG.md", "CONTRIBUTING.md", "SECURITY.md", "CODE_OF_CONDUCT.md")
_LINK = re.compile(r"(!?\[[^\]]*\]\()([^)\s#]+)(#[^)\s]*)?((?:\s+\"[^\"]*\")?\))")
_IMAGE = re.compile(r"(<img src=\")([^\"]+)()(\")")
_FENCE = re.compile(r"^(```.*?^```)", re.MULTILINE | re.DOTALL)


class BrokenLinkError(Exception):
    """A link that leads to no file of the repository."""


def place(source: Path) -> Path:
    """Where a file of the repository stands among the site's pages."""
    if source == ROOT / "README.md":
        return Path("index.md")
    if source.is_relative_to(ROOT / "docs"):
        inside = source.relative_to(ROOT / "docs")
        return inside.with_name("index.md") if inside.name == "README.md" else inside
    # A folder whose name begins with a dot has no pages.
    inside = Path("project", *(part.lstrip(".") for part in source.relative_to(ROOT).parts))
    if inside.suffix == ".md":
        return inside.with_name(inside.name.lower())
    return inside if inside.suffix in (".png", ".svg", ".jpg") else inside.with_name(f"{inside.name.lower()}.md")


class Staging:
    """Pages written into a folder; `pages` are their paths in it, each with the file it was made from."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.pages: dict[Path, Path | None] = {}

    def stage_all(self) -> None:
        """Every page of the repository, and every file that one of them links to."""
        for source in [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md")), *(ROOT / name for name in PROJECT)]:
            self.stage(source)
        for path in sorted((ROOT / "docs" / "images").iterdir()):
            self._copy(path)

    def stage(self, source: Path) -> Path:
        """A file as a page, or as it is where it is an image; returns its place."""
        target = place(source)
        if target in self.pages:
            return target
        if target.suffix != ".md":
            return self._copy(source)
        self.pages[target] = source
        text = source.read_text(encoding="utf-8")
        if source.suffix == ".md":
            self.write(target, self._relinked(text, source))
        elif source.suffix == ".ipynb":
            self.write(target, self._notebook(json.loads(text), target, source))
        else:
            language = {".py": "python", ".cff": "yaml", ".json": "json"}.get(source.suffix, "text")
            self.write(target, f"# {source.relative_to(ROOT)}\n\n````{language}\n{text}\n````\n")
        return target

    def write(self, page: Path, text: str) -> None:
        """A page that may have no file of the repository behind it."""
        self.pages.setdefault(page, None)
        path = self.folder / page
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")

    def _copy(self, source: Path) -> Path:
        target = place(source)
        (self.folder / target).parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(source, self.folder / target)
        return target

    def _notebook(self, notebook: dict[str, Any], target: Path, source: Path) -> str:
        """A notebook with its outputs as Markdown; its images beside the page."""
        parts, images = [], 0
        for cell in notebook["cells"]:
            text = "".join(cell["source"])
            is_text = cell["cell_type"] == "markdown"
            parts.append(self._relinked(text, source) if is_text else f"```python\n{text}\n```")
            for output in cell.get("outputs", ()):
                if image := output.get("data", {}).get("image/png"):
                    images += 1
                    name = target.with_suffix(f".{images}.png")
                    (self.folder / name).parent.mkdir(parents=True, exist_ok=True)
                    (self.folder / name).write_bytes(base64.b64decode(image))
                    parts.append(f'<img src="{name.name}" alt="plot {images} of the notebook">')
                elif written := "".join(output.get("text", ())).strip():
                    parts.append(f"```text\n{written}\n```")
        return "\n\n".join(parts) + "\n"

    def _relinked(self, text: str, source: Path) -> str:
        """The text with its links led to the pages' places; code blocks stay as they are."""

        def lead(found: re.Match[str]) -> str:
            before, link, anchor, after = found[1], found[2], found[3] or "", found[4]
            if re.match(r"[a-z]+:", link):
                return found[0]
            path = Path(os.path.normpath(source.parent / link))
            if path.is_dir():
                path = path / "README.md"
            if not path.is_file() or not path.is_relative_to(ROOT):
                raise BrokenLinkError(f"{source.relative_to(ROOT)}: expected a file, found no {link}")
            target = os.path.relpath(self.stage(path), place(source).parent)
            return f"{before}{target}{anchor}{after}"

        parts = _FENCE.split(text)
        return "".join(part if part.startswith("```") else _IMAGE.sub(lead, _LINK.sub(lead, part)) for part in parts)
