"""Uploaded files and what is computed of them: received into a folder, one at a time decoded, deleted, never kept.

A file is decoded in an isolated process with limits of time and memory. Only what was computed stays, in memory, for a
while. All numbers are bounded; what goes beyond is refused.
"""

import asyncio
import queue
import secrets
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.types import Message

from avdistill.errors import AvdistillError
from avdistill.fsio import error_message
from avdistill.preparation.clip_reader import IsolatedReader
from avdistill.progress import OnProgress, Progress
from avdistill.server.config import Limits

# Results that are kept, and for how long; a job whose client does not ask for it any more is given up sooner.
_MOST_KEPT, _KEPT_SECONDS, _ABANDONED_SECONDS = 64, 900.0, 60.0
_FORM_BYTES = 64 * 1024  # of a form beside its file
_RETRY = {"retry-after": "5"}

WAITING, RUNNING, DONE, FAILED = "waiting", "running", "done", "failed"

# A file, a reader for it, and progress in windows -> what is kept of it.
Work = Callable[[Path, IsolatedReader, OnProgress], Any]


class _GivenUpError(Exception):
    """Nobody waits for the result any more, or it takes too long."""


@dataclass
class Job:
    """One uploaded file.

    Attributes:
        id: that nobody guesses.
        name: of the file, as the client gave it.
        kind: "prediction" or "search".
        work: what is computed.
        state: "waiting", "running", "done" or "failed".
        windows: processed so far.
        result: of a job that is done.
        error: of a job that failed.
    """

    id: str
    name: str
    kind: str
    path: Path
    work: Work
    state: str = WAITING
    windows: int = 0
    result: Any = None
    error: str = ""
    made: float = field(default_factory=time.monotonic)
    asked: float = field(default_factory=time.monotonic)

    def describe(self) -> dict[str, Any]:
        """JSON-ready, without the result."""
        return {"id": self.id, "file": self.name, "state": self.state, "windows": self.windows, "error": self.error}


class Jobs:
    """The queue of uploaded files, and the thread that works on it."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        folder.mkdir()
        self.folder, self.limits = folder, limits
        self._receiving = 0  # only the event loop changes it
        self._queue: queue.Queue[Job] = queue.Queue(limits.waiting_jobs)
        self._jobs: OrderedDict[str, Job] = OrderedDict()
        self._lock = threading.Lock()
        self._thread = threading.Thread(target=self._work, name="avdistill-serve-jobs", daemon=True)
        self._closing = threading.Event()
        self._thread.start()

    def close(self) -> None:
        """End the thread; a running job is given up."""
        self._closing.set()
        self._thread.join(5)

    async def receive(self, request: Request, kind: str, choose: Callable[[dict[str, str]], Work]) -> Job:
        """Receive a form with a field `file` and put it into the queue.

        Args:
            request: multipart/form-data.
            kind: of the job.
            choose: from the other fields to what is computed; raises HTTPException.

        Raises:
            HTTPException: 400, 408, 413, 415 or 429.
        """
        limit = self.limits.upload_bytes + _FORM_BYTES
        length = request.headers.get("content-length", "0")
        if not length.isdigit() or len(length) > 18 or int(length) > limit:
            raise HTTPException(413, f"file: expected at most {self.limits.upload_bytes} bytes, found more")
        if not request.headers.get("content-type", "").startswith("multipart/form-data"):
            raise HTTPException(415, "content-type: expected multipart/form-data with a field `file`, found another")
        if self._receiving >= self.limits.uploads_at_once or self._queue.full():
            raise HTTPException(429, "too many files are being uploaded; try again", _RETRY)
        self._receiving += 1
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                return await self._received(request, limit, kind, choose)
        except TimeoutError:
            raise HTTPException(408, "the file did not arrive in time") from None
        except ClientDisconnect:
            raise HTTPException(400, "the client has left") from None
        finally:
            self._receiving -= 1

    async def _received(self, request: Request, limit: int, kind: str, choose: Callable[[dict[str, str]], Work]) -> Job:
        bounded = Request(request.scope, _bounded(request.receive, limit, self.limits.stalled_seconds))
        async with bounded.form(max_files=1, max_fields=4, max_part_size=4096) as form:
            upload = form.get("file")
            if not isinstance(upload, UploadFile) or not upload.size:
                raise HTTPException(400, "file: expected a file that is not empty, found none")
            work = choose({name: value for name, value in form.items() if isinstance(value, str)})
            name, path = (upload.filename or "")[:255], self.folder / secrets.token_hex(8)
            job = Job(secrets.token_urlsafe(16), name, kind, path, work)
            try:
                await run_in_threadpool(_copy, upload, job.path)
                with self._lock:
                    self._forget()
                    self._queue.put_nowait(job)
                    self._jobs[job.id] = job
            except queue.Full:
                job.path.unlink()
                raise HTTPException(429, "too many files wait to be decoded; try again", _RETRY) from None
            except BaseException:
                job.path.unlink(missing_ok=True)
                raise
            return job

    def find(self, job: str, kind: str) -> Job:
        """A job of a kind by its id. Raises 404."""
        with self._lock:
            self._forget()
            found = self._jobs.get(job)
        if found is None or found.kind != kind:
            raise HTTPException(404, "job: expected the id of an upload, found none; results are kept for a while only")
        found.asked = time.monotonic()
        return found

    def _forget(self) -> None:
        """Drop old results, with the lock held; those in the queue are dropped when their turn comes."""
        now = time.monotonic()
        for job in list(self._jobs.values()):
            old = now - job.made > _KEPT_SECONDS or len(self._jobs) > _MOST_KEPT
            if old and job.state in (DONE, FAILED):
                del self._jobs[job.id]

    def _work(self) -> None:
        limits = self.limits
        with IsolatedReader(time_limit_seconds=limits.decode_seconds, memory_limit_bytes=limits.decode_bytes) as reader:
            while not self._closing.is_set():
                try:
                    job = self._queue.get(timeout=0.2)
                except queue.Empty:
                    continue
                self._run(job, reader)

    def _run(self, job: Job, reader: IsolatedReader) -> None:
        """One job; whatever a file does, the thread goes on."""
        began = time.monotonic()

        def on_progress(progress: Progress) -> None:
            job.windows, now = progress.done, time.monotonic()
            if now - began > self.limits.decode_seconds:
                raise _GivenUpError(f"it took longer than {self.limits.decode_seconds:g} s")
            if now - job.asked > _ABANDONED_SECONDS or self._closing.is_set():
                raise _GivenUpError("nobody waited for the result")

        job.state = RUNNING
        try:
            on_progress(Progress(0))
            job.result = job.work(job.path, reader, on_progress)
            job.state = DONE
        except _GivenUpError as error:
            job.error = str(error)
        except (AvdistillError, OSError, ValueError) as error:
            job.error = error_message(error).replace(str(job.path), "the file")
        except MemoryError:
            job.error = "more memory is needed than there is"
        except Exception as error:  # a file may trigger an error in this library: that costs one upload
            job.error = f"unexpected {type(error).__name__}, please report it"
        finally:
            if job.state != DONE:
                job.state = FAILED
            job.path.unlink(missing_ok=True)


def _bounded(receive: Any, limit: int, stalled_seconds: float) -> Callable[[], Any]:
    """A `receive` that ends a body that is too long, or that does not go on."""
    found = 0

    async def bounded() -> Message:
        nonlocal found
        message = cast(Message, await asyncio.wait_for(receive(), stalled_seconds))
        found += len(message.get("body", b""))
        if found > limit:
            raise HTTPException(413, f"file: expected at most {limit} bytes, found more")
        return message

    return bounded


def _copy(upload: UploadFile, path: Path) -> None:
    """Into a file that another process can open; the upload itself has no name."""
    with path.open("xb") as file:
        while part := upload.file.read(2**20):
            file.write(part)
