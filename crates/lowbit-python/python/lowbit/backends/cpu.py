"""The operations on "cpu": the Rust kernels on torch's own memory, without copies.

What arrives here may come from anyone through `torch.ops.lowbit`. What the native module cannot see
(device, dtype, strides) is checked here, and what it can see (lengths, block sizes) there.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowbit import _native, formats
from lowbit.backends import NESTED_BLOCK_SIZE, PackedWeight, stable
from lowbit.backends.checks import (
    check_bias,
    check_f32,
    check_int8_factors,
    dtype_name,
    has_half_scales,
    rows_and_columns,
)
from lowbit.backends.threads import follow_torch


def quantize(w: Tensor, format: str, block_size: int) -> tuple[Tensor, Tensor]:
    """`lowbit::quantize`."""
    follow_torch()
    w = w.contiguous()
    dtype = dtype_name(w, "w")
    entry = formats.by_name(format)
    g = entry.geometry(w.shape, block_size)
    codes = torch.empty(g.code_bytes, dtype=torch.uint8)
    scales = torch.empty(g.blocks, dtype=entry.scale_dtype)
    _native.quantize(
        format,
        dtype,
        _region(w, "w"),
        w.shape,
        g.block_size,
        _fresh(codes),
        _fresh(scales),
    )
    return codes, scales


def search(
    w: Tensor, format: str, block_size: int, importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    """`lowbit::search`."""
    follow_torch()
    dtype_name(w, "w")
    if importance is not None and not importance.is_floating_point():
        raise TypeError(f"importance: expected a floating point dtype, got {importance.dtype}")
    if seed < 0:
        raise ValueError(f"seed: expected a number from 0 on, got {seed}")
    device, w = w.device, w.to("cpu", torch.float32).contiguous()
    entry = formats.by_name(format)
    g = entry.geometry(w.shape, block_size)
    codes = torch.empty(g.code_bytes, dtype=torch.uint8)
    scales = torch.empty(g.blocks, dtype=entry.scale_dtype)
    book = torch.empty(entry.codebook_len, dtype=torch.float32)
    if importance is not None:
        importance = importance.to("cpu", torch.float32).contiguous()
    _native.search(
        format,
        _region(w, "w"),
        w.shape,
        g.block_size,
        None if importance is None else _region(importance, "importance"),
        seed,
        _fresh(codes),
        _fresh(scales),
        _fresh(book),
    )
    return codes.to(device), scales.to(device), book.to(device)


def double_quantize(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`lowbit::double_quantize`."""
    follow_torch()
    scales = scales.contiguous()
    codes = torch.empty(scales.numel(), dtype=torch.uint8)
    absmax = torch.empty(-(-scales.numel() // NESTED_BLOCK_SIZE), dtype=torch.float32)
    offset = torch.empty((), dtype=torch.float32)
    _native.double_quantize(
        _floats(scales, "scales"),
        _fresh(codes),
        _fresh(absmax),
        _fresh(offset),
    )
    return codes, absmax, offset


def dequantize(dtype: torch.dtype, *weight: Any) -> Tensor:
    """`lowbit::dequantize`."""
    follow_torch()
    w = PackedWeight(*weight)
    out = torch.empty(w.shape, dtype=dtype)
    _native.dequantize(w.format, _weight(w), dtype_name(out, "dtype"), _fresh(out))
    return out


def linear(x: Tensor, bias: Tensor | None, *weight: Any) -> Tensor:
    """`lowbit::linear`."""
    return multiply(x, bias, PackedWeight(*weight))


def multiply(x: Tensor, bias: Tensor | None, w: PackedWeight) -> Tensor:
    """`lowbit::linear`, for those who call it past torch's dispatcher, with an `x` on the CPU."""
    x = x.contiguous()
    if (y := stable.linear(x, bias, w)) is not None:
        return y
    dtype = dtype_name(x, "x")
    n, _ = rows_and_columns(w)
    # Sizes one by one: torch takes half a microsecond longer to read a tuple.
    y = x.new_empty(*x.shape[:-1], n)
    bias_region = None
    if bias is not None:
        bias = bias.contiguous()
        check_bias(bias, x)
        bias_region = _region(bias, "bias")
    _native.linear(w.format, _weight(w), dtype, _fresh(x), bias_region, _fresh(y))
    return y


def linear_transposed(dy: Tensor, *weight: Any) -> Tensor:
    """`lowbit::linear_transposed`."""
    return multiply_transposed(dy, PackedWeight(*weight))


def multiply_transposed(dy: Tensor, w: PackedWeight) -> Tensor:
    """`lowbit::linear_transposed`, for those who call it past torch's dispatcher."""
    dy = dy.contiguous()
    if (dx := stable.linear_transposed(dy, w)) is not None:
        return dx
    dtype = dtype_name(dy, "dy")
    _, k = rows_and_columns(w)
    dx = dy.new_empty(*dy.shape[:-1], k)
    _native.linear_transposed(w.format, _weight(w), dtype, _region(dy, "dy"), _fresh(dx))
    return dx


def add_low_rank(x: Tensor, y: Tensor, a: Tensor, b: Tensor, scale: float) -> Tensor:
    """Add `scale (x aᵀ) bᵀ` to `y`, what an adapter of low rank does to a result.

    For those who have seen to it that all are contiguous, on the CPU and of their dtypes.

    Args:
        x: `[.., K]`.
        y: `[.., N]`, of the dtype of `x`.
        a: f32 `[rank, K]`.
        b: f32 `[N, rank]`.
        scale: a factor.

    Returns:
        f32 `[.., rank]`: `scale x aᵀ`.
    """
    rank = a.shape[0]
    hidden = a.new_empty(*x.shape[:-1], rank)
    adapter = (_fresh(a), _fresh(b), rank, scale)
    _native.low_rank(dtype_name(x, "x"), adapter, _fresh(x), _fresh(y), _fresh(hidden))
    return hidden


def low_rank_backward(
    x: Tensor,
    hidden: Tensor,
    dy: Tensor,
    adapter: tuple[Tensor, Tensor, float],
    dx: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Gradients of `add_low_rank` for `a` and `b`; that for `x` is added to `dx`, if there is."""
    follow_torch()
    a, b, scale = adapter
    da, db = torch.empty_like(a), torch.empty_like(b)
    _native.low_rank_backward(
        dtype_name(x, "x"),
        (_fresh(a), _fresh(b), a.shape[0], scale),
        _fresh(x),
        _fresh(hidden),
        _fresh(dy),
        None if dx is None else _fresh(dx),
        _fresh(da),
        _fresh(db),
    )
    return da, db


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`lowbit::int8_matmul`."""
    follow_torch()
    a, b = a.contiguous(), b.contiguous()
    check_int8_factors(a, b)
    out = torch.empty((*a.shape[:-1], b.shape[0]), dtype=torch.int32)
    _native.int8_matmul(_region(a, "a"), _region(b, "b"), a.shape[-1], _fresh(out))
    return out


def int8_rescale(
    sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`lowbit::int8_rescale`."""
    follow_torch()
    sums, rows, columns = sums.contiguous(), rows.contiguous(), columns.contiguous()
    if sums.dtype is not torch.int32:
        raise TypeError(f"sums: expected torch.int32, got {sums.dtype}")
    out = torch.empty(sums.shape, dtype=dtype)
    name = dtype_name(out, "dtype")
    bias_region = None
    if bias is not None:
        bias = bias.to(dtype).contiguous()
        bias_region = _region(bias, "bias")
    _native.int8_rescale(
        name,
        _region(sums, "sums"),
        _floats(rows, "rows"),
        _floats(columns, "columns"),
        bias_region,
        _fresh(out),
    )
    return out


def int8_linear(x: Tensor, bias: Tensor | None, threshold: float, *weight: Any) -> Tensor:
    """`lowbit::int8_linear`."""
    follow_torch()
    w, x = PackedWeight(*weight), x.contiguous()
    dtype = dtype_name(x, "x")
    n, _ = rows_and_columns(w)
    y = x.new_empty(*x.shape[:-1], n)
    bias_region = None
    if bias is not None:
        bias = bias.to(x.dtype).contiguous()
        bias_region = _region(bias, "bias")
    _native.int8_linear(
        w.format, _weight(w), dtype, _region(x, "x"), threshold, bias_region, _fresh(y)
    )
    return y


def embedding(ids: Tensor, dtype: torch.dtype, *weight: Any) -> Tensor:
    """`lowbit::embedding`."""
    follow_torch()
    w, ids = PackedWeight(*weight), ids.to(torch.int64).contiguous()
    n, k = rows_and_columns(w)
    if ids.numel() and not 0 <= int(ids.min()) <= int(ids.max()) < n:
        wrong = ids.min() if ids.min() < 0 else ids.max()
        raise IndexError(f"ids: expected indices from 0 to less than {n}, got {wrong}")
    out = torch.empty((*ids.shape, k), dtype=dtype)
    _native.embedding(
        w.format, _weight(w), _region(ids, "ids"), dtype_name(out, "dtype"), _fresh(out)
    )
    return out


def sparse_matmul(
    shape: Sequence[int],
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    scale: float | None,
    dense: Tensor,
) -> Tensor:
    """`lowbit::sparse_matmul`."""
    follow_torch()
    rows, columns = rows.to(torch.int64).contiguous(), columns.to(torch.int64).contiguous()
    values, dense = values.contiguous(), dense.contiguous()
    dtype, stored = dtype_name(dense, "dense"), dense.dtype if scale is None else torch.int8
    if values.dtype is not stored:
        raise TypeError(f"values: expected {stored}, got {values.dtype}")
    if len(shape) != 2:
        raise ValueError(f"shape: expected [rows, columns], got {list(shape)}")
    if dense.dim() != 2 or dense.shape[0] != shape[1]:
        raise ValueError(f"dense: expected [{shape[1]}, D], got {list(dense.shape)}")
    out = dense.new_empty((shape[0], dense.shape[1]))
    _native.sparse_matmul(
        dtype,
        (shape[0], shape[1]),
        _region(rows, "rows"),
        _region(columns, "columns"),
        _region(values, "values"),
        scale,
        _region(dense, "dense"),
        _fresh(out),
    )
    return out


def optimizer_update(
    rule: str,
    settings: Any,
    step: int,
    p: Tensor,
    g: Tensor,
    moments: Sequence[tuple[Tensor, Tensor | None]],
) -> None:
    """Step number `step` of `p` along `g`; `p` and the moments change.

    Args:
        rule: its name in `lowbit.rules.ALL`.
        settings: `lowbit.rules.Settings`.
        step: counted from 1.
        p: a parameter, contiguous.
        g: its gradient, of its dtype.
        moments: f32 numbers, or u8 codes and the f32 absmax of their blocks.
    """
    follow_torch()
    dtype = dtype_name(p, "p")
    if g.dtype is not p.dtype:
        raise TypeError(f"g: expected the dtype of p, {p.dtype}, got {g.dtype}")
    regions = []
    for moment, absmax in moments:
        stored = torch.float32 if absmax is None else torch.uint8
        if moment.dtype is not stored:
            raise TypeError(f"state: expected {stored}, got {moment.dtype}")
        regions.append(
            (_region(moment, "state"), None if absmax is None else _floats(absmax, "absmax"))
        )
    _native.optimizer_update(rule, settings, step, dtype, _region(p, "p"), _region(g, "g"), regions)


def _region(t: Tensor, name: str) -> _native.Region:
    """Address and number of elements of a contiguous tensor in the memory of the CPU."""
    if not t.is_cpu:
        raise ValueError(f"{name}: expected a tensor on cpu, got one on {t.device}; move it there")
    if not t.is_contiguous():
        raise ValueError(f"{name}: expected a contiguous tensor, got strides {t.stride()}")
    return t.data_ptr(), t.numel()


def _fresh(t: Tensor) -> _native.Region:
    """`_region` of a tensor that is known to be contiguous and on the CPU."""
    return t.data_ptr(), t.numel()


def _bytes(t: Tensor, name: str) -> _native.Region:
    address, numel = _region(t, name)
    return address, numel * t.element_size()


def _floats(t: Tensor, name: str) -> _native.Region:
    check_f32(t, name)
    return _region(t, name)


def _scales(w: PackedWeight, nested: bool) -> tuple[_native.Region, bool]:
    """The scales, and whether they are f16."""
    if nested or formats.by_name(w.format).scales_are_bytes:
        return _bytes(w.scales, "scales"), False
    if has_half_scales(w):
        return _region(w.scales, "scales"), True
    return _floats(w.scales, "scales"), False


def _weight(w: PackedWeight) -> _native.Weight:
    nested = None
    if w.nested_absmax is not None:
        if w.nested_map is None or w.nested_offset is None:
            raise ValueError(
                "nested_map, nested_offset: expected both with nested_absmax, got None"
            )
        nested = (
            _floats(w.nested_absmax, "nested_absmax"),
            _floats(w.nested_map, "nested_map"),
            _floats(w.nested_offset, "nested_offset"),
            w.nested_block_size,
        )
    return (
        w.shape,
        w.block_size,
        _bytes(w.codes, "codes"),
        _scales(w, nested is not None),
        nested,
        None if w.codebook is None else _floats(w.codebook, "codebook"),
        None if w.means is None else _floats(w.means, "means"),
    )
