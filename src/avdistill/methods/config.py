"""Settings of methods: the base of their configs, and the types of its fields with the values that they may have."""

import math
from dataclasses import dataclass
from typing import TYPE_CHECKING, Annotated, Literal, get_args, get_origin, get_type_hints

from avdistill.errors import ConfigError


@dataclass(frozen=True)
class Range:
    """The numbers that a field of a config may have: finite, from `low` (exclusive where `above`) to `high`."""

    low: float
    high: float = math.inf
    above: bool = False

    def __contains__(self, value: float) -> bool:
        return math.isfinite(value) and self.low <= value <= self.high and not (self.above and value == self.low)

    def __str__(self) -> str:
        least = f"{'above' if self.above else 'of at least'} {self.low:g}"
        return least if math.isinf(self.high) else f"{least} and at most {self.high:g}"


NonNegative = Annotated[float, Range(0)]
Positive = Annotated[float, Range(0, above=True)]
Fraction = Annotated[float, Range(0, 1)]
NonNegativeInt = Annotated[int, Range(0)]
PositiveInt = Annotated[int, Range(1, 2**20)]  # a width or count; more is a network that no machine holds


@dataclass(frozen=True)
class BaseMethodConfig:
    """The settings of a method; a subclass is a frozen dataclass with a `name` and a default for every field.

    Raises:
        ConfigError: a value outside the `Range` or the `Literal` of its field's type.
    """

    if TYPE_CHECKING:

        @property
        def name(self) -> str:
            """The name that the method is registered under."""

    def __post_init__(self) -> None:
        for key, hint in get_type_hints(type(self), include_extras=True).items():
            value, expected = getattr(self, key), ""
            if get_origin(hint) is Literal and value not in get_args(hint):
                expected = " or ".join(map(repr, get_args(hint)))
            elif get_origin(hint) is Annotated and value not in hint.__metadata__[0]:
                expected = f"a number {hint.__metadata__[0]}"
            if expected:
                raise ConfigError(f"config.method.{key}: expected {expected}, found {value!r}")
