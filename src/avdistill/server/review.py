"""Decisions of reviewers: `decisions.csv`, which `train` takes, and the journal of all votes beside it.

A vote is first appended to the journal, then its decision to the table, each flushed to the disk before it is answered.
A kill in between leaves at most the last vote without its row, which the next start adds. Several servers may write: a
lock file orders them, and each reads what the others appended. The last vote on a clip that is not "unsure" is its
decision; a row that somebody edited by hand stays until the clip is voted on.
"""

import fcntl
import itertools
import json
import os
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from avdistill.config_io import decode, encode, parse_json
from avdistill.dataset.clip_dataset import ClipDataset
from avdistill.dataset.decisions import COLUMNS, DROP_AUDIO, KEEP, Decision, csv_row, read_decisions, write_decisions
from avdistill.errors import AnnotationError, ConfigError
from avdistill.fsio import LOCK, open_regular, sync, sync_folder

YES, NO, UNSURE, UNDO = "yes", "no", "unsure", "undo"
_KINDS = {YES: KEEP, NO: DROP_AUDIO}
_LONGEST_NAME = 80


@dataclass(frozen=True)
class _Before:
    """A row of the table that a vote takes the place of."""

    decision: str
    by: str


@dataclass(frozen=True)
class _Entry:
    """A line of the journal."""

    clip: str
    vote: str
    by: str
    time: str = ""
    before: _Before | None = None


@dataclass(frozen=True)
class Progress:
    """How far a review is.

    Attributes:
        reviewed: clips that this reviewer has voted on.
        total: clips of the review.
        decided: clips that have a decision of anybody.
        reviewers: who have voted.
        shared: clips that two or more reviewers have called matched or mismatched.
        agreed: clips of them about which they agree.
        disagreements: ids of some of the others.
    """

    reviewed: int
    total: int
    decided: int
    reviewers: int
    shared: int
    agreed: int
    disagreements: tuple[str, ...]


class Review:
    """The votes of reviewers on clips, in an order."""

    def __init__(self, path: Path, dataset: ClipDataset, order: Sequence[str]) -> None:
        """Open or begin a review.

        Args:
            path: of `decisions.csv`; the journal is `NAME.votes.jsonl` beside it.
            dataset: whose clips are decided about.
            order: ids of the clips to review, first to last.

        Raises:
            AnnotationError: a file that is there is no table of decisions of this dataset, or no journal.
            OSError: the folder cannot be written.
        """
        self.path, self.journal = path, path.with_name(path.name + ".votes.jsonl")
        self.dataset, self.order = dataset, list(order)
        self._votes: dict[str, dict[str, str]] = {}  # clip -> reviewer -> vote
        self._stacks: dict[str, list[tuple[str, str | None]]] = {}  # reviewer -> (clip, the vote before)
        self._reviewed: dict[str, set[str]] = {}  # reviewer -> clips with a vote
        self._before: dict[str, Decision] = {}  # what the table held of somebody who is no reviewer
        self._cursors: dict[str, int] = {}
        self._read_bytes = 0
        self._decisions: dict[str, Decision] = {}
        self._state: tuple[int, int, int] | None = None  # of the table, when it was last read or written
        self._last = ""
        self._shared: dict[str, bool] = {}  # clips of several reviewers, and whether they agree
        self._lock = threading.Lock()
        path.parent.mkdir(parents=True, exist_ok=True)
        journal, table = _file_state(self.journal), _file_state(path)  # before a torn row is removed
        with self._locked():
            if self._last and journal is not None and (table is None or table[2] <= journal[2]):
                self._write(self._last)  # a kill may have left the last vote without its row

    def vote(self, clip: str, vote: str, by: str) -> None:
        """Record a vote: it is on the disk when this returns.

        Raises:
            ValueError: an unknown clip or vote, or a name that is empty, too long or holds control characters.
        """
        if vote not in (YES, NO, UNSURE):
            raise ValueError(f"vote: expected {YES}, {NO} or {UNSURE}, found another")
        check_reviewer(by)
        if clip not in self._known:
            raise ValueError("clip: expected the id of a clip of the dataset, found another")
        with self._locked():
            self._append(clip, vote, by)

    def undo(self, by: str) -> str | None:
        """Take back the reviewer's last vote that was not taken back; its clip, None where there is none."""
        check_reviewer(by)
        with self._locked():
            if not self._stacks.get(by):
                return None
            clip = self._stacks[by][-1][0]
            self._append(clip, UNDO, by)
            return clip

    def next_clips(self, by: str, count: int = 2) -> list[str]:
        """The next clips that a reviewer has not voted on."""
        with self._locked():
            reviewed, first = self._reviewed.get(by, set()), self._cursors.get(by, 0)
            while first < len(self.order) and self.order[first] in reviewed:
                first += 1
            if reviewed:
                self._cursors[by] = first
            left = (self.order[i] for i in range(first, len(self.order)) if self.order[i] not in reviewed)
            return list(itertools.islice(left, count))

    def progress(self, by: str) -> Progress:
        """How far the review is, and this reviewer."""
        with self._lock:
            return Progress(
                reviewed=len(self._reviewed.get(by, ())),
                total=len(self.order),
                decided=len(self._decisions),
                reviewers=sum(map(bool, self._reviewed.values())),
                shared=len(self._shared),
                agreed=sum(self._shared.values()),
                disagreements=tuple(clip for clip, agreed in self._shared.items() if not agreed)[:20],
            )

    def table(self) -> bytes:
        """The content of `decisions.csv`."""
        with self._locked():
            return self.path.read_bytes() if self.path.is_file() else (",".join(COLUMNS) + "\r\n").encode()

    # Files; all below is called with the lock held.

    @property
    def _known(self) -> set[str]:
        known: set[str] = self.__dict__.setdefault("_ids", set(self.dataset.columns["id"].tolist()))
        return known

    @contextmanager
    def _locked(self) -> Iterator[None]:
        """The only writer, who knows what others wrote."""
        with self._lock, open(self.path.with_name(f"{self.path.name}.{LOCK}"), "a") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            self._catch_up()
            yield

    def _catch_up(self) -> None:
        """Read what the journal and the table have more than when they were last read."""
        if self._state != (state := _file_state(self.path)):
            self._decisions = {each.clip: each for each in self._read_table()}
            self._state = _file_state(self.path) if state is not None else None
        if not self.journal.exists() or self.journal.stat().st_size == self._read_bytes:
            return
        with open_regular(self.journal, "r+b") as file:
            file.seek(self._read_bytes)
            content = file.read()
            whole = content.rfind(b"\n") + 1
            if whole < len(content):  # a kill cut its writing short: it was never answered
                file.truncate(self._read_bytes + whole)
        for line in content[:whole].split(b"\n")[:-1]:
            self._apply(self._parsed(line))
        self._read_bytes += whole

    def _parsed(self, line: bytes) -> _Entry:
        try:
            entry = decode(_Entry, parse_json(line.decode("utf-8")), "vote")
            if entry.vote not in (*_KINDS, UNSURE, UNDO):
                raise ConfigError(f"vote: found {entry.vote!r:.40}")
        except ValueError as error:
            raise AnnotationError(f"{self.journal}: expected a vote on each line, found {line[:80]!r}") from error
        return entry

    def _read_table(self) -> list[Decision]:
        """The rows of the table; a last one that was cut short is removed."""
        if not self.path.is_file():
            return []
        content = self.path.read_bytes()
        while True:
            try:
                found = read_decisions(self.path, self.dataset)
                break
            except AnnotationError:
                if content.endswith(b"\n") or b"\n" not in content.rstrip(b"\n"):
                    raise
                content = content[: content.rindex(b"\n") + 1]
                with open_regular(self.path, "r+b") as file:
                    file.truncate(len(content))
                    sync(file)
        if content and not content.endswith(b"\n"):
            write_decisions(self.path, found)
        return found

    def _append(self, clip: str, vote: str, by: str) -> None:
        old, now = self._decisions.get(clip), time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        before = None if old is None or old.by in self._stacks or clip in self._before else _Before(old.text, old.by)
        entry = _Entry(clip, vote, by, now, before)
        line = json.dumps(encode(entry), ensure_ascii=True).encode() + b"\n"
        new = not self.journal.exists()
        with open_regular(self.journal, "ab") as file:
            file.write(line)
            sync(file)
        if new:
            sync_folder(self.journal.parent)
        self._read_bytes += len(line)
        self._apply(entry)
        self._write(clip)

    def _write(self, clip: str) -> None:
        """Put the decision about a clip into the table."""
        decision, old = self._decision(clip), self._decisions.get(clip)
        if decision == old:
            return
        if decision is None:
            self._decisions.pop(clip)
        else:
            self._decisions[clip] = decision
        if old is None and self.path.exists() and decision is not None:
            with open_regular(self.path, "ab") as file:
                file.write(csv_row(decision).encode())
                sync(file)
        else:
            write_decisions(self.path, self._decisions.values())
        self._state = _file_state(self.path)

    # Votes

    def _apply(self, entry: _Entry) -> None:
        clip, vote, by = entry.clip, entry.vote, entry.by
        votes, stack = self._votes.setdefault(clip, {}), self._stacks.setdefault(by, [])
        reviewed = self._reviewed.setdefault(by, set())
        if entry.before is not None:
            kind, _, names = entry.before.decision.partition(":")
            labels = tuple(names.split("|")) if names else ()
            self._before.setdefault(clip, Decision(clip, kind, labels, entry.before.by))
        if vote == UNDO:
            before = stack.pop()[1] if stack and stack[-1][0] == clip else None
            votes.pop(by, None)
            if before is not None:
                votes[by] = before
            else:
                reviewed.discard(clip)
            self._cursors.pop(by, None)
        else:
            stack.append((clip, votes.pop(by, None)))
            votes[by] = vote  # last in order: the dictionary keeps it
            reviewed.add(clip)
        opinions = [each for each in votes.values() if each != UNSURE]
        self._shared.pop(clip, None)
        if len(opinions) > 1:
            self._shared[clip] = len(set(opinions)) == 1
        self._last = clip

    def _decision(self, clip: str) -> Decision | None:
        """By the last vote that is not unsure; without one, what was decided before the review."""
        for by, vote in reversed(self._votes.get(clip, {}).items()):
            if vote != UNSURE:
                return Decision(clip, _KINDS[vote], by=by)
        return self._before.get(clip)


def check_reviewer(by: str) -> None:
    """Raise ValueError for a name that is empty, too long or not printable."""
    if not by.strip() or len(by) > _LONGEST_NAME or not by.isprintable():
        raise ValueError(f"by: expected a name of 1 to {_LONGEST_NAME} printable characters, found another")


def _file_state(path: Path) -> tuple[int, int, int] | None:
    """By which a change of a file is noticed."""
    try:
        status = os.stat(path)
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_size, status.st_mtime_ns


def review_payload(progress: Progress, clips: list[dict[str, Any]]) -> dict[str, Any]:
    """JSON-ready: the clip to review, the one after it, and the progress."""
    shown: list[dict[str, Any] | None] = [*clips, None, None]
    counts = vars(progress) | {"disagreements": list(progress.disagreements)}
    return {"clip": shown[0], "next": shown[1], "progress": counts}
