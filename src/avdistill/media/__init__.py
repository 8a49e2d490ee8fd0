"""Decoding and encoding of media files; the only room that knows FFmpeg."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from avdistill.media.decoder import Clip, read_clip

__all__ = ["Clip", "read_clip"]


def __getattr__(name: str) -> object:
    """Load the decoder on first use, so that importing the package does not load FFmpeg."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from avdistill.media import decoder

    return getattr(decoder, name)
