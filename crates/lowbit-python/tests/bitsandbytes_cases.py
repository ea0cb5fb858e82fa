"""Calls of bitsandbytes' operations, the same in every process."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import bitsandbytes.functional as F
import torch

FLOATS = (torch.float32, torch.float16, torch.bfloat16)
SHAPES = ((64, 64), (33, 96), (7, 61), (5, 1), (1, 129), (3, 1024))


def op(name: str) -> Any:
    operation, _, overload = name.partition(".")
    return getattr(getattr(torch.ops.bitsandbytes, operation), overload or "default")


def cases() -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    """An identifier, the operation, its arguments."""
    torch.manual_seed(7)
    for i, shape in enumerate(SHAPES):
        for j, dtype in enumerate(FLOATS):
            w, name = torch.randn(shape).to(dtype), f"{list(shape)}-{str(dtype)[6:]}"
            quant_type, block_size = ("nf4", "fp4")[(i + j) % 2], (32, 64, 256, 4096)[(i + j) % 4]
            case = f"{quant_type}-{block_size}-{name}"
            yield f"quantize_4bit-{case}", "quantize_4bit", (w, block_size, quant_type, torch.uint8)
            codes, absmax = quantized(w, block_size, quant_type)
            restore = (codes, absmax, block_size, quant_type, list(shape), dtype)
            yield f"dequantize_4bit-{case}", "dequantize_4bit", restore
            yield from products(case, codes, absmax, block_size, quant_type, shape, dtype)
            yield from blockwise(name, w, (64, 256, 100)[i % 3])
            yield from int8(name, w)


def quantized(
    w: torch.Tensor, block_size: int, quant_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """Codes and absmax that do not depend on who quantizes: any bytes are codes."""
    torch.manual_seed(w.numel() + block_size)
    codes = torch.randint(0, 256, (-(-w.numel() // 2), 1), dtype=torch.uint8)
    return codes, torch.rand(-(-w.numel() // block_size)) + 0.5


def products(
    case: str,
    codes: torch.Tensor,
    absmax: torch.Tensor,
    block_size: int,
    quant_type: str,
    shape: tuple[int, int],
    dtype: torch.dtype,
) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    n, k = shape
    code = F.get_4bit_type(quant_type, device="cpu")
    bias = torch.randn(n).to(dtype)
    for rows in ((k,), (1, k), (2, 5, k)):
        x = torch.randn(rows).to(dtype)
        which = f"{case}-{list(rows)}"
        yield f"gemv_4bit-{which}", "gemv_4bit", (x, codes, list(shape), absmax, code, block_size)
        weight = (codes, list(shape), absmax, block_size, quant_type)
        yield f"gemm_4bit-{which}", "gemm_4bit", (x, *weight, bias)
        nested = torch.randint(0, 256, absmax.shape, dtype=torch.uint8)
        top = torch.rand(-(-absmax.numel() // 256))
        again = (nested, F.create_dynamic_map(), torch.tensor(1.5))
        weight = (codes, list(shape), top, block_size, quant_type)
        yield f"gemm_4bit-nested-{which}", "gemm_4bit", (x, *weight, None, *again)


def blockwise(name: str, w: torch.Tensor, size: int) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    for signed in (True, False):
        w = w if signed else w.abs()
        code = F.create_dynamic_map(signed)
        which = f"{size}-{signed}-{name}"
        yield f"quantize_blockwise-{which}", "quantize_blockwise", (w, code, size)
        codes = torch.randint(0, 256, w.shape, dtype=torch.uint8)
        absmax = torch.rand(-(-w.numel() // size))
        restore = (codes, absmax, code, size, w.dtype)
        yield f"dequantize_blockwise-{which}", "dequantize_blockwise", restore
    linear = F.create_linear_map()
    yield f"quantize_blockwise-linear-{name}", "quantize_blockwise", (w, linear, 64)


def int8(name: str, w: torch.Tensor) -> Iterator[tuple[str, str, tuple[Any, ...]]]:
    k = w.shape[1]
    for threshold in (0.0, 2.0):
        which = f"{threshold}-{name}"
        yield f"int8_vectorwise_quant-{which}", "int8_vectorwise_quant", (w, threshold)
    a = torch.randint(-128, 128, (6, k), dtype=torch.int8)
    b = torch.randint(-128, 128, w.shape, dtype=torch.int8)
    rows, columns = torch.rand(6) + 0.1, torch.rand(w.shape[0]) + 0.1
    yield f"int8_vectorwise_dequant-{name}", "int8_vectorwise_dequant", (b, columns)
    yield f"int8_linear_matmul-{name}", "int8_linear_matmul", (a, b)
    sums = torch.randint(-(2**20), 2**20, (6, w.shape[0]), dtype=torch.int32)
    bias = torch.randn(w.shape[0]).to(w.dtype)
    rescale = (sums, rows, columns, w.dtype, bias)
    yield f"int8_mm_dequant-{name}", "int8_mm_dequant", rescale
    yield f"int8_scaled_mm-{name}", "int8_scaled_mm", (a, b, rows, columns, bias, w.dtype)
    x = torch.randn(6, k).to(w.dtype)
    mixed = (x, a, b, rows, columns, torch.tensor([0]), bias)
    yield f"int8_mixed_scaled_mm-{name}", "int8_mixed_scaled_mm", mixed


def results() -> dict[str, tuple[torch.Tensor | None, ...]]:
    answers = {}
    for name, operation, arguments in cases():
        answer = op(operation)(*arguments)
        answers[name] = answer if isinstance(answer, tuple) else (answer,)
    return answers
