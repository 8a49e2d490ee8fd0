"""What `avdistill serve` is started with, and the limits that keep it answering."""

import ipaddress
import secrets
from dataclasses import dataclass, field
from pathlib import Path

from avdistill.errors import ConfigError


@dataclass(frozen=True)
class Limits:
    """Bounds of what clients can make the server do.

    Attributes:
        upload_bytes: of one uploaded file.
        uploads_at_once: files that are received at the same time; further ones are refused with 429.
        waiting_jobs: received files that wait for the one that is decoded; further ones are refused with 429.
        upload_seconds: in which a file must have arrived.
        decode_seconds: that decoding one file may take.
        decode_bytes: of memory that the decoding process may use.
        header_seconds: in which a request's header must have arrived.
        stalled_seconds: after which a client that sends or reads nothing is cut off.
        connections: at the same time; further ones are answered with 503.
        cache_bytes: of thumbnails and players on the disk.
        encoders: clips that are encoded at the same time; `waiting_encodes` more wait, further ones get 503.
    """

    upload_bytes: int = 200 * 2**20
    uploads_at_once: int = 4
    waiting_jobs: int = 8
    upload_seconds: float = 300.0
    decode_seconds: float = 300.0
    decode_bytes: int = 2 * 2**30
    header_seconds: float = 10.0
    stalled_seconds: float = 30.0
    connections: int = 400
    cache_bytes: int = 512 * 2**20
    encoders: int = 2
    waiting_encodes: int = 200


@dataclass(frozen=True)
class ServeConfig:
    """What is served, and where.

    Attributes:
        dataset: folder of the dataset; None serves runs alone.
        runs: folders of runs, of exported students, or of studies of `compare`.
        index: what `avdistill index --out` named.
        text_encoder: as in `avdistill search --encoder`, to search the index by words.
        decisions: the CSV file of the review; the default is DATASET-decisions.csv beside the dataset.
        host, port: of the socket; port 0 takes a free one.
        token: that a client must show; None demands none, which only a loopback address may do.
        limits: see there.
    """

    dataset: Path | None = None
    runs: tuple[Path, ...] = ()
    index: str | None = None
    text_encoder: str | None = None
    decisions: Path | None = None
    host: str = "127.0.0.1"
    port: int = 8080
    token: str | None = None
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        """Raise ConfigError before anything is opened."""
        if self.dataset is None and not self.runs:
            raise ConfigError("serve: expected a dataset, or --run RUN, found neither")
        if self.dataset is None and (self.index is not None or self.decisions is not None):
            raise ConfigError("serve: --index and --decisions: expected with a dataset")
        if self.text_encoder is not None and self.index is None:
            raise ConfigError("serve: --text-encoder: expected with --index")
        if not 0 <= self.port < 65536:
            raise ConfigError(f"port: expected 0 to 65535, found {self.port}")
        if self.token is not None and (len(self.token) < 16 or not self.token.isascii() or not self.token.isalnum()):
            raise ConfigError("token: expected at least 16 letters and digits")
        if not self.loopback and self.token is None:
            raise ConfigError(f"token: expected one for {self.host}, which is no loopback address")

    @property
    def loopback(self) -> bool:
        """Whether only this machine can connect."""
        return is_loopback(self.host)


def is_loopback(host: str) -> bool:
    """Whether a host is an address of this machine alone."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


def new_token() -> str:
    """A token that nobody guesses."""
    return secrets.token_hex(16)
