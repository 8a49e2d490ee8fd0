"""Which filesystem reads a scheme, with the addresses and credentials of the environment, and what its errors mean."""

import os
import re
from datetime import timedelta
from functools import lru_cache
from typing import Any
from urllib.parse import urlsplit

from avdistill.errors import ConfigError

# What fsspec knows besides storages: files of this machine, what lies inside other files, the web, caches.
_NO_STORAGE = re.compile(
    r"https?|file|local|data|dir|zip|tar|libarchive|reference|generic|git|github|gist|jupyter|jlab|\w*cache\w*|async\w*"
)
# What a retry may mend, in PyArrow's words: of Amazon's client, then of Google's.
_AWAY = re.compile(
    r"AWS Error (NETWORK_CONNECTION|INTERNAL_FAILURE|SERVICE_UNAVAILABLE|SLOW_DOWN|THROTTLING|REQUEST_TIMEOUT)"
    r"|HTTP status (5\d\d|429)|Status\((UNAVAILABLE|DEADLINE_EXCEEDED|INTERNAL)"
)
_SECRET = re.compile("KEY|SECRET|TOKEN|PASSW")
_REGION = "us-east-1"  # of a server that has none


def check_readable(text: str, scheme: str) -> None:
    """Raise ConfigError unless something here reads the scheme."""
    if scheme in ("s3", "gs", "gcs"):
        return
    found = f"{text}: expected a path, or s3://, gs://, hf:// or what an installed fsspec package reads, found"
    if _NO_STORAGE.fullmatch(scheme):
        raise ConfigError(f"{found} {scheme}://, which is no object storage: download it, or name its path")
    try:
        from fsspec import get_filesystem_class

        get_filesystem_class(scheme)
    except (ImportError, ValueError):
        raise ConfigError(f"{found} {scheme}://, which none here does") from None


def _region() -> str | None:
    return os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION")


@lru_cache(maxsize=64)
def filesystem(scheme: str, bucket: str, address: str | None) -> Any:
    """PyArrow's filesystem of a scheme; the paths in it begin with the bucket."""
    from pyarrow import fs

    if scheme == "s3":
        # The machine that this runs on has no say: its metadata service is asked only where the environment wants it.
        os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
        region = _region() or (_REGION if address else fs.resolve_s3_region(bucket))
        return fs.S3FileSystem(region=region, endpoint_override=address, connect_timeout=10, request_timeout=60)
    if scheme in ("gs", "gcs"):
        emulated = "CLOUD_STORAGE_EMULATOR_ENDPOINT" in os.environ
        return fs.GcsFileSystem(anonymous=emulated, retry_time_limit=timedelta(seconds=10))
    import fsspec

    return fs.PyFileSystem(fs.FSSpecHandler(fsspec.filesystem(scheme)))


def endpoint() -> str | None:
    """The address of an S3 server other than Amazon's, from the environment; ConfigError for one with credentials."""
    address = os.environ.get("AWS_ENDPOINT_URL_S3") or os.environ.get("AWS_ENDPOINT_URL")
    if address and "@" in urlsplit(address).netloc:
        raise ConfigError("AWS_ENDPOINT_URL: expected no credentials in it, found some")
    return address or None


def lance_options(place: str) -> dict[str, str]:
    """What LanceDB, which reads the credentials of the environment itself, is to know of an S3 server besides."""
    if not place.startswith("s3://"):
        return {}
    os.environ.setdefault("AWS_EC2_METADATA_DISABLED", "true")
    address = endpoint()
    if address is None:
        return {}
    return {"endpoint": address, "allow_http": str(address.startswith("http:")).lower(), "region": _region() or _REGION}


def is_away(error: Exception) -> bool:
    """Whether a request may succeed later."""
    return isinstance(error, ConnectionError | TimeoutError) or _AWAY.search(str(error)) is not None


def error_message(error: Exception) -> str:
    """An error in one line, without what may be a secret of the environment."""
    text = " ".join(str(error).split()) or type(error).__name__
    for name, value in os.environ.items():
        if len(value) >= 8 and _SECRET.search(name):
            text = text.replace(value, "***")
    return f"{text:.300}"
