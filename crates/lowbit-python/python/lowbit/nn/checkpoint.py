"""The keys of a layer in a state dict: bitsandbytes' layout, both ways."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from lowbit.formats import Format
from lowbit.functional.general import stored_as
from lowbit.state import QuantState

ROW_STATS = "SCB"
"""Absmax of each row, beside an int8 `weight`."""
WEIGHT_FORMAT = "weight_format"
"""u8 scalar, beside an int8 `weight`: the order of its elements."""
TENSOR_SCALE = "weight_scale"
"""The one scale of a tensor whose rows are stacked, as mlx-lm and transformers name it."""
BESIDE_WEIGHT = (ROW_STATS, WEIGHT_FORMAT, TENSOR_SCALE)
_ROW_MAJOR = 0


def parts(state: QuantState) -> dict[str, Tensor]:
    """What a state dict holds of a layer besides `weight` and `bias`."""
    if state.format.stacked_rows > 1:
        return {TENSOR_SCALE: state.absmax}
    if state.format.library is None:
        row_major = torch.tensor(_ROW_MAJOR, dtype=torch.uint8)
        return {ROW_STATS: state.absmax, WEIGHT_FORMAT: row_major}
    return {f"weight.{key}": part for key, part in state.as_dict(packed=True).items()}


def belongs_to_weight(key: str) -> bool:
    """Whether a key of a layer is one of those that describe its weight."""
    return key == "weight" or key.startswith("weight.") or key in BESIDE_WEIGHT


def read(
    given: Mapping[str, Tensor], entry: Format, shape: torch.Size, dtype: torch.dtype
) -> tuple[Tensor, QuantState]:
    """Codes and state from the keys of a layer.

    Raises:
        ValueError: if keys are missing, or describe a weight of another format or shape.
    """
    weight = given["weight"]
    if entry.stacked_rows > 1:
        state = _read_tensor(given, entry, shape, dtype)
    elif entry.library is None:
        state = _read_rows(given, entry, shape, dtype)
    else:
        described = {key.removeprefix("weight."): v for key, v in given.items() if key != "weight"}
        state = QuantState.from_dict(described)
    if state.shape != shape:
        raise ValueError(f"shape: expected {list(shape)}, got {list(state.shape)}")
    if state.quant_type != entry.name:
        raise ValueError(f"quant_type: expected {entry.name}, got {state.quant_type}")
    g = state.format.geometry(shape, state.block_size)
    if not 0 <= weight.nbytes - g.code_bytes < weight.itemsize:
        raise ValueError(f"weight: expected {g.code_bytes} bytes of codes, got {weight.nbytes}")
    if state.absmax.numel() != g.blocks:
        raise ValueError(f"absmax: expected {g.blocks} scales, got {state.absmax.numel()}")
    return weight, state


def _read_tensor(
    given: Mapping[str, Tensor], entry: Format, shape: torch.Size, dtype: torch.dtype
) -> QuantState:
    if TENSOR_SCALE not in given:
        raise ValueError(f"{TENSOR_SCALE}: expected it beside a packed weight, got {sorted(given)}")
    scale = given[TENSOR_SCALE].flatten()
    if scale.dtype is not torch.float16:
        scale = scale.float()
    return QuantState(scale, shape, entry.name, entry.geometry(shape).block_size, dtype)


def _read_rows(
    given: Mapping[str, Tensor], entry: Format, shape: torch.Size, dtype: torch.dtype
) -> QuantState:
    if ROW_STATS not in given:
        raise ValueError(f"{ROW_STATS}: expected it beside an int8 weight, got {sorted(given)}")
    order = given.get(WEIGHT_FORMAT)
    if order is not None and not order.is_meta and int(order) != _ROW_MAJOR:
        raise ValueError(f"{WEIGHT_FORMAT}: expected {_ROW_MAJOR} (row-major), got {int(order)}")
    absmax = given[ROW_STATS]
    if absmax.dtype is not torch.float32:
        raise ValueError(f"{ROW_STATS}: expected torch.float32, got {absmax.dtype}")
    return QuantState(absmax.flatten(), shape, entry.name, entry.block_size(None, shape[1]), dtype)


def storable(codes: Tensor, entry: Format, shape: torch.Size, storage: torch.dtype) -> Tensor:
    """Bytes of codes in the shape and dtype in which a layer keeps its `weight`."""
    codes = codes.view(torch.uint8).view(-1)
    if entry.stacked_rows > 1:
        return codes.view(shape[0] // entry.stacked_rows, shape[1])
    if entry.library is None:
        return codes.view(torch.int8).view(shape)
    return stored_as(codes, storage).view(-1, 1)


def as_given(fn: Any, t: Tensor) -> Tensor:
    """`fn(t)` as if `t` were bytes: moved if `fn` moves, never cast to another dtype."""
    return fn(t.view(-1).view(torch.uint8)).view(t.dtype).view(t.shape)
