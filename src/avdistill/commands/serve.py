"""The verb that starts the web server."""

from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import tyro

from avdistill.commands.console import say
from avdistill.errors import ConfigError

_NEEDED = ("starlette", "uvicorn", "python_multipart")


@dataclass(frozen=True)
class _Serve:
    """Start a web server to look at a dataset, search it, label uploaded videos and review an audit."""

    dataset: tyro.conf.Positional[Path | None] = None
    """Folder of the dataset; without one, --run is needed."""
    run: tuple[Path, ...] = ()
    """Run folders, exported students, or folders of studies: their curves are shown, their students label uploads."""
    index: str | None = None
    """The index to search in: what `avdistill index --out` named."""
    text_encoder: str | None = None
    """The encoder of texts for the search by words, as in `avdistill search --encoder`."""
    decisions: Path | None = None
    """The CSV file that the review of an audit writes; the default is DATASET-decisions.csv beside the dataset."""
    host: str = "127.0.0.1"
    """The address to listen at. Any but a loopback address demands a token of every client."""
    port: int = 8080
    """The port to listen at; 0 takes a free one."""
    token: str | None = None
    """The token that clients must show: at least 16 letters and digits. By default one is made for an address that is
    no loopback address, and none is demanded on a loopback address."""
    upload_megabytes: int = 200
    """The largest file that may be uploaded."""


def serve(arguments: list[str]) -> None:
    """`avdistill serve [DATASET]`."""
    a = tyro.cli(_Serve, args=arguments, prog="avdistill serve")
    if missing := [name for name in _NEEDED if find_spec(name) is None]:
        raise ConfigError(f"serve: expected the package {missing[0]}, found none; pip install 'avdistill[serve]'")
    if a.upload_megabytes < 1:
        raise ConfigError(f"upload_megabytes: expected at least 1, found {a.upload_megabytes}")
    from avdistill.server.config import Limits, ServeConfig, is_loopback, new_token
    from avdistill.server.serving import serve as run_server

    options: dict[str, Any] = {k: v for k, v in vars(a).items() if k not in ("run", "upload_megabytes", "token")}
    token = a.token if a.token is not None or is_loopback(a.host) else new_token()
    limits = replace(Limits(), upload_bytes=a.upload_megabytes * 2**20)
    config = ServeConfig(runs=a.run, token=token, limits=limits, **options)
    run_server(config, lambda address: say(f"serving at {address} (Ctrl-C ends it)"))
