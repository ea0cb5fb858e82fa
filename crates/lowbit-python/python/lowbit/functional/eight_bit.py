"""Weights of eight bits: rows of INT8 as in LLM.int8 (arXiv 2208.07339), and FP8 E4M3."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit import ops
from lowbit.functional.checks import (
    check_activations,
    check_bias,
    check_dtype,
    check_floats,
    check_of,
    check_tensor,
    check_threshold,
)
from lowbit.functional.general import dequantize, linear, quantize
from lowbit.state import QuantState


def quantize_rowwise(t: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows to `round(t * 127 / absmax)`, ties to even.

    Args:
        t: `[.., K]`, float32, float16 or bfloat16.

    Returns:
        int8 `[.., K]`, and the absmax of each row, f32 `[..]`. An integer stands for
        `q * absmax / 127`.

    >>> quantize_rowwise(torch.tensor([[0.5, -1.0], [0.0, 2.0]]))
    (tensor([[  64, -127],
            [   0,  127]], dtype=torch.int8), tensor([1., 2.]))
    """
    check_floats("t", t)
    codes, state = quantize(_rows("t", t), "int8")
    return codes.view(torch.int8).view(t.shape), state.absmax.view(t.shape[:-1])


def dequantize_rowwise(q: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Undo `quantize_rowwise`: `q * scales / 127`.

    >>> dequantize_rowwise(*quantize_rowwise(torch.tensor([[0.0, -1.0]])))
    tensor([[ 0., -1.]])
    """
    return _dequantize_rows("int8", q, torch.int8, scales, dtype)


def matmul_int8(
    a: Tensor,
    b: Tensor,
    a_scales: Tensor,
    b_scales: Tensor,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """`a b * a_scales * b_scales / 127^2`: the product is exact, in i32.

    Args:
        a: int8 `[.., K]`.
        b: int8 `[K, N]`; the transpose of a contiguous `[N, K]` is not copied.
        a_scales: f32 `[..]`, absmax of the rows of `a`.
        b_scales: f32 `[N]`, absmax of the columns of `b`.
        dtype: of the result.

    Returns:
        `[.., N]`.

    >>> x, w = torch.randn(2, 64), torch.randn(8, 64)
    >>> (a, a_scales), (b, b_scales) = quantize_rowwise(x), quantize_rowwise(w)
    >>> y = matmul_int8(a, b.T, a_scales, b_scales, torch.float32)
    >>> bool((y - x @ w.T).abs().max() < 0.5)
    True
    """
    check_dtype("dtype", dtype)
    check_of("a", _rows("a", a), torch.int8, None, None)
    k = a.shape[-1]
    check_of("b", b, torch.int8, k, None)
    check_of("a_scales", a_scales, torch.float32, *a.shape[:-1])
    check_of("b_scales", b_scales, torch.float32, b.shape[1])
    return ops.int8_rescale(ops.int8_matmul(a, b.t()), a_scales, b_scales, None, dtype)


def int8_linear(
    x: Tensor,
    w: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    threshold: float = 0.0,
) -> Tensor:
    """`y = x wᵀ + bias` as LLM.int8 computes it: `x` is quantized by rows, too.

    The products of integers are exact. Columns in which some `x` has the magnitude `threshold` are
    multiplied as they are. Gradients flow to `x`, through the restored weight, and to `bias`.

    Args:
        x: `[.., K]`, float32, float16 or bfloat16.
        w: int8 `[N, K]`, as `quantize_rowwise` gives it.
        scales: f32 `[N]`.
        bias: `[N]`, of the dtype of `x`.
        threshold: 0 for no outliers.

    >>> x, (w, scales) = torch.randn(2, 64), quantize_rowwise(torch.eye(64))
    >>> bool((int8_linear(x, w, scales) - x).abs().max() < 0.05)
    True
    """
    check_floats("x", x)
    check_of("w", w, torch.int8, None, None)
    check_of("scales", scales, torch.float32, w.shape[0])
    check_activations(x, w.shape)
    check_bias(bias, w.shape[0], x.dtype)
    check_threshold(threshold)
    state = _row_state("int8", scales, w.shape, x.dtype)
    return ops.int8_linear(x, bias, threshold, *state.weight(w.contiguous()))


def quantize_fp8_e4m3(t: Tensor) -> tuple[Tensor, Tensor]:
    """Quantize rows to FP8 E4M3 (OCP): largest 448, to nearest even.

    Args:
        t: `[.., K]`, float32, float16 or bfloat16.

    Returns:
        u8 `[.., K]`, and `absmax / 448` of each row, f32 `[..]`. Seen as `torch.float8_e4m3fn`,
        a code stands for `code * scale`.

    >>> codes, scales = quantize_fp8_e4m3(torch.tensor([[448.0, 1.0]]))
    >>> codes.view(torch.float8_e4m3fn).float(), scales
    (tensor([[448.,   1.]]), tensor([1.]))
    """
    check_floats("t", t)
    codes, state = quantize(_rows("t", t), "fp8_e4m3")
    return codes.view(t.shape), state.absmax.view(t.shape[:-1])


def dequantize_fp8_e4m3(
    codes: Tensor, scales: Tensor, dtype: torch.dtype = torch.float32
) -> Tensor:
    """Undo `quantize_fp8_e4m3`. `codes` may be u8 or `torch.float8_e4m3fn`.

    >>> dequantize_fp8_e4m3(*quantize_fp8_e4m3(torch.tensor([[448.0, 1.0]])))
    tensor([[448.,   1.]])
    """
    return _dequantize_rows("fp8_e4m3", _bytes("codes", codes), torch.uint8, scales, dtype)


def matmul_fp8_e4m3(
    x: Tensor,
    w: Tensor,
    scales: Tensor,
    bias: Tensor | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """`y = x wᵀ + bias` with a weight in FP8.

    Args:
        x: `[.., K]`.
        w: `[N, K]`, as `quantize_fp8_e4m3` gives it.
        scales: f32 `[N]`.
        bias: `[N]`, of the dtype of `x`.
        dtype: of the result; None for that of `x`.

    >>> w, scales = quantize_fp8_e4m3(torch.ones(2, 64))
    >>> matmul_fp8_e4m3(torch.ones(64), w, scales)
    tensor([64., 64.])
    """
    w = _bytes("w", w)
    check_of("w", w, torch.uint8, None, None)
    check_of("scales", scales, torch.float32, w.shape[0])
    if dtype is not None:
        check_dtype("dtype", dtype)
    y = linear(x, w, _row_state("fp8_e4m3", scales, w.shape, torch.float32), bias)
    return y if dtype is None else y.to(dtype)


def _rows(name: str, t: Tensor) -> Tensor:
    """The rows of a tensor, `[rows, K]`."""
    t = check_tensor(name, t)
    if t.dim() == 0 or t.shape[-1] == 0:
        raise ValueError(f"{name}: expected rows of a number or more, got {list(t.shape)}")
    return t.view(t.shape[:-1].numel(), t.shape[-1])


def _bytes(name: str, codes: Tensor) -> Tensor:
    return codes.view(torch.uint8) if check_tensor(name, codes).itemsize == 1 else codes


def _row_state(
    quant_type: str, scales: Tensor, shape: torch.Size, dtype: torch.dtype
) -> QuantState:
    return QuantState(scales.contiguous(), shape, quant_type, max(shape[-1], 1), dtype)


def _dequantize_rows(
    quant_type: str, codes: Tensor, stored: torch.dtype, scales: Tensor, dtype: torch.dtype
) -> Tensor:
    check_dtype("dtype", dtype)
    rows = _rows("codes", codes)
    check_of("codes", rows, stored, None, None)
    check_of("scales", scales, torch.float32, *codes.shape[:-1])
    state = _row_state(quant_type, scales.reshape(-1), rows.shape, dtype)
    return dequantize(rows, state, dtype=dtype).view(codes.shape)
