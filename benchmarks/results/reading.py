"""What is in `results/`, and how a value of it is shown with its interval."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]


def read(name: str) -> dict[str, Any]:
    """An object of `results/NAME.json`."""
    return dict(json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8")))


def read_list(name: str) -> list[dict[str, Any]]:
    """A list of `results/NAME.json`."""
    return list(json.loads((ROOT / "results" / f"{name}.json").read_text(encoding="utf-8")))


def with_interval(found: dict[str, float], *, signed: bool = False) -> str:
    """A value with its interval, as a table shows it."""
    return ("{mean:+.3f} ({low:+.3f} to {high:+.3f})" if signed else "{mean:.3f} ({low:.3f} to {high:.3f})").format(
        **found
    )
