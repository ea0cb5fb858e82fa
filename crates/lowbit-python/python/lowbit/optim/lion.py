"""Lion."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowbit.optim.optimizer import BlockwiseOptimizer


class Lion(BlockwiseOptimizer):
    """Lion (arXiv 2302.06675): steps of one size, in the direction of a momentum.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: of the direction, and decay of the momentum.
        weight_decay: share of a parameter that it loses per unit of `lr`.
        options: of `BlockwiseOptimizer`.

    >>> p = torch.nn.Parameter(torch.zeros(3))
    >>> p.grad = torch.tensor([0.1, 0.0, -7.0])
    >>> Lion([p], lr=0.25).step()
    >>> p.data
    tensor([-0.2500,  0.0000,  0.2500])
    """

    rule = "lion"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        **options: Any,
    ) -> None:
        defaults = {"lr": lr, "betas": betas, "eps": 0.0, "weight_decay": weight_decay}
        super().__init__(params, defaults, **options)


class Lion8bit(Lion):
    """Lion with states of 8 bits."""

    bits = 8


class Lion32bit(Lion):
    """Lion with states of 32 bits."""

    bits = 32


class PagedLion(Lion):
    """Lion with paged states."""

    paged = True


class PagedLion8bit(PagedLion):
    """Lion with paged states of 8 bits."""

    bits = 8


class PagedLion32bit(PagedLion):
    """Lion with paged states of 32 bits."""

    bits = 32
