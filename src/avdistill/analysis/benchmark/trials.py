"""Which settings of a method a study tries: the published one, and others drawn from what the method declares."""

from dataclasses import dataclass, field, fields, replace
from itertools import product
from pathlib import Path
from typing import Any
from zlib import crc32

import numpy as np

from avdistill.methods import CustomMethodConfig, MethodConfig, method_class
from avdistill.types import Option

#: factors of the learning rate that tuning may try, for every method
LEARNING_RATES = (0.25, 0.5, 1.0, 2.0, 4.0)


@dataclass(frozen=True)
class Setting:
    """A method with its settings and learning rate: what a trial tries."""

    method: MethodConfig
    learning_rate_scale: float = 1.0
    options: dict[str, Option] = field(default_factory=dict)

    def overrides(self) -> dict[str, Any]:
        """What differs from the published setting, for tables."""
        rate = {} if self.learning_rate_scale == 1 else {"learning_rate_scale": self.learning_rate_scale}
        return dict(self.options) | rate


def method_label(text: str) -> str:
    """What a study calls a method: its text, a file without its folder."""
    return Path(text).name if ".py:" in text else text


def settings_to_try(name: str, published: MethodConfig, trials: int, seed: int) -> list[Setting]:
    """The settings of a method's trials: the published one, then others drawn without repetition, the same every time.

    Args:
        name: as in the study; what it fixes is not varied.
        published: trial 0.
        trials: how many; a method with fewer settings than that gets all it has.
        seed: of the draws.
    """
    chosen = method_class(published)
    fixed = {pair.partition("=")[0] for pair in name.rpartition(":")[2].split(",")}
    tuned = {key: values for key, values in chosen.tuning.items() if key not in fixed}
    default = {each.name: each.default for each in fields(chosen.config_class)}
    others = []
    for scale, values in product(LEARNING_RATES, product(*tuned.values())):
        changed = {key: v for key, v in zip(tuned, values, strict=True) if v != default[key]}
        if changed or scale != 1:
            others.append(Setting(_changed(published, changed), scale, changed))
    drawn = np.random.default_rng([seed, crc32(name.encode())]).permutation(len(others))[: trials - 1]
    return [Setting(published), *(others[i] for i in drawn)]


def _changed(method: MethodConfig, options: dict[str, Option]) -> MethodConfig:
    if isinstance(method, CustomMethodConfig):
        return replace(method, options=method.options | options)
    return replace(method, **options)
