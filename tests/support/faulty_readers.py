"""Readers that do to a worker what the worst of files do; a module, because workers import them."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

import numpy as np

from avdistill.annotations import Annotation
from avdistill.media import Clip
from avdistill.preparation.clip_reader import PrepareConfig, read_media


def read_or_fail(path: Path, annotation: Annotation, config: PrepareConfig) -> Clip:
    """A clip's id may begin with what goes wrong when it is read."""
    fault = annotation.clip_id.split("_")[0]
    if fault == "hangs":
        time.sleep(600)
    elif fault == "spins":
        Path(f"{path}.pid").write_text(str(os.getpid()))
        while True:
            pass
    elif fault == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    elif fault == "exits":
        os._exit(0)
    elif fault == "grows":
        np.ones(2**40, np.uint8)
    elif fault == "refuses":
        raise PermissionError(13, "Permission denied")
    return read_media(path, annotation, config)


def read_nonsense(path: Path, annotation: Annotation, config: PrepareConfig) -> Clip:
    """A mistake in a reader is neither a clip nor a skip."""
    raise KeyError(annotation.clip_id)
