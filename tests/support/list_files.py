"""Files of lists and folders of videos for the tests of the readers."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from avdistill.annotations import read_annotations
from avdistill.errors import AnnotationError


def make_videos(root: Path, *paths: str) -> Path:
    """Empty files: no reader opens a video."""
    root.mkdir(parents=True, exist_ok=True)
    for path in paths:
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).touch()
    return root


def write(path: Path, content: object) -> Path:
    """Text as it stands, anything else as JSON."""
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def refusal(source: Path, format: str = "auto", videos: Path | None = None) -> str:  # noqa: A002
    """The message `source` is refused with, which must be one line."""
    with pytest.raises(AnnotationError) as caught:
        read_annotations(source, format=format, videos=videos)
    message = str(caught.value)
    assert len(message.splitlines()) == 1
    assert "expected " in message
    assert "found " in message
    return message
