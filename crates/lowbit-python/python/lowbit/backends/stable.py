"""Products on "cpu" that torch calls without Python in between, by its stable C interface.

A kernel that is written in Python costs 8 us a call besides its work, one of these less than 3.
They take on what is in order: dense, contiguous tensors on the CPU that fit each other. For all
else they return None, and the caller goes the long way (`lowbit.backends.cpu`), which converts what
can be converted and says what is wrong with the rest.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from lowbit import _native
from lowbit.backends import WEIGHT_TENSORS, libtorch, threads

# In this order, what most weights lack need not be passed.
_WEIGHT = (
    "Tensor codes, Tensor scales, int description, Tensor? nested_absmax=None, "
    "Tensor? nested_map=None, Tensor? nested_offset=None, Tensor? codebook=None, "
    "Tensor? means=None"
)
_SCHEMAS = {
    "linear_now": f"(Tensor x, {_WEIGHT}, Tensor? bias=None) -> Tensor",
    "linear_transposed_now": f"(Tensor dy, {_WEIGHT}) -> Tensor",
}
_FIRST_VERSION = "2.9"
"""Of torch, whose stable interface has all that is needed."""

_library = torch.library.Library("lowbit", "FRAGMENT")
_descriptions: dict[tuple[Any, ...], int] = {}


def _register() -> tuple[Any, Any] | None:
    old = torch.torch_version.TorchVersion(torch.__version__) < _FIRST_VERSION  # As versions.
    found = None if old else libtorch.addresses(_native.stable_symbols())
    if found is None:
        return None
    try:
        for name, schema in _SCHEMAS.items():
            _library.define(name + schema)
            # What needs a gradient does not come here.
            _library.impl(name, torch.library.fallthrough_kernel, "Autograd")
        _native.register_stable(found)
    except (RuntimeError, ValueError):
        # A second import in a process, say. The long way is always there.
        return None
    operations = torch.ops.lowbit
    # Past `OpOverload.__call__`, which is written in Python.
    return operations.linear_now.default._op, operations.linear_transposed_now.default._op


_operations = _register()


def linear(x: Tensor, bias: Tensor | None, w: Sequence[Any]) -> Tensor | None:
    """`lowbit::linear`, if everything is in order. `w`: the fields of a `PackedWeight`.

    In any case the kernels then use as many threads as torch does, on the long way as well.
    """
    threads.follow_torch()
    return None if _operations is None else _call(_operations[0], x, w, bias)


def linear_transposed(dy: Tensor, w: Sequence[Any]) -> Tensor | None:
    """`lowbit::linear_transposed`, if everything is in order."""
    threads.follow_torch()
    return None if _operations is None else _call(_operations[1], dy, w)


def _call(operation: Any, x: Tensor, w: Sequence[Any], bias: Tensor | None = None) -> Tensor | None:
    codes, scales, absmax, map, offset, codebook, means = w[:WEIGHT_TENSORS]
    try:
        key = tuple(w[WEIGHT_TENSORS:])
        description = _descriptions.get(key)
        if description is None:
            description = _describe(key)
        if bias is None and absmax is None and codebook is None and means is None:
            return operation(x, codes, scales, description)
        rest = (absmax, map, offset, codebook, means)
        last = () if bias is None else (bias,)
        return operation(x, codes, scales, description, *rest, *last)
    except (RuntimeError, TypeError, ValueError):
        # The long way says what is wrong.
        return None


def _describe(key: tuple[Any, ...]) -> int:
    """The number of a description, the same each time."""
    format, (n, k), block_size, nested_block_size = key
    made = _native.describe(format, n, k, block_size, nested_block_size)
    return _descriptions.setdefault(key, made)
