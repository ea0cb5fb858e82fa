"""Eight bits blockwise, with a table of 256 values: the dynamic map (arXiv 2110.02861), or any."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from lowbit import formats, ops
from lowbit.backends import NESTED_BLOCK_SIZE
from lowbit.functional.checks import (
    check_finite,
    check_floats,
    check_of,
    check_state,
    check_tensor,
)
from lowbit.functional.general import dequantize, nest, quantize
from lowbit.state import NestedState, QuantState, own_codebook

_DYNAMIC = {True: "dynamic8", False: "dynamic8u"}


def dynamic_map(signed: bool = True, device: torch.device | str = "cpu") -> Tensor:
    """The 256 values of bitsandbytes' `create_dynamic_map`, ascending.

    >>> dynamic_map()[[0, 127, 255]]
    tensor([-0.9930,  0.0000,  1.0000])
    """
    return own_codebook(_DYNAMIC[bool(signed)], torch.device(device))


def quantize_blockwise(
    t: Tensor, code: Tensor | None = None, *, block_size: int = 4096, nested: bool = False
) -> tuple[Tensor, QuantState]:
    """Quantize a flattened tensor in blocks: the nearest of 256 values, a tie to the lower one.

    Args:
        t: float32, float16 or bfloat16, of any shape.
        code: f32 `[256]`, ascending, in -1..1; None for the signed dynamic map.
        block_size: weights that share an absmax.
        nested: quantize the absmax as well.

    Returns:
        u8 of the shape of `t`, and the state that undoes it.

    >>> codes, state = quantize_blockwise(torch.tensor([0.0, 0.5, -1.0]), block_size=64)
    >>> dequantize_blockwise(codes, state)
    tensor([ 0.0000,  0.5008, -0.9930])
    """
    check_floats("t", t)
    entry = formats.by_name(formats.NESTED)
    if code is not None:
        check_of("code", code, torch.float32, 256)
        known = next((n for n in _DYNAMIC.values() if torch.equal(code, _own(n, code))), None)
        if known is None:
            return _quantize_by_table(t, code, block_size, nested)
        entry = formats.by_name(known)
    codes, state = quantize(t, entry.name, block_size=block_size, double_quant=nested)
    return codes.view(t.shape), state


def dequantize_blockwise(
    codes: Tensor, state: QuantState, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Undo `quantize_blockwise`.

    >>> dequantize_blockwise(*quantize_blockwise(torch.ones(3)))
    tensor([1., 1., 1.])
    """
    check_state("state", state)
    return dequantize(codes, state, dtype=dtype)


def double_quant(absmax: Tensor) -> tuple[Tensor, NestedState, Tensor]:
    """Quantize scales a second time: the signed dynamic map, blocks of 256, their mean taken off.

    Args:
        absmax: f32, any shape.

    Returns:
        u8 codes of that shape; the nested absmax and its map; the offset, f32 scalar.

    >>> absmax = torch.rand(1000)
    >>> codes, nested, offset = double_quant(absmax)
    >>> codes.shape, nested.absmax.shape
    (torch.Size([1000]), torch.Size([4]))
    """
    absmax = check_tensor("absmax", absmax)
    if absmax.dtype is not torch.float32:
        raise TypeError(f"absmax: expected torch.float32, got {absmax.dtype}")
    codes, nested_absmax, offset = ops.double_quantize(absmax)
    book = own_codebook(formats.NESTED, absmax.device)
    return codes.view(absmax.shape), NestedState(nested_absmax, book, NESTED_BLOCK_SIZE), offset


def dequant_absmax(codes: Tensor, nested: NestedState, offset: Tensor) -> Tensor:
    """Undo `double_quant`: `nested.code[codes] * nested.absmax[block] + offset`.

    >>> absmax = torch.rand(1000)
    >>> bool((dequant_absmax(*double_quant(absmax)) - absmax).abs().max() < 0.02)
    True
    """
    check_of("codes", check_tensor("codes", codes).flatten(), torch.uint8, None)
    if not isinstance(nested, NestedState):
        raise TypeError(f"nested: expected a NestedState, got {type(nested).__name__}")
    blocks = -(-codes.numel() // nested.block_size)
    check_of("nested.absmax", nested.absmax, torch.float32, blocks)
    if check_tensor("offset", offset).numel() != 1:
        raise ValueError(f"offset: expected one number, got {list(offset.shape)}")
    for name, t in (("nested.absmax", nested.absmax), ("offset", offset)):
        if t.device != codes.device:
            raise ValueError(f"{name}: expected it on {codes.device}, as codes, got {t.device}")
    absmax = nested.absmax.repeat_interleave(nested.block_size)[: codes.numel()]
    return nested.code[codes.int()] * absmax.view(codes.shape) + offset.view(())


def _own(name: str, like: Tensor) -> Tensor:
    return own_codebook(name, like.device)


def _quantize_by_table(
    t: Tensor, code: Tensor, block_size: int, nested: bool
) -> tuple[Tensor, QuantState]:
    """`quantize_blockwise` in torch alone, for a table that is no format of ours."""
    entry = formats.by_name(formats.NESTED)
    g = entry.geometry(t.shape, block_size)
    flat = torch.nn.functional.pad(t.detach().float().flatten(), (0, -t.numel() % block_size))
    check_finite("t", flat)
    blocks = flat.view(g.blocks, block_size)
    absmax = blocks.abs().amax(-1) if g.blocks else flat.new_zeros(0)
    scaled = torch.where(absmax[:, None] > 0, blocks * (1.0 / absmax[:, None]), 0.0)
    middles = (code[1:] + code[:-1]) / 2
    codes = torch.bucketize(scaled, middles).to(torch.uint8).flatten()[: t.numel()]
    state = QuantState(absmax, t.shape, entry.name, block_size, t.dtype, codebook=code.clone())
    return codes.view(t.shape), nest(state) if nested else replace(state)
