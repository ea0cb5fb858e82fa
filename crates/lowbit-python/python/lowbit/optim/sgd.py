"""Stochastic gradient descent with momentum, and LARS."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowbit.optim.optimizer import BlockwiseOptimizer
from lowbit.rules import Settings


class SGD(BlockwiseOptimizer):
    """Stochastic gradient descent with momentum, as torch defines it.

    bitsandbytes takes `dampening` and `nesterov` and ignores them; here they count.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: its decay; with 0, which bitsandbytes refuses, torch.optim.SGD keeps no state.
        dampening: share of the gradient that does not enter the momentum.
        weight_decay: factor of the parameter that is added to the gradient.
        nesterov: look ahead.
        options: of `BlockwiseOptimizer`.

    >>> p = torch.nn.Parameter(torch.zeros(2))
    >>> p.grad = torch.tensor([1.0, -2.0])
    >>> SGD([p], lr=0.5, momentum=0.9).step()
    >>> p.data
    tensor([-0.5000,  1.0000])
    """

    rule = "momentum"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        **options: Any,
    ) -> None:
        if nesterov and dampening != 0.0:
            raise ValueError(f"dampening: expected 0 with nesterov, got {dampening}")
        defaults = {
            "lr": lr,
            "betas": (momentum, dampening),
            "eps": 0.0,
            "weight_decay": weight_decay,
            "nesterov": nesterov,
        }
        super().__init__(params, defaults, **options)

    def settings(self, config: dict[str, Any], step: int) -> Settings:
        """The numbers of a step."""
        momentum, dampening = config["betas"]
        nesterov = config.get("nesterov", False)  # bitsandbytes writes none.
        return (
            super()
            .settings(config, step)
            ._replace(beta1=momentum, beta2=0.0, dampening=dampening, nesterov=nesterov)
        )


class SGD8bit(SGD):
    """SGD with momentum with states of 8 bits."""

    bits = 8


class SGD32bit(SGD):
    """SGD with momentum with states of 32 bits."""

    bits = 32


class LARS(SGD):
    """LARS (arXiv 1708.03888): `SGD` whose update is at most `max_unorm` times its parameter.

    As with bitsandbytes, that limit holds for states of 32 bits alone; with 8 bits this is `SGD`,
    but for parameters of fewer than `min_8bit_size` numbers.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        momentum: its decay.
        dampening: share of the gradient that does not enter the momentum.
        weight_decay: factor of the parameter that is added to the gradient.
        nesterov: look ahead.
        max_unorm: the limit, in norms of the parameter.
        options: of `BlockwiseOptimizer`.

    >>> p = torch.nn.Parameter(torch.ones(4))
    >>> p.grad = torch.full((4,), 100.0)
    >>> LARS([p], lr=1.0, momentum=0.9).step()
    >>> p.data
    tensor([0.9800, 0.9800, 0.9800, 0.9800])
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        *,
        max_unorm: float = 0.02,
        **options: Any,
    ) -> None:
        if self.bits == 8 and max_unorm != 0.02:
            raise ValueError("max_unorm: expected 0.02 with states of 8 bits, which do not use it")
        super().__init__(
            params,
            lr,
            momentum,
            dampening,
            weight_decay,
            nesterov,
            max_unorm=max_unorm,
            **options,
        )


class LARS8bit(LARS):
    """LARS with states of 8 bits."""

    bits = 8


class LARS32bit(LARS):
    """LARS with states of 32 bits."""

    bits = 32
