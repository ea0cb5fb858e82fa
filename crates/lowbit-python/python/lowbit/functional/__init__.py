"""Quantize, dequantize and multiply: functions on tensors.

Weights are `w: [N, K]`, activations `x: [.., K]`, products `y = x wᵀ: [.., N]`. Codes are what
bitsandbytes stores: `u8 [ceil(n / 2), 1]` for the 4-bit formats, the first weight in the high
nibble, blocks along the flattened tensor. All functions raise `ValueError` or `TypeError` that
names the argument.
"""

from lowbit.backends import NESTED_BLOCK_SIZE
from lowbit.functional.blockwise import (
    dequant_absmax,
    dequantize_blockwise,
    double_quant,
    dynamic_map,
    quantize_blockwise,
)
from lowbit.functional.checks import FLOATS
from lowbit.functional.eight_bit import (
    dequantize_fp8_e4m3,
    dequantize_rowwise,
    int8_linear,
    matmul_fp8_e4m3,
    matmul_int8,
    quantize_fp8_e4m3,
    quantize_rowwise,
)
from lowbit.functional.four_bit import (
    dequantize_4bit,
    dequantize_fp4,
    dequantize_nf4,
    gemm_4bit,
    gemv_4bit,
    linear_4bit,
    matmul_4bit,
    matmul_fp4,
    matmul_nf4,
    quantize_4bit,
    quantize_fp4,
    quantize_nf4,
)
from lowbit.functional.general import (
    dequantize,
    embedding,
    has_native_kernels,
    is_available,
    linear,
    nest,
    quantize,
)
from lowbit.functional.sparse import (
    quantize_sparse_coo,
    sparse_coo_from_dense,
    spmm_coo,
    spmm_coo_int8,
)
from lowbit.state import NestedState, QuantState

__all__ = [
    "FLOATS",
    "NESTED_BLOCK_SIZE",
    "NestedState",
    "QuantState",
    "dequant_absmax",
    "dequantize",
    "dequantize_4bit",
    "dequantize_blockwise",
    "dequantize_fp4",
    "dequantize_fp8_e4m3",
    "dequantize_nf4",
    "dequantize_rowwise",
    "double_quant",
    "dynamic_map",
    "embedding",
    "gemm_4bit",
    "gemv_4bit",
    "has_native_kernels",
    "int8_linear",
    "is_available",
    "linear",
    "linear_4bit",
    "matmul_4bit",
    "matmul_fp4",
    "matmul_fp8_e4m3",
    "matmul_int8",
    "matmul_nf4",
    "nest",
    "quantize",
    "quantize_4bit",
    "quantize_blockwise",
    "quantize_fp4",
    "quantize_fp8_e4m3",
    "quantize_nf4",
    "quantize_rowwise",
    "quantize_sparse_coo",
    "sparse_coo_from_dense",
    "spmm_coo",
    "spmm_coo_int8",
]
