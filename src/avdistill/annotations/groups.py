"""Groups: which clips are parts of one source video."""

from __future__ import annotations

import re
from pathlib import PurePosixPath

# Files that are parts of one video: UCF101's v_Class_gNN_cMM, and v_<id>_<number> of the release's lists.
PART_NAME = re.compile(r"(v_.+_g\d+)_c\d+|(v_[\w-]{11})_\d+")


def video_of(path: str) -> str:
    """The video that a clip's file is a part of, as far as its name tells (`PART_NAME`); else the file itself.

    Clips of one video are alike: they never stand on both sides of a cut, and are drawn together in a bootstrap.
    """
    match = PART_NAME.fullmatch(PurePosixPath(path).stem)
    return (match[1] or match[2]) if match else path
