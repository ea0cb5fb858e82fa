"""`QuantState`: what a quantized tensor needs besides its codes."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from lowbit import formats
from lowbit.backends import PackedWeight

_BYTE_SCALES = "float8_e8m0fnu"
"""torch's name of scales that are exponents: the `scale_dtype` of checkpoints."""
_PACKED_KEY = "quant_state"


@dataclass(eq=False)
class NestedState:
    """How scales are quantized themselves: `code[scale] * absmax[block] + offset`."""

    absmax: Tensor
    """f32, one for each `block_size` scales."""
    code: Tensor
    """f32 `[256]`: values of the codes."""
    block_size: int
    """Scales that share an absmax."""
    dtype: torch.dtype = torch.float32
    """Of the scales before they were quantized."""
    nested: bool = False
    """Never again."""

    @property
    def blocksize(self) -> int:
        """`block_size`, for functions of bitsandbytes that are given this state."""
        return self.block_size


@dataclass(eq=False)
class QuantState:
    """Scales, shape and format of a quantized tensor; the counterpart of bitsandbytes' class.

    `as_dict` and `from_dict` speak bitsandbytes' dialect, so that checkpoints go both ways.

    >>> packed, state = lowbit.functional.quantize_4bit(torch.randn(2, 64))
    >>> state.quant_type, state.block_size, state.shape, state.absmax.shape
    ('nf4', 64, torch.Size([2, 64]), torch.Size([2]))
    """

    absmax: Tensor
    """One scale a block, f32; u8 where there is a `state2`, or where scales are exponents."""
    shape: torch.Size
    """Of the tensor before it was quantized."""
    quant_type: str
    """The format, by its name in `lowbit.formats.ALL`."""
    block_size: int
    """Weights that share a scale."""
    dtype: torch.dtype
    """Of the tensor before it was quantized."""
    codebook: Tensor | None = None
    """f32: values of the codes, where they are not the format's own."""
    offset: Tensor | None = None
    """f32 scalar: what was taken off the scales before they were quantized."""
    state2: NestedState | None = None
    """The scales of the scales, if those are quantized themselves."""
    means: Tensor | None = None
    """f32, one a block, for a format that adds them."""

    @property
    def nested(self) -> bool:
        """Whether the scales are quantized themselves."""
        return self.state2 is not None

    @property
    def format(self) -> formats.Format:
        """The format's entry in the table."""
        return formats.by_name(self.quant_type)

    @property
    def blocksize(self) -> int:
        """`block_size`, for functions of bitsandbytes that are given this state."""
        return self.block_size

    @property
    def code(self) -> Tensor:
        """f32: values of the codes."""
        if self.codebook is not None:
            return self.codebook
        return own_codebook(self.quant_type, self.absmax.device)

    def weight(self, codes: Tensor) -> PackedWeight:
        """The arguments that operations take of a weight with these codes."""
        return PackedWeight._make(self.fields(codes))

    def fields(self, codes: Tensor) -> tuple[Any, ...]:
        """The same without their names, which take a third of a microsecond to give."""
        nested = self.state2
        return (
            codes,
            self.absmax,
            None if nested is None else nested.absmax,
            None if nested is None else nested.code,
            self.offset,
            self.codebook,
            self.means,
            self.quant_type,
            self.shape,
            self.block_size,
            0 if nested is None else nested.block_size,
        )

    def map(self, f: Callable[[Tensor], Tensor]) -> QuantState:
        """The same state with `f` applied to every tensor."""

        def maybe(t: Tensor | None) -> Tensor | None:
            return None if t is None else f(t)

        state2 = self.state2
        if state2 is not None:
            state2 = replace(state2, absmax=f(state2.absmax), code=f(state2.code))
        return replace(
            self,
            absmax=f(self.absmax),
            codebook=maybe(self.codebook),
            offset=maybe(self.offset),
            state2=state2,
            means=maybe(self.means),
        )

    def to(self, device: torch.device | str, non_blocking: bool = False) -> QuantState:
        """The same state on a device.

        >>> packed, state = lowbit.functional.quantize_4bit(torch.randn(2, 64))
        >>> state.to("meta").absmax.device
        device(type='meta')
        """
        return self.map(lambda t: t.to(device, non_blocking=non_blocking))

    def nbytes(self) -> int:
        """Bytes of scales, nested scales and means."""
        parts = [self.absmax, self.offset, self.means, self.codebook]
        if self.state2 is not None:
            parts.append(self.state2.absmax)
        return sum(t.nbytes for t in parts if t is not None)

    def as_dict(self, packed: bool = False) -> dict[str, Any]:
        """The state under bitsandbytes' keys.

        With `packed`, what is no tensor becomes one: JSON under
        `quant_state.bitsandbytes__nf4` (or `lowbit__...`), as in safetensors files.

        >>> _, state = lowbit.functional.quantize_4bit(torch.randn(2, 64))
        >>> sorted(state.as_dict(packed=True))
        ['absmax', 'quant_map', 'quant_state.bitsandbytes__nf4']
        """
        # Copies of tables: safetensors refuses tensors that share memory.
        book = pack_signs(self.code, self.format) if self.format.codebook_is_signs else None
        tensors = {
            "absmax": self.absmax,
            "quant_map": self.code.clone() if book is None else book,
        }
        rest: dict[str, Any] = {
            "quant_type": self.quant_type,
            "blocksize": self.block_size,
            "dtype": _name(self.dtype),
            "shape": tuple(self.shape),
        }
        if self.means is not None:
            tensors["means"] = self.means
        if self.state2 is not None and self.offset is not None:
            tensors["nested_absmax"] = self.state2.absmax
            tensors["nested_quant_map"] = self.state2.code.clone()
            rest["nested_blocksize"] = self.state2.block_size
            rest["nested_dtype"] = _name(self.state2.absmax.dtype)
            rest["nested_offset"] = 0.0 if self.offset.is_meta else self.offset.item()
        entry = self.format
        if entry.scales_are_bytes:
            rest["scale_dtype"] = _BYTE_SCALES
        elif self.absmax.dtype is torch.float16:
            rest["scale_dtype"] = _name(torch.float16)
            if self.means is not None:
                tensors["means"] = self.means.half()
        if not packed:
            return tensors | rest
        text = json.dumps(rest).encode()
        return tensors | {packed_key(entry): torch.frombuffer(bytearray(text), dtype=torch.uint8)}

    @classmethod
    def from_dict(
        cls, qs_dict: Mapping[str, Any], device: torch.device | str | None = None
    ) -> QuantState:
        """Read what `as_dict`, bitsandbytes or a checkpoint wrote, packed or not.

        Keys may have prefixes: of `model.layer.weight.absmax` only `absmax` counts.

        Raises:
            ValueError: if a key is missing, or a value is of another kind than its key says.

        >>> _, state = lowbit.functional.quantize_4bit(torch.randn(2, 64))
        >>> QuantState.from_dict(state.as_dict(packed=True)).shape
        torch.Size([2, 64])
        """
        if not isinstance(qs_dict, Mapping):
            raise TypeError(f"qs_dict: expected a dict of a state, got {type(qs_dict).__name__}")
        given: dict[str, Any] = {}
        for key, value in qs_dict.items():
            if _PACKED_KEY in key.split(".") and isinstance(value, Tensor):
                given |= _unpack(key, value)
            else:
                given[key.rsplit(".", 1)[-1]] = value
        entry = formats.by_name(_take(given, "quant_type", str))
        move = (lambda t: t) if device is None else (lambda t: t.to(device))
        absmax = move(_take(given, "absmax", Tensor))
        expected = torch.uint8 if "nested_absmax" in given else entry.scale_dtype
        if entry.scales_are_means and given.get("scale_dtype") is None:
            expected = torch.float32
        if absmax.dtype is not expected:
            raise ValueError(
                f"absmax: expected {expected} for {entry.name} with the keys {sorted(given)}, "
                f"got {absmax.dtype}"
            )
        state2, offset = None, None
        if "nested_absmax" in given:
            state2 = NestedState(
                absmax=move(_take(given, "nested_absmax", Tensor)),
                code=move(_take(given, "nested_quant_map", Tensor)),
                block_size=_take(given, "nested_blocksize", int),
            )
            number = float(_take(given, "nested_offset", (float, int)))
            offset = move(torch.tensor(number, dtype=torch.float32))
        means = given.get("means")
        return cls(
            absmax=absmax,
            shape=torch.Size(_take(given, "shape", (tuple, list))),
            quant_type=entry.name,
            block_size=_take(given, "blocksize", int),
            dtype=_dtype(_take(given, "dtype", str)),
            codebook=_foreign_codebook(entry, given.get("quant_map"), move),
            offset=offset,
            state2=state2,
            means=None if means is None else move(means.float()),
        )


def _tables() -> dict[str, Tensor]:
    # Whatever mode or device the first import happens under. Adding a zero leaves none that is
    # negative, as in bitsandbytes' tables.
    with torch.inference_mode(False), torch.device("cpu"):
        return {
            name: torch.tensor(entry.codebook, dtype=torch.float32) + 0.0
            for name, entry in formats.ALL.items()
            if entry.codebook is not None
        }


_TABLES = _tables()


def own_codebook(quant_type: str, device: torch.device) -> Tensor:
    """f32: values of the codes of a format. Shared by all tensors on the CPU."""
    if quant_type not in _TABLES:
        raise ValueError(f"quant_type: expected a format with a codebook, got {quant_type!r}")
    return _TABLES[quant_type].to(device)


def packed_key(entry: formats.Format) -> str:
    """The key of the JSON of a state: `quant_state.bitsandbytes__nf4`."""
    return f"{_PACKED_KEY}.{entry.library}__{entry.name}"


def pack_signs(book: Tensor, entry: formats.Format) -> Tensor:
    """A codebook of -1, 0 and 1 as checkpoints hold it: u8, two planes of bits for each code."""
    values = book.view(-1, entry.weights_per_code)
    missing = -entry.weights_per_code % 8
    planes = torch.stack([values > 0, values != 0], 1)
    bits = torch.nn.functional.pad(planes.to(torch.uint8), (0, missing)).unflatten(-1, (-1, 8))
    places = 2 ** torch.arange(8, device=book.device, dtype=torch.uint8)
    return (bits * places).sum(-1, dtype=torch.uint8).flatten()


def unpack_signs(stored: Tensor, entry: formats.Format) -> Tensor:
    """The inverse of `pack_signs`: f32."""
    if stored.dtype is not torch.uint8 or stored.numel() % (2 * -(-entry.weights_per_code // 8)):
        raise ValueError(
            f"quant_map: expected u8 planes of bits for {entry.name}, got {stored.dtype} of "
            f"{stored.numel()}"
        )
    shifts = torch.arange(8, device=stored.device, dtype=torch.uint8)
    bits = stored.view(-1, 2, -(-entry.weights_per_code // 8), 1) >> shifts & 1
    planes = bits.flatten(-2)[..., : entry.weights_per_code].float()
    return ((2 * planes[:, 0] - 1) * planes[:, 1]).flatten()


def _foreign_codebook(
    entry: formats.Format, book: Tensor | None, move: Callable[[Tensor], Tensor]
) -> Tensor | None:
    """The table of a checkpoint, if it has other values than the format's own."""
    if book is None or (entry.codebook is not None and book.is_meta):
        return None
    if entry.codebook_is_signs:
        return move(unpack_signs(book, entry))
    if entry.codebook is not None:
        own = own_codebook(entry.name, book.device)
        if book.shape == own.shape and torch.equal(book.float().nan_to_num(), own.nan_to_num()):
            return None
    return move(book.float())


def _unpack(key: str, value: Tensor) -> dict[str, Any]:
    try:
        read = json.loads(bytes(value.cpu().flatten().tolist()))
    except (ValueError, TypeError) as error:
        raise ValueError(f"{key}: expected the JSON of a quantized tensor, got {error}") from error
    if not isinstance(read, dict):
        raise ValueError(f"{key}: expected a JSON object, got {type(read).__name__}")
    return read


def _take(given: Mapping[str, Any], key: str, kind: Any) -> Any:
    if key not in given:
        raise ValueError(f"{key}: expected it in the state, got only {sorted(given)}")
    value = given[key]
    if not isinstance(value, kind):
        raise ValueError(f"{key}: expected {kind}, got {value!r}")
    return value


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")


def _dtype(name: str) -> torch.dtype:
    dtype = getattr(torch, name, None)
    if not isinstance(dtype, torch.dtype):
        raise ValueError(f"dtype: expected the name of a torch dtype, got {name!r}")
    return dtype
