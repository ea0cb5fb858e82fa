"""Rows of a quantized table where no kernel looks them up: their codes and scales, by torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit import formats
from lowbit.backends import PackedWeight
from lowbit.backends.checks import rows_and_columns


def embedding(
    dequantize: Callable[..., Tensor], ids: Tensor, dtype: torch.dtype, *weight: Any
) -> Tensor:
    """`lowbit::embedding` with a backend's `dequantize`, of the rows asked for where that can be.

    It cannot where rows share a byte or a block: then the whole table is restored. Waits for the
    device, which would answer an index outside with anything.
    """
    w = PackedWeight(*weight)
    n, k = rows_and_columns(w)
    if not ids.numel():
        return torch.empty((*ids.shape, k), dtype=dtype, device=ids.device)
    least, most = (int(bound) for bound in torch.aminmax(ids))
    if not 0 <= least <= most < n:
        wrong = least if least < 0 else most
        raise IndexError(f"ids: expected indices from 0 to less than {n}, got {wrong}")
    picked = _pick(w, ids.reshape(-1).long())
    if picked is None:
        return F.embedding(ids.long(), dequantize(dtype, *w))
    return dequantize(dtype, *picked).view(*ids.shape, k)


def _pick(w: PackedWeight, ids: Tensor) -> PackedWeight | None:
    """The weight of those rows alone; None where they do not begin with a byte and a block."""
    entry, (n, k) = formats.by_name(w.format), w.shape
    g = entry.geometry(w.shape, w.block_size)
    apart = entry.in_rows or (
        g.blocks * g.block_size == n * k and k % g.block_size == 0 and k * entry.code_bits % 8 == 0
    )
    if entry.stacked_rows > 1 or not apart:
        return None
    codes = w.codes.reshape(-1).view(torch.uint8)[: g.code_bytes].view(n, -1)[ids]
    blocks = torch.arange(g.blocks, device=ids.device).view(n, -1)[ids].view(-1)
    scales = w.scales[blocks]
    if w.nested_absmax is not None:
        assert w.nested_map is not None and w.nested_offset is not None
        absmax = w.nested_absmax[blocks // w.nested_block_size]
        scales = w.nested_map[scales.int()] * absmax + w.nested_offset
    return w._replace(
        codes=codes.contiguous().view(-1),
        scales=scales,
        nested_absmax=None,
        nested_map=None,
        nested_offset=None,
        means=None if w.means is None else w.means[blocks],
        shape=(len(ids), k),
        nested_block_size=0,
    )
