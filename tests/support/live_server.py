"""A real server on a port of the loopback address, in a thread of the test, and plain requests to it."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest

pytest.importorskip("starlette", reason="starlette is not installed: pip install avdistill[serve]")
pytest.importorskip("uvicorn", reason="uvicorn is not installed: pip install avdistill[serve]")

from avdistill.server.app import create_app
from avdistill.server.serving import listening_socket, uvicorn_server


@dataclass
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes

    @property
    def text(self) -> str:
        return self.body.decode()

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Live:
    """A running server."""

    app: Any
    port: int

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def ask(self, path: str, method: str = "GET", body: bytes | None = None, **headers: str) -> Answer:
        """One request on a connection of its own; the names of headers are given with underscores."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=60)
        try:
            connection.request(method, path, body, {k.replace("_", "-"): v for k, v in headers.items()})
            response = connection.getresponse()
            return Answer(response.status, {k.lower(): v for k, v in response.getheaders()}, response.read())
        finally:
            connection.close()

    def send_json(self, path: str, value: object, method: str = "POST") -> Answer:
        return self.ask(path, method, json.dumps(value).encode(), content_type="application/json")

    def upload(self, path: str, content: bytes, name: str = "a.mp4", **fields: str) -> Answer:
        return self.ask(path, "POST", multipart(content, name, **fields), content_type=MULTIPART)


BOUNDARY = "b9a2f4"
MULTIPART = f"multipart/form-data; boundary={BOUNDARY}"


def multipart(content: bytes, name: str, **fields: str) -> bytes:
    parts = [f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()]
    head = f'--{BOUNDARY}\r\nContent-Disposition: form-data; name="file"; filename="{name}"\r\n'
    start = "".join(parts) + head + "Content-Type: video/mp4\r\n\r\n"
    return start.encode() + content + f"\r\n--{BOUNDARY}--\r\n".encode()


@contextmanager
def live(config: Any) -> Iterator[Live]:
    """A server of what a config names, at a free port."""
    app = create_app(config)
    with listening_socket("127.0.0.1", 0) as listener:
        server = uvicorn_server(app, config.limits)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        until(lambda: server.started)
        try:
            yield Live(app, listener.getsockname()[1])
        finally:
            server.should_exit = True
            thread.join(20)


def until(holds: Any, seconds: float = 30.0) -> Any:
    """What a function returns once that is true."""
    end = time.monotonic() + seconds
    while not (found := holds()):
        if time.monotonic() > end:
            raise TimeoutError
        time.sleep(0.02)
    return found


def finished(server, job, kind="predictions"):
    return until(lambda: (found := server.ask(f"/api/{kind}/{job}").json)["state"] in ("done", "failed") and found)
