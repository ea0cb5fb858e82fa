"""The operations on "mps": the kernels of the Rust crate as Metal text, compiled by torch.

Rust plans an operation as it does for any GPU: which kernels run, with which parameters, on which
buffers. Here a plan meets tensors. `torch.mps.compile_shader` compiles each text once, and runs it
in order with torch's own work. It binds argument `i` to buffer `i`, a tensor from its storage
offset on and without regard to strides, and counts threads, not groups.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lowbit import _native, formats, rules
from lowbit.backends import NESTED_BLOCK_SIZE, PackedWeight
from lowbit.backends import rows as rows_of_table
from lowbit.backends.checks import (
    check_bias,
    check_f32,
    check_int8_factors,
    dtype_name,
    has_half_scales,
    rows_and_columns,
)
from lowbit.backends.dense import sparse_matmul
from lowbit.rules import Settings

__all__ = [
    "dequantize",
    "double_quantize",
    "embedding",
    "int8_linear",
    "int8_matmul",
    "int8_rescale",
    "linear",
    "linear_transposed",
    "optimizer_update",
    "quantize",
    "sparse_matmul",
    "update_norm",
]

_ALIGNMENT = 16
"""Bytes: where a buffer may begin, for kernels that read vectors of four words."""
_E8M0_NAN = 255
_EXPONENT = 2**23
"""The lowest bit of the exponent of an f32."""

Moments = Sequence[tuple[Tensor, Tensor | None]]

_kernels: dict[str, Any] = {}


def quantize(w: Tensor, format: str, block_size: int) -> tuple[Tensor, Tensor]:
    """`lowbit::quantize`. Waits for the device, to refuse what is not finite."""
    entry = formats.by_name(format)
    g = entry.geometry(w.shape, block_size)
    plan = _plan("quantize", w.device, format, dtype_name(w, "w"), tuple(w.shape), g.block_size)
    scale_dtype = torch.int32 if entry.scales_are_bytes else torch.float32
    codes, scales = plan.run(
        {"w": w},
        Result(torch.uint8, [g.code_bytes]),
        Result(scale_dtype, [g.blocks]),
    )
    fit = scales != _E8M0_NAN if entry.scales_are_bytes else scales.isfinite()
    if not fit.all():
        index = int(w.flatten().isfinite().logical_not().nonzero()[0])
        raise ValueError(
            f"quantize: expected finite values, got {w.flatten()[index].item()} at index {index}; "
            "repair the tensor or leave it unquantized"
        )
    if entry.scales_are_means:
        # At most the largest that f16 stores, not infinity.
        scales = scales.clamp(max=torch.finfo(torch.float16).max)
    return codes, scales.to(entry.scale_dtype)


def double_quantize(scales: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """`lowbit::double_quantize`."""
    check_f32(scales, "scales")
    offset = scales.new_zeros(())
    if scales.numel():
        # The mean of f64 numbers, which this device has not.
        offset = scales.cpu().double().mean().float().to(scales.device)
    codes, absmax = quantize((scales - offset).flatten(), formats.NESTED, NESTED_BLOCK_SIZE)
    return codes, absmax, offset


def dequantize(dtype: torch.dtype, *weight: Any) -> Tensor:
    """`lowbit::dequantize`."""
    w = PackedWeight(*weight)
    name = dtype_name(torch.empty(0, dtype=dtype), "dtype")
    plan = _plan("dequantize", w.codes.device, _description(w), name)
    (out,) = plan.run(_parts(w), Result(dtype, w.shape))
    return out


def linear(x: Tensor, bias: Tensor | None, *weight: Any) -> Tensor:
    """`lowbit::linear`."""
    w = PackedWeight(*weight)
    n, k = rows_and_columns(w)
    inputs = {"x": _last_is(x, k, "x")}
    if bias is not None:
        check_bias(bias, x)
        inputs["bias"] = bias
    rows = x.shape[:-1]
    return _multiply("linear", inputs, w, [*rows, n], math.prod(rows), bias is not None)


def linear_transposed(dy: Tensor, *weight: Any) -> Tensor:
    """`lowbit::linear_transposed`."""
    w = PackedWeight(*weight)
    n, k = rows_and_columns(w)
    rows = dy.shape[:-1]
    inputs = {"dy": _last_is(dy, n, "dy")}
    return _multiply("linear_transposed", inputs, w, [*rows, k], math.prod(rows))


def embedding(ids: Tensor, dtype: torch.dtype, *weight: Any) -> Tensor:
    """`lowbit::embedding`."""
    return rows_of_table.embedding(dequantize, ids, dtype, *weight)


def int8_matmul(a: Tensor, b: Tensor) -> Tensor:
    """`lowbit::int8_matmul`."""
    check_int8_factors(a, b)
    rows, (n, k) = a.shape[:-1], b.shape
    plan = _plan("int8_matmul", a.device, math.prod(rows), n, k)
    (sums,) = plan.run({"a": a, "b": b}, Result(torch.int32, [*rows, n]))
    return sums


def int8_rescale(
    sums: Tensor, rows: Tensor, columns: Tensor, bias: Tensor | None, dtype: torch.dtype
) -> Tensor:
    """`lowbit::int8_rescale`."""
    if sums.dtype is not torch.int32:
        raise TypeError(f"sums: expected torch.int32, got {sums.dtype}")
    check_f32(rows, "rows")
    check_f32(columns, "columns")
    inputs = {"sums": sums, "rows": rows, "columns": columns}
    if bias is not None:
        inputs["bias"] = bias.to(dtype)
    name = dtype_name(torch.empty(0, dtype=dtype), "dtype")
    key = name, rows.numel(), columns.numel(), bias is not None
    (out,) = _plan("int8_rescale", sums.device, *key).run(inputs, Result(dtype, sums.shape))
    return out


def int8_linear(x: Tensor, bias: Tensor | None, threshold: float, *weight: Any) -> Tensor:
    """`lowbit::int8_linear`. Which columns hold outliers stays on the device."""
    w = PackedWeight(*weight)
    n, k = rows_and_columns(w)
    inputs = {"x": _last_is(x, k, "x")}
    if bias is not None:
        inputs["bias"] = bias.to(x.dtype)
    rows = x.shape[:-1]
    key = math.prod(rows), bias is not None, float(threshold)
    return _multiply("int8_linear", inputs, w, [*rows, n], *key)


def optimizer_update(
    rule: str,
    settings: Settings,
    step: int,
    p: Tensor,
    g: Tensor,
    moments: Moments,
) -> None:
    """`lowbit.backends.cpu.optimizer_update`: one kernel; three where the norm is limited."""
    is_limited = settings.max_update_norm > 0.0
    given = _StepArguments(rule, p, g, moments)
    plan = _plan("optimizer_update", p.device, *given.key, is_limited)
    params = _native.optimizer_params(rule, settings, step, *given.key[1:], False)
    # A kernel writes whole words: what does not begin with one is written by way of a copy.
    bound = {
        name: t if t is g else _bindable(t, p.device, name) for name, t in given.tensors.items()
    }
    plan.run(bound, params=params)
    for name, t in given.tensors.items():
        if bound[name] is not t:
            t.copy_(bound[name])


def update_norm(
    rule: str,
    settings: Settings,
    step: int,
    p: Tensor,
    g: Tensor,
    moments: Moments,
) -> Tensor:
    """`lowbit.backends.steps.update_norm`."""
    given = _StepArguments(rule, p, g, moments)
    plan = _plan("optimizer_norm", p.device, *given.key)
    params = _native.optimizer_params(rule, settings, step, *given.key[1:], True)
    (norm,) = plan.run(given.tensors, Result(torch.float32, []), params=params)
    return norm


class _StepArguments:
    """The tensors of a step, under the names that a plan has for them, and what it depends on."""

    def __init__(self, rule: str, p: Tensor, g: Tensor, moments: Moments):
        dtype = dtype_name(p, "p")
        if g.dtype is not p.dtype:
            raise TypeError(f"g: expected the dtype of p, {p.dtype}, got {g.dtype}")
        count = len(rules.by_name(rule).moments)
        if len(moments) != count:
            raise ValueError(f"moments: expected {count} for {rule}, got {len(moments)}")
        in_codes = moments[0][1] is not None
        self.key = rule, dtype, p.numel(), in_codes
        self.tensors = {"p": p, "g": g}
        for i, (moment, absmax) in enumerate(moments):
            if (absmax is not None) != in_codes:
                raise ValueError("moments: expected them of one width, got f32 and 8-bit ones")
            stored = torch.float32 if absmax is None else torch.uint8
            if moment.dtype is not stored:
                raise TypeError(f"state: expected {stored}, got {moment.dtype}")
            if absmax is None:
                self.tensors[f"numbers_{i}"] = moment
            else:
                check_f32(absmax, "absmax")
                self.tensors |= {f"codes_{i}": moment, f"absmax_{i}": absmax}


def _multiply(
    operation: str, inputs: dict[str, Tensor], w: PackedWeight, shape: Sequence[int], *key: Any
) -> Tensor:
    name, x = next(iter(inputs.items()))
    plan = _plan(operation, x.device, _description(w), dtype_name(x, name), *key)
    powers = _powers(w) if plan.needs_powers else None
    (out,) = plan.run(inputs | _parts(w), Result(x.dtype, shape), powers=powers)
    return out


class Result(NamedTuple):
    """What a plan's result is to be."""

    dtype: torch.dtype
    shape: Sequence[int]


class Plan:
    """An operation on tensors of one shape on one device: kernels, and buffers between them."""

    def __init__(self, native: _native.Plan, device: torch.device):
        self._device = device
        self._buffers = native["buffers"]
        self._results = native["results"]
        self._constants = {
            i: _to_device(buffer["content"], device)
            for i, buffer in enumerate(self._buffers)
            if buffer["content"] is not None
        }
        self._steps = [
            (_kernel(step), step, torch.tensor(step["params"], dtype=torch.int32, device=device))
            for step in native["steps"]
        ]
        self.needs_powers = any(step["powers"] is not None for step in native["steps"])

    def run(
        self,
        inputs: Mapping[str, Tensor],
        *results: Result,
        powers: Tensor | None = None,
        params: Sequence[Sequence[int]] | None = None,
    ) -> list[Tensor]:
        """Queue the kernels; the results' content is there once they have run.

        Args:
            inputs: the plan's, by name.
            results: what the plan's are to be.
            powers: what `_powers` found, for a plan that needs it.
            params: other parameters of each kernel than the plan's. They go with the call, so that
                nothing waits for them.
        """
        dtypes = {i: result.dtype for i, result in zip(self._results, results, strict=True)}
        buffers = [
            self._buffer(i, buffer, inputs, dtypes.get(i, torch.uint8))
            for i, buffer in enumerate(self._buffers)
        ]
        for i, (kernel, step, own) in enumerate(self._steps):
            size: dict[str, Any] = {"threads": step["threads"], "group_size": step["group"]}
            if params is not None:
                given = [params[i] if j is None else buffers[j] for j in step["arguments"]]
                kernel(*given, **size, arg_casts={step["arguments"].index(None): "int32"})
                continue
            places = step["powers"]
            if places is not None:
                if powers is None:
                    raise RuntimeError(
                        f"{step['name']}: expected powers for a plan that needs them"
                    )
                own = own.clone()
                own[places[0]], own[places[1]] = powers[0], powers[1]
            kernel(*(own if j is None else buffers[j] for j in step["arguments"]), **size)
        made = (buffers[i] for i in self._results)
        return [
            t[: math.prod(result.shape)].view(list(result.shape))
            for t, result in zip(made, results, strict=True)
        ]

    def _buffer(
        self, i: int, buffer: _native.Content, inputs: Mapping[str, Tensor], dtype: torch.dtype
    ) -> Tensor:
        if i in self._constants:
            return self._constants[i]
        name, size = buffer["name"], buffer["bytes"]
        if name is not None:
            return self._bound(inputs[name], name, size)
        make = torch.zeros if buffer["zeros"] else torch.empty
        rounded = max(-(-size // _ALIGNMENT), 1) * _ALIGNMENT
        return make(rounded // dtype.itemsize, dtype=dtype, device=self._device)

    def _bound(self, t: Tensor, name: str, size: int) -> Tensor:
        """The tensor as a kernel may see it."""
        t = _bindable(t, self._device, name)
        if t.nbytes != size and not (name == "codes" and size < t.nbytes < size + 8):
            raise ValueError(f"{name}: expected {size} bytes, got {t.nbytes} in {list(t.shape)}")
        if size == 0:
            return torch.zeros(_ALIGNMENT, dtype=torch.uint8, device=self._device)
        return t


def _bindable(t: Tensor, device: torch.device, name: str) -> Tensor:
    """The tensor whole, in order, and aligned: itself, if it is so."""
    if t.device != device:
        raise ValueError(
            f"{name}: expected a tensor on {device}, got one on {t.device}; move it there"
        )
    if t.requires_grad:
        t = t.detach()
    t = t.contiguous()
    return t.clone() if t.storage_offset() * t.itemsize % _ALIGNMENT else t


@lru_cache(maxsize=1024)
def _plan(operation: str, device: torch.device, *key: Any) -> Plan:
    return Plan(getattr(_native, f"plan_{operation}")(*key), device)


def _kernel(step: _native.Step) -> Any:
    """The compiled kernel of a step: its name says all that its text depends on."""
    name = step["name"]
    if name not in _kernels:
        _kernels[name] = getattr(torch.mps.compile_shader(step["source"]), step["entry"])
    return _kernels[name]


def _to_device(content: bytes, device: torch.device) -> Tensor:
    padded = bytearray(content.ljust(_ALIGNMENT, b"\0"))
    return torch.frombuffer(padded, dtype=torch.uint8).to(device, copy=True)


def _last_is(t: Tensor, length: int, name: str) -> Tensor:
    if t.dim() == 0 or t.shape[-1] != length:
        raise ValueError(f"{name}: expected [.., {length}], got {list(t.shape)}")
    return t


def _description(w: PackedWeight) -> _native.Description:
    """What a plan depends on."""
    nested = w.nested_block_size if w.nested_absmax is not None else None
    own = (w.codebook is not None, has_half_scales(w), w.means is not None)
    return w.format, tuple(w.shape), w.block_size, nested, own


def _parts(w: PackedWeight) -> dict[str, Tensor]:
    """A weight's tensors under the names that a plan has for them."""
    parts = {"codes": w.codes, "scales": w.scales}
    if w.nested_absmax is not None:
        if w.nested_map is None or w.nested_offset is None:
            raise ValueError(
                "nested_map, nested_offset: expected both with nested_absmax, got None"
            )
        check_f32(w.nested_absmax, "nested_absmax")
        check_f32(w.nested_map, "nested_map")
        check_f32(w.nested_offset, "nested_offset")
        absmax = w.nested_absmax.flatten()
        offset = w.nested_offset.reshape(1).expand(absmax.shape)
        parts["nested_absmax"] = torch.stack([absmax, offset], dim=1)
        parts["nested_map"] = w.nested_map
    elif not formats.by_name(w.format).scales_are_bytes and not has_half_scales(w):
        check_f32(w.scales, "scales")
    for name, part in (("codebook", w.codebook), ("means", w.means)):
        if part is not None:
            check_f32(part, name)
            parts[name] = part
    return parts


def _powers(w: PackedWeight) -> Tensor:
    """Bits of the power of two that brings the largest weight to about 1..2, and of its inverse.

    They are worked out on the device, from above, so that nothing waits.
    """
    entry = formats.by_name(w.format)
    if w.nested_absmax is not None and w.nested_map is not None and w.nested_offset is not None:
        scale = w.nested_absmax.amax() * w.nested_map.abs().amax() + w.nested_offset.abs().sum()
    elif entry.scales_are_bytes:
        scale = torch.exp2(w.scales.to(torch.int32).amax().float() - 127.0)
    else:
        scale = w.scales.abs().amax().float()
    if w.codebook is not None:
        scale = scale * w.codebook.abs().amax()
    else:
        scale = scale * max(abs(v) for v in entry.codebook or (1.0,) if math.isfinite(v))
    largest = scale * abs(entry.unit)
    if w.means is not None:
        largest = largest + w.means.abs().amax()
    exponent = (largest.view(torch.int32) // _EXPONENT).clamp(1, 253)
    return torch.stack([(254 - exponent) * _EXPONENT, exponent * _EXPONENT])
