"""Products with sparse matrices: rows, columns and values of what is not zero."""

from __future__ import annotations

import torch
from torch import Tensor


def spmm_coo(
    row_indices: Tensor,
    col_indices: Tensor,
    values: Tensor,
    dense: Tensor,
    sparse_rows: int,
    sparse_cols: int,
) -> Tensor:
    """A sparse `[rows, cols]` times `dense: [cols, N]`: `[rows, N]`, summed in f32.

    Raises:
        ValueError: for sizes that do not fit each other.

    >>> rows, cols, values, m, n = sparse_coo_from_dense(torch.tensor([[0.0, 2.0], [3.0, 0.0]]))
    >>> spmm_coo(rows, cols, values, torch.eye(2), m, n)
    tensor([[0., 2.],
            [3., 0.]])
    """
    if dense.dim() != 2 or dense.shape[0] != sparse_cols:
        raise ValueError(f"dense: expected [{sparse_cols}, N], got {list(dense.shape)}")
    if not row_indices.shape == col_indices.shape == values.shape:
        raise ValueError("row_indices, col_indices, values: expected the same number of each")
    products = values.float()[:, None] * dense.float()[col_indices.long()]
    out = products.new_zeros(sparse_rows, dense.shape[1])
    return out.index_add_(0, row_indices.long(), products).to(dense.dtype)


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
    values = values_int8.float() * values_scale
    return spmm_coo(row_indices, col_indices, values, dense, sparse_rows, sparse_cols).to(dtype)


def sparse_coo_from_dense(
    tensor: Tensor, threshold: float = 0.0
) -> tuple[Tensor, Tensor, Tensor, int, int]:
    """Rows, columns and values of a matrix above a magnitude, and its two sizes.

    >>> sparse_coo_from_dense(torch.tensor([[0.0, 2.0]]))
    (tensor([0]), tensor([1]), tensor([2.]), 1, 2)
    """
    if tensor.dim() != 2:
        raise ValueError(f"tensor: expected a matrix, got {list(tensor.shape)}")
    rows, cols = (tensor.abs() > threshold).nonzero(as_tuple=True)
    return rows, cols, tensor[rows, cols], tensor.shape[0], tensor.shape[1]


def quantize_sparse_coo(
    row_indices: Tensor, col_indices: Tensor, values: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """The same with values in int8, and what to multiply those with, `f32 [1]`.

    >>> one = torch.tensor([0])
    >>> quantize_sparse_coo(one, one, torch.tensor([127.0]))[2:]
    (tensor([127], dtype=torch.int8), tensor([1.]))
    """
    absmax = values.abs().max().float() if values.numel() else values.new_zeros(()).float()
    scale = absmax / 127.0
    q = (values.float() / torch.where(scale > 0, scale, 1.0)).round().to(torch.int8)
    return row_indices, col_indices, q, scale.view(1)
