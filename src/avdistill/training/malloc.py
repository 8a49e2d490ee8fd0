"""What a process does with memory it has freed."""

from __future__ import annotations

import ctypes
import sys

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h


def configure_malloc() -> None:
    """Let glibc keep freed blocks for the next allocation instead of giving them back to the system.

    Every step of a training on a processor allocates the same activations again, tens of megabytes each. By default
    each is new memory, handed out page by page and zeroed by the system, which takes up to a fifth of a step. Kept, the
    process holds its peak until it ends, and the peak may be a quarter higher. Elsewhere than on glibc nothing happens.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(_TRIM_THRESHOLD, -1)
        mallopt(_MMAP_THRESHOLD, 2**30)
