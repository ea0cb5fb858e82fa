"""What functions ask of their arguments. Each check names the argument that it refuses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowbit.state import QuantState

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes of weights and activations."""


def check_tensor(name: str, t: Any) -> Tensor:
    """A tensor, made contiguous."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
    return t.contiguous()


def check_dtype(name: str, dtype: Any) -> None:
    """A dtype of weights and activations."""
    if dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {dtype}")


def check_floats(name: str, t: Any) -> None:
    """A tensor of weights or activations."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
    if t.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {t.dtype}")


def check_of(name: str, t: Any, dtype: torch.dtype, *shape: int | None) -> None:
    """A tensor of that dtype and shape, of any length where that is None."""
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
    if t.dtype is not dtype:
        raise TypeError(f"{name}: expected {dtype}, got {t.dtype}")
    fits = t.dim() == len(shape) and all(
        expected in (None, got) for expected, got in zip(shape, t.shape, strict=True)
    )
    if not fits:
        wanted = ", ".join("any" if length is None else str(length) for length in shape)
        raise ValueError(f"{name}: expected the shape [{wanted}], got {list(t.shape)}")


def check_state(name: str, state: Any) -> None:
    """A `QuantState`."""
    if not isinstance(state, QuantState):
        raise TypeError(f"{name}: expected a QuantState, got {type(state).__name__}")


def check_activations(x: Tensor, shape: torch.Size) -> None:
    """`[.., K]` for a weight of shape `[N, K]`."""
    if len(shape) != 2:
        raise ValueError(f"state.shape: expected [N, K], got {list(shape)}")
    if x.dim() == 0 or x.shape[-1] != shape[1]:
        raise ValueError(
            f"x: expected [.., {shape[1]}] for a weight of shape {list(shape)}, got {list(x.shape)}"
        )


def check_bias(bias: Tensor | None, n: int, dtype: torch.dtype) -> None:
    """`[N]`, of the dtype of the activations; or none."""
    if bias is not None:
        check_of("bias", bias, dtype, n)
