"""`linear` past the operation of that name, where nothing would notice.

An operation written in Python takes torch's dispatcher 10 us to reach, and several times that with
a gradient; the product of a small weight takes less. So plain eager code on the CPU calls the
kernel directly. Whatever listens to operations (compilation, tracing, function transforms, modes,
the profiler) gets `torch.ops.lowbit.linear`.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import once_differentiable

from lowbit import ops
from lowbit.backends import WEIGHT_TENSORS, PackedWeight, cpu, stable
from lowbit.state import QuantState

# Names that are looked up once: each attribute on the way takes 20 ns.
_is_compiling = torch.compiler.is_compiling
_is_grad_enabled = torch.is_grad_enabled

# Private names of torch, each a question that costs 50 ns. A torch that lacks one of them always
# gets the operation.
_c: Any = torch._C
_autograd: Any = torch.autograd
try:
    _dispatch_modes = _c._len_torch_dispatch_stack
    _function_transform = _c._functorch.peek_interpreter_stack
    _tracing = _c._get_tracing_state
    _profiling = _autograd._profiler_enabled
    _KNOWN = isinstance(forward_ad._current_level, int)
except AttributeError:
    _KNOWN = False


def linear_now(x: Tensor, bias: Tensor | None, codes: Tensor, state: QuantState) -> Tensor | None:
    """`linear` of arguments that nothing has been checked of, if all is in order; else None."""
    if _is_compiling() or not _is_plain(x) or _trains(x, bias):
        return None
    return stable.linear(x, bias, state.fields(codes))


def linear(x: Tensor, bias: Tensor | None, weight: PackedWeight) -> Tensor:
    """`torch.ops.lowbit.linear`, by the shortest way."""
    if _is_compiling() or not _is_plain(x):
        device = weight.codes.device
        if x.device != device:
            raise ValueError(f"x: expected it on {device}, as the weight, got it on {x.device}")
        return ops.linear(x, bias, *weight)
    if _trains(x, bias):
        return _Linear.apply(x, bias, weight)
    return cpu.multiply(x, bias, weight)


def linear_transposed(dy: Tensor, weight: PackedWeight) -> Tensor:
    """`torch.ops.lowbit.linear_transposed`, by the shortest way."""
    if _is_compiling() or _is_grad_enabled() or not _is_plain(dy):
        return ops.linear_transposed(dy, *weight)
    return cpu.multiply_transposed(dy, weight)


def linear_with_adapter(
    x: Tensor,
    dropped: Tensor | None,
    bias: Tensor | None,
    weight: PackedWeight,
    adapter: tuple[Tensor, Tensor, float],
) -> Tensor:
    """`x wᵀ + bias + scale (x aᵀ) bᵀ`, for an `x` of which `may_skip_operations` is true.

    What an adapter (LoRA) does takes a dozen of torch's operations and as many copies of
    activations in f32; here it is one function forth and one back, in f32 as well. All fit each
    other.

    Args:
        x: `[.., K]`, float32, float16 or bfloat16.
        dropped: what the adapter sees of `x`, of its shape and dtype; None for all.
        bias: `[N]`, of the dtype of `x`, without a gradient.
        weight: `[N, K]`, on the CPU.
        adapter: `a: [rank, K]`, `b: [N, rank]`, in f32, and the scale.
    """
    a, b, scale = adapter
    y: Tensor = _LinearWithAdapter.apply(x, dropped, a, b, scale, bias, weight)
    return y


def may_skip_operations(x: Tensor) -> bool:
    """Whether nothing but autograd would notice if no operation of torch was called for `x`."""
    return not _is_compiling() and _is_plain(x)


def _trains(x: Tensor, bias: Any) -> bool:
    """Whether a gradient is wanted."""
    if not _is_grad_enabled():
        return False
    return x.requires_grad or (isinstance(bias, Tensor) and bias.requires_grad)


def _is_plain(x: Tensor) -> bool:
    """Whether `x` is on the CPU and nothing but autograd has an interest in what becomes of it."""
    return (
        type(x) is Tensor
        and x.is_cpu
        and _KNOWN
        and not _dispatch_modes()
        and _function_transform() is None
        and _tracing() is None
        and not _profiling()
        and forward_ad._current_level < 0
    )


class _Linear(torch.autograd.Function):
    """The gradient that `lowbit.ops` registers, in the form that is quickest in eager code."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, bias: Tensor | None, weight: PackedWeight) -> Tensor:
        ctx.save_for_backward(*weight[:WEIGHT_TENSORS])
        ctx.rest = weight[WEIGHT_TENSORS:]
        return cpu.multiply(x, bias, weight)

    @staticmethod
    def backward(ctx: Any, *dys: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        (dy,) = dys
        weight = PackedWeight(*ctx.saved_tensors, *ctx.rest)
        needs_x, needs_bias, _ = ctx.needs_input_grad
        dx = linear_transposed(dy, weight) if needs_x else None
        return dx, dy.reshape(-1, dy.shape[-1]).sum(0) if needs_bias else None, None


class _LinearWithAdapter(torch.autograd.Function):
    """A quantized weight and an adapter of low rank beside it."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        dropped: Tensor | None,
        a: Tensor,
        b: Tensor,
        scale: float,
        bias: Tensor | None,
        weight: PackedWeight,
    ) -> Tensor:
        seen = (x if dropped is None else dropped).contiguous()
        y = cpu.multiply(x, bias, weight)
        hidden = cpu.add_low_rank(seen, y, a, b, scale)
        ctx.save_for_backward(seen, hidden, a, b, *weight[:WEIGHT_TENSORS])
        ctx.rest = scale, weight[WEIGHT_TENSORS:]
        ctx.drops = dropped is not None
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        seen, hidden, a, b, *tensors = ctx.saved_tensors
        scale, rest = ctx.rest
        needs_x, needs_dropped = ctx.needs_input_grad[:2]
        dy, dx = dy.contiguous(), None
        if needs_x:
            dx = cpu.multiply_transposed(dy, PackedWeight(*tensors, *rest))
        # Of dropped activations the gradient goes its own way.
        dropped = torch.zeros_like(seen) if needs_dropped else None
        to = dropped if ctx.drops else dx
        da, db = cpu.low_rank_backward(seen, hidden, dy, (a, b, scale), to)
        return dx, dropped, da, db, None, None, None
