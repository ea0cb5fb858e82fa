"""INT8 and FP8: by rows, and by rows and columns."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit import functional as F
from lowbit.compat.spelling import also_named
from lowbit.functional import (
    matmul_int8,
    quantize_fp8_e4m3,
    quantize_rowwise,
)
from lowbit.functional.checks import check_activations, check_finite, check_floats, check_of

__all__ = [
    "dequantize_colrow",
    "dequantize_fp8_e4m3",
    "dequantize_rowwise",
    "int8_double_quant",
    "matmul_colrow",
    "matmul_fp8_e4m3",
    "matmul_int8",
    "quantize_colrow",
    "quantize_fp8_e4m3",
    "quantize_rowwise",
]


@also_named(q="quantized")
def dequantize_rowwise(
    quantized: Tensor, scales: Tensor, dtype: torch.dtype = torch.float16
) -> Tensor:
    """`lowbit.functional.dequantize_rowwise`, to half floats unless told otherwise.

    >>> dequantize_rowwise(*quantize_rowwise(torch.tensor([[0.0, -1.0]])))
    tensor([[ 0., -1.]], dtype=torch.float16)
    """
    return F.dequantize_rowwise(quantized, scales, dtype)


def dequantize_fp8_e4m3(
    quantized: Tensor, scales: Tensor, dtype: torch.dtype = torch.float16
) -> Tensor:
    """`lowbit.functional.dequantize_fp8_e4m3`, to half floats unless told otherwise.

    >>> dequantize_fp8_e4m3(*quantize_fp8_e4m3(torch.tensor([[0.0, -1.0]])))
    tensor([[ 0., -1.]], dtype=torch.float16)
    """
    return F.dequantize_fp8_e4m3(quantized, scales, dtype)


@also_named(x="input", w="weight", s="weight_scales")
def matmul_fp8_e4m3(
    input: Tensor,
    weight: Tensor,
    weight_scales: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """`lowbit.functional.matmul_fp8_e4m3`, to half floats unless told otherwise.

    >>> matmul_fp8_e4m3(torch.ones(64), *quantize_fp8_e4m3(torch.ones(2, 64)))
    tensor([64., 64.], dtype=torch.float16)
    """
    return F.matmul_fp8_e4m3(input, weight, weight_scales, bias, dtype)


def int8_double_quant(
    A: Tensor,
    col_stats: None = None,
    row_stats: None = None,
    out_col: None = None,
    out_row: None = None,
    threshold: float = 0.0,
) -> tuple[Tensor, Tensor, Tensor, Tensor, None]:
    """A matrix `[M, K]` by columns and by rows: int8 each, absmax `[K]` and `[M]`, None."""
    if any(given is not None for given in (col_stats, row_stats, out_col, out_row)):
        raise ValueError("col_stats, row_stats, out_col, out_row: expected None")
    if threshold:
        A = A.masked_fill(A.abs() >= threshold, 0.0)
    by_row, rows = quantize_rowwise(A)
    by_column, columns = quantize_rowwise(A.t().contiguous())
    return by_column.t().contiguous(), by_row, columns, rows, None


def quantize_colrow(tensor: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Quantize `[N, K]` with a scale for each row and one for each column.

    Returns:
        int8 `[N, K]`, scales of the rows `f32 [N]` and of the columns `f32 [K]`, the latter at
        most 1: an integer stands for `q * row * column / 127`.

    >>> q, rows, columns = quantize_colrow(torch.tensor([[1.0, 0.1], [2.0, 0.2]]))
    >>> q, columns
    (tensor([[127, 127],
            [127, 127]], dtype=torch.int8), tensor([1.0000, 0.1000]))
    """
    check_floats("tensor", tensor)
    if tensor.dim() != 2 or not tensor.numel():
        raise ValueError(f"tensor: expected [N, K], got {list(tensor.shape)}")
    check_finite("tensor", tensor)
    rows = tensor.abs().amax(1).float()
    relative = tensor.float() / torch.where(rows > 0, rows, 1.0)[:, None]
    columns = relative.abs().amax(0)
    even = relative / torch.where(columns > 0, columns, 1.0)
    return (even * 127).round().to(torch.int8), rows, columns


def dequantize_colrow(
    quantized: Tensor,
    row_scales: Tensor,
    col_scales: Tensor,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """Undo `quantize_colrow`.

    >>> dequantize_colrow(*quantize_colrow(torch.tensor([[1.0, 0.5]])))
    tensor([[1.0000, 0.5000]], dtype=torch.float16)
    """
    check_of("quantized", quantized, torch.int8, None, None)
    check_of("col_scales", col_scales, torch.float32, quantized.shape[1])
    rows = F.dequantize_rowwise(quantized, row_scales, torch.float32)
    return (rows * col_scales).to(dtype)


def matmul_colrow(
    input: Tensor,
    weight_int8: Tensor,
    weight_row_scales: Tensor,
    weight_col_scales: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """`input: [.., K]` times a weight of `quantize_colrow`, plus `bias: [N]`: `[.., N]`.

    >>> matmul_colrow(torch.ones(64), *quantize_colrow(torch.ones(2, 64)))
    tensor([64., 64.], dtype=torch.float16)
    """
    check_floats("input", input)
    check_of("weight_int8", weight_int8, torch.int8, None, None)
    check_of("weight_col_scales", weight_col_scales, torch.float32, weight_int8.shape[1])
    check_activations(input, weight_int8.shape)
    # Scales of the columns are as well scales of the activations.
    x = input.float() * weight_col_scales
    shape, k = weight_int8.shape, weight_int8.shape[1]
    state = F.QuantState(weight_row_scales.contiguous(), shape, "int8", k, torch.float32)
    y = F.linear(x, weight_int8, state, None if bias is None else bias.float())
    return y.to(dtype)
