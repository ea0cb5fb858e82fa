"""The custom operations `torch.ops.lowbit.*`: schemas, shapes, gradients, and who runs them.

`lowbit.functional` checks arguments and calls these; `torch.compile`, `torch.export` and autograd
see through them. A weight is always the last arguments, in the order of `PackedWeight`. Gradients
flow to activations and biases, by the transposed product; a quantized weight has none.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lowbit import formats
from lowbit.backends import NESTED_BLOCK_SIZE, WEIGHT_TENSORS, PackedWeight, cpu, cuda, dense, mps

_WEIGHT = (
    "Tensor codes, Tensor scales, Tensor? nested_absmax, Tensor? nested_map, "
    "Tensor? nested_offset, Tensor? codebook, Tensor? means, str format, SymInt[] shape, "
    "SymInt block_size, int nested_block_size"
)
_SCHEMAS = {
    "quantize": "(Tensor w, str format, SymInt block_size) -> (Tensor, Tensor)",
    "double_quantize": "(Tensor scales) -> (Tensor, Tensor, Tensor)",
    "dequantize": f"(ScalarType dtype, {_WEIGHT}) -> Tensor",
    "linear": f"(Tensor x, Tensor? bias, {_WEIGHT}) -> Tensor",
    "linear_transposed": f"(Tensor dy, {_WEIGHT}) -> Tensor",
    "embedding": f"(Tensor ids, ScalarType dtype, {_WEIGHT}) -> Tensor",
    "sparse_matmul": (
        "(SymInt[] shape, Tensor rows, Tensor columns, Tensor values, float? scale, Tensor dense) "
        "-> Tensor"
    ),
    "int8_linear": f"(Tensor x, Tensor? bias, float threshold, {_WEIGHT}) -> Tensor",
    "int8_matmul": "(Tensor a, Tensor b) -> Tensor",
    "int8_rescale": (
        "(Tensor sums, Tensor rows, Tensor columns, Tensor? bias, ScalarType dtype) -> Tensor"
    ),
}
_WEIGHT_LEN = len(PackedWeight._fields)

_BACKENDS = ((cpu, "CPU"), (mps, "MPS"), (cuda, "CUDA"), (dense, "CompositeExplicitAutograd"))

NATIVE = ("cpu", "mps")
"""Devices that have kernels of ours."""

# The operations are there as long as this object is.
_library = torch.library.Library("lowbit", "FRAGMENT")
for _name, _schema in _SCHEMAS.items():
    _library.define(_name + _schema, tags=torch.Tag.pt2_compliant_tag)
    for _module, _key in _BACKENDS:
        _library.impl(_name, getattr(_module, _name), _key)

# A search needs no device: elsewhere it runs on the CPU, and what it finds moves.
_library.define(
    "search(Tensor w, str format, SymInt block_size, Tensor? importance, int seed)"
    " -> (Tensor, Tensor, Tensor)",
    tags=torch.Tag.pt2_compliant_tag,
)
_library.impl("search", cpu.search, "CompositeExplicitAutograd")

quantize = torch.ops.lowbit.quantize.default
search = torch.ops.lowbit.search.default
double_quantize = torch.ops.lowbit.double_quantize.default
dequantize = torch.ops.lowbit.dequantize.default
linear = torch.ops.lowbit.linear.default
linear_transposed = torch.ops.lowbit.linear_transposed.default
embedding = torch.ops.lowbit.embedding.default
sparse_matmul = torch.ops.lowbit.sparse_matmul.default
int8_linear = torch.ops.lowbit.int8_linear.default
int8_matmul = torch.ops.lowbit.int8_matmul.default
int8_rescale = torch.ops.lowbit.int8_rescale.default


def _together(**tensors: Tensor | None) -> None:
    """Refuse tensors of which only some are on "meta": their product would be no numbers at all."""
    given = {name: t for name, t in tensors.items() if t is not None}
    first, *others = given
    for name in others:
        if given[name].is_meta != given[first].is_meta:
            raise ValueError(
                f"{name}: expected it on {given[first].device}, as {first}, got it on "
                f"{given[name].device}; move it there"
            )


def _of_weight(weight: tuple[Any, ...]) -> dict[str, Tensor | None]:
    return dict(zip(PackedWeight._fields[:WEIGHT_TENSORS], weight, strict=False))


@torch.library.register_fake("lowbit::quantize", lib=_library)
def _(w: Tensor, format: str, block_size: int) -> tuple[Tensor, Tensor]:
    entry = formats.by_name(format)
    g = entry.geometry(w.shape, block_size)
    codes = w.new_empty(g.code_bytes, dtype=torch.uint8)
    return codes, w.new_empty(g.blocks, dtype=entry.scale_dtype)


@torch.library.register_fake("lowbit::search", lib=_library)
def _(
    w: Tensor, format: str, block_size: int, importance: Tensor | None, seed: int
) -> tuple[Tensor, Tensor, Tensor]:
    entry = formats.by_name(format)
    g = entry.geometry(w.shape, block_size)
    codes = w.new_empty(g.code_bytes, dtype=torch.uint8)
    book = w.new_empty(entry.codebook_len, dtype=torch.float32)
    return codes, w.new_empty(g.blocks, dtype=entry.scale_dtype), book


@torch.library.register_fake("lowbit::double_quantize", lib=_library)
def _(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    n = scales.numel()
    codes = scales.new_empty(n, dtype=torch.uint8)
    return codes, scales.new_empty(-(-n // NESTED_BLOCK_SIZE)), scales.new_empty(())


@torch.library.register_fake("lowbit::dequantize", lib=_library)
def _(dtype: torch.dtype, *weight: Any) -> Tensor:
    _together(**_of_weight(weight))
    w = PackedWeight(*weight)
    return w.codes.new_empty(tuple(w.shape), dtype=dtype)


@torch.library.register_fake("lowbit::linear", lib=_library)
def _(x: Tensor, bias: Tensor | None, *weight: Any) -> Tensor:
    _together(**_of_weight(weight), x=x, bias=bias)
    return x.new_empty((*x.shape[:-1], PackedWeight(*weight).shape[0]))


@torch.library.register_fake("lowbit::linear_transposed", lib=_library)
def _(dy: Tensor, *weight: Any) -> Tensor:
    _together(**_of_weight(weight), dy=dy)
    return dy.new_empty((*dy.shape[:-1], PackedWeight(*weight).shape[1]))


@torch.library.register_fake("lowbit::embedding", lib=_library)
def _(ids: Tensor, dtype: torch.dtype, *weight: Any) -> Tensor:
    _together(**_of_weight(weight), ids=ids)
    return ids.new_empty((*ids.shape, PackedWeight(*weight).shape[1]), dtype=dtype)


@torch.library.register_fake("lowbit::sparse_matmul", lib=_library)
def _(
    shape: Any, rows: Tensor, columns: Tensor, values: Tensor, scale: float | None, dense: Tensor
) -> Tensor:
    _together(rows=rows, columns=columns, values=values, dense=dense)
    return dense.new_empty((shape[0], dense.shape[1]))


@torch.library.register_fake("lowbit::int8_linear", lib=_library)
def _(x: Tensor, bias: Tensor | None, threshold: float, *weight: Any) -> Tensor:
    _together(**_of_weight(weight), x=x, bias=bias)
    return x.new_empty((*x.shape[:-1], PackedWeight(*weight).shape[0]))


@torch.library.register_fake("lowbit::int8_matmul", lib=_library)
def _(a: Tensor, b: Tensor) -> Tensor:
    _together(a=a, b=b)
    return a.new_empty((*a.shape[:-1], b.shape[0]), dtype=torch.int32)


@torch.library.register_fake("lowbit::int8_rescale", lib=_library)
def _(
    sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    _together(sums=sums, rows=rows, columns=columns, bias=bias)
    return sums.new_empty(sums.shape, dtype=dtype)


def _keep_weight(ctx: Any, weight: tuple[Any, ...]) -> None:
    w = PackedWeight(*weight)
    ctx.save_for_backward(*w[:WEIGHT_TENSORS])
    ctx.rest = w[WEIGHT_TENSORS:]


def _kept_weight(ctx: Any) -> PackedWeight:
    return PackedWeight(*ctx.saved_tensors, *ctx.rest)


def _linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _keep_weight(ctx, inputs[2:])


def _linear_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    needs_x, needs_bias = ctx.needs_input_grad[:2]
    dx = linear_transposed(dy, *_kept_weight(ctx)) if needs_x else None
    dbias = dy.reshape(-1, dy.shape[-1]).sum(0) if needs_bias else None
    return dx, dbias, *[None] * _WEIGHT_LEN


def _transposed_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _keep_weight(ctx, inputs[1:])


def _transposed_backward(ctx: Any, ddx: Tensor) -> tuple[Any, ...]:
    return linear(ddx, None, *_kept_weight(ctx)), *[None] * _WEIGHT_LEN


torch.library.register_autograd(
    "lowbit::linear", _linear_backward, setup_context=_linear_context, lib=_library
)
torch.library.register_autograd(
    "lowbit::linear_transposed",
    _transposed_backward,
    setup_context=_transposed_context,
    lib=_library,
)


def _int8_linear_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _keep_weight(ctx, inputs[3:])


def _int8_linear_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    # Rounding is passed straight through: the gradient is that of the weight as it is restored.
    dx, dbias, *rest = _linear_backward(ctx, dy)
    return dx, dbias, None, *rest


def _sparse_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.shape, *tensors, ctx.scale, dense = inputs
    ctx.save_for_backward(*tensors, dense)


def _sparse_backward(ctx: Any, dy: Tensor) -> tuple[Any, ...]:
    rows, columns, values, dense = ctx.saved_tensors
    dvalues = ddense = None
    if ctx.needs_input_grad[3]:
        dvalues = (dy[rows.long()].float() * dense[columns.long()].float()).sum(1).to(values.dtype)
    if ctx.needs_input_grad[5]:
        transposed = ctx.shape[::-1]
        ddense = sparse_matmul(transposed, columns, rows, values, ctx.scale, dy.to(dense.dtype))
    return None, None, None, dvalues, None, ddense


torch.library.register_autograd(
    "lowbit::int8_linear",
    _int8_linear_backward,
    setup_context=_int8_linear_context,
    lib=_library,
)
torch.library.register_autograd(
    "lowbit::sparse_matmul", _sparse_backward, setup_context=_sparse_context, lib=_library
)
