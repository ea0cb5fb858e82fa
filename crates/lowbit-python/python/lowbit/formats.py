"""The table of formats: how weights of each kind are stored.

The table comes from the Rust crate, where a format is one file. No other module of this package
asks for a format by name; all read the fields of `Format`.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from math import prod
from types import MappingProxyType
from typing import NamedTuple

import torch

from lowbit import _native


class Geometry(NamedTuple):
    """Sizes that follow from a format, a shape and a block size."""

    n: int
    """Rows of `[N, K]`: the first dimension; 1 for a vector."""
    k: int
    """Weights in a row: the product of the other dimensions."""
    block_size: int
    """Weights that share a scale."""
    blocks: int
    """Scales of the tensor."""
    code_bytes: int
    """Bytes of packed codes."""


@dataclass(frozen=True, eq=False)
class Format:
    """How weights of one kind are stored: `value(code) * scale[block] * unit (+ mean[block])`."""

    name: str
    """The name in checkpoints (`quant_type`) and errors."""
    about: str
    """One line for tables."""
    code_bits: int
    """Width of a code."""
    weights_per_code: int
    """How many neighbouring weights of a row one code stands for."""
    packing: str
    """`high_first`, `low_first` (a little-endian bit stream) or `radix`."""
    radix: tuple[int, int] | None
    """For `radix`: the base, and digits in a byte."""
    in_rows: bool
    """Whether blocks lie along each row; else along the flattened tensor, across rows."""
    row_padding: int
    """Rows are padded to a multiple of so many weights."""
    stacked_rows: int
    """Rows that share a byte, each far from the next; 1 where neighbouring weights do. Then one
    block is the whole tensor."""
    block_sizes: tuple[int, ...]
    """The block sizes there are, besides whole rows or tensors."""
    default_block_size: int | None
    """Block size where none is asked for; None where that is a whole row or tensor."""
    scales_are_bytes: bool
    """Whether a scale is a byte, the exponent of a power of two biased by 127; else f32."""
    scales_are_means: bool
    """Whether a scale is the mean magnitude of its block: f16, or where a file has it so f32."""
    scale_is_step: bool
    """Whether a scale is absmax / peak; else absmax."""
    can_double_quantize: bool
    """Whether scales may be quantized a second time."""
    peak: float
    """The magnitude on the value axis that absmax is mapped to."""
    unit: float
    """A constant factor of every weight."""
    has_mean: bool
    """Whether the mean of each block is stored and added."""
    codes_are_integers: bool
    """Whether a code is its own value, a two's complement integer."""
    codebook: tuple[float, ...] | None
    """Values of the codes; None where they are stored with each tensor."""
    codebook_is_signs: bool
    """Whether values that are stored with a tensor are all -1, 0 or 1."""
    encoder: tuple[tuple[float, ...], tuple[int, ...], int] | None
    """Thresholds, codes of the ranks between them, sign bit; None where only a search finds codes.

    The rank of `x` is the number of thresholds that are `<= x`. With a sign bit, `|x|` is ranked
    and the bit is set where `x < 0`.
    """
    library: str | None
    """Whose `quant_state` describes it in checkpoints; None for int8 rows with `SCB`."""

    @property
    def scale_dtype(self) -> torch.dtype:
        """Of the scales that `quantize` makes."""
        if self.scales_are_bytes:
            return torch.uint8
        return torch.float16 if self.scales_are_means else torch.float32

    @property
    def codebook_len(self) -> int:
        """Numbers of a codebook that is stored with a tensor."""
        return self.weights_per_code << self.code_bits

    @property
    def is_nibbles(self) -> bool:
        """Whether two codes share a byte."""
        return self.code_bits == 4 and self.radix is None

    def block_size(self, asked: int | None, k: int) -> int:
        """Check the block size asked for, for rows (or a tensor in one block) of `k` weights.

        Raises:
            ValueError: if the format cannot have it.

        >>> by_name("nf4").block_size(None, 4096)
        64
        """
        if self.default_block_size is None:
            # A row of no weights still has a block size.
            whole = max(k, 1) if isinstance(k, int) else k
            if asked is None or asked == whole:
                return whole
        if not self.block_sizes:
            raise ValueError(
                f"block_size: expected None for {self.name}, whose blocks are whole rows, "
                f"got {asked}"
            )
        if asked is None:
            assert self.default_block_size is not None
            return self.default_block_size
        if not isinstance(asked, int) or asked not in self.block_sizes:
            raise ValueError(
                f"block_size: expected one of {list(self.block_sizes)} for {self.name}, "
                f"got {asked!r}"
            )
        return asked

    def geometry(self, shape: Sequence[int], block_size: int | None = None) -> Geometry:
        """Work out the sizes of a tensor of that shape.

        Raises:
            ValueError: for a block size or a shape that the format cannot have.

        >>> by_name("nf4").geometry([3, 100], 64)
        Geometry(n=3, k=100, block_size=64, blocks=5, code_bytes=150)
        """
        if (self.in_rows or self.stacked_rows > 1) and len(shape) < 2:
            raise ValueError(
                f"shape: expected [N, K] for {self.name}, which lays rows apart, got {list(shape)}"
            )
        n = shape[0] if len(shape) > 1 else 1
        k = prod(shape[1:]) if len(shape) > 1 else prod(shape)
        block_size = self.block_size(block_size, k if self.stacked_rows == 1 else n * k)
        if n % self.stacked_rows:
            raise ValueError(
                f"shape: expected a multiple of {self.stacked_rows} rows for {self.name}, which "
                f"packs so many, got {list(shape)}; leave that tensor out"
            )
        if self.in_rows:
            padded = -(-k // self.row_padding) * self.row_padding
            blocks, code_bytes = n * -(-k // block_size), n * self._packed(padded)
        else:
            blocks, code_bytes = -(-(n * k) // block_size), self._packed(n * k)
        return Geometry(n, k, block_size, blocks, code_bytes)

    def _packed(self, weights: int) -> int:
        codes = -(-weights // self.weights_per_code)
        if self.radix is not None:
            return -(-codes // self.radix[1])
        return -(-(codes * self.code_bits) // 8)


def _read(fields: dict) -> Format:
    for key, value in fields.items():
        if isinstance(value, list | bytes):
            fields[key] = tuple(value)
    if fields["encoder"] is not None:
        ups, codes, sign_bit = fields["encoder"]
        fields["encoder"] = (tuple(ups), tuple(codes), sign_bit)
    return Format(**fields)


ALL: Mapping[str, Format] = MappingProxyType(
    {format.name: format for format in map(_read, _native.formats())}
)
"""Every format, by name."""

NESTED = "dynamic8"
"""The format of scales that are quantized themselves."""


def by_name(name: str) -> Format:
    """Find the format of that name.

    One of `ALL`, or `<name>-v<length>-c<codes>` for its variant with a codebook of other sizes,
    where it has any.

    Raises:
        ValueError: with the names there are.

    >>> by_name("nf4").code_bits
    4
    >>> by_name("sub1-v16-c4096").weights_per_code
    16
    """
    try:
        return ALL[name]
    except (KeyError, TypeError):
        if isinstance(name, str) and "-v" in name:
            return _variant(name)
        known = ", ".join(ALL)
        raise ValueError(f"quant_type: expected one of {known}, got {name!r}") from None


@cache
def _variant(name: str) -> Format:
    try:
        return _read(_native.format_by_name(name))
    except ValueError as error:
        raise ValueError(f"quant_type: {error}") from None
