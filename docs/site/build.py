"""Build the documentation as a site that opens without a server and asks nothing of the network.

    python docs/site/build.py [--out site]

The pages are README.md and docs/, the reference of the command line and of Python is generated. The build is strict: a
broken link, a page that no page leads to, and anything that would be loaded from outside are errors.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from fnmatch import fnmatch
from pathlib import Path

import generated
from checking import check
from staging import ROOT, SITE, BrokenLinkError, Staging

# Sections of the site. A pattern takes the pages that no entry names, so a new page has its place.
NAV = {
    "Start": ["index.md", "tutorial.md", "faq.md", "glossary.md"],
    "How-to": [
        "tasks/own_videos.md",
        "formats/annotations.md",
        "teachers.md",
        "compare.md",
        "audit.md",
        "labels.md",
        "custom_method.md",
        "use.md",
        "search.md",
        "serve.md",
        "distributed.md",
        "installation.md",
        "*.md",
    ],
    "Methods": ["methods/index.md", "methods/choose.md", "methods/robust_csc.md", "methods/mnf_csc.md", "methods/*.md"],
    "Tasks": ["tasks/*.md"],
    "Results": ["results.md", "results/*.md", "performance.md"],
    "Reference": ["cli.md", "api/index.md", "api/*.md", "formats/*.md", "reference.md"],
    "Project": ["reliability.md", "trust.md", "licenses.md", "project/*.md"],
}


def navigation(pages: list[str]) -> list[dict[str, list[str]]]:
    """Every page in its section, in the order of `NAV`."""
    named = {entry for entries in NAV.values() for entry in entries if "*" not in entry}
    placed: set[str] = set()
    nav = []
    for title, entries in NAV.items():
        section: list[str] = []
        for entry in entries:
            # A pattern is of one folder: fnmatch alone would let `*` reach below it.
            fitting = [
                page
                for page in sorted(pages)
                if (page == entry if "*" not in entry else page not in named and _matches(page, entry))
            ]
            section += [page for page in fitting if page not in placed]
            placed.update(fitting)
        nav.append({title: section})
    lost = sorted(set(pages) - placed)
    if lost:
        sys.exit(f"docs/site/build.py: expected a section in NAV for every page, found none for {', '.join(lost)}")
    return nav


def _matches(page: str, pattern: str) -> bool:
    if pattern == "project/*.md":  # with the folders below it
        return fnmatch(page, pattern)
    return page.count("/") == pattern.count("/") and fnmatch(page, pattern)


def build(out: Path) -> None:
    """Write the site into `out`, which is replaced. Exits with a message if a check fails."""
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        staging = Staging(work / "docs")
        try:
            staging.stage_all()
        except BrokenLinkError as error:
            sys.exit(str(error))
        for page, text in generated.pages().items():
            staging.write(page, text)
        for asset in ("site.css", "iframe-worker.js"):
            shutil.copyfile(SITE / asset, work / "docs" / asset)
        nav = navigation([page.as_posix() for page in staging.pages])
        config = (SITE / "zensical.toml").read_text(encoding="utf-8")
        config = config.replace("# NAV", f"nav = {_toml(nav)}").replace("SOURCE", (ROOT / "src").as_posix())
        (work / "zensical.toml").write_text(config, encoding="utf-8")
        environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(SITE), str(ROOT / "src")]), "NO_COLOR": "1"}
        done = subprocess.run(
            [sys.executable, "-m", "zensical", "build", "--strict"],
            cwd=work,
            env=environment,
            text=True,
            capture_output=True,
            check=False,
        )
        if done.returncode:
            said = re.sub(r"\x1b\[[0-9;]*m", "", done.stdout + done.stderr)
            # What is wrong and where, without the drawing of the line between them.
            found = re.findall(r"(?:Warning|Error): (.*)\n.*\[ (\S+) \]", said)
            sys.exit("\n".join(f"{place}: {fault}" for fault, place in found) or said)
        faults = check(work / "site", "index.html")
        if faults:
            sys.exit("\n".join(faults))
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(work / "site", out)


def _toml(value: object) -> str:
    """Lists, tables and text as TOML; a text is written as in JSON."""
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + " }"
    return json.dumps(value)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=ROOT / "site", help="the site's folder")
    arguments = parser.parse_args()
    build(arguments.out)
    print(f"{arguments.out / 'index.html'}")
