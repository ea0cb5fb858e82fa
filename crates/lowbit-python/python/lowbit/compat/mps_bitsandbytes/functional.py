"""`mps_bitsandbytes.functional`: its signatures over ours."""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowbit import formats
from lowbit import functional as F
from lowbit.compat.mps_bitsandbytes.eight_bit import (
    dequantize_colrow,
    dequantize_fp8_e4m3,
    dequantize_rowwise,
    int8_double_quant,
    matmul_colrow,
    matmul_fp8_e4m3,
    matmul_int8,
    quantize_colrow,
    quantize_fp8_e4m3,
    quantize_rowwise,
)
from lowbit.compat.mps_bitsandbytes.state import QuantState
from lowbit.compat.spelling import also_named, either_spelling
from lowbit.functional.checks import check_floats, check_of, check_tensor
from lowbit.state import own_codebook

__all__ = [
    "FP4_CODEBOOK",
    "NF4_CODEBOOK",
    "QuantState",
    "create_fp4_map",
    "create_normal_map",
    "dequant_absmax",
    "dequantize_4bit",
    "dequantize_blockwise",
    "dequantize_colrow",
    "dequantize_fp4",
    "dequantize_fp8_e4m3",
    "dequantize_nf4",
    "dequantize_rowwise",
    "double_quant",
    "has_native_kernels",
    "is_available",
    "matmul_4bit",
    "matmul_colrow",
    "matmul_fp4",
    "matmul_fp8_e4m3",
    "matmul_int8",
    "matmul_nf4",
    "quantize_4bit",
    "quantize_blockwise",
    "quantize_colrow",
    "quantize_fp4",
    "quantize_fp8_e4m3",
    "quantize_nf4",
    "quantize_rowwise",
    "quantize_sparse_coo",
    "sparse_coo_from_dense",
    "spmm_coo",
    "spmm_coo_int8",
]


_indices = also_named(row_idx="row_indices", col_idx="col_indices")
_int8 = also_named(v_i8="values_int8", v_scale="values_scale")
quantize_sparse_coo = _indices(F.quantize_sparse_coo)
sparse_coo_from_dense = also_named(t="tensor")(F.sparse_coo_from_dense)
spmm_coo = _indices(F.spmm_coo)
spmm_coo_int8 = _indices(_int8(F.spmm_coo_int8))


def _device() -> str:
    return "mps" if F.is_available("mps") else "cpu"


def is_available() -> bool:
    """Whether there is a device to run on: always, since the CPU is one.

    >>> is_available()
    True
    """
    return F.is_available(_device())


def has_native_kernels() -> bool:
    """Whether kernels of ours run there: on Apple's GPU where there is one, else on the CPU.

    >>> has_native_kernels() == lowbit.functional.has_native_kernels("cpu")
    True
    """
    return F.has_native_kernels(_device())


def create_normal_map(offset: float = 0.9677083, use_extra_value: bool = True) -> Tensor:
    """Sixteen quantiles of a normal distribution, ascending, in -1..1: the values of NF4.

    Args:
        offset: the largest probability; its quantile becomes 1.
        use_extra_value: whether there is one value more above zero than below.

    >>> bool((create_normal_map() - NF4_CODEBOOK).abs().max() < 1e-6)
    True
    """
    if not 0.5 < offset < 1.0:
        raise ValueError(f"offset: expected a probability above 0.5 and below 1, got {offset}")
    quantiles = partial(torch.linspace, offset, 0.5, dtype=torch.float64)
    above = torch.special.ndtri(quantiles(9 if use_extra_value else 8)[:-1])
    below = -torch.special.ndtri(quantiles(8)[:-1])
    zeros = torch.zeros(16 - len(above) - len(below), dtype=torch.float64)
    values = torch.cat([below, zeros, above]).sort().values
    return (values / values.max()).float()


def create_fp4_map(signed: bool = True) -> Tensor:
    """The values of bitsandbytes' FP4 in the order of its codes: 16, or the 8 that are positive.

    >>> create_fp4_map()[3]
    tensor(1.)
    """
    values = own_codebook("fp4", torch.device("cpu")).clone()
    return values if signed else values[:8]


NF4_CODEBOOK = own_codebook("nf4", torch.device("cpu")).clone()
FP4_CODEBOOK = create_fp4_map()


@either_spelling
def quantize_4bit(
    A: Tensor,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    block_size: int = 64,
    compress_statistics: bool = False,
    quant_type: str = "nf4",
    quant_storage: torch.dtype = torch.uint8,
) -> tuple[Tensor, QuantState]:
    """`lowbit.functional.quantize_4bit`; `absmax` and `out`, where given, are written.

    >>> packed, state = quantize_4bit(torch.randn(128, 64), blocksize=32)
    >>> packed.shape, state.blocksize
    (torch.Size([4096, 1]), 32)
    """
    codes, state = F.quantize_4bit(
        A,
        quant_type=quant_type,
        block_size=block_size,
        compress_statistics=compress_statistics,
        quant_storage=quant_storage,
    )
    made = QuantState.of(state)
    made.absmax = _into(absmax, made.absmax, "absmax")
    return _into(out, codes, "out"), made


@either_spelling
def dequantize_4bit(
    A: Tensor,
    quant_state: QuantState | Tensor | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    block_size: int = 64,
    quant_type: str = "nf4",
) -> Tensor:
    """`lowbit.functional.dequantize_4bit`; without a state, `absmax` and `out` say what it would.

    >>> packed, state = quantize_4bit(torch.ones(2, 64))
    >>> dequantize_4bit(packed, absmax=state.absmax, out=torch.empty(2, 64))[1, 0]
    tensor(1.)
    """
    if isinstance(quant_state, Tensor):
        absmax, quant_state = quant_state, None
    if quant_state is not None:
        return _into(out, F.dequantize_4bit(A, quant_state), "out")
    if absmax is None:
        raise ValueError("quant_state, absmax: expected one of them, got neither")
    A, absmax = check_tensor("A", A), check_tensor("absmax", absmax)
    if out is not None:
        shape, dtype = out.shape, out.dtype
    else:
        shape, dtype = _shape_of(A), torch.float16
    state = QuantState(absmax.flatten(), shape, None, block_size, quant_type, dtype)
    return _into(out, F.dequantize_4bit(A, state), "out")


def matmul_4bit(
    A: Tensor,
    B: Tensor,
    quant_state: QuantState | Tensor,
    bias: Tensor | None = None,
    compute_dtype: torch.dtype | None = None,
    *,
    quant_type: str = "nf4",
) -> Tensor:
    """`lowbit.functional.linear_4bit`: `A: [.., K]` times a quantized `[N, K]`, plus `bias`.

    Args:
        A: activations.
        B: codes; `[N, K / 2]` where there is no state.
        quant_state: as `quantize_4bit` gives it, or absmax alone.
        bias: `[N]`.
        compute_dtype: what `A` is cast to, and the result back; None leaves it alone.
        quant_type: of codes without a state.

    >>> matmul_4bit(torch.ones(2, 64), *quantize_4bit(torch.ones(8, 64))).shape
    torch.Size([2, 8])
    """
    check_floats("A", A)
    if isinstance(quant_state, Tensor):
        quant_state = _state_of(A, check_tensor("B", B), quant_state, quant_type)
    x = A if compute_dtype is None else A.to(compute_dtype)
    bias = None if bias is None else bias.to(x.dtype)
    return F.linear_4bit(x, B, quant_state, bias).to(A.dtype)


def _functions_of(quant_type: str) -> tuple[Any, Any, Any]:
    """The three functions above for one format."""

    @also_named(tensor="A")
    @either_spelling
    def quantize(
        A: Tensor,
        absmax: Tensor | None = None,
        out: Tensor | None = None,
        block_size: int = 64,
        compress_statistics: bool = False,
        quant_storage: torch.dtype = torch.uint8,
    ) -> tuple[Tensor, QuantState]:
        return quantize_4bit(
            A, absmax, out, block_size, compress_statistics, quant_type, quant_storage
        )

    @either_spelling
    def dequantize(
        A: Tensor,
        quant_state: QuantState | Tensor | None = None,
        absmax: Tensor | None = None,
        out: Tensor | None = None,
        block_size: int = 64,
        *,
        dtype: torch.dtype | None = None,
    ) -> Tensor:
        restored = dequantize_4bit(A, quant_state, absmax, out, block_size, quant_type)
        return restored if dtype is None else restored.to(dtype)

    @also_named(weight_absmax_or_state="weight_state")
    def matmul(
        input: Tensor,
        weight_packed: Tensor,
        weight_state: QuantState | Tensor,
        bias: Tensor | None = None,
    ) -> Tensor:
        return matmul_4bit(input, weight_packed, weight_state, bias, quant_type=quant_type)

    for function in (quantize, dequantize, matmul):
        function.__name__ = function.__qualname__ = f"{function.__name__}_{quant_type}"
        function.__doc__ = f"`{function.__name__.split('_')[0]}_4bit` of {quant_type}."
    return quantize, dequantize, matmul


quantize_nf4, dequantize_nf4, matmul_nf4 = _functions_of("nf4")
quantize_fp4, dequantize_fp4, matmul_fp4 = _functions_of("fp4")


@either_spelling
def quantize_blockwise(
    A: Tensor,
    code: Tensor | None = None,
    absmax: Tensor | None = None,
    out: Tensor | None = None,
    block_size: int = 4096,
    nested: bool = False,
) -> tuple[Tensor, QuantState]:
    """`lowbit.functional.quantize_blockwise`: bitsandbytes' 8-bit dynamic map.

    >>> codes, state = quantize_blockwise(torch.randn(100), blocksize=256)
    >>> codes.dtype, codes.shape
    (torch.uint8, torch.Size([100]))
    """
    codes, state = F.quantize_blockwise(A, code, block_size=block_size, nested=nested)
    made = QuantState.of(state)
    made.absmax = _into(absmax, made.absmax, "absmax")
    return _into(out, codes, "out"), made


@either_spelling
def dequantize_blockwise(
    A: Tensor,
    quant_state: QuantState | None = None,
    absmax: Tensor | None = None,
    code: Tensor | None = None,
    out: Tensor | None = None,
    block_size: int = 4096,
    nested: bool = False,
) -> Tensor:
    """`lowbit.functional.dequantize_blockwise`.

    >>> dequantize_blockwise(*quantize_blockwise(torch.ones(3)))
    tensor([1., 1., 1.])
    """
    if quant_state is None:
        if absmax is None:
            raise ValueError("quant_state, absmax: expected one of them, got neither")
        dtype = torch.float32 if out is None else out.dtype
        quant_state = QuantState(absmax, A.shape, code, block_size, formats.NESTED, dtype)
    return _into(out, F.dequantize_blockwise(A, quant_state), "out")


def double_quant(A: Tensor | QuantState, *args: Any, **kwargs: Any) -> tuple[Any, ...]:
    """Of scales, their second quantization; of a matrix, LLM.int8's by columns and by rows.

    Args:
        A: absmax `f32 [blocks]`, or a state that has it: bitsandbytes' double quantization. Or a
            matrix of activations, `[M, K]`.
        args: of a matrix: `col_stats, row_stats, out_col, out_row`, all None, and `threshold`.
        kwargs: `double_quant_block=256` of scales; the same as `args` of a matrix.

    Returns:
        Of scales: u8 codes `[blocks]`, and `f32 [ceil(blocks / 256) + 1]`: the nested absmax, then
        the offset. Of a matrix: its columns and its rows in int8 `[M, K]`, absmax of the columns
        `[K]` and of the rows `[M]`, and None.

    >>> absmax = quantize_4bit(torch.randn(128, 64))[1]
    >>> absmax_quant, absmax_scales = double_quant(absmax)
    >>> bool((dequant_absmax(absmax_quant, absmax_scales) - absmax.absmax).abs().max() < 0.05)
    True
    """
    if isinstance(A, Tensor) and A.dim() == 2:
        return int8_double_quant(A, *args, **kwargs)
    size = kwargs.pop("double_quant_block", args[0] if args else F.NESTED_BLOCK_SIZE)
    if size != F.NESTED_BLOCK_SIZE or kwargs:
        raise ValueError(
            f"double_quant_block: expected {F.NESTED_BLOCK_SIZE}, which bitsandbytes has, got "
            f"{kwargs or size}"
        )
    absmax: Any = A if isinstance(A, Tensor) else getattr(A, "absmax", None)
    codes, nested, offset = F.double_quant(absmax)
    return codes, torch.cat([nested.absmax, offset.view(1)])


@either_spelling
def dequant_absmax(absmax_quant: Tensor, absmax_scales: Tensor, block_size: int = 256) -> Tensor:
    """Undo `double_quant` of scales.

    >>> bool((dequant_absmax(*double_quant(torch.ones(300))) - 1).abs().max() < 1e-6)
    True
    """
    check_of("absmax_scales", absmax_scales, torch.float32, None)
    if not absmax_scales.numel():
        raise ValueError("absmax_scales: expected the nested absmax and the offset, got nothing")
    book = own_codebook(formats.NESTED, absmax_scales.device)
    nested = F.NestedState(absmax_scales[:-1].contiguous(), book, block_size)
    return F.dequant_absmax(absmax_quant, nested, absmax_scales[-1])


def _into(out: Tensor | None, made: Tensor, name: str) -> Tensor:
    """What was made, written to where the caller wants it."""
    if out is None:
        return made
    if out.numel() != made.numel() or out.dtype != made.dtype:
        raise ValueError(
            f"{name}: expected {made.dtype} of shape {list(made.shape)}, got {out.dtype} of shape "
            f"{list(out.shape)}"
        )
    return out.copy_(made.view(out.shape))


def _shape_of(codes: Tensor) -> torch.Size:
    """The shape of the weights behind codes that are no state's: `[N, K]` of `[N, K / 2]`."""
    if codes.dim() == 2 and codes.shape[1] > 1:
        return torch.Size([codes.shape[0], 2 * codes.shape[1]])
    return torch.Size([2 * codes.numel()])


def _state_of(x: Tensor, codes: Tensor, absmax: Tensor, quant_type: str) -> QuantState:
    """The state that codes and absmax alone belong to, as far as their sizes tell."""
    k = x.shape[-1]
    n = 2 * codes.nbytes // k if k else 0
    entry = formats.by_name(quant_type)
    sizes = [s for s in entry.block_sizes if -(-n * k // s) == absmax.numel()]
    if not sizes:
        raise ValueError(
            f"quant_state: expected a state, or absmax of [{n}, {k}] in blocks of one of "
            f"{list(entry.block_sizes)}, got {absmax.numel()} numbers"
        )
    size = entry.default_block_size if entry.default_block_size in sizes else sizes[0]
    shape = torch.Size([n, k])
    return QuantState(absmax.flatten(), shape, None, size or sizes[0], quant_type, x.dtype)
