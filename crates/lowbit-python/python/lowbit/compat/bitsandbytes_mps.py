"""The functions of bitsandbytes' kernels for Apple Silicon, `bitsandbytes_mps`.

A weight is its packed codes, `u8`, and its absmax, `f32`, both flat over the tensor as in
bitsandbytes, or the same numbers seen as rows.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit import functional as F
from lowbit.compat.spelling import either_spelling
from lowbit.functional.checks import check_floats, check_size, check_tensor
from lowbit.state import QuantState

__all__ = [
    "FP4",
    "NF4",
    "dequantize_4bit",
    "gemm_4bit",
    "gemv_4bit",
    "linear_4bit",
    "quantize_4bit",
]

FP4 = 1
NF4 = 2

_FORMATS = {FP4: "fp4", NF4: "nf4"}


@either_spelling
def quantize_4bit(
    input: Tensor, block_size: int = 64, quant_type: int = NF4
) -> tuple[Tensor, Tensor]:
    """Quantize `n` weights of any shape: codes `u8 [ceil(n / 2)]` and absmax `f32 [blocks]`.

    Raises:
        ValueError: for another `quant_type` or block size, or for NaN or infinity.

    >>> packed, absmax = quantize_4bit(torch.randn(128, 64).flatten(), blocksize=64, quant_type=NF4)
    >>> packed.shape, absmax.shape
    (torch.Size([4096]), torch.Size([128]))
    """
    codes, state = F.quantize_4bit(input, quant_type=_name(quant_type), block_size=block_size)
    return codes.view(-1), state.absmax


@either_spelling
def dequantize_4bit(
    packed: Tensor,
    absmax: Tensor,
    block_size: int = 64,
    quant_type: int = NF4,
    numel: int = -1,
    output_dtype: torch.dtype = torch.float16,
) -> Tensor:
    """Undo `quantize_4bit`: `[numel]`, or as many weights as there are codes.

    >>> packed, absmax = quantize_4bit(torch.ones(3))
    >>> dequantize_4bit(packed, absmax, numel=3)
    tensor([1., 1., 1.], dtype=torch.float16)
    """
    packed, absmax = check_tensor("packed", packed), check_tensor("absmax", absmax)
    shape = torch.Size([2 * packed.numel() if numel < 0 else numel])
    state = QuantState(absmax.flatten(), shape, _name(quant_type), block_size, output_dtype)
    return F.dequantize_4bit(packed, state)


@either_spelling
def gemv_4bit(
    x: Tensor,
    w: Tensor,
    absmax: Tensor,
    output_features: int,
    block_size: int = 64,
    quant_type: int = NF4,
) -> Tensor:
    """`x: [.., K]` times a quantized `w: [N, K]`: `[.., N]`; every vector of a batch.

    >>> packed, absmax = quantize_4bit(torch.ones(8, 64).flatten())
    >>> gemv_4bit(torch.ones(64), packed.view(8, -1), absmax.view(8, -1), output_features=8)[0]
    tensor(64.)
    """
    return linear_4bit(x, w, absmax, output_features, block_size, quant_type)


@either_spelling
def gemm_4bit(
    x: Tensor,
    w: Tensor,
    absmax: Tensor,
    output_features: int,
    block_size: int = 64,
    quant_type: int = NF4,
) -> Tensor:
    """`x: [.., M, K]` times a quantized `w: [N, K]`: `[.., M, N]`.

    >>> packed, absmax = quantize_4bit(torch.ones(8, 64).flatten())
    >>> gemm_4bit(torch.ones(2, 64), packed, absmax, output_features=8).shape
    torch.Size([2, 8])
    """
    check_floats("x", x)
    if x.dim() < 2:
        raise ValueError(f"x: expected [.., M, K], got {list(x.shape)}; use gemv_4bit")
    return linear_4bit(x, w, absmax, output_features, block_size, quant_type)


@either_spelling
def linear_4bit(
    x: Tensor,
    w: Tensor,
    absmax: Tensor,
    output_features: int,
    block_size: int = 64,
    quant_type: int = NF4,
    bias: Tensor | None = None,
) -> Tensor:
    """`x: [.., K]` times a quantized `w: [N, K]`, plus `bias: [N]`: `[.., N]`. Has gradients.

    >>> packed, absmax = quantize_4bit(torch.ones(8, 64).flatten())
    >>> linear_4bit(torch.ones(64), packed, absmax, 8, bias=torch.ones(8))[0]
    tensor(65.)
    """
    check_floats("x", x)
    check_size("output_features", output_features)
    w, absmax = check_tensor("w", w), check_tensor("absmax", absmax)
    shape = torch.Size([output_features, x.shape[-1] if x.dim() else 0])
    state = QuantState(absmax.flatten(), shape, _name(quant_type), block_size, x.dtype)
    return F.linear_4bit(x, w, state, bias)


def _name(quant_type: int) -> str:
    if quant_type not in _FORMATS:
        raise ValueError(f"quant_type: expected NF4 ({NF4}) or FP4 ({FP4}), got {quant_type!r}")
    return _FORMATS[quant_type]
