"""`python -m lowbit.check`: hold every kernel on this machine to the reference, and time some.

    python -m lowbit.check [--device cpu] [--full] [--out lowbit-check.json]

Needs nothing but the installed package. It prints a summary, and writes one file with all of it,
the versions and the machine, to be sent back. The exit status is 1 if anything differs.

On the CPU the reference is the scalar one of the Rust crate, for each instruction set. On every
device the operations are also compared with torch's own on dequantized weights, on the CPU in f32.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import json
import platform
import statistics
import sys
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lowbit import _native, formats, ops, rules
from lowbit import functional as F
from lowbit.backends import PackedWeight, dense, dense_optim
from lowbit.formats import Format
from lowbit.optim import optimizer

SHAPES = ((16, 256), (33, 96), (7, 61), (3, 1024))
ROWS = (1, 5, 33)
LIBRARIES = ("torch", "transformers", "peft", "accelerate", "bitsandbytes")
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
"""Largest error over the largest value."""
BENCH_SHAPE = (4096, 4096)


@dataclass
class Result:
    """One comparison."""

    name: str
    """Operation, format, sizes and dtype."""
    error: float
    """Its measure of what differs; infinite where the operation failed."""
    limit: float
    """What it may be."""
    note: str = ""
    """What the operation said when it failed."""

    @property
    def ok(self) -> bool:
        """Whether it is within the limit."""
        return self.error <= self.limit


def compare(device: str) -> Iterator[Result]:
    """Compare every operation with torch's own, for each format, shape and dtype in turn."""
    torch.manual_seed(0)
    dtypes = list(LIMITS)
    for entry in formats.ALL.values():
        for i, shape in enumerate(SHAPES):
            yield from _of_a_weight(entry, shape, dtypes[i % 3], ROWS[i % len(ROWS)], device)
    yield from _of_integers(device)
    yield from _of_sparse_matrices(device)
    yield from _of_optimizers(device)


def _of_a_weight(
    entry: Format, shape: tuple[int, int], dtype: torch.dtype, rows: int, device: str
) -> Iterator[Result]:
    case = f"{entry.name} {list(shape)} {str(dtype).removeprefix('torch.')}"
    shape = (-(-shape[0] // entry.stacked_rows) * entry.stacked_rows, shape[1])
    size = entry.geometry(shape).block_size
    w = torch.randn(shape).to(dtype)
    if entry.encoder is None:
        weight = _any_weight(entry, shape, size)
    else:
        codes, scales = dense.quantize(w, entry.name, size)
        made = _try(ops.quantize, w.to(device), entry.name, size)
        differing = codes.numel() // 1000  # Within an ulp of a threshold.
        yield _result(f"quantize {case}", made, (codes, scales), _differing, differing)
        weight = PackedWeight(
            codes, scales, None, None, None, None, None, entry.name, shape, size, 0
        )
    yield from _products(case, weight, dtype, rows, device)
    if entry.can_double_quantize:
        nested = dense.double_quantize(weight.scales)
        made = _try(ops.double_quantize, weight.scales.to(device))
        yield _result(f"double_quantize {case}", made, nested, _differing, 1 + shape[0] // 100)
        book = F.dynamic_map()
        weight = weight._replace(
            scales=nested[0],
            nested_absmax=nested[1],
            nested_map=book,
            nested_offset=nested[2],
            nested_block_size=F.NESTED_BLOCK_SIZE,
        )
        yield from _products(f"nested {case}", weight, dtype, rows, device)


def _products(
    case: str, weight: PackedWeight, dtype: torch.dtype, rows: int, device: str
) -> Iterator[Result]:
    n, k = weight.shape
    there = [part.to(device) if isinstance(part, Tensor) else part for part in weight]
    full = dense.dequantize(torch.float32, *weight)
    restored = _try(ops.dequantize, dtype, *there)
    # One rounding to the dtype, at most.
    yield _result(f"dequantize {case}", restored, full, _relative, torch.finfo(dtype).eps)
    x, dy = torch.randn(rows, k).to(dtype), torch.randn(rows, n).to(dtype)
    bias = torch.randn(n).to(dtype)
    y = _try(ops.linear, x.to(device), bias.to(device), *there)
    expected = x.float() @ full.t() + bias.float()
    yield _result(f"linear {rows} {case}", y, expected, _relative, LIMITS[dtype])
    dx = _try(ops.linear_transposed, dy.to(device), *there)
    expected = dy.float() @ full
    yield _result(f"linear_transposed {rows} {case}", dx, expected, _relative, LIMITS[dtype])
    ids = torch.randint(0, n, (rows,))
    looked_up = _try(ops.embedding, ids.to(device), dtype, *there)
    yield _result(f"embedding {case}", looked_up, full[ids], _relative, torch.finfo(dtype).eps)


def _of_integers(device: str) -> Iterator[Result]:
    for m, n, k in ((1, 16, 64), (5, 33, 257), (33, 7, 2048)):
        a, b = (torch.randint(-128, 128, (rows, k), dtype=torch.int8) for rows in (m, n))
        sums = (a.long() @ b.t().long()).int()
        made = _try(ops.int8_matmul, a.to(device), b.to(device))
        yield _result(f"int8_matmul {[m, n, k]}", made, sums, _differing, 0)
        scales = torch.rand(m), torch.rand(n)
        expected = sums.float() * scales[0][:, None] * scales[1] / 127**2
        there = [t.to(device) for t in (sums, *scales)]
        made = _try(ops.int8_rescale, *there, None, torch.float32)
        yield _result(f"int8_rescale {[m, n]}", made, expected, _relative, 1e-6)

    for threshold in (0.0, 2.5):
        x, bias = torch.randn(5, 96), torch.randn(33)
        codes, absmax = dense.quantize(torch.randn(33, 96), "int8", 96)
        rest = None, None, None, None, None, "int8", (33, 96), 96, 0
        y = dense.int8_linear(x, bias, threshold, codes, absmax, *rest)
        here = [t.to(device) for t in (x, bias, codes, absmax)]
        made = _try(ops.int8_linear, *here[:2], threshold, *here[2:], *rest)
        # A code of an activation in the middle between two may tip.
        yield _result(f"int8_linear threshold {threshold}", made, y, _relative, 2e-3)


def _of_sparse_matrices(device: str) -> Iterator[Result]:
    rows, columns = torch.tensor([0, 3, 0, 3, 2]), torch.tensor([1, 0, 1, 4, 2])
    for dtype, limit in LIMITS.items():
        x = torch.randn(5, 33).to(dtype)
        for scale in (None, 0.25):
            values = torch.randn(5).to(dtype) if scale is None else torch.arange(-2, 3).char()
            full = torch.zeros(4, 5)
            full.index_put_((rows, columns), values.float() * (scale or 1.0), accumulate=True)
            there = [t.to(device) for t in (rows, columns, values)]
            made = _try(ops.sparse_matmul, (4, 5), *there, scale, x.to(device))
            name = f"sparse_matmul {str(dtype).removeprefix('torch.')}, scale {scale}"
            yield _result(name, made, full @ x.float(), _relative, limit)


def _of_optimizers(device: str) -> Iterator[Result]:
    """Three steps of every rule, against torch's own operations: how far parameters are apart."""
    n = 1000
    settings = rules.Settings(
        lr=1e-2, beta1=0.9, beta2=0.99, beta3=0.999, alpha=2.0, eps=1e-8, weight_decay=0.1
    )
    for name, rule in rules.ALL.items():
        for bits, limit in ((32, 1e-4), (8, 1e-2)):
            gradients = [torch.randn(n) for _ in range(3)]

            def move(
                run: Callable[..., None],
                place: str,
                rule: rules.Rule = rule,
                bits: int = bits,
                gradients: list[Tensor] = gradients,
            ) -> Tensor:
                start = torch.linspace(-2, 1, n, device=place)
                p, moments = start.clone(), []
                for _ in rule.moments:
                    numbers = torch.zeros(n, dtype=torch.uint8 if bits == 8 else None, device=place)
                    absmax = torch.zeros(rule.blocks(n), device=place) if bits == 8 else None
                    moments.append((numbers, absmax))
                for step, g in enumerate(gradients, 1):
                    run(rule.name, settings, step, p, g.to(place), moments)
                return p - start

            made = _try(move, optimizer.kernels(device).optimizer_update, device)
            expected = move(dense_optim.optimizer_update, "cpu")
            yield _result(f"optimizer {name}, {bits} bits", made, expected, _apart, limit)


def _any_weight(entry: Format, shape: tuple[int, int], size: int) -> PackedWeight:
    """A weight in a format whose codes only a search finds: any codes, scales and values."""
    g = entry.geometry(shape, size)
    most = 256 if entry.radix is None else entry.radix[0] ** entry.radix[1]
    codes = torch.randint(0, most, (g.code_bytes,), dtype=torch.uint8)
    scales = torch.rand(g.blocks) + 0.5
    if entry.scales_are_bytes:
        scales = torch.randint(120, 130, (g.blocks,), dtype=torch.uint8)
    scales = scales.to(entry.scale_dtype)
    book = None
    if entry.codebook is None:
        book = torch.randn(2**entry.code_bits * entry.weights_per_code)
        book = book.sign() if entry.codebook_is_signs else book
    means = torch.randn(g.blocks).to(entry.scale_dtype).float() if entry.has_mean else None
    return PackedWeight(codes, scales, None, None, None, book, means, entry.name, shape, size, 0)


def _try(operation: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return operation(*arguments)
    except Exception as error:
        return error


def _result(
    name: str, made: Any, expected: Any, measure: Callable[[Any, Any], float], limit: float
) -> Result:
    if isinstance(made, Exception):
        return Result(name, float("inf"), limit, f"{type(made).__name__}: {made}")
    return Result(name, measure(made, expected), limit)


def _differing(made: Any, expected: Any) -> float:
    """How many numbers differ."""
    pairs = zip(made, expected, strict=True) if isinstance(made, tuple) else [(made, expected)]
    return float(sum(int((a.cpu() != b).sum()) for a, b in pairs))


def _relative(made: Tensor, expected: Tensor) -> float:
    """Largest error over the largest value."""
    error = (made.cpu().float() - expected).abs().max()
    return float(error / expected.abs().max())


def _apart(made: Tensor, expected: Tensor) -> float:
    """Norm of what differs in norms of what was expected."""
    return float((made.cpu().float() - expected).norm() / expected.norm())


def bench(device: str, seconds: float = 0.3) -> dict[str, float]:
    """Median milliseconds of operations on a weight in NF4, and of torch on a dense one."""
    n, k = BENCH_SHAPE
    dtype = torch.float16 if device == "mps" else torch.bfloat16
    w = torch.randn(n, k, dtype=dtype, device=device)
    codes, state = F.quantize_nf4(w)
    timed: dict[str, Callable[[], Any]] = {
        "quantize": lambda: F.quantize_nf4(w),
        "dequantize": lambda: F.dequantize(codes, state),
    }
    for rows in (1, 16, 128):
        x = torch.randn(rows, k, dtype=dtype, device=device)
        timed[f"linear, {rows} rows"] = lambda x=x: F.linear(x, codes, state)  # type: ignore[misc]
        timed[f"torch dense, {rows} rows"] = lambda x=x: x @ w.t()  # type: ignore[misc]
    return {name: _milliseconds(call, device, seconds) for name, call in timed.items()}


def _milliseconds(call: Callable[[], Any], device: str, seconds: float) -> float:
    wait = torch.mps.synchronize if device == "mps" else (lambda: None)
    call()
    times: list[float] = []
    while sum(times) < seconds or len(times) < 5:
        wait()
        started = time.perf_counter()
        call()
        wait()
        times.append(time.perf_counter() - started)
    return 1e3 * statistics.median(times)


def machine() -> dict[str, Any]:
    """What this runs on, and with what."""
    versions: dict[str, str | None] = {}
    for library in LIBRARIES:
        try:
            versions[library] = importlib.metadata.version(library)
        except importlib.metadata.PackageNotFoundError:
            versions[library] = None
    return {
        "lowbit": _native.__version__,
        "instruction_set": _native.instruction_set(),
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "macos": platform.mac_ver()[0] or None,
        "processor": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "devices": devices(),
        **versions,
    }


def devices() -> list[str]:
    """Devices of this machine that have kernels of ours."""
    return [device for device in ops.NATIVE if F.is_available(device)]


def run(on: list[str], full: bool) -> dict[str, Any]:
    """Everything, as the file has it."""
    report: dict[str, Any] = {"machine": machine(), "compared": {}, "milliseconds": {}}
    for name, cases, failures in _native.conformance(full):
        report["compared"][f"cpu, {name}, scalar reference"] = {
            "cases": cases,
            "failures": failures,
        }
    for device in on:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # The reference is slow, and here it may be.
            results = list(compare(device))
        report["compared"][f"{device}, torch"] = {
            "cases": len(results),
            "failures": [_line(result) for result in results if not result.ok],
            "results": [asdict(result) for result in results],
        }
        report["milliseconds"][device] = bench(device)
    return report


def _line(result: Result) -> str:
    return f"{result.name}: {result.error:.3g}, limit {result.limit:.3g} {result.note}".strip()


def summary(report: dict[str, Any]) -> str:
    """What a person reads."""
    lines = [f"{key}: {value}" for key, value in report["machine"].items()]
    for name, part in report["compared"].items():
        failures = part["failures"]
        lines.append(f"{name}: {part['cases']} comparisons, {len(failures)} failed")
        lines += [f"  {line}" for line in failures[:10]]
    for device, times in report["milliseconds"].items():
        lines.append(f"{device}, NF4 {list(BENCH_SHAPE)}, median milliseconds:")
        lines += [f"  {name}: {value:.3f}" for name, value in times.items()]
    return "\n".join(lines)


def main(arguments: list[str] | None = None) -> int:
    """The command; answers its exit status."""
    parser = argparse.ArgumentParser(prog="python -m lowbit.check", description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--device", choices=devices(), help="only there; else on all present")
    parser.add_argument("--full", action="store_true", help="every size: minutes, not seconds")
    parser.add_argument("--out", type=Path, default=Path("lowbit-check.json"))
    given = parser.parse_args(arguments)
    if not given.out.parent.is_dir():  # Known before minutes of work, not after.
        parser.error(f"--out: expected a file in a directory that exists, got {given.out}")
    report = run([given.device] if given.device else devices(), given.full)
    given.out.write_text(json.dumps(report, indent=1) + "\n")
    failed = sum(len(part["failures"]) for part in report["compared"].values())
    verdict = f"{failed} comparisons FAILED" if failed else "everything agrees with the reference"
    print(f"{summary(report)}\n{verdict}; the whole report is in {given.out}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
