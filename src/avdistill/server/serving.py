"""Running the application: a socket, uvicorn, and connections that may not stall."""

import asyncio
import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

from avdistill.errors import ConfigError
from avdistill.server.app import create_app
from avdistill.server.config import Limits, ServeConfig

_GRACE_SECONDS = 3


def serve(config: ServeConfig, on_start: Callable[[str], None]) -> None:
    """Serve until SIGINT or SIGTERM.

    Args:
        config: what is served, and where.
        on_start: called with the address, token included, once connections are accepted.

    Raises:
        ConfigError: the address cannot be listened at.
        AvdistillError: dataset, runs, index or decisions cannot be opened.
    """
    with listening_socket(config.host, config.port) as listener:
        app = create_app(config)
        host = f"[{config.host}]" if ":" in config.host else config.host
        token = "" if config.token is None else f"?token={config.token}"
        on_start(f"http://{host}:{listener.getsockname()[1]}/{token}")
        uvicorn_server(app, config.limits).run(sockets=[listener])


def uvicorn_server(app: Any, limits: Limits) -> uvicorn.Server:
    """A server for `app` that logs no requests, whose addresses hold tokens and names of clips."""
    logging.getLogger("uvicorn.error").setLevel(logging.CRITICAL)
    return uvicorn.Server(
        uvicorn.Config(
            app,
            http=timed_protocol(limits),
            ws="none",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            limit_concurrency=limits.connections,
            timeout_keep_alive=15,
            timeout_graceful_shutdown=_GRACE_SECONDS,
        )
    )


def listening_socket(host: str, port: int) -> socket.socket:
    """A socket that listens. Raises ConfigError where it cannot."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, port))
        listener.listen(2048)
    except OSError as error:
        listener.close()
        raise ConfigError(f"{host}:{port}: cannot listen there: {error.strerror or error}") from error
    return listener


def timed_protocol(limits: Limits) -> type[asyncio.Protocol]:
    """Uvicorn's protocol, which waits for ever, with an end to waiting for a header and for a client that reads."""
    base: Any = HttpToolsProtocol

    class TimedProtocol(base):
        """A connection that is closed when its client stalls."""

        _timer: asyncio.TimerHandle | None = None

        def _arm(self, seconds: float | None) -> None:
            if self._timer is not None:
                self._timer.cancel()
            self._timer = None if seconds is None else self.loop.call_later(seconds, self.transport.abort)

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._arm(limits.header_seconds)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            answering = self.cycle is not None and not self.cycle.response_complete
            if answering:
                self._arm(None)
            elif self._timer is None:  # a part of the next request's header
                self._arm(limits.header_seconds)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._arm(None)  # uvicorn's own limit of an idle connection begins

        def pause_writing(self) -> None:
            super().pause_writing()
            self._arm(limits.stalled_seconds)

        def resume_writing(self) -> None:
            super().resume_writing()
            self._arm(None)

        def connection_lost(self, exc: Exception | None) -> None:
            self._arm(None)
            super().connection_lost(exc)

    return TimedProtocol
