"""Optimizers: ours, with the arguments of `mps_bitsandbytes`."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from lowbit import formats
from lowbit import functional as F
from lowbit import optim as ours

_BLOCK_SIZE = 256


class _Clipping(ours.BlockwiseOptimizer):
    """Gradients are clipped to a norm before each step, all of the optimizer's together."""

    max_grad_norm: float | None = None

    def _clip(self, block_size: int, max_grad_norm: float | None) -> None:
        if block_size != _BLOCK_SIZE:
            raise ValueError(f"block_size: expected {_BLOCK_SIZE}, got {block_size}")
        self.max_grad_norm = max_grad_norm

    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.max_grad_norm is not None:
            params = [p for group in self.param_groups for p in group["params"]]
            torch.nn.utils.clip_grad_norm_(params, self.max_grad_norm)
        super().step()
        return loss


class Adam8bit(_Clipping, ours.Adam8bit):
    """`lowbit.optim.Adam8bit`.

    >>> Adam8bit([torch.nn.Parameter(torch.zeros(2))], max_grad_norm=1.0).max_grad_norm
    1.0
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        block_size: int = _BLOCK_SIZE,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
        self._clip(block_size, max_grad_norm)


class AdamW8bit(Adam8bit):
    """`lowbit.optim.AdamW8bit`.

    >>> AdamW8bit([torch.nn.Parameter(torch.zeros(2))]).defaults["weight_decay"]
    0.01
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        block_size: int = _BLOCK_SIZE,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, block_size, max_grad_norm)


class Lion8bit(_Clipping, ours.Lion8bit):
    """`lowbit.optim.Lion8bit`.

    >>> Lion8bit([torch.nn.Parameter(torch.zeros(2))]).defaults["lr"]
    0.0001
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        block_size: int = _BLOCK_SIZE,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(params, lr, betas, weight_decay)
        self._clip(block_size, max_grad_norm)


class SGD8bit(_Clipping, ours.SGD8bit):
    """`lowbit.optim.SGD8bit`.

    >>> SGD8bit([torch.nn.Parameter(torch.zeros(2))], lr=0.1, momentum=0.9).optim_bits
    8
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float,
        momentum: float = 0.0,
        dampening: float = 0.0,
        weight_decay: float = 0.0,
        nesterov: bool = False,
        block_size: int = _BLOCK_SIZE,
        max_grad_norm: float | None = None,
    ) -> None:
        super().__init__(params, lr, momentum, dampening, weight_decay, nesterov)
        self._clip(block_size, max_grad_norm)


class PagedAdam(ours.PagedAdam):
    """`lowbit.optim.PagedAdam`: on Apple Silicon memory is one, and states stay where they are.

    >>> PagedAdam([torch.nn.Parameter(torch.zeros(2))]).is_paged
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        page_to_cpu: bool = True,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay)
        self.is_paged = page_to_cpu


class PagedAdamW(PagedAdam):
    """`lowbit.optim.PagedAdamW`.

    >>> PagedAdamW([torch.nn.Parameter(torch.zeros(2))]).defaults["weight_decay"]
    0.01
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 1e-2,
        page_to_cpu: bool = True,
    ) -> None:
        super().__init__(params, lr, betas, eps, weight_decay, page_to_cpu)


class PagedLion(ours.PagedLion):
    """`lowbit.optim.PagedLion`.

    >>> PagedLion([torch.nn.Parameter(torch.zeros(2))]).is_paged
    True
    """

    def __init__(
        self,
        params: Iterable[Any],
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
        page_to_cpu: bool = True,
    ) -> None:
        super().__init__(params, lr, betas, weight_decay)
        self.is_paged = page_to_cpu


def quantize_state(state: Tensor, block_size: int = _BLOCK_SIZE) -> tuple[Tensor, Tensor]:
    """A state in codes of the signed dynamic map, u8 of its shape, and the absmax of its blocks.

    >>> codes, absmax = quantize_state(torch.tensor([0.0, -3.0]))
    >>> dequantize_state(codes, absmax)
    tensor([ 0.0000, -2.9789])
    """
    codes, quantized = F.quantize_blockwise(state, block_size=block_size)
    return codes, quantized.absmax


def dequantize_state(
    state_int8: Tensor,
    absmax: Tensor,
    block_size: int = _BLOCK_SIZE,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """Undo `quantize_state`."""
    quantized = F.QuantState(absmax, state_int8.shape, formats.NESTED, block_size, dtype)
    return F.dequantize_blockwise(state_int8, quantized)
