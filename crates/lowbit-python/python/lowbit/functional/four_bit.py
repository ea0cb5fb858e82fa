"""Weights of four bits: bitsandbytes' names."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit import formats
from lowbit.functional.checks import check_state
from lowbit.functional.general import dequantize, linear, quantize
from lowbit.state import QuantState


def quantize_4bit(
    w: Tensor,
    *,
    quant_type: str = "nf4",
    block_size: int | None = None,
    compress_statistics: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """`quantize` to a format of four bits; `compress_statistics` is bitsandbytes' `double_quant`.

    >>> packed, state = quantize_4bit(torch.randn(128, 64), compress_statistics=True)
    >>> packed.shape, state.nested
    (torch.Size([4096, 1]), True)
    """
    _check_4bit(quant_type)
    return quantize(
        w,
        quant_type,
        block_size=block_size,
        double_quant=compress_statistics,
        quant_storage=quant_storage,
    )


def dequantize_4bit(
    packed: Tensor, state: QuantState, *, dtype: torch.dtype | None = None
) -> Tensor:
    """`dequantize` from a format of four bits.

    >>> dequantize_4bit(*quantize_4bit(torch.zeros(2, 64)))[0, :2]
    tensor([0., 0.])
    """
    check_state("state", state)
    _check_4bit(state.quant_type)
    return dequantize(packed, state, dtype=dtype)


def linear_4bit(x: Tensor, packed: Tensor, state: QuantState, bias: Tensor | None = None) -> Tensor:
    """`linear` with a weight of four bits.

    >>> packed, state = quantize_4bit(torch.randn(8, 64))
    >>> linear_4bit(torch.randn(2, 64), packed, state, torch.zeros(8)).shape
    torch.Size([2, 8])
    """
    check_state("state", state)
    _check_4bit(state.quant_type)
    return linear(x, packed, state, bias)


def gemv_4bit(x: Tensor, packed: Tensor, state: QuantState) -> Tensor:
    """`linear_4bit` of one vector, `x: [K]` or `[.., 1, K]`, without bias.

    >>> packed, state = quantize_4bit(torch.randn(8, 64))
    >>> gemv_4bit(torch.randn(64), packed, state).shape
    torch.Size([8])
    """
    if isinstance(x, Tensor) and x.dim() > 0 and x.numel() != x.shape[-1]:
        raise ValueError(f"x: expected one vector, [K] or [.., 1, K], got {list(x.shape)}")
    return linear_4bit(x, packed, state)


def gemm_4bit(x: Tensor, packed: Tensor, state: QuantState) -> Tensor:
    """`linear_4bit` of a matrix or a batch, `x: [.., M, K]`, without bias.

    >>> packed, state = quantize_4bit(torch.randn(8, 64))
    >>> gemm_4bit(torch.randn(3, 5, 64), packed, state).shape
    torch.Size([3, 5, 8])
    """
    if isinstance(x, Tensor) and x.dim() < 2:
        raise ValueError(f"x: expected [.., M, K], got {list(x.shape)}; use gemv_4bit")
    return linear_4bit(x, packed, state)


def matmul_4bit(x: Tensor, packed: Tensor, state: QuantState, bias: Tensor | None = None) -> Tensor:
    """`linear_4bit`, by the name that bitsandbytes has for it.

    >>> packed, state = quantize_4bit(torch.randn(8, 64))
    >>> matmul_4bit(torch.randn(2, 64), packed, state).shape
    torch.Size([2, 8])
    """
    return linear_4bit(x, packed, state, bias)


def quantize_nf4(w: Tensor, block_size: int = 64) -> tuple[Tensor, QuantState]:
    """`quantize_4bit` to NF4, quantiles of a normal distribution (arXiv 2305.14314).

    >>> packed, state = quantize_nf4(torch.randn(128, 64))
    >>> matmul_nf4(torch.randn(2, 64), packed, state).shape
    torch.Size([2, 128])
    """
    return quantize(w, "nf4", block_size=block_size)


def dequantize_nf4(packed: Tensor, state: QuantState, dtype: torch.dtype | None = None) -> Tensor:
    """`dequantize_4bit` from NF4.

    >>> dequantize_nf4(*quantize_nf4(torch.ones(1, 64)))[0, 0]
    tensor(1.)
    """
    return dequantize(packed, _state_of("nf4", state), dtype=dtype)


def matmul_nf4(x: Tensor, packed: Tensor, state: QuantState, bias: Tensor | None = None) -> Tensor:
    """`linear_4bit` with a weight in NF4.

    >>> matmul_nf4(torch.ones(64), *quantize_nf4(torch.ones(2, 64)))
    tensor([64., 64.])
    """
    return linear(x, packed, _state_of("nf4", state), bias)


def quantize_fp4(w: Tensor, block_size: int = 64) -> tuple[Tensor, QuantState]:
    """`quantize_4bit` to bitsandbytes' FP4.

    >>> packed, state = quantize_fp4(torch.randn(128, 64))
    >>> matmul_fp4(torch.randn(2, 64), packed, state).shape
    torch.Size([2, 128])
    """
    return quantize(w, "fp4", block_size=block_size)


def dequantize_fp4(packed: Tensor, state: QuantState, dtype: torch.dtype | None = None) -> Tensor:
    """`dequantize_4bit` from FP4.

    >>> dequantize_fp4(*quantize_fp4(torch.ones(1, 64)))[0, 0]
    tensor(1.)
    """
    return dequantize(packed, _state_of("fp4", state), dtype=dtype)


def matmul_fp4(x: Tensor, packed: Tensor, state: QuantState, bias: Tensor | None = None) -> Tensor:
    """`linear_4bit` with a weight in FP4.

    >>> matmul_fp4(torch.ones(64), *quantize_fp4(torch.ones(2, 64)))
    tensor([64., 64.])
    """
    return linear(x, packed, _state_of("fp4", state), bias)


def _check_4bit(quant_type: str) -> None:
    if formats.by_name(quant_type).code_bits != 4:
        raise ValueError(f"quant_type: expected a format of four bits, got {quant_type!r}")


def _state_of(quant_type: str, state: QuantState) -> QuantState:
    check_state("state", state)
    if state.quant_type != quant_type:
        raise ValueError(f"state: expected one of {quant_type}, got one of {state.quant_type}")
    return state
