"""Groups: which clips are parts of one source video."""

import re
from pathlib import PurePosixPath

# UCF101's v_Class_gNN_cMM: the clips of a group are parts of one video.
UCF_NAME = re.compile(r"v_(?P<label>[A-Za-z]+)_g(?P<group>0[1-9]|1\d|2[0-5])_c\d{2}")
# The same in other classes, and v_<YouTube id>_<number> of the reference implementation's lists.
# <YouTube id>_<second> of VGGSound, <id>_<first>_<last second> of Kinetics, and any id that holds a digit.
_PART_NAME = re.compile(
    r"(v_.+_g\d+)_c\d+|(v_[\w-]{11})_\d+|([\w-]{11})_\d{6}(?:_\d{6})?|(.+?)_\d{6}_\d{6}|(.*\d.*?)_\d{6}"
)


def video_of(path: str) -> str:
    """The source video that a clip's file is a part of, by the file's name; otherwise the path itself.

    `clip_000010.mp4` may be one of ten numbered videos, `x7_000010.mp4` is taken as a part of the video x7.

    Clips of one video are alike, so they are never split between training and evaluation, and a bootstrap resamples
    them together.
    """
    match = _PART_NAME.fullmatch(PurePosixPath(path).stem)
    return next(filter(None, match.groups())) if match else path
