"""The published CNN14 of the package panns-inference, without the downloads that importing the package starts."""

from __future__ import annotations

import importlib
import importlib.util
import sys
from pathlib import Path
from types import ModuleType


def load_panns_inference() -> ModuleType | None:
    """The module panns_inference.models, or None where it or what it needs (torchlibrosa, librosa) is absent."""
    found = importlib.util.find_spec("panns_inference")
    if found is None or found.origin is None or importlib.util.find_spec("librosa") is None:
        return None
    # The package's own __init__ fetches labels and weights: an empty package of its name stands in for it.
    package = ModuleType("panns_inference")
    package.__path__ = [str(Path(found.origin).parent)]
    before = sys.modules.get("panns_inference")
    sys.modules["panns_inference"] = package
    try:
        return importlib.import_module("panns_inference.models")
    except ImportError:
        return None
    finally:
        if before is None:
            del sys.modules["panns_inference"]
        else:
            sys.modules["panns_inference"] = before
