"""bitsandbytes' products in training, without a dense weight."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowbit import formats, ops
from lowbit.backends import PackedWeight
from lowbit.integrations.bitsandbytes import known


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
            return _transposed(grad_output, weight), None, None, grad_bias, None

    return MatMul4Bit


def matmul_8bit_class(theirs: type[torch.autograd.Function]) -> type[torch.autograd.Function]:
    """Bitsandbytes' `MatMul8bitFp`, which dequantizes int8 weights for each product, without that.

    Weights that are trained themselves are left to it.
    """

    class MatMul8bitFp(theirs):  # type: ignore[valid-type, misc]
        @staticmethod
        def forward(
            ctx: Any,
            A: Tensor,
            B: Tensor,
            out: Tensor | None = None,
            bias: Tensor | None = None,
            state: Any = None,
        ) -> Tensor:
            ctx.is_theirs = state.has_fp16_weights or state.CB is None or state.SCB is None
            if ctx.is_theirs:
                return theirs.forward(ctx, A, B, out, bias, state)  # type: ignore[attr-defined]
            ctx.save_for_backward(state.CB, state.SCB)
            ctx.dtype_bias = None if bias is None else bias.dtype
            x = known(A)
            bias = None if bias is None else bias.to(x.dtype)
            y = ops.linear(x, bias, *packed_rows(state.CB, state.SCB))
            # Not `to` without need: in a compiled function torch 2.11 takes what it answers, the
            # same tensor, for another one, and gradients do not arrive.
            return y if y.dtype == A.dtype else y.to(A.dtype)

        @staticmethod
        def backward(ctx: Any, grad_output: Tensor) -> tuple[Tensor | None, ...]:
            if ctx.is_theirs:
                return theirs.backward(ctx, grad_output)  # type: ignore[attr-defined]
            grad_A = grad_bias = None
            if ctx.needs_input_grad[0]:
                grad_A = _transposed(grad_output, packed_rows(*ctx.saved_tensors))
            if ctx.needs_input_grad[3]:
                flat = grad_output.reshape(-1, grad_output.shape[-1])
                grad_bias = flat.sum(0, dtype=ctx.dtype_bias)
            return grad_A, None, None, grad_bias, None

    return MatMul8bitFp


def _transposed(dy: Tensor, weight: PackedWeight) -> Tensor:
    return ops.linear_transposed(known(dy), *weight).to(dy.dtype)


def packed_rows(codes: Tensor, absmax: Tensor) -> PackedWeight:
    """The arguments of our operations for int8 rows."""
    name = next(f.name for f in formats.ALL.values() if f.library is None)
    n, k = codes.shape
    absmax = absmax.reshape(-1)
    return PackedWeight(codes, absmax, None, None, None, None, None, name, (n, k), max(k, 1), 0)


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
