"""Columns of a list that look like known ones, such as `start` or `subset`: none is ignored without a word."""

import logging
import re
from collections.abc import Collection, Iterable
from functools import lru_cache

from avdistill.annotations.schema import annotation_error, truncate_repr

# Words without separators, in the singular, by the column that they look like.
_LOOK_ALIKE = {
    "path": "path file filename filepath video videopath videofile videofilename videoname pathname clippath clipfile "
    "clipfilename relpath relativepath mediapath mediafile",
    "label": "label class classname classlabel classid classindex category categoryname categoryid target targetlabel "
    "tag labelname labelid labelindex labeltext videolabel cliplabel",
    "split": "split subset set partition fold phase usage datasplit datasetsplit splitname splittype istrain istest "
    "isval isvalidation",
    "id": "id clipid",
}
_BY_WORD = {word: column for column, words in _LOOK_ALIKE.items() for word in words.split()}
# What may stand beside `start` or `end` in the name of a time.
_BESIDE_TIMES = {"time", "timestamp", "sec", "second", "s", "ms", "msec", "millisecond", "frame", "clip", "segment",
                 "seg", "video", "event", "action", "t", "at", "position", "index", "idx"}  # fmt: skip
_TIMES = {
    "start_seconds": re.compile(r"(time|t)?(start|begin|beginning|onset)(time|sec|second|ms|frame)?|from"),
    "end_seconds": re.compile(r"(time|t)?(end|stop|offset|finish)(time|sec|second|ms|frame)?|to|until"),
    "duration": re.compile(r"duration|length|dur"),
}


def check_columns(where: str, columns: Iterable[str], known: Collection[str], said: set[str]) -> None:
    """Refuse a column that looks like a known one that is missing; of one beside it, say once that it is not used.

    Args:
        where: the place in the list.
        columns: all of its columns.
        known: those that are used.
        said: columns of which it has been said; updated.

    Raises:
        AnnotationError: a column is likely to mean what a missing one would.
    """
    columns = list(columns)
    present = {look_alike(column) for column in columns if column in known}
    for column in columns:
        likely = None if column in known else look_alike(column)
        if likely is None:
            continue
        if likely == "duration":
            if "start_seconds" not in present or "end_seconds" in present:
                continue
            likely = "end_seconds"
        if likely not in present:
            expected = (
                f"{likely!r} in place of {column!r}, or a name for it that does not look like one of a known column"
            )
            raise annotation_error(where, expected, truncate_repr(", ".join(columns)))
        if column not in said:
            said.add(column)
            logging.getLogger(__name__).warning("%s: the column %r is not used, %r is there", where, column, likely)


@lru_cache(maxsize=4096)
def look_alike(column: str) -> str | None:
    """The column that a name looks like: path, label, split, id, start_seconds, end_seconds or duration."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])", " ", column)
    words = [word.removesuffix("s") if len(word) > 3 else word for word in re.findall(r"[a-z]+", spaced.lower())]
    words = ["class" if word in ("clas", "classe") else "category" if word == "categorie" else word for word in words]
    by_word = _BY_WORD.get("".join(words))
    if by_word is not None:
        return by_word
    telling = [word for word in words if word not in _BESIDE_TIMES]
    if len(telling) != 1:
        return None
    return next((name for name, pattern in _TIMES.items() if pattern.fullmatch(telling[0])), None)
