"""The task that prepares a part of a list on whichever machine; it needs no PyTorch."""

import json
import socket
import time
from dataclasses import asdict, dataclass
from pathlib import Path

from avdistill.annotations import Annotation
from avdistill.errors import ConfigError, DatasetBusyError
from avdistill.fsio import replacing
from avdistill.preparation.clip_reader import CLIP_LIMIT_BYTES, TIME_LIMIT_SECONDS
from avdistill.preparation.parts import Part
from avdistill.preparation.prepare import PrepareConfig, prepare

_LIST = "list.jsonl"
_BUSY_SECONDS = 1.0


@dataclass(frozen=True)
class Limits:
    """Of reading a clip, as for `prepare`."""

    workers: int = 1
    strict: bool = False
    time_limit_seconds: float | None = TIME_LIMIT_SECONDS
    clip_limit_bytes: int | None = CLIP_LIMIT_BYTES


def prepare_part(folder: Path, part: Part, out: Path, videos: Path, config: PrepareConfig, limits: Limits) -> None:
    """The task that prepares a part, on whichever machine.

    Args:
        folder: of all parts, with the list of clips.
        part: which one.
        out: its dataset.
        videos, config: as for `prepare`.
        limits: of reading.
    """
    if not (folder / _LIST).is_file():
        raise ConfigError(f"{folder}: expected a folder that all machines share, found none on {socket.gethostname()}")
    annotations = read_list(folder)
    while True:
        try:
            prepare(annotations, videos, out, config, part=part, **asdict(limits))
            return
        except DatasetBusyError:  # by a machine that was taken for lost; its lock ends with it, or with its work
            time.sleep(_BUSY_SECONDS)


def write_list(folder: Path, annotations: list[Annotation]) -> None:
    """The list for all parts: in the arguments of each task it would travel as often as there are parts."""
    with replacing(folder / _LIST) as file:
        for annotation in annotations:
            file.write(json.dumps(asdict(annotation), ensure_ascii=False) + "\n")


def read_list(folder: Path) -> list[Annotation]:
    """What `write_list` wrote."""
    found = []
    with (folder / _LIST).open(encoding="utf-8") as file:
        for line in file:
            fields = json.loads(line)
            pairs = tuple((name, value) for name, value in fields["extra"])
            found.append(Annotation(**fields | {"labels": tuple(fields["labels"]), "extra": pairs}))
    return found
