"""What all readers share: the `Annotation`, reading of text, CSV and JSON, and parsing of single values.

`where` is the place (file, line or entry) that an error message names.
"""

import csv
import io
import json
import math
import re
import unicodedata
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

from avdistill.errors import AnnotationError, ConfigError
from avdistill.fsio import regular_file
from avdistill.storage.url import as_path

# fmt: off
SPLIT_ALIASES = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validate": "validation",
    "validation": "validation", "test": "test", "testing": "test",
}
# fmt: on
_URL = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_MOST_SECONDS = 1e9
# What `regular_file` refuses, for a message.
NO_FILE = "a pipe or a device"
# From JSON's "\ud800" or a file name in another encoding; such text can be neither printed nor stored.
SURROGATE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class Annotation:
    """One clip: a whole video, or the segment [start, end) of it.

    Attributes:
        clip_id: unique in its list; if the list has no `id`, the path without suffix (and `@start-end`).
        path: relative to the folder of videos, with POSIX separators; or a URL.
        labels: names of the classes; empty for an unlabeled clip.
        split: any name; usually "train", "validation" or "test".
        start_seconds: start of the clip in its video.
        end_seconds: end of the clip in its video, or None for the end of the video.
        extra: (name, value) of the list's other columns, unchanged; never used for training.
        group: the source video or upload that it is a part of; empty: as the name of its file tells.
    """

    clip_id: str
    path: str
    labels: tuple[str, ...]
    split: str
    start_seconds: float = 0.0
    end_seconds: float | None = None
    extra: tuple[tuple[str, str], ...] = ()
    group: str = ""


# (where, clip): the place that a message about the clip names. Before `_name_clips` the id may be empty.
LocatedAnnotation = tuple[str, Annotation]


def annotation_error(where: str, expected: str, found: str) -> AnnotationError:
    """An error with a message of one line: the place, what was expected and what was found."""
    return AnnotationError(f"{where}: expected {expected}, found {found}")


def format_path(path: Path) -> str:
    """A path for a message, quoted if it would not stay on one line."""
    return str(path) if str(path).isprintable() else repr(str(path))


def truncate_repr(value: object) -> str:
    """A value for a message, quoted and cut to 120 characters."""
    return f"{value!r:.120}"


def read_text(source: Path) -> str:
    """The text of a UTF-8 file, with or without a byte order mark. Raises OSError for a pipe or a device."""
    try:
        return regular_file(source).read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise annotation_error(format_path(source), "UTF-8 text", f"byte 0x{error.object[error.start]:02x}") from error


def numbered_lines(source: Path) -> Iterator[tuple[str, str]]:
    """(where, line) of every line that is not blank."""
    # Not str.splitlines(): it also splits at U+2028 and others, which may occur in a name.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", read_text(source)), start=1):
        if line.strip():
            yield f"{format_path(source)}, line {number}", line


def csv_rows(source: Path) -> Iterator[tuple[str, list[str]]]:
    """(where, cells) of every row that is not blank."""
    # Spaces after a comma are ignored, those in a quoted cell are not.
    reader = csv.reader(io.StringIO(read_text(source), newline=""), strict=True, skipinitialspace=True)
    line = 1
    try:
        for cells in reader:
            where, line = f"{format_path(source)}, line {line}", reader.line_num + 1
            if any(cell.strip() for cell in cells):
                yield where, cells
    except csv.Error as error:
        raise annotation_error(f"{format_path(source)}, line {line}", "valid CSV", str(error)) from error


def csv_table(source: Path, check_header: Callable[[str, list[str]], None]) -> Iterator[tuple[str, dict[str, str]]]:
    """(where, cells by column) of every row below the header; `check_header` raises if it is not valid."""
    header: list[str] = []
    for where, cells in csv_rows(source):
        if not header:
            header = [cell.strip() for cell in cells]
            if len(set(header)) < len(header):
                raise annotation_error(where, "every column once", truncate_repr(", ".join(header)))
            check_header(where, header)
        elif len(cells) != len(header):
            expected = f"{len(header)} cells as in the header (a comma inside a value needs double quotes)"
            raise annotation_error(where, expected, str(len(cells)))
        else:
            yield where, dict(zip(header, cells, strict=True))


def parse_json(where: str, text: str) -> object:
    """The value of a JSON text; a repeated key is an error, of which `json` would silently keep the last."""
    try:
        return json.loads(text, object_pairs_hook=_unique_keys)
    except (ValueError, RecursionError) as error:
        raise annotation_error(where, "one JSON object", f"invalid JSON ({error})") from error


def _unique_keys(pairs: list[tuple[str, object]]) -> dict[str, object]:
    values: dict[str, object] = {}
    for key, value in pairs:
        if key in values:
            raise ValueError(f"the key {truncate_repr(key)} twice in one object")
        values[key] = value
    return values


def parse_name(where: str, key: str, value: object) -> str:
    """A label, split or id without surrounding space, in Unicode's form NFC; a whole number is a name as well."""
    if value is None:
        return ""
    if not isinstance(value, str | int) or isinstance(value, bool):
        raise annotation_error(where, f"text as {key}", truncate_repr(value))
    return unicodedata.normalize("NFC", str(value).strip())


def parse_split(where: str, value: object) -> str:
    """The name of a split, with aliases replaced; empty if none is given."""
    split = parse_name(where, "split", value)
    return SPLIT_ALIASES.get(split.casefold(), split)


def parse_labels(where: str, value: object) -> tuple[str, ...]:
    """Labels from a string, separated by `|`, or from the items of a list; without repeats."""
    items = value.split("|") if isinstance(value, str) else value if isinstance(value, list) else [value]
    labels = dict.fromkeys(parse_name(where, "label", item) for item in items)
    labels.pop("", None)  # "a||b", and the empty cell of an unlabeled clip
    return tuple(labels)


def parse_seconds(where: str, key: str, value: object) -> float | None:
    """A time in seconds, or None if it is not given."""
    if value is None or not str(value).strip():
        return None
    try:  # float() would accept 1_000
        seconds = float(str(value).replace("_", "?"))
    except ValueError:
        seconds = math.nan
    if not math.isfinite(seconds) or seconds < 0:
        raise annotation_error(where, f"{key} as a number of seconds, 0 or more", truncate_repr(value))
    if seconds >= _MOST_SECONDS:  # in milliseconds, or as a clock of FFmpeg's, it may be no number any more
        raise annotation_error(where, f"{key} below {_MOST_SECONDS:.0e} seconds", truncate_repr(value))
    return seconds + 0.0  # -0.0 becomes 0.0


def parse_path(where: str, value: object) -> str:
    """A relative path inside the folder of videos, in Unicode's form NFC, see `video_files.locate`; or a URL."""
    text = unicodedata.normalize("NFC", value) if isinstance(value, str) else ""
    if _URL.match(text):
        try:
            return str(as_path(text))
        except ConfigError as error:  # its message has no credentials
            raise AnnotationError(f"{where}: {error}") from None
    path = PurePosixPath(text)
    if path.is_absolute() or PureWindowsPath(text).is_absolute() or ".." in re.split(r"[/\\]", text):
        raise annotation_error(where, "a relative path without '..', inside the folder of videos", truncate_repr(value))
    if not path.name or text != text.rstrip() or SURROGATE.search(text) or "\\" in text or "\0" in text:
        expected = "the path of a video, '/' between folders and no space at the end"
        raise annotation_error(where, expected, truncate_repr(value))
    return str(path)


def parse_extra(values: Mapping[str, object], known: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The other columns as text; JSON values that are not text as JSON."""
    return tuple(
        (key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False))
        for key, value in values.items()
        if key not in known
    )
