"""The operations in torch alone, for devices that have no kernels of ours: right, and slow.

Weights are dequantized whole. The formulas are those of `cpu/reference.rs` of the Rust crate, in
the same order, so that codes, scales and weights are the same to the bit.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit import formats
from lowbit.backends import NESTED_BLOCK_SIZE, PackedWeight, rows
from lowbit.backends.dense_optim import optimizer_update
from lowbit.formats import Format, Geometry

__all__ = [
    "dequantize",
    "double_quantize",
    "embedding",
    "int8_linear",
    "int8_matmul",
    "int8_rescale",
    "linear",
    "linear_transposed",
    "optimizer_update",
    "quantize",
    "say_once",
    "sparse_matmul",
]

_LANES = 32
"""Sums that a mean magnitude is added up from."""
_EXACT_K = 1024
"""Products of 8-bit integers that f32 adds without rounding: `1024 * 128 * 128 = 2^24`."""


@cache
def say_once(device: str) -> None:
    """Warn that a device is slow, the first time that it is used."""
    warnings.warn(
        f"lowbit has no kernels for {device!r} here: it dequantizes weights with torch's own "
        "operations, which is right but slow",
        stacklevel=3,
    )


def quantize(w: Tensor, format: str, block_size: int) -> tuple[Tensor, Tensor]:
    """`lowbit::quantize`."""
    say_once(w.device.type)
    entry = formats.by_name(format)
    if entry.encoder is None or entry.weights_per_code != 1:
        raise ValueError(f"format: expected one with an encoder, got {format!r}")
    g = entry.geometry(w.shape, block_size)
    values = w.detach().float()
    finite = torch.isfinite(values)
    if not finite.all():
        index = int(finite.flatten().logical_not().nonzero()[0])
        raise ValueError(
            f"quantize: expected finite values, got {values.flatten()[index].item()} at index "
            f"{index}; repair the tensor or leave it unquantized"
        )
    blocks = _in_blocks(entry, g, values)
    absmax = _magnitudes(entry, g, blocks)
    stored, factor = _scale(entry, absmax)
    factor, absmax = factor[..., None], absmax[..., None]
    scaled = torch.where(factor.isfinite(), blocks * factor, blocks / absmax * entry.peak)
    scaled = torch.where(absmax == 0, 0.0, scaled)
    return _pack(entry, g, _encode(entry, scaled)), stored.flatten()


def double_quantize(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`lowbit::double_quantize`."""
    # A sum in f64, where the device has it.
    wide = scales if scales.device.type == "mps" else scales.double()
    offset = wide.mean().float() if scales.numel() else scales.new_zeros(())
    codes, absmax = quantize(scales - offset, formats.NESTED, NESTED_BLOCK_SIZE)
    return codes, absmax, offset


def dequantize(dtype: torch.dtype, *weight: Any) -> Tensor:
    """`lowbit::dequantize`."""
    w = PackedWeight(*weight)
    say_once(w.codes.device.type)
    entry = formats.by_name(w.format)
    g = entry.geometry(w.shape, w.block_size)
    book = w.codebook
    if book is None:
        book = torch.tensor(entry.codebook, dtype=torch.float32, device=w.codes.device)
    values = book.view(-1, entry.weights_per_code)[_unpack(entry, g, w.codes)].flatten(-2)
    values = values[..., : g.k] if entry.in_rows else values[: g.n * g.k]
    blocks = _in_blocks(entry, g, values)
    blocks = blocks * _scales(entry, w).view(*blocks.shape[:-1], 1) * entry.unit
    if w.means is not None:
        blocks = blocks + w.means.view(*blocks.shape[:-1], 1)
    return _out_of_blocks(entry, g, blocks).reshape(list(w.shape)).to(dtype)


def linear(x: Tensor, bias: Tensor | None, *weight: Any) -> Tensor:
    """`lowbit::linear`."""
    return F.linear(x, dequantize(x.dtype, *weight), bias)


def linear_transposed(dy: Tensor, *weight: Any) -> Tensor:
    """`lowbit::linear_transposed`."""
    return dy @ dequantize(dy.dtype, *weight)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`lowbit::int8_matmul`."""
    parts = zip(a.split(_EXACT_K, -1), b.split(_EXACT_K, -1), strict=True)
    sums = [F.linear(a.float(), b.float()).to(torch.int32) for a, b in parts]
    return torch.stack(sums).sum(0, dtype=torch.int32)


def int8_rescale(
    sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`lowbit::int8_rescale`."""
    out = sums.float() * (rows[..., None] * columns) * (1.0 / 127**2)
    return (out if bias is None else out + bias.to(dtype).float()).to(dtype)


def int8_linear(x: Tensor, bias: Tensor | None, threshold: float, *weight: Any) -> Tensor:
    """`lowbit::int8_linear`."""
    w = PackedWeight(*weight)
    rows = x.reshape(-1, x.shape[-1])
    outliers = ~(rows.abs() < threshold) if threshold > 0.0 else rows.isnan()
    columns = outliers.any(0) if threshold > 0.0 else torch.zeros_like(outliers[0])
    kept = rows.masked_fill(outliers, 0.0).float()
    absmax = kept.abs().amax(1)
    absmax = torch.where(absmax.isfinite(), absmax, torch.nan)
    if threshold == 0.0:
        absmax = torch.where(outliers.any(1), torch.nan, absmax)
    factor = torch.where(absmax > 0.0, 127.0 / absmax, 0.0)[:, None]
    codes = (kept * factor).round().nan_to_num(0.0).to(torch.int8)
    codes[:, columns] = 0
    stored = w.codes.contiguous().view(-1).view(torch.int8).view(list(w.shape))
    sums = int8_matmul(codes, stored).float() * (absmax[:, None] * w.scales) * (1.0 / 127**2)
    whole = stored[:, columns].float() * (w.scales / 127.0)[:, None]
    y = sums + rows[:, columns].float() @ whole.t()
    y = y if bias is None else y + bias.float()
    return y.to(x.dtype).view(*x.shape[:-1], w.shape[0])


def embedding(ids: Tensor, dtype: torch.dtype, *weight: Any) -> Tensor:
    """`lowbit::embedding`."""
    return rows.embedding(dequantize, ids, dtype, *weight)


def sparse_matmul(
    shape: Sequence[int],
    rows: Tensor,
    columns: Tensor,
    values: Tensor,
    scale: float | None,
    dense: Tensor,
) -> Tensor:
    """`lowbit::sparse_matmul`."""
    wide = values.float() if scale is None else values.float() * scale
    products = dense.float()[columns] * wide[:, None]
    out = torch.zeros(shape[0], dense.shape[1], dtype=torch.float32, device=dense.device)
    return out.index_add_(0, rows, products).to(dense.dtype)


def _in_blocks(entry: Format, g: Geometry, values: Tensor) -> Tensor:
    """`[N, blocks of a row, block_size]`, or `[blocks, block_size]`; what is missing is zero."""
    values = values.reshape(g.n, g.k) if entry.in_rows else values.reshape(-1)
    length = values.shape[-1]
    blocks = -(-length // g.block_size)
    padded = F.pad(values, (0, blocks * g.block_size - length))
    return padded.view(*values.shape[:-1], blocks, g.block_size)


def _out_of_blocks(entry: Format, g: Geometry, blocks: Tensor) -> Tensor:
    """`[N, K]`, or `[N * K]`."""
    return blocks.flatten(-2)[..., : g.k if entry.in_rows else g.n * g.k]


def _magnitudes(entry: Format, g: Geometry, blocks: Tensor) -> Tensor:
    """What the scale of each block is made from: its largest magnitude, or the mean."""
    if not blocks.numel():
        return blocks.new_zeros(blocks.shape[:-1])
    if not entry.scales_are_means:
        return blocks.abs().amax(-1)
    # 32 sums, each of every 32nd weight, then halves added to halves: the order of the Rust crate.
    size = blocks.shape[-1]
    groups = F.pad(blocks.abs(), (0, -size % _LANES)).unflatten(-1, (-1, _LANES))
    sums = groups[..., 0, :].clone()
    for i in range(1, groups.shape[-2]):
        sums += groups[..., i, :]
    while sums.shape[-1] > 1:
        half = sums.shape[-1] // 2
        sums = sums[..., :half] + sums[..., half:]
    counts = torch.full_like(sums, size)
    if entry.in_rows and g.k % size:
        counts[..., -1, :] = g.k % size
    return (sums.clamp(max=torch.finfo(torch.float32).max) / counts).squeeze(-1)


def _scale(entry: Format, absmax: Tensor) -> tuple[Tensor, Tensor]:
    """What is stored of each block, and the factor that brings its weights to the codebook."""
    if not entry.scales_are_bytes:
        # A tensor, for torch divides a number by taking a reciprocal, which rounds twice.
        peak = torch.full_like(absmax, entry.peak)
        if entry.scales_are_means:
            most = torch.finfo(torch.float16).max
            return absmax.clamp(max=most).half(), peak / absmax
        return (absmax / peak if entry.scale_is_step else absmax), peak / absmax
    peak_exponent = math.frexp(entry.peak)[1] - 1
    exponent = (absmax.view(torch.int32) >> 23) - (peak_exponent + 127) + 127
    stored = exponent.clamp(0, 254).to(torch.uint8)
    return stored, 1.0 / _powers_of_two(stored)


def _scales(entry: Format, w: PackedWeight) -> Tensor:
    """All scales of a weight in f32."""
    if w.nested_absmax is not None and w.nested_map is not None and w.nested_offset is not None:
        absmax = w.nested_absmax.repeat_interleave(w.nested_block_size)[: w.scales.numel()]
        return w.nested_map[w.scales.flatten().int()] * absmax + w.nested_offset
    return _powers_of_two(w.scales) if entry.scales_are_bytes else w.scales.float()


def _powers_of_two(exponents: Tensor) -> Tensor:
    """`2^(e - 127)` in f32, or NaN for 255."""
    bits = exponents.view(torch.uint8).to(torch.int32) << 23
    bits = torch.where(exponents.view(torch.uint8) == 0, 1 << 22, bits)
    return torch.where(exponents.view(torch.uint8) == 255, torch.nan, bits.view(torch.float32))


def _encode(entry: Format, x: Tensor) -> Tensor:
    """Codes of scaled weights, as u8."""
    assert entry.encoder is not None
    ups, codes, sign_bit = entry.encoder
    thresholds = torch.tensor(ups, dtype=torch.float32, device=x.device)
    magnitude = x.abs() if sign_bit else x
    rank = torch.bucketize(magnitude, thresholds, right=True, out_int32=True)
    code = torch.tensor(codes, dtype=torch.uint8, device=x.device)[rank]
    return torch.where(x < 0, code | sign_bit, code) if sign_bit else code


def _pack(entry: Format, g: Geometry, blocks: Tensor) -> Tensor:
    """Bytes of codes that lie in blocks. What fills a row or the last byte is the code of zero."""
    codes = _out_of_blocks(entry, g, blocks)
    if entry.stacked_rows > 1:
        rows = codes.view(entry.stacked_rows, -1).to(torch.int32)
        return (rows * _places(entry, codes.device)[:, None]).sum(0).to(torch.uint8)
    zero = int(_encode(entry, torch.zeros(1))[0])
    padded = -(-codes.shape[-1] // _unit(entry)) * _unit(entry)
    codes = F.pad(codes, (0, padded - codes.shape[-1]), value=zero)
    per_byte = _per_byte(entry)
    groups = codes.view(*codes.shape[:-1], -1, per_byte).to(torch.int32)
    return (groups * _places(entry, codes.device)).sum(-1).to(torch.uint8).flatten()


def _unpack(entry: Format, g: Geometry, stored: Tensor) -> Tensor:
    """Codes, `[N, codes of a row]` or flat, from bytes in any dtype."""
    data = stored.contiguous().view(-1).view(torch.uint8)[: g.code_bytes]
    if entry.stacked_rows > 1:
        places = _places(entry, data.device)[:, None]
        return (data.to(torch.int32) // places % (1 << entry.code_bits)).flatten()
    data = data.view(g.n, -1) if entry.in_rows else data
    base = entry.radix[0] if entry.radix else 1 << entry.code_bits
    digits = data[..., None].to(torch.int32) // _places(entry, data.device) % base
    return digits.flatten(-2)


def _per_byte(entry: Format) -> int:
    """Codes in a byte."""
    if entry.radix is not None:
        return entry.radix[1]
    if 8 % entry.code_bits:
        raise ValueError(f"format: expected codes that do not cross bytes, got {entry.name!r}")
    return 8 // entry.code_bits


def _unit(entry: Format) -> int:
    """Rows, or the whole tensor, are filled to a multiple of so many codes."""
    return math.lcm(entry.row_padding, _per_byte(entry))


def _places(entry: Format, device: torch.device) -> Tensor:
    """What each code of a byte is multiplied by."""
    per_byte = _per_byte(entry)
    base = entry.radix[0] if entry.radix else 1 << entry.code_bits
    powers = [base**i for i in range(per_byte)]
    if entry.packing == "high_first":
        powers.reverse()
    return torch.tensor(powers, dtype=torch.int32, device=device)
