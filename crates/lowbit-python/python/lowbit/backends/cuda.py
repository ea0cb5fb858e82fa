"""The operations on "cuda": bitsandbytes' kernels where it is installed and has the format.

What it has not runs in torch alone, as on any other device.
"""

from __future__ import annotations

from functools import cache
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lowbit import formats
from lowbit.backends import PackedWeight, dense
from lowbit.backends.dense import (
    double_quantize,
    embedding,
    int8_linear,
    int8_matmul,
    int8_rescale,
    sparse_matmul,
)

__all__ = [
    "dequantize",
    "double_quantize",
    "embedding",
    "int8_linear",
    "int8_matmul",
    "int8_rescale",
    "linear",
    "linear_transposed",
    "quantize",
    "sparse_matmul",
]


@cache
def _library() -> ModuleType | None:
    try:
        import bitsandbytes
    except Exception:  # Broken installations raise all kinds of errors, and are none of ours.
        return None
    return bitsandbytes


def _theirs(format: str) -> ModuleType | None:
    """bitsandbytes, if it is there and has that format."""
    return _library() if formats.by_name(format).library == "bitsandbytes" else None


def quantize(w: Tensor, format: str, block_size: int) -> tuple[Tensor, Tensor]:
    """`lowbit::quantize`."""
    theirs = _theirs(format)
    if theirs is None:
        return dense.quantize(w, format, block_size)
    packed, state = theirs.functional.quantize_4bit(
        w.contiguous(), blocksize=block_size, quant_type=format
    )
    return packed.view(-1), state.absmax


def dequantize(dtype: torch.dtype, *weight: Any) -> Tensor:
    """`lowbit::dequantize`."""
    w = PackedWeight(*weight)
    theirs = _theirs(w.format)
    if theirs is None or w.codebook is not None:
        return dense.dequantize(dtype, *weight)
    state = _state(theirs, w, dtype)
    return theirs.functional.dequantize_4bit(w.codes.view(-1, 1), state).view(list(w.shape))


def linear(x: Tensor, bias: Tensor | None, *weight: Any) -> Tensor:
    """`lowbit::linear`."""
    w = PackedWeight(*weight)
    theirs = _theirs(w.format)
    if theirs is None or w.codebook is not None or x.numel() == 0:
        return dense.linear(x, bias, *weight)
    codes = w.codes.view(-1, 1)
    return theirs.matmul_4bit(x, codes.t(), quant_state=_state(theirs, w, x.dtype), bias=bias)


def linear_transposed(dy: Tensor, *weight: Any) -> Tensor:
    """`lowbit::linear_transposed`."""
    return dy @ dequantize(dy.dtype, *weight)


def _state(theirs: ModuleType, w: PackedWeight, dtype: torch.dtype) -> Any:
    """Their description of a weight."""
    State = theirs.functional.QuantState
    device = w.codes.device
    code = torch.tensor(formats.by_name(w.format).codebook, dtype=torch.float32, device=device)
    nested = None
    if w.nested_absmax is not None:
        nested = State(
            absmax=w.nested_absmax,
            code=w.nested_map,
            blocksize=w.nested_block_size,
            dtype=torch.float32,
        )
    return State(
        absmax=w.scales,
        shape=torch.Size(w.shape),
        code=code,
        blocksize=w.block_size,
        quant_type=w.format,
        dtype=dtype,
        offset=w.nested_offset,
        state2=nested,
    )
