"""What the losses give for a batch without clips."""

from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar, cast

from torch import Tensor

_Loss = TypeVar("_Loss", bound=Callable[..., Tensor])


def zero_if_empty(*names: str) -> Callable[[_Loss], _Loss]:
    """Decorator: for an empty batch the loss is 0 with a graph to the arguments of these names."""

    def decorate(loss: _Loss) -> _Loss:
        @wraps(loss)
        def loss_or_zero(**tensors: Any) -> Tensor:
            if len(tensors[names[0]]) == 0:
                return cast(Tensor, sum(tensors[name].sum() for name in names))
            return loss(**tensors)

        return cast(_Loss, loss_or_zero)

    return decorate
