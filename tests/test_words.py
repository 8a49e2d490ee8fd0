"""The library speaks with the field's words: those of its first dialect are gone from the source, README and pages."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
# today's word: audio, video or frames or image, metrics or values, reported or recorded, ..., mismatch probability
GONE = re.compile(
    r"(?i)(?<![a-z])(sounds?|pictures?|figures|told|heard|doubts?|doubted)(?![a-z])|swapped (sounds|audio)"
)
PROPER_NAMES = re.compile(r"(?i)vggsound|kinetics[-_]sounds|soundfile")
TEXTS = sorted(
    path.relative_to(ROOT).as_posix()
    for folder, endings in (("src", (".py", ".html")), ("docs", (".md", ".svg")))
    for path in (ROOT / folder).rglob("*")
    if path.suffix in endings
)


@pytest.mark.parametrize("name", ["README.md", *TEXTS])
def test_no_word_of_the_first_dialect_is_left(name):
    text = PROPER_NAMES.sub("", (ROOT / name).read_text(encoding="utf-8"))
    found = [f"{number}: {line.strip()}" for number, line in enumerate(text.splitlines(), 1) if GONE.search(line)]
    assert not found


def test_the_list_finds_what_it_is_for():
    for gone in ("the sound", "has_sound", "Pictures", "figures.json", "is told", "heard_hz", "doubts"):
        assert GONE.search(gone)
    for kept in ("matplotlib.figure", "Figure", "foundation", "stoldid", "resound", "threshold"):
        assert not GONE.search(kept)
