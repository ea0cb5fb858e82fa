"""Embeddings: ours, with the arguments of `mps_bitsandbytes`."""

from __future__ import annotations

from typing import Any

import torch

from lowbit import nn as ours
from lowbit.compat.spelling import either_spelling


class Embedding4bit(ours.Embedding4bit):
    """`lowbit.nn.Embedding4bit`, in half floats unless told otherwise.

    >>> Embedding4bit.from_embedding(torch.nn.Embedding(10, 64))(torch.tensor([3])).shape
    torch.Size([1, 64])
    """

    @either_spelling
    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        quant_type: str = "nf4",
        block_size: int = 64,
        device: Any = None,
        dtype: torch.dtype = torch.float16,
        **options: Any,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            quant_type=quant_type,
            block_size=block_size,
            device=device,
            dtype=dtype,
            **options,
        )


class EmbeddingNF4(Embedding4bit):
    """An embedding in NF4.

    >>> EmbeddingNF4(10, 64).quant_state.quant_type
    'nf4'
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *args: Any, **options: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, *args, **options | {"quant_type": "nf4"})


class EmbeddingFP4(Embedding4bit):
    """An embedding in FP4.

    >>> EmbeddingFP4(10, 64).quant_state.quant_type
    'fp4'
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, *args: Any, **options: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, *args, **options | {"quant_type": "fp4"})


class Embedding8bit(ours.Embedding8bit):
    """`lowbit.nn.Embedding8bit`, in half floats unless told otherwise.

    >>> Embedding8bit.from_embedding(torch.nn.Embedding(10, 64))(torch.tensor([3])).shape
    torch.Size([1, 64])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        device: Any = None,
        dtype: torch.dtype = torch.float16,
        **options: Any,
    ) -> None:
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, device=device, dtype=dtype, **options
        )
