"""AdEMAMix."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

from lowbit.optim.optimizer import BlockwiseOptimizer
from lowbit.rules import Settings


class AdEMAMix(BlockwiseOptimizer):
    """AdEMAMix (arXiv 2409.03137): Adam with a second, slow first moment.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the fast, the second and the slow moment.
        alpha: weight of the slow moment.
        t_alpha: steps in which the weight grows to `alpha`; None for at once.
        t_beta3: steps in which the slow decay grows from the fast one; None for at once.
        eps: added to the root of the second moment.
        weight_decay: share of a parameter that it loses per unit of `lr`.
        options: of `BlockwiseOptimizer`.

    >>> p = torch.nn.Parameter(torch.zeros(4096))
    >>> p.grad = torch.ones(4096)
    >>> optimizer = AdEMAMix8bit([p])
    >>> optimizer.step()
    >>> optimizer.state[p]["state1"].shape
    torch.Size([2, 4096])
    """

    rule = "ademamix"
    decays = 3

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float, float] = (0.9, 0.999, 0.9999),
        alpha: float = 5.0,
        t_alpha: int | None = None,
        t_beta3: int | None = None,
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        **options: Any,
    ) -> None:
        groups = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        defaults = groups | {"alpha": alpha, "t_alpha": t_alpha, "t_beta3": t_beta3}
        super().__init__(params, defaults, **options)

    def settings(self, config: dict[str, Any], step: int) -> Settings:
        """The numbers of a step: weight and slow decay may still grow."""
        beta1, _, beta3 = config["betas"]
        alpha, t_alpha, t_beta3 = config["alpha"], config["t_alpha"], config["t_beta3"]
        if t_alpha:
            alpha = min(step * alpha / t_alpha, alpha)
        if t_beta3 and beta1 > 0.0:
            done = step / t_beta3
            fast, slow = math.log(beta1), math.log(beta3)
            beta3 = min(math.exp(fast * slow / ((1 - done) * slow + done * fast)), beta3)
        return super().settings(config, step)._replace(beta3=beta3, alpha=alpha)


class AdEMAMix8bit(AdEMAMix):
    """AdEMAMix with states of 8 bits."""

    bits = 8


class AdEMAMix32bit(AdEMAMix):
    """AdEMAMix with states of 32 bits."""

    bits = 32


class PagedAdEMAMix(AdEMAMix):
    """AdEMAMix with paged states."""

    paged = True


class PagedAdEMAMix8bit(PagedAdEMAMix):
    """AdEMAMix with paged states of 8 bits."""

    bits = 8


class PagedAdEMAMix32bit(PagedAdEMAMix):
    """AdEMAMix with paged states of 32 bits."""

    bits = 32
