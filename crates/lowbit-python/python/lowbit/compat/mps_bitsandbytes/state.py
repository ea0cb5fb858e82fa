"""`mps_bitsandbytes`' `QuantState`: ours, with its order of arguments."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import torch
from torch import Tensor

from lowbit import state as ours
from lowbit.compat.spelling import either_spelling


class QuantState(ours.QuantState):
    """`lowbit.QuantState` by other words: `code` is its `codebook`, `blocksize` its `block_size`.

    >>> state = QuantState(torch.ones(2), (2, 64), blocksize=64, quant_type="nf4")
    >>> QuantState.from_dict(state.as_dict(packed=True)).blocksize
    64
    """

    @either_spelling
    def __init__(
        self,
        absmax: Tensor,
        shape: Any = None,
        code: Tensor | None = None,
        block_size: int = 64,
        quant_type: str = "nf4",
        dtype: torch.dtype = torch.float16,
        offset: Tensor | None = None,
        state2: Any = None,
        *,
        codebook: Tensor | None = None,
        means: Tensor | None = None,
    ) -> None:
        if state2 is not None and not isinstance(state2, ours.NestedState):
            state2 = ours.NestedState(state2.absmax, state2.code, state2.block_size)
        super().__init__(
            absmax,
            torch.Size(shape if shape is not None else ()),
            quant_type,
            block_size,
            dtype,
            codebook if codebook is not None else code,
            offset,
            state2,
            means,
        )

    @classmethod
    def of(cls, state: ours.QuantState) -> QuantState:
        """The same state."""
        return cls(**{field.name: getattr(state, field.name) for field in fields(state)})

    @property
    def blocksize(self) -> int:
        """Weights that share a scale."""
        return self.block_size
