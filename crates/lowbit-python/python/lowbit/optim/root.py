"""RMSprop and Adagrad: the gradient by the root of the sum of its squares."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowbit.optim.optimizer import BlockwiseOptimizer


class RMSprop(BlockwiseOptimizer):
    """RMSprop (Hinton, lecture 6e of Neural Networks for Machine Learning, 2012).

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        alpha: decay of the squares; more than 0.
        eps: added to their root.
        weight_decay: factor of the parameter that is added to the gradient.
        momentum: only 0; bitsandbytes takes others and ignores them.
        centered: only False.
        options: of `BlockwiseOptimizer`.

    >>> p = torch.nn.Parameter(torch.zeros(2))
    >>> p.grad = torch.tensor([1.0, -2.0])
    >>> RMSprop([p], lr=0.1).step()
    >>> p.data
    tensor([-1.0000,  1.0000])
    """

    rule = "rmsprop"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        alpha: float = 0.99,
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        momentum: float = 0.0,
        centered: bool = False,
        **options: Any,
    ) -> None:
        if alpha == 0.0:
            raise ValueError(
                "alpha: expected more than 0, got 0, which bitsandbytes refuses, too; "
                "use torch.optim.RMSprop"
            )
        if centered:
            raise ValueError(
                "centered: expected False, got True, which bitsandbytes refuses, too; "
                "use torch.optim.RMSprop"
            )
        if momentum != 0.0:
            raise ValueError(
                f"momentum: expected 0, got {momentum}, which bitsandbytes takes and ignores; "
                "leave it out, or use torch.optim.RMSprop"
            )
        defaults = {"lr": lr, "betas": (alpha, 0.0), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, **options)


class RMSprop8bit(RMSprop):
    """RMSprop with states of 8 bits."""

    bits = 8


class RMSprop32bit(RMSprop):
    """RMSprop with states of 32 bits."""

    bits = 32


class Adagrad(BlockwiseOptimizer):
    """Adagrad (Duchi, Hazan, Singer 2011).

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        lr_decay: only 0.
        weight_decay: factor of the parameter that is added to the gradient.
        initial_accumulator_value: only 0.
        eps: added to the root of the sum of squares.
        options: of `BlockwiseOptimizer`.

    >>> p = torch.nn.Parameter(torch.zeros(2))
    >>> p.grad = torch.tensor([1.0, -2.0])
    >>> Adagrad([p], lr=0.1).step()
    >>> p.data
    tensor([-0.1000,  0.1000])
    """

    rule = "adagrad"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-2,
        lr_decay: float = 0.0,
        weight_decay: float = 0.0,
        initial_accumulator_value: float = 0.0,
        eps: float = 1e-10,
        **options: Any,
    ) -> None:
        if lr_decay != 0.0 or initial_accumulator_value != 0.0:
            raise ValueError(
                f"lr_decay, initial_accumulator_value: expected 0, got {lr_decay} and "
                f"{initial_accumulator_value}; bitsandbytes refuses others, too; "
                "use torch.optim.Adagrad"
            )
        defaults = {"lr": lr, "betas": (0.0, 0.0), "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, **options)


class Adagrad8bit(Adagrad):
    """Adagrad with states of 8 bits."""

    bits = 8


class Adagrad32bit(Adagrad):
    """Adagrad with states of 32 bits."""

    bits = 32
