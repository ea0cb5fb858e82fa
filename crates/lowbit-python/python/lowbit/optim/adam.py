"""Adam, AdamW and LAMB."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from lowbit.optim.optimizer import BlockwiseOptimizer


class Adam(BlockwiseOptimizer):
    """Adam (arXiv 1412.6980). A weight decay is that of AdamW: decoupled, after the update.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: share of a parameter that it loses per unit of `lr`.
        amsgrad: only False.
        options: `optim_bits`, `min_8bit_size`, `is_paged` and the rest of `BlockwiseOptimizer`.

    >>> p = torch.nn.Parameter(torch.zeros(2))
    >>> p.grad = torch.tensor([1.0, -1.0])
    >>> Adam([p], lr=0.5).step()
    >>> p.data
    tensor([-0.5000,  0.5000])
    """

    rule = "adam"

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        if amsgrad:
            raise ValueError(
                "amsgrad: expected False, got True, which bitsandbytes refuses in 8 bits and "
                "ignores in 32; use torch.optim.Adam"
            )
        groups = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        # What bitsandbytes writes beside them.
        defaults = groups | {"alpha": 0.0, "t_alpha": None, "t_beta3": None}
        super().__init__(params, defaults, **options)


class Adam8bit(Adam):
    """Adam with states of 8 bits."""

    bits = 8


class Adam32bit(Adam):
    """Adam with states of 32 bits."""

    bits = 32


class PagedAdam(Adam):
    """Adam with paged states."""

    paged = True


class PagedAdam8bit(PagedAdam):
    """Adam with paged states of 8 bits."""

    bits = 8


class PagedAdam32bit(PagedAdam):
    """Adam with paged states of 32 bits."""

    bits = 32


class AdamW(Adam):
    """AdamW (arXiv 1711.05101): `Adam` with a weight decay of 0.01 where none is asked for.

    >>> AdamW([torch.nn.Parameter(torch.zeros(2))]).defaults["weight_decay"]
    0.01
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        amsgrad: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **options)


class AdamW8bit(AdamW):
    """AdamW with states of 8 bits."""

    bits = 8


class AdamW32bit(AdamW):
    """AdamW with states of 32 bits."""

    bits = 32


class PagedAdamW(AdamW):
    """AdamW with paged states."""

    paged = True


class PagedAdamW8bit(PagedAdamW):
    """AdamW with paged states of 8 bits."""

    bits = 8


class PagedAdamW32bit(PagedAdamW):
    """AdamW with paged states of 32 bits."""

    bits = 32


class LAMB(Adam):
    """LAMB (arXiv 1904.00962): `Adam` whose update is at most `max_unorm` times its parameter.

    As with bitsandbytes, that limit holds for states of 32 bits alone; with 8 bits this is `Adam`,
    but for parameters of fewer than `min_8bit_size` numbers.

    Args:
        params: parameters or groups of them.
        lr: learning rate.
        bias_correction: only True.
        betas: decay of the first and the second moment.
        eps: added to the root of the second moment.
        weight_decay: share of a parameter that it loses per unit of `lr`.
        amsgrad: only False.
        adam_w_mode: only True.
        max_unorm: the limit, in norms of the parameter.
        options: of `BlockwiseOptimizer`.

    >>> LAMB([torch.nn.Parameter(torch.zeros(2))]).max_unorm
    1.0
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        bias_correction: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        amsgrad: bool = False,
        adam_w_mode: bool = True,
        *,
        max_unorm: float = 1.0,
        **options: Any,
    ) -> None:
        if not bias_correction or not adam_w_mode:
            raise ValueError(
                "bias_correction, adam_w_mode: expected True, got "
                f"{bias_correction} and {adam_w_mode}; bitsandbytes ignores them; leave them out"
            )
        if self.bits == 8 and max_unorm != 1.0:
            raise ValueError("max_unorm: expected 1.0 with states of 8 bits, which do not use it")
        super().__init__(
            params, lr, betas, eps, weight_decay, amsgrad, max_unorm=max_unorm, **options
        )


class LAMB8bit(LAMB):
    """LAMB with states of 8 bits."""

    bits = 8


class LAMB32bit(LAMB):
    """LAMB with states of 32 bits."""

    bits = 32
