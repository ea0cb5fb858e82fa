"""What the kernels' side of torch tensors is checked for, on any device."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from lowbit import formats
from lowbit.backends import PackedWeight

_NAMES = {torch.float32: "f32", torch.float16: "f16", torch.bfloat16: "bf16"}


def dtype_name(t: Tensor, name: str) -> str:
    """The native module's name for the dtype of activations."""
    try:
        return _NAMES[t.dtype]
    except KeyError:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {t.dtype}") from None


def check_f32(t: Tensor, name: str) -> None:
    """Refuse what is not float32."""
    if t.dtype is not torch.float32:
        raise TypeError(f"{name}: expected torch.float32, got {t.dtype}")


def check_int8_factors(a: Tensor, b: Tensor) -> None:
    """Refuse all but int8 `a: [.., K]` and `b: [N, K]`."""
    for name, t in (("a", a), ("b", b)):
        if t.dtype is not torch.int8:
            raise TypeError(f"{name}: expected torch.int8, got {t.dtype}")
    if b.dim() != 2 or a.dim() < 1 or a.shape[-1] != b.shape[-1]:
        raise ValueError(f"a, b: expected [.., K] and [N, K], got {list(a.shape)}, {list(b.shape)}")


def has_half_scales(w: PackedWeight) -> bool:
    """Whether scales are f16, as only those may be that are mean magnitudes."""
    halves = w.nested_absmax is None and w.scales.dtype is torch.float16
    return halves and formats.by_name(w.format).scales_are_means


def check_bias(bias: Tensor, x: Tensor) -> None:
    """Refuse a bias of another dtype than the activations."""
    if bias.dtype is not x.dtype:
        raise TypeError(f"bias: expected the dtype of x, {x.dtype}, got {bias.dtype}")


def rows_and_columns(w: PackedWeight) -> Sequence[int]:
    """`[N, K]` of a weight to multiply by."""
    if len(w.shape) != 2:
        raise ValueError(f"shape: expected [N, K], got {list(w.shape)}")
    return w.shape
