"""Sparse matrices as lists of rows, columns and values (COO), times dense ones."""

from __future__ import annotations

import torch
from torch import Tensor

from lowbit import ops
from lowbit.functional.checks import (
    check_dtype,
    check_finite,
    check_floats,
    check_of,
    check_size,
    check_tensor,
    check_threshold,
)


def spmm_coo(
    row_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    dense: Tensor,
    sparse_rows: int,
    sparse_cols: int,
) -> Tensor:
    """A sparse `[rows, cols]` times `dense: [cols, N]`: `[rows, N]`, with f32 sums.

    Values at one place add up. Gradients flow to `values` and `dense`.

    Raises:
        ValueError: for an index outside the matrix, or sizes that do not fit each other.

    >>> rows, cols, values, m, n = sparse_coo_from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> spmm_coo(rows, cols, values, torch.eye(2), m, n)
    tensor([[0., 2.],
            [3., 0.]])
    """
    check_floats("values", values)
    check_floats("dense", dense)
    shape = _check(row_indices, col_indices, values, dense, sparse_rows, sparse_cols)
    return ops.sparse_matmul(shape, row_indices, col_indices, values.to(dense.dtype), None, dense)


def spmm_coo_int8(
    row_indices: Tensor,
    col_indices: Tensor,
    values_int8: Tensor,
    values_scale: Tensor,
    dense: Tensor,
    sparse_rows: int,
    sparse_cols: int,
    dtype: torch.dtype = torch.float16,
) -> Tensor:
    """`spmm_coo` with values of `quantize_sparse_coo`: `values_int8 * values_scale`.

    >>> rows, cols, values, m, n = sparse_coo_from_dense(torch.eye(2))
    >>> spmm_coo_int8(*quantize_sparse_coo(rows, cols, values), torch.eye(2), m, n)
    tensor([[1., 0.],
            [0., 1.]], dtype=torch.float16)
    """
    check_dtype("dtype", dtype)
    check_floats("dense", dense)
    check_of("values_int8", values_int8, torch.int8, None)
    if check_tensor("values_scale", values_scale).numel() != 1:
        raise ValueError(f"values_scale: expected one number, got {values_scale.numel()}")
    shape = _check(row_indices, col_indices, values_int8, dense, sparse_rows, sparse_cols)
    scale = float(values_scale)
    return ops.sparse_matmul(shape, row_indices, col_indices, values_int8, scale, dense).to(dtype)


def sparse_coo_from_dense(
    tensor: Tensor, threshold: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """What is not zero in a matrix: rows, columns, values, and the two sizes of the matrix.

    With a threshold, only values of that magnitude or more.

    >>> sparse_coo_from_dense(torch.tensor([[0.0, 2.0]]))
    (tensor([0]), tensor([1]), tensor([2.]), 1, 2)
    """
    check_floats("tensor", tensor)
    if tensor.dim() != 2:
        raise ValueError(f"tensor: expected a matrix, got {list(tensor.shape)}")
    check_threshold(threshold)
    kept = (tensor != 0.0) & ~(tensor.abs() < threshold)
    rows, cols = kept.nonzero(as_tuple=True)
    return rows, cols, tensor[rows, cols], tensor.shape[0], tensor.shape[1]


def quantize_sparse_coo(
    row_indices: Tensor, col_indices: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with values in int8, and what one step stands for, `f32 [1]`.

    Raises:
        ValueError: for NaN or infinity.

    >>> one = torch.tensor([0])
    >>> quantize_sparse_coo(one, one, torch.tensor([127.0]))[2:]
    (tensor([127], dtype=torch.int8), tensor([1.]))
    """
    check_floats("values", values)
    absmax = values.abs().amax().float() if values.numel() else values.new_zeros(()).float()
    check_finite("values", absmax)
    q = (values.float() / torch.where(absmax > 0, absmax, 1.0) * 127.0).round().to(torch.int8)
    return row_indices, col_indices, q, (absmax / 127.0).view(1)


def _check(
    rows: Tensor, columns: Tensor, values: Tensor, dense: Tensor, m: int, n: int
) -> tuple[int, int]:
    check_size("sparse_rows", m)
    check_size("sparse_cols", n)
    for name, indices in (("row_indices", rows), ("col_indices", columns)):
        if check_tensor(name, indices).is_floating_point() or indices.dtype is torch.bool:
            raise TypeError(f"{name}: expected integers, got {indices.dtype}")
    for name, t in (("row_indices", rows), ("col_indices", columns), ("values", values)):
        if t.device != dense.device:
            raise ValueError(f"{name}: expected it on {dense.device}, as dense, got {t.device}")
    if dense.dim() != 2 or dense.shape[0] != n:
        raise ValueError(f"dense: expected [{n}, N], got {list(dense.shape)}")
    if values.dim() != 1 or not rows.shape == columns.shape == values.shape:
        raise ValueError(
            "row_indices, col_indices, values: expected one of each, got "
            f"{list(rows.shape)}, {list(columns.shape)}, {list(values.shape)}"
        )
    for name, indices, size in (("row_indices", rows, m), ("col_indices", columns, n)):
        if torch.compiler.is_compiling():
            continue  # A graph knows no values; the kernel looks at them again.
        if indices.numel() and not 0 <= int(indices.min()) <= int(indices.max()) < size:
            raise ValueError(f"{name}: expected indices from 0 to less than {size}")
    return m, n
