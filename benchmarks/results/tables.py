"""Write the tables and images of the documents from `results/`, or check that they are those.

    python benchmarks/results/tables.py [--check] [README.md docs/results.md ...]

Without names: every document, cards in `checkpoints` among them, and the images in `docs/images`.

A table stands between `<!-- table NAME -->` and `<!-- end -->`; NAME is a public function of a file `tables_*.py`.
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Callable
from inspect import isfunction

import plots
import tables_performance
import tables_studies
import tables_ucf51
from reading import ROOT

TABLES: dict[str, Callable[[], str]] = {
    name: function
    for module in (tables_performance, tables_studies, tables_ucf51)
    for name, function in vars(module).items()
    if isfunction(function) and function.__module__ == module.__name__ and not name.startswith("_")
}


def filled(text: str) -> str:
    """The document with every table made anew."""

    def table(match: re.Match[str]) -> str:
        return f"<!-- table {match[1]} -->\n{TABLES[match[1]]()}\n<!-- end -->"

    return re.sub(r"<!-- table (\w+) -->\n.*?<!-- end -->", table, text, flags=re.DOTALL)


def main() -> int:
    """Write or check."""
    parser = argparse.ArgumentParser(description="tables and images of the documents, from results/")
    parser.add_argument("documents", nargs="*")
    parser.add_argument("--check", action="store_true", help="change nothing; exit code 1 where something differs")
    arguments = parser.parse_args()
    documents = [ROOT / name for name in arguments.documents] or [
        ROOT / "README.md",
        *(ROOT / "docs").rglob("*.md"),
        *(ROOT / "checkpoints").rglob("*.md"),
    ]
    differing = [] if arguments.documents else plots.differing(write=not arguments.check)
    for path in documents:
        text = path.read_text(encoding="utf-8")
        fresh = filled(text)
        if fresh != text:
            differing.append(str(path.relative_to(ROOT)))
            if not arguments.check:
                path.write_text(fresh, encoding="utf-8")
    if differing and arguments.check:
        print(
            f"{', '.join(differing)}: not what is in results/; run `python benchmarks/results/tables.py`",
            file=sys.stderr,
        )
    return int(bool(differing) and arguments.check)


if __name__ == "__main__":
    sys.exit(main())
