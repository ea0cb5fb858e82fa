"""The native module: kernels on memory that the caller owns. Private; see `lowbit.backends.cpu`."""

from collections.abc import Sequence
from typing import Any, TypeAlias, TypedDict

Region: TypeAlias = tuple[int, int]
"""Address and number of elements of a contiguous tensor."""
Nested: TypeAlias = tuple[Region, Region, Region, int]
"""Nested absmax, map and offset, and the nested block size."""
Weight: TypeAlias = tuple[
    Sequence[int],
    int,
    Region,
    tuple[Region, bool],
    Nested | None,
    Region | None,
    Region | None,
]
"""Shape, block size, codes, scales and whether they are f16, nested scales, codebook, means."""
Adapter: TypeAlias = tuple[Region, Region, int, float]
"""Both factors of an adapter of low rank, the rank, and what their product is scaled by."""
Description: TypeAlias = tuple[str, Sequence[int], int, int | None, tuple[bool, bool, bool]]
"""Format, shape, block size, nested block size, and whether the codebook is the weight's own, its
scales are f16, and it keeps means."""

class Content(TypedDict):
    """A plan's buffer: an input has a name, a constant has its content, all else is room."""

    name: str | None
    content: bytes | None
    bytes: int
    zeros: bool

class Step(TypedDict):
    """A kernel's run: arguments are places of buffers, or None for the parameters."""

    name: str
    source: str
    entry: str
    arguments: list[int | None]
    params: list[int]
    powers: list[int] | None
    threads: list[int]
    group: list[int]

class Plan(TypedDict):
    """What an operation runs on a GPU; results are places of buffers."""

    buffers: list[Content]
    steps: list[Step]
    results: list[int]

__version__: str

def quantize(
    format: str,
    dtype: str,
    w: Region,
    shape: Sequence[int],
    block_size: int,
    codes: Region,
    scales: Region,
) -> None: ...
def search(
    format: str,
    w: Region,
    shape: Sequence[int],
    block_size: int,
    importance: Region | None,
    seed: int,
    codes: Region,
    scales: Region,
    codebook: Region,
) -> None: ...
def double_quantize(scales: Region, codes: Region, absmax: Region, offset: Region) -> None: ...
def dequantize(format: str, weight: Weight, dtype: str, out: Region) -> None: ...
def linear(
    format: str, weight: Weight, dtype: str, x: Region, bias: Region | None, y: Region
) -> None: ...
def linear_transposed(format: str, weight: Weight, dtype: str, dy: Region, dx: Region) -> None: ...
def low_rank(dtype: str, adapter: Adapter, x: Region, y: Region, hidden: Region) -> None: ...
def low_rank_backward(
    dtype: str,
    adapter: Adapter,
    x: Region,
    hidden: Region,
    dy: Region,
    dx: Region | None,
    da: Region,
    db: Region,
) -> None: ...
def int8_matmul(a: Region, b: Region, k: int, out: Region) -> None: ...
def int8_rescale(
    dtype: str, sums: Region, rows: Region, columns: Region, bias: Region | None, out: Region
) -> None: ...
def int8_linear(
    format: str,
    weight: Weight,
    dtype: str,
    x: Region,
    threshold: float,
    bias: Region | None,
    y: Region,
) -> None: ...
def embedding(format: str, weight: Weight, ids: Region, dtype: str, out: Region) -> None: ...
def sparse_matmul(
    dtype: str,
    shape: tuple[int, int],
    rows: Region,
    columns: Region,
    values: Region,
    scale: float | None,
    dense: Region,
    out: Region,
) -> None: ...
def optimizer_update(
    rule: str,
    settings: Any,
    step: int,
    dtype: str,
    p: Region,
    g: Region,
    moments: Sequence[tuple[Region, Region | None]],
) -> None: ...
def optimizers() -> list[dict[str, Any]]: ...
def plan_quantize(format: str, dtype: str, shape: Sequence[int], block_size: int) -> Plan: ...
def plan_dequantize(weight: Description, dtype: str) -> Plan: ...
def plan_linear(weight: Description, dtype: str, m: int, bias: bool) -> Plan: ...
def plan_linear_transposed(weight: Description, dtype: str, m: int) -> Plan: ...
def plan_int8_matmul(m: int, n: int, k: int) -> Plan: ...
def plan_int8_rescale(dtype: str, m: int, n: int, bias: bool) -> Plan: ...
def plan_int8_linear(
    weight: Description, dtype: str, m: int, bias: bool, threshold: float
) -> Plan: ...
def plan_optimizer_update(
    rule: str, dtype: str, len: int, in_codes: bool, is_limited: bool
) -> Plan: ...
def plan_optimizer_norm(rule: str, dtype: str, len: int, in_codes: bool) -> Plan: ...
def optimizer_params(
    rule: str, settings: Any, step: int, dtype: str, len: int, in_codes: bool, of_norm: bool
) -> list[list[int]]: ...
def format_by_name(name: str) -> dict[str, Any]: ...
def formats() -> list[dict[str, Any]]: ...
def conformance(full: bool) -> list[tuple[str, int, list[str]]]: ...
def instruction_set() -> str: ...
def describe(format: str, n: int, k: int, block_size: int, nested_block_size: int) -> int: ...
def stable_symbols() -> list[str]: ...
def register_stable(addresses: Sequence[int]) -> None: ...
def set_threads(threads: int) -> None: ...
def use_openmp(parallel: int) -> None: ...
def after_fork() -> None: ...
