"""Our kernels under bitsandbytes' own operations.

`import bitsandbytes` calls `register` (through `lowbit_backend`, an entry point of the group
`bitsandbytes.backends`): code that uses bitsandbytes, transformers or peft runs on our kernels
unchanged. `LOWBIT_BNB_BACKEND` says on which devices: `all` (the default), `cpu`, `mps`, or `off`.

`kernels` makes the functions, one for each operation; what an operation is given is data that
bitsandbytes made, in its layout. Where a value differs from bitsandbytes' own:

- NaN and infinity are refused with a `ValueError` instead of spoiling their block; only rows of
  activations in int8 that have one are NaN, as a product of theirs would be.
- What is not float32, float16 or bfloat16 is computed in float32, as it is there.
- Products of integers are exact for every K, and scaled by 1/127² (6.2000124e-05; bitsandbytes'
  default backend has 6.200124e-05).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from functools import cache
from importlib import import_module
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from lowbit import formats, ops, rules
from lowbit import functional as F
from lowbit.backends import PackedWeight, dense, steps

SWITCH = "LOWBIT_BNB_BACKEND"
LIBRARY = "bitsandbytes"

# What the maps of bitsandbytes' 8-bit blocks are codes of, and its rows of integers.
_BLOCKWISE = [f for f in formats.ALL.values() if f.code_bits == 8 and not f.in_rows]
_ROWS = next(f for f in formats.ALL.values() if f.library is None)
_NIBBLES = {f.name: f for f in formats.ALL.values() if f.library == LIBRARY and f.is_nibbles}


def register() -> None:
    """What `import bitsandbytes` calls. Never raises: that would break the import."""
    from lowbit.integrations import adapter

    with adapter.told_once("lowbit's kernels are not used for bitsandbytes"):
        adapter.check_versions("bitsandbytes", "torch", unless=SWITCH in os.environ)
        for device in devices():
            run = import_module(f"lowbit.backends.{device}")
            adapter.register_kernels(device, kernels(run))
            if device == "cpu":
                adapter.keep_weights_as_stored()
            else:
                adapter.keep_states_on_mps()
        if devices():
            adapter.train_without_dense_weights()


def devices() -> list[str]:
    """The devices for which `LOWBIT_BNB_BACKEND` and this machine want our kernels.

    Raises:
        ValueError: for a value that is not one of its four.
    """
    asked = os.environ.get(SWITCH, "all")
    if asked not in ("all", "cpu", "mps", "off"):
        raise ValueError(f"{SWITCH}: expected all, cpu, mps or off, got {asked!r}")
    here = [device for device in ops.NATIVE if F.is_available(device)]
    return [device for device in here if asked in ("all", device)]


def kernels(run: ModuleType) -> dict[str, Callable[..., Any]]:
    """The operations of bitsandbytes by name, run by a module of `lowbit.backends`."""
    optimizer_update = getattr(run, "optimizer_update", dense.optimizer_update)
    update_norm = getattr(run, "update_norm", steps.update_norm)

    def quantize_4bit(
        A: Tensor, blocksize: int, quant_type: str, quant_storage: torch.dtype
    ) -> tuple[Tensor, Tensor]:
        codes, absmax = run.quantize(known(A).reshape(-1), _nibbles(quant_type), blocksize)
        return _stored_as(codes, quant_storage).unsqueeze(1), absmax

    def dequantize_4bit(
        A: Tensor,
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        shape: Sequence[int],
        dtype: torch.dtype,
    ) -> Tensor:
        weight = _weight(A, absmax, _nibbles(quant_type), shape, blocksize)
        return run.dequantize(known_dtype(dtype), *weight).to(dtype)

    def gemv_4bit(
        A: Tensor, B: Tensor, shapeB: Sequence[int], absmax: Tensor, code: Tensor, blocksize: int
    ) -> Tensor:
        # All of its formats have one layout: `code` says which it is.
        any_of_them = next(iter(_NIBBLES))
        weight = _weight(B, absmax, any_of_them, shapeB, blocksize, code)
        return run.linear(known(A), None, *weight).to(A.dtype)

    def gemm_4bit(
        A: Tensor,
        B: Tensor,
        shapeB: Sequence[int],
        absmax: Tensor,
        blocksize: int,
        quant_type: str,
        bias: Tensor | None = None,
        absmax_8bit: Tensor | None = None,
        absmax_code: Tensor | None = None,
        absmax_offset: Tensor | None = None,
    ) -> Tensor:
        weight = _weight(B, absmax, _nibbles(quant_type), shapeB, blocksize)
        if absmax_8bit is not None:
            weight = weight._replace(
                scales=absmax_8bit,
                nested_absmax=absmax,
                nested_map=absmax_code,
                nested_offset=absmax_offset,
                nested_block_size=256,
            )
        x = known(A)
        return run.linear(x, None if bias is None else bias.to(x.dtype), *weight).to(A.dtype)

    def quantize_blockwise(A: Tensor, code: Tensor, blocksize: int) -> tuple[Tensor, Tensor]:
        name = _name_of_map(code, blocksize)
        if name is None:
            return _quantize_with_map(A, code, blocksize)
        codes, absmax = run.quantize(known(A).reshape(-1), name, blocksize)
        return codes.view(A.shape), absmax

    def dequantize_blockwise(
        A: Tensor, absmax: Tensor, code: Tensor, blocksize: int, dtype: torch.dtype
    ) -> Tensor:
        entry = _BLOCKWISE[0]
        if blocksize not in entry.block_sizes or code.numel() != 256:
            return _dequantize_with_map(A, absmax, code, blocksize, dtype)
        weight = _weight(A, absmax, entry.name, [A.numel()], blocksize, code)
        return _shaped(run.dequantize(known_dtype(dtype), *weight).to(dtype), A.shape)

    def int8_vectorwise_quant(
        A: Tensor, threshold: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor | None]:
        rows, columns = known(A).reshape(A.shape[:-1].numel(), A.shape[-1]), None
        if threshold > 0.0:
            outliers = rows.abs() >= threshold
            columns = outliers.any(0).nonzero().view(-1)
            rows = rows.masked_fill(outliers, 0.0) if columns.numel() else rows
        try:
            codes, absmax = run.quantize(rows, _ROWS.name, max(rows.shape[1], 1))
        except ValueError:
            spoilt = ~rows.isfinite().all(1)
            if not spoilt.any():
                raise
            rows = rows.masked_fill(spoilt[:, None], 0.0)
            codes, absmax = run.quantize(rows, _ROWS.name, rows.shape[1])
            absmax[spoilt] = torch.nan
        codes = codes.view(torch.int8).view(rows.shape)
        if columns is not None and columns.numel():
            codes[:, columns] = 0
        return codes.view(A.shape), absmax, columns

    def int8_vectorwise_dequant(A: Tensor, stats: Tensor) -> Tensor:
        rows = A.reshape(A.shape[:-1].numel(), A.shape[-1])
        k = max(rows.shape[1], 1)
        weight = _weight(rows, stats.reshape(-1), _ROWS.name, rows.shape, k)
        return _shaped(run.dequantize(torch.float32, *weight), A.shape)

    def int8_double_quant(
        A: Tensor, threshold: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None]:
        by_row, row_stats, columns = int8_vectorwise_quant(A, threshold)
        kept = A.reshape(A.shape[:-1].numel(), A.shape[-1])
        if threshold > 0.0:
            kept = kept.masked_fill(kept.abs() >= threshold, 0.0)
        by_column, column_stats, _ = int8_vectorwise_quant(kept.t().contiguous())
        return by_row, by_column.t().contiguous().view(A.shape), row_stats, column_stats, columns

    def int8_linear_matmul(A: Tensor, B: Tensor) -> Tensor:
        return run.int8_matmul(A, B)

    def int8_mm_dequant(
        A: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        dtype: torch.dtype | None = None,
        bias: Tensor | None = None,
    ) -> Tensor:
        dtype = dtype or torch.float16
        return run.int8_rescale(A, row_stats, col_stats, bias, known_dtype(dtype)).to(dtype)

    def int8_scaled_mm(
        A: Tensor,
        B: Tensor,
        row_stats: Tensor,
        col_stats: Tensor,
        bias: Tensor | None = None,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        # Through the dispatcher: on some processors bitsandbytes' own product is kept.
        sums = torch.ops.bitsandbytes.int8_linear_matmul.default(A, B)
        return int8_mm_dequant(sums, row_stats, col_stats, dtype, bias)

    def optimizer_update_32bit(
        optimizer_name: str,
        g: Tensor,
        p: Tensor,
        state1: Tensor,
        state2: Tensor | None,
        unorm_vec: Tensor | None,
        max_unorm: float,
        param_norm: float,
        *numbers: Any,
        **named: Any,
    ) -> None:
        settings, step, skip_zeros = _optimizer_settings(
            optimizer_name, _NUMBERS_32, numbers, named
        )
        settings = settings._replace(max_update_norm=max_unorm)
        states = [(state1, None), (state2, None)]
        run = steps.skipping_zeros(optimizer_update) if skip_zeros else optimizer_update
        _take_step(run, optimizer_name, settings, step, p, g, states, unorm_vec, update_norm)

    def optimizer_update_8bit_blockwise(
        optimizer_name: str,
        g: Tensor,
        p: Tensor,
        state1: Tensor,
        state2: Tensor | None,
        *numbers: Any,
        **named: Any,
    ) -> None:
        given = dict(zip(_NUMBERS_8, numbers, strict=False)) | named
        maps = given.pop("qmap1"), given.pop("qmap2")
        absmax = given.pop("absmax1"), given.pop("absmax2")
        moments = rules.by_name(optimizer_name).moments
        for moment, qmap in zip((moments[0], moments[-1]), maps, strict=True):
            if qmap is not None and _name_of_map(qmap, 256) != moment:
                raise ValueError("qmap: expected bitsandbytes' dynamic map, got another one")
        settings, step, _ = _optimizer_settings(optimizer_name, (), (), given)
        states = [(state1, absmax[0]), (state2, absmax[1])]
        # `skip_zeros` changes nothing about states of 8 bits, as in bitsandbytes' CUDA kernels.
        _take_step(optimizer_update, optimizer_name, settings, step, p, g, states)

    made: list[Callable[..., Any]] = [
        quantize_4bit,
        dequantize_4bit,
        gemv_4bit,
        gemm_4bit,
        quantize_blockwise,
        dequantize_blockwise,
        int8_vectorwise_quant,
        int8_vectorwise_dequant,
        int8_double_quant,
        optimizer_update_32bit,
        optimizer_update_8bit_blockwise,
    ]
    if hasattr(run, "int8_matmul"):
        made += [int8_linear_matmul, int8_mm_dequant, int8_scaled_mm]
    named = {kernel.__name__: kernel for kernel in made}
    for name in ("dequantize_4bit", "gemv_4bit", "dequantize_blockwise", "int8_linear_matmul"):
        if name in named:
            named[f"{name}.out"] = _writing_to_out(named[name])
    return named


# The arguments of bitsandbytes' optimizer steps after the tensors that every step has.
_SHARED = ("beta1", "beta2", "beta3", "alpha", "eps")
_LAST = ("gnorm_scale", "skip_zeros")
_NUMBERS_32 = (*_SHARED, "weight_decay", "step", "lr", *_LAST)
_MAPS = ("qmap1", "qmap2", "absmax1", "absmax2")
_NUMBERS_8 = (*_SHARED, "step", "lr", *_MAPS, "weight_decay", *_LAST)


def _optimizer_settings(
    name: str, names: Sequence[str], numbers: Sequence[Any], named: dict[str, Any]
) -> tuple[rules.Settings, int, bool]:
    given = dict(zip(names, numbers, strict=False)) | named
    skip_zeros = given.pop("skip_zeros", False)
    step, scale = given.pop("step"), given.pop("gnorm_scale", 1.0)
    if rules.by_name(name).decays_gradient:
        given["beta2"] = 0.0  # A dampening, which bitsandbytes does not use.
    return rules.Settings(**given, grad_scale=scale), step, skip_zeros


def _take_step(
    optimizer_update: Callable[..., None],
    name: str,
    settings: rules.Settings,
    step: int,
    p: Tensor,
    g: Tensor,
    states: Sequence[tuple[Tensor | None, Tensor | None]],
    unorm_vec: Tensor | None = None,
    update_norm: Callable[..., Tensor] = steps.update_norm,
) -> None:
    rule = rules.by_name(name)
    moments = []
    for (state, absmax), (first, last) in zip(states, rules.places(rule), strict=False):
        if state is None or state.numel() != (last - first) * p.numel():
            got = "none" if state is None else list(state.shape)
            raise ValueError(
                f"state: expected {last - first} of {list(p.shape)} for {name}, got {got}; for "
                "bitsandbytes' AdEMAMix32bit, which makes too small a one, use AdEMAMix"
            )
        parts = state.view(last - first, p.numel())
        scales = None if absmax is None else absmax.view(last - first, -1)
        moments += [(parts[i], None if scales is None else scales[i]) for i in range(len(parts))]
    whole, p = p, known(p.detach())
    flat = p.view(-1), g.detach().to(p.dtype).contiguous().view(-1)
    if unorm_vec is not None and settings.max_update_norm > 0.0:
        unorm_vec.fill_(update_norm(rule.name, settings, step, *flat, moments))
    optimizer_update(rule.name, settings, step, *flat, moments)
    if whole.dtype is not p.dtype:
        whole.data.copy_(p)


def known(t: Tensor) -> Tensor:
    """A tensor in a dtype that kernels have: bitsandbytes computes others in float32, too."""
    return t if t.dtype in F.FLOATS else t.float()


def known_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which a result is computed that is to have another one."""
    return dtype if dtype in F.FLOATS else torch.float32


def _writing_to_out(kernel: Callable[..., Tensor]) -> Callable[..., None]:
    def with_out(*arguments: Any) -> None:
        *given, out = arguments
        result = kernel(*given)
        if out.shape != result.shape or out.dtype != result.dtype:
            raise ValueError(
                f"out: expected {result.dtype} of shape {list(result.shape)}, "
                f"got {out.dtype} of shape {list(out.shape)}"
            )
        out.copy_(result)

    return with_out


def _shaped(made: Tensor, shape: torch.Size) -> Tensor:
    """Numbers that nothing else holds, in that shape.

    Not a view of them: where an argument requires a gradient, autograd takes what a kernel returns
    for a leaf that does, and a view of such a leaf refuses `+=`, which bitsandbytes does to
    restored absmax.
    """
    return torch.ops.aten._unsafe_view.default(made, shape)


def _nibbles(quant_type: str) -> str:
    if quant_type not in _NIBBLES:
        raise ValueError(f"quant_type: expected one of {list(_NIBBLES)}, got {quant_type!r}")
    return quant_type


def _weight(
    codes: Tensor,
    absmax: Tensor,
    name: str,
    shape: Sequence[int],
    block_size: int,
    code: Tensor | None = None,
) -> PackedWeight:
    """A weight as bitsandbytes passes it: absmax may have 16 bits, codes may be too long."""
    if absmax.dim() == 2 and absmax.dtype is torch.bfloat16:
        raise ValueError(
            "absmax: expected one number a block, got those of a weight that bitsandbytes has "
            "repacked for AVX512-BF16; run or save its layer, which turns it back"
        )
    scales = absmax if absmax.dtype is torch.float32 else absmax.float()
    codes = codes.contiguous()
    needed = formats.by_name(name).geometry(shape, block_size).code_bytes
    if codes.nbytes > needed:
        codes = codes.view(-1).view(torch.uint8)[:needed]
    return PackedWeight(
        codes, scales.contiguous(), None, None, None, code, None, name, shape, block_size, 0
    )


def _stored_as(codes: Tensor, storage: torch.dtype) -> Tensor:
    if codes.numel() % storage.itemsize:
        raise ValueError(
            f"quant_storage: expected a dtype whose {storage.itemsize} bytes divide the "
            f"{codes.numel()} bytes of codes, got {storage}; use torch.uint8"
        )
    return codes.view(storage)


def _name_of_map(code: Tensor, block_size: int) -> str | None:
    """The format whose values `code` holds, if it has blocks of that size."""
    for entry in _BLOCKWISE:
        fits = block_size in entry.block_sizes and code.shape == (256,)
        if fits and torch.equal(code, _map_of(entry.name, code.device)):
            return entry.name
    return None


@cache
def _map_of(name: str, device: torch.device) -> Tensor:
    return torch.tensor(formats.by_name(name).codebook, dtype=torch.float32, device=device)


def _quantize_with_map(A: Tensor, code: Tensor, block_size: int) -> tuple[Tensor, Tensor]:
    """Any ascending map and block size, in torch: the nearest value, a tie to the lower code."""
    blocks = _in_blocks(A.float(), block_size)
    absmax = blocks.abs().amax(1)
    scaled = (blocks / absmax.clamp(min=torch.finfo(torch.float32).tiny)[:, None]).view(-1)
    middles = (code[1:] + code[:-1]) / 2
    codes = torch.bucketize(scaled[: A.numel()], middles).to(torch.uint8)
    return codes.view(A.shape), absmax


def _dequantize_with_map(
    A: Tensor, absmax: Tensor, code: Tensor, block_size: int, dtype: torch.dtype
) -> Tensor:
    """The inverse of `_quantize_with_map`."""
    values = _in_blocks(code[A.long()], block_size) * absmax[:, None]
    return _shaped(values.view(-1)[: A.numel()].to(dtype), A.shape)


def _in_blocks(t: Tensor, block_size: int) -> Tensor:
    flat = t.reshape(-1)
    return torch.nn.functional.pad(flat, (0, -flat.numel() % block_size)).view(-1, block_size)
