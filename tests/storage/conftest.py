import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from avdistill.storage.filesystems import filesystem
from avdistill.storage.url import Url, as_path
from support.s3_server import s3_server


@dataclass
class Bucket:
    """An S3 server on this machine: its objects by name, what it is asked for, and what it fails at."""

    objects: dict[str, bytes]
    requests: list[tuple[str, str, str]]
    failing: set[str]

    def url(self, name: str = "") -> Url:
        found = as_path(f"s3://bucket/{name}")
        assert isinstance(found, Url)
        return found

    def add(self, folder: Path, name: str) -> Url:
        """The files of a folder as another program would copy them."""
        for file in folder.rglob("*"):
            if file.is_file():
                self.objects[f"bucket/{name}/{file.relative_to(folder).as_posix()}"] = file.read_bytes()
        return self.url(name)

    def leave(self, cache: Path) -> threading.Thread:
        """Fail at reading until somebody has waited for it."""

        def watch() -> None:
            until = time.monotonic() + 60
            while time.monotonic() < until and not list(cache.rglob("away-*/lock")):
                time.sleep(0.05)
            time.sleep(0.5)
            self.failing.clear()

        self.failing |= {"GET", "HEAD"}
        thread = threading.Thread(target=watch)
        thread.start()
        return thread

    def asked(self, method: str) -> list[str]:
        """Names of objects, once for each request."""
        return [name.removeprefix("bucket/") for found, name, _ in self.requests if found == method]


@pytest.fixture
def bucket(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Bucket]:
    fs = pytest.importorskip("pyarrow.fs")
    # Amazon's client, too, tries again, for seconds, before the library knows that the server is away.
    once = fs.AwsStandardS3RetryStrategy(max_attempts=1)
    monkeypatch.setattr(fs, "S3FileSystem", partial(fs.S3FileSystem, retry_strategy=once))
    failing, requests = set[str](), list[tuple[str, str, str]]()
    with s3_server(failing, requests) as (address, objects):
        for name in ("AWS_REGION", "AWS_DEFAULT_REGION", "AWS_ENDPOINT_URL_S3", "AWS_EC2_METADATA_DISABLED"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("AWS_ENDPOINT_URL", address)
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "a-key-of-the-test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "a-secret-of-the-test")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        filesystem.cache_clear()
        yield Bucket(objects, requests, failing)
    filesystem.cache_clear()
