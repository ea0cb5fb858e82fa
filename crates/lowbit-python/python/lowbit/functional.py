"""Quantize, dequantize and multiply: functions on tensors.

Weights are `w: [N, K]`, activations `x: [.., K]`, products `y = x wᵀ: [.., N]`. Codes are what
bitsandbytes stores: `u8 [ceil(n / 2), 1]` for the 4-bit formats, the first weight in the high
nibble, blocks along the flattened tensor. All functions raise `ValueError` or `TypeError` that
names the argument.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit import formats, ops
from lowbit.backends import NESTED_BLOCK_SIZE, PackedWeight
from lowbit.state import NestedState, QuantState, own_codebook

__all__ = [
    "QuantState",
    "dequantize",
    "dequantize_4bit",
    "gemm_4bit",
    "gemv_4bit",
    "linear",
    "linear_4bit",
    "quantize",
    "quantize_4bit",
]

FLOATS = (torch.float32, torch.float16, torch.bfloat16)


def quantize(
    w: Tensor,
    quant_type: str,
    *,
    block_size: int | None = None,
    double_quant: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """Quantize a tensor to any format of `lowbit.formats.ALL`.

    Args:
        w: float32, float16 or bfloat16, of any shape; `[N, K]` for formats that store rows.
        quant_type: the format's name.
        block_size: weights that share a scale; None for the format's default.
        double_quant: quantize the scales as well.
        quant_storage: dtype that the codes are seen as.

    Returns:
        Codes, `[bytes / itemsize, 1]`, and the state that undoes the quantization.

    Raises:
        ValueError: for a shape or a block size that the format cannot have, or NaN or infinity in
            `w`.
        TypeError: for a tensor that is not floating point.

    >>> codes, state = quantize(torch.randn(4, 64), "mxfp4")
    >>> codes.shape, state.absmax.dtype
    (torch.Size([128, 1]), torch.uint8)
    """
    _check_floats("w", w)
    entry = formats.by_name(quant_type)
    g = entry.geometry(w.shape, block_size)
    codes, scales = ops.quantize(w.detach(), quant_type, g.block_size)
    state = QuantState(scales, w.shape, quant_type, g.block_size, w.dtype)
    if double_quant:
        state = nest(state)
    return _stored_as(codes, quant_storage).view(-1, 1), state


def nest(state: QuantState) -> QuantState:
    """Quantize the scales of a state: the signed dynamic map, blocks of 256, their mean taken off.

    Raises:
        ValueError: if the format's scales are bytes already.

    >>> _, state = quantize_4bit(torch.randn(64, 64))
    >>> nest(state).absmax.dtype
    torch.uint8
    """
    if state.nested:
        return state
    if not formats.by_name(state.quant_type).can_double_quantize:
        raise ValueError(
            f"double_quant: expected a format with f32 scales, got {state.quant_type}; leave it out"
        )
    codes, absmax, offset = ops.double_quantize(state.absmax)
    nested = NestedState(absmax, own_codebook(formats.NESTED, absmax.device), NESTED_BLOCK_SIZE)
    return QuantState(
        codes,
        state.shape,
        state.quant_type,
        state.block_size,
        state.dtype,
        state.codebook,
        offset,
        nested,
        state.means,
    )


def dequantize(codes: Tensor, state: QuantState, *, dtype: torch.dtype | None = None) -> Tensor:
    """Undo `quantize`: the weights, of the shape in the state.

    Args:
        codes: as `quantize` returned them, in any storage dtype and shape.
        state: as `quantize` returned it.
        dtype: of the result; None for the dtype that was quantized.

    Raises:
        ValueError: if codes and state do not fit each other.

    >>> w = torch.randn(4, 64)
    >>> codes, state = quantize(w, "fp8_e4m3")
    >>> bool((dequantize(codes, state) - w).abs().max() < 0.2)
    True
    """
    _check_state("state", state)
    dtype = state.dtype if dtype is None else dtype
    if dtype not in FLOATS:
        raise TypeError(f"dtype: expected float32, float16 or bfloat16, got {dtype}")
    return ops.dequantize(dtype, *_weight(codes, state))


def linear(x: Tensor, codes: Tensor, state: QuantState, bias: Tensor | None = None) -> Tensor:
    """`y = x wᵀ + bias` with a weight in any format.

    Accumulates in f32: f32 activations get f32 accuracy; f16 and bf16 ones may be rounded to 16-bit
    integers, to about 1e-4 of the largest in each 64. Gradients flow to `x` and `bias`.

    Args:
        x: `[.., K]`, float32, float16 or bfloat16.
        codes: of `w: [N, K]`.
        state: of `w`.
        bias: `[N]`, of the dtype of `x`.

    Returns:
        `[.., N]`, of the dtype of `x`.

    Raises:
        ValueError: for shapes that do not fit each other.
        TypeError: for other dtypes.

    >>> codes, state = quantize(torch.randn(8, 64), "nf4")
    >>> linear(torch.randn(2, 3, 64), codes, state).shape
    torch.Size([2, 3, 8])
    """
    _check_state("state", state)
    _check_floats("x", x)
    shape = state.shape
    if len(shape) != 2:
        raise ValueError(f"state.shape: expected [N, K], got {list(shape)}")
    if x.dim() == 0 or x.shape[-1] != shape[1]:
        raise ValueError(
            f"x: expected [.., {shape[1]}] for a weight of shape {list(shape)}, got {list(x.shape)}"
        )
    if bias is not None:
        if bias.shape != shape[:1]:
            raise ValueError(f"bias: expected [{shape[0]}], got {list(bias.shape)}")
        if bias.dtype is not x.dtype:
            raise TypeError(f"bias: expected the dtype of x, {x.dtype}, got {bias.dtype}")
    return ops.linear(x, bias, *_weight(codes, state))


def quantize_4bit(
    w: Tensor,
    *,
    quant_type: str = "nf4",
    block_size: int | None = None,
    compress_statistics: bool = False,
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """`quantize` to a format of four bits; `compress_statistics` is bitsandbytes' `double_quant`.

    >>> packed, state = quantize_4bit(torch.randn(128, 64), compress_statistics=True)
    >>> packed.shape, state.nested
    (torch.Size([4096, 1]), True)
    """
    _check_4bit(quant_type)
    return quantize(
        w,
        quant_type,
        block_size=block_size,
        double_quant=compress_statistics,
        quant_storage=quant_storage,
    )


def dequantize_4bit(
    packed: Tensor, state: QuantState, *, dtype: torch.dtype | None = None
) -> Tensor:
    """`dequantize` from a format of four bits.

    >>> dequantize_4bit(*quantize_4bit(torch.zeros(2, 64)))[0, :2]
    tensor([0., 0.])
    """
    _check_state("state", state)
    _check_4bit(state.quant_type)
    return dequantize(packed, state, dtype=dtype)


def linear_4bit(x: Tensor, packed: Tensor, state: QuantState, bias: Tensor | None = None) -> Tensor:
    """`linear` with a weight of four bits.

    >>> packed, state = quantize_4bit(torch.randn(8, 64))
    >>> linear_4bit(torch.randn(2, 64), packed, state, torch.zeros(8)).shape
    torch.Size([2, 8])
    """
    _check_state("state", state)
    _check_4bit(state.quant_type)
    return linear(x, packed, state, bias)


def gemv_4bit(x: Tensor, packed: Tensor, state: QuantState) -> Tensor:
    """`linear_4bit` of one vector, `x: [K]` or `[.., 1, K]`, without bias.

    >>> packed, state = quantize_4bit(torch.randn(8, 64))
    >>> gemv_4bit(torch.randn(64), packed, state).shape
    torch.Size([8])
    """
    if isinstance(x, Tensor) and x.dim() > 0 and x.numel() != x.shape[-1]:
        raise ValueError(f"x: expected one vector, [K] or [.., 1, K], got {list(x.shape)}")
    return linear_4bit(x, packed, state)


def gemm_4bit(x: Tensor, packed: Tensor, state: QuantState) -> Tensor:
    """`linear_4bit` of a matrix or a batch, `x: [.., M, K]`, without bias.

    >>> packed, state = quantize_4bit(torch.randn(8, 64))
    >>> gemm_4bit(torch.randn(3, 5, 64), packed, state).shape
    torch.Size([3, 5, 8])
    """
    if isinstance(x, Tensor) and x.dim() < 2:
        raise ValueError(f"x: expected [.., M, K], got {list(x.shape)}; use gemv_4bit")
    return linear_4bit(x, packed, state)


def _weight(codes: Tensor, state: QuantState) -> PackedWeight:
    if not isinstance(codes, Tensor):
        raise TypeError(f"codes: expected a tensor, got {type(codes).__name__}")
    if not codes.is_contiguous():
        codes = codes.contiguous()
    return state.weight(codes)


def _stored_as(codes: Tensor, storage: torch.dtype) -> Tensor:
    """The bytes seen as another dtype, with zeros added to fill its last element."""
    if storage is torch.uint8:
        return codes
    if not isinstance(storage, torch.dtype):
        raise TypeError(f"quant_storage: expected a torch dtype, got {storage!r}")
    missing = -codes.numel() % storage.itemsize
    if missing:
        codes = torch.nn.functional.pad(codes, (0, missing))
    return codes.view(storage)


def _check_floats(name: str, t: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
    if t.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {t.dtype}")


def _check_state(name: str, state: QuantState) -> None:
    if not isinstance(state, QuantState):
        raise TypeError(f"{name}: expected a QuantState, got {type(state).__name__}")


def _check_4bit(quant_type: str) -> None:
    entry = formats.by_name(quant_type)
    if entry.code_bits != 4:
        raise ValueError(f"quant_type: expected a format of four bits, got {quant_type!r}")
