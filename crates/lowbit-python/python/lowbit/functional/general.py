"""Quantize, dequantize and multiply in any format of the table."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from lowbit import eager, formats, ops
from lowbit.backends import NESTED_BLOCK_SIZE
from lowbit.functional.checks import (
    check_activations,
    check_bias,
    check_dtype,
    check_floats,
    check_state,
    check_tensor,
)
from lowbit.state import NestedState, QuantState, own_codebook


def quantize(
    w: Tensor,
    quant_type: str,
    *,
    block_size: int | None = None,
    double_quant: bool = False,
    quant_storage: torch.dtype = torch.uint8,
    importance: Tensor | None = None,
    seed: int = 0,
) -> tuple[Tensor, QuantState]:
    """Quantize a tensor to any format of `lowbit.formats.ALL`.

    Args:
        w: float32, float16 or bfloat16, of any shape; `[N, K]` for formats that store rows.
        quant_type: the format's name.
        block_size: weights that share a scale; None for the format's default.
        double_quant: quantize the scales as well.
        quant_storage: dtype that the codes are seen as.
        importance: `[K]`, factors of the squared error in each column, such as the mean squares of
            activations; only for formats that make a codebook for each tensor.
        seed: of the search for that codebook.

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
    check_floats("w", w)
    entry = formats.by_name(quant_type)
    g = entry.geometry(w.shape, block_size)
    book = None
    if entry.encoder is None:
        found = ops.search(w.detach(), quant_type, g.block_size, importance, seed)
        codes, scales, book = found
    elif importance is not None:
        raise ValueError(
            f"importance: expected None for {quant_type}, whose codes no search finds, got a tensor"
        )
    else:
        codes, scales = ops.quantize(w.detach(), quant_type, g.block_size)
    state = QuantState(scales, w.shape, quant_type, g.block_size, w.dtype, codebook=book)
    if double_quant:
        state = nest(state)
    return stored_as(codes, quant_storage).view(-1, 1), state


def nest(state: QuantState) -> QuantState:
    """Quantize the scales of a state: the signed dynamic map, blocks of 256, their mean taken off.

    Raises:
        ValueError: if the format's scales are small already.

    >>> _, state = quantize(torch.randn(64, 64), "nf4")
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
    return replace(state, absmax=codes, offset=offset, state2=nested)


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
    check_state("state", state)
    dtype = state.dtype if dtype is None else dtype
    check_dtype("dtype", dtype)
    return ops.dequantize(dtype, *state.weight(check_tensor("codes", codes)))


def linear(x: Tensor, codes: Tensor, state: QuantState, bias: Tensor | None = None) -> Tensor:
    """`y = x wᵀ + bias` with a weight in any format.

    Accumulates in f32: f32 activations get f32 accuracy; f16 and bf16 ones may be rounded to 16-bit
    integers, to about 1e-4 of the largest in each 64. Times many rows of bf16 weights may be
    rounded to bf16, as those of dense layers are. Gradients flow to `x` and `bias`.

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
    check_state("state", state)
    # The kernel looks at all that is checked below, in a fraction of the time.
    y = eager.linear_now(x, bias, codes, state)
    if y is not None:
        return y
    check_floats("x", x)
    codes = check_tensor("codes", codes)
    check_activations(x, state.shape)
    check_bias(bias, state.shape[0], x.dtype)
    return eager.linear(x, bias, state.weight(codes))


def embedding(
    ids: Tensor, codes: Tensor, state: QuantState, *, dtype: torch.dtype | None = None
) -> Tensor:
    """Rows of a quantized table; only those are restored.

    Args:
        ids: indices of any shape `[..]`, of an integer dtype.
        codes: of `w: [N, K]`.
        state: of `w`.
        dtype: of the result; None for the dtype that was quantized.

    Returns:
        `[.., K]`.

    Raises:
        IndexError: for an index that is not from 0 to less than N.

    >>> codes, state = quantize(torch.eye(4).repeat(1, 16), "nf4")
    >>> embedding(torch.tensor([2, 0]), codes, state)[:, :4]
    tensor([[0., 0., 1., 0.],
            [1., 0., 0., 0.]])
    """
    check_state("state", state)
    dtype = state.dtype if dtype is None else dtype
    check_dtype("dtype", dtype)
    if not isinstance(ids, Tensor) or ids.dtype.is_floating_point or ids.dtype is torch.bool:
        raise TypeError(f"ids: expected a tensor of integers, got {getattr(ids, 'dtype', ids)}")
    if len(state.shape) != 2:
        raise ValueError(f"state.shape: expected [N, K], got {list(state.shape)}")
    return ops.embedding(ids, dtype, *state.weight(check_tensor("codes", codes)))


def stored_as(codes: Tensor, storage: torch.dtype) -> Tensor:
    """Bytes seen as another dtype, with zeros added to fill its last element."""
    if storage is torch.uint8:
        return codes
    if not isinstance(storage, torch.dtype):
        raise TypeError(f"quant_storage: expected a torch dtype, got {storage!r}")
    missing = -codes.numel() % storage.itemsize
    if missing:
        codes = torch.nn.functional.pad(codes, (0, missing))
    return codes.view(storage)


def is_available(device: torch.device | str = "cpu") -> bool:
    """Whether tensors on that device can be quantized: torch has the device.

    >>> is_available(), is_available("meta")
    (True, False)
    """
    kind = as_device(device).type
    if kind == "cpu":
        return True
    module = getattr(torch, kind, None)
    return bool(module is not None and hasattr(module, "is_available") and module.is_available())


def has_native_kernels(device: torch.device | str = "cpu") -> bool:
    """Whether operations run on kernels of ours there; elsewhere torch's own do.

    >>> has_native_kernels("cpu")
    True
    """
    return as_device(device).type in ops.NATIVE and is_available(device)


def as_device(device: Any) -> torch.device:
    """A device from what torch takes for one.

    Raises:
        ValueError: if there is no such kind of device.
    """
    try:
        return torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"device: expected one of torch's, got {device!r}: {error}") from None
