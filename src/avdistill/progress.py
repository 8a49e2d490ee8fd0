"""How far long work has come: one callback for everything that takes minutes."""

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """How far a long call has come.

    Attributes:
        done: finished clips, windows, steps or fits.
        total: of how many; None where that is not known beforehand.
        note: what is being done now, for people.
    """

    done: int
    total: int | None = None
    note: str = ""


OnProgress = Callable[[Progress], None]
