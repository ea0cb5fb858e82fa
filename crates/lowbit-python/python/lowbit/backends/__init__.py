"""Where operations run. One module a device, each with the functions of `lowbit.ops`.

| module | devices | how |
|---|---|---|
| `cpu` | cpu | the Rust kernels |
| `mps` | mps | the GPU crate's kernels as Metal text, compiled by torch |
| `cuda` | cuda | bitsandbytes, where it is installed and has the format |
| `dense` | any other | torch's own operations on dequantized weights |
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor

NESTED_BLOCK_SIZE = 256
"""Scales that double quantization quantizes together."""


class PackedWeight(NamedTuple):
    """A quantized weight as operations take it: the last arguments of each."""

    codes: Tensor
    """Packed codes, of any dtype."""
    scales: Tensor
    """One a block: f32, or bytes where they are nested or exponents."""
    nested_absmax: Tensor | None
    """f32; only where the scales are quantized themselves."""
    nested_map: Tensor | None
    """f32 `[256]`: values of the scales' codes."""
    nested_offset: Tensor | None
    """f32 scalar."""
    codebook: Tensor | None
    """f32: values of the codes, where they are not the format's own."""
    means: Tensor | None
    """f32, one a block, for a format that adds them."""
    format: str
    """Its name in `lowbit.formats.ALL`."""
    shape: Sequence[int]
    """`[N, K]`, or any for a format whose blocks do not lie in rows."""
    block_size: int
    """Weights that share a scale."""
    nested_block_size: int
    """Scales that share a nested absmax."""


WEIGHT_TENSORS = PackedWeight._fields.index("format")
"""How many of a `PackedWeight`'s fields are tensors: the first."""
