"""What functions ask of their arguments. Each check names the argument that it refuses."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowbit.state import QuantState

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
"""The dtypes of weights and activations."""


# Tuples: older versions of torch cannot compile a union of types.
_NUMBERS = (int, float)
_SIZES = (int, torch.SymInt)


def _check_dense(name: str, t: Any) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{name}: expected a tensor, got {type(t).__name__}")
    if t.layout is not torch.strided:
        raise TypeError(f"{name}: expected a dense tensor, got {t.layout}; call to_dense()")


def check_tensor(name: str, t: Any) -> Tensor:
    """A tensor, made contiguous."""
    _check_dense(name, t)
    return t.contiguous()


def check_size(name: str, size: Any) -> None:
    """A number of rows, columns or features."""
    if not isinstance(size, _SIZES):
        raise TypeError(f"{name}: expected an integer, got {size!r}")
    if isinstance(size, int) and size < 0:
        raise ValueError(f"{name}: expected a number from 0, got {size}")


def check_threshold(threshold: Any) -> None:
    """A magnitude."""
    if not isinstance(threshold, _NUMBERS):
        raise TypeError(f"threshold: expected a number, got {threshold!r}")
    if not threshold >= 0.0:
        raise ValueError(f"threshold: expected a number from 0, got {threshold}")


def check_input(name: str, t: Any) -> None:
    """A tensor that a layer may cast to what it computes in."""
    _check_dense(name, t)
    if not t.is_floating_point():
        raise TypeError(f"{name}: expected floating-point numbers, got {t.dtype}")


def check_layer(compute_dtype: Any, **sizes: Any) -> None:
    """The sizes of a layer, and the dtype that it computes in, or none."""
    for name, size in sizes.items():
        check_size(name, size)
    if compute_dtype is not None:
        check_dtype("compute_dtype", compute_dtype)


def check_finite(name: str, t: Tensor) -> None:
    """Numbers, neither NaN nor infinity."""
    if not t.is_meta and not torch.isfinite(t).all():
        raise ValueError(f"{name}: expected finite values, got NaN or infinity")


def check_dtype(name: str, dtype: Any) -> None:
    """A dtype of weights and activations."""
    if dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {dtype}")


def check_floats(name: str, t: Any) -> None:
    """A tensor of weights or activations."""
    _check_dense(name, t)
    if t.dtype not in FLOATS:
        raise TypeError(f"{name}: expected float32, float16 or bfloat16, got {t.dtype}")


def check_of(name: str, t: Any, dtype: torch.dtype, *shape: int | None) -> None:
    """A tensor of that dtype and shape, of any length where that is None."""
    _check_dense(name, t)
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
