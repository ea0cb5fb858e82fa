"""Gradients of bitsandbytes' 4-bit product without a dense weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowbit import ops
from lowbit.backends import PackedWeight


def matmul_4bit_class(theirs: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Bitsandbytes' `MatMul4Bit` with another backward: `dA = dy W` from the packed weight."""

    class MatMul4Bit(theirs):  # type: ignore[valid-type, misc]
        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            if ctx.is_empty or not ctx.needs_input_grad[0]:
                return theirs.backward(ctx, grad_output)  # type: ignore[attr-defined]
            grad_bias = None
            if ctx.needs_input_grad[3]:
                grad_bias = grad_output.sum(0, dtype=ctx.dtype_bias)
            weight = packed_weight(ctx.tensors[1], ctx.state)
            return ops.linear_transposed(grad_output, *weight), None, None, grad_bias, None

    return MatMul4Bit


def packed_weight(codes: Tensor, state: Any) -> PackedWeight:
    """The arguments of our operations for a weight that bitsandbytes quantized."""
    nested = state.state2 if state.nested else None
    return PackedWeight(
        codes,
        state.absmax,
        nested and nested.absmax,
        nested and nested.code,
        state.offset if nested else None,
        None,
        None,
        state.quant_type,
        state.shape,
        state.blocksize,
        nested.blocksize if nested else 0,
    )
