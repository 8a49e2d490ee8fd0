"""Preparation in parts: which clips of a list belong to which part."""

from collections import deque

from avdistill.annotations import Annotation
from avdistill.annotations.groups import video_of
from avdistill.errors import ConfigError

Part = tuple[int, int]  # number, from 1 on, and of how many: (2, 3)


def share_of(annotations: list[Annotation], part: Part) -> list[int]:
    """The positions of a part's clips in the list, in order.

    Every clip is in one part, and the clips of a group (a source video) are in the same one. Groups are taken in the
    order of their first clips, so that a list of neighbors is cut into neighbors, and parts have about as many clips
    each, at least one.

    Args:
        annotations: the whole list.
        part: (number, count), 1 <= number <= count.

    Raises:
        ConfigError: there is no such part, or there are fewer groups than parts.
    """
    number, count = part
    if not 1 <= number <= count:
        raise ConfigError(f"part: expected i/n with i from 1 to n, found {number}/{count}")
    groups: dict[str, list[int]] = {}
    for position, annotation in enumerate(annotations):
        groups.setdefault(_group(annotation), []).append(position)
    if len(groups) < count:
        raise ConfigError(f"part: expected at most a part for each of {len(groups)} source videos, found {count} parts")
    waiting, left = deque(groups.values()), len(annotations)
    share: list[int] = []
    for each in range(1, number + 1):
        share, later = [], count - each
        # A group whose greater half fits belongs to the part.
        while len(waiting) > later and (not share or 2 * len(share) + len(waiting[0]) <= 2 * left / (later + 1)):
            share += waiting.popleft()
        left -= len(share)
    return sorted(share)


def most_parts(annotations: list[Annotation]) -> int:
    """How many parts a list has at most: its source videos."""
    return len({_group(annotation) for annotation in annotations})


def _group(annotation: Annotation) -> str:
    return annotation.group or video_of(annotation.path)


def parse_part(text: str) -> Part:
    """`2/3` as (2, 3). Raises ConfigError for anything else."""
    number, slash, count = text.partition("/")
    if not (slash and number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count)):
        raise ConfigError(f"--part: expected i/n with i from 1 to n, such as 2/3, found {text!r:.80}")
    return int(number), int(count)
