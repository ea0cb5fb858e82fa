"""Embeddings whose tables are quantized: only the rows that are looked up are restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from lowbit import functional as F
from lowbit.compat.spelling import either_spelling
from lowbit.nn import checkpoint
from lowbit.state import QuantState


class QuantizedEmbedding(nn.Module):
    """A table `[num_embeddings, embedding_dim]` in any format of `lowbit.formats.ALL`.

    >>> table = QuantizedEmbedding(10, 64, quant_type="mxfp4", dtype=torch.float32)
    >>> table(torch.tensor([[1, 2, 3]])).shape
    torch.Size([1, 3, 64])
    """

    weight: Tensor
    quant_state: QuantState

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        quant_type: str,
        block_size: int | None = None,
        device: Any = None,
        dtype: torch.dtype = torch.float16,
        table: Tensor | None = None,
    ) -> None:
        super().__init__()
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx
        if table is None:
            table = nn.Embedding(num_embeddings, embedding_dim, padding_idx, dtype=dtype).weight
        codes, self.quant_state = F.quantize(table.detach(), quant_type, block_size=block_size)
        self.register_buffer("weight", codes)
        self.to(device)

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape `[..]` to rows `[.., embedding_dim]`."""
        state, ids = self.quant_state, input.reshape(-1)
        per_row = self.embedding_dim % state.block_size == 0 and state.means is None
        if not per_row or self.weight.nbytes % self.num_embeddings:
            rows = F.dequantize(self.weight, state)[ids]  # Blocks cross rows.
        else:
            shape = torch.Size([len(ids), self.embedding_dim])
            codes = self.weight.view(torch.uint8).view(self.num_embeddings, -1)[ids]
            scales = state.absmax.view(self.num_embeddings, -1)[ids].flatten()
            some = QuantState(scales, shape, state.quant_type, state.block_size, state.dtype)
            rows = F.dequantize(codes, some)
        return rows.view(*input.shape, self.embedding_dim)

    def extra_repr(self) -> str:
        """What `print` shows of the table."""
        return f"{self.num_embeddings}, {self.embedding_dim}, {self.quant_state.quant_type}"

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Codes and scales follow to a device; a cast would destroy them.
        weight = self.weight
        super()._apply(fn, recurse)
        self.weight = checkpoint.as_given(fn, weight)
        self.quant_state = self.quant_state.map(lambda t: checkpoint.as_given(fn, t))
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        for key, part in checkpoint.parts(self.quant_state).items():
            destination[prefix + key] = part

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        strict: bool,
        missing_keys: list[str],
        unexpected_keys: list[str],
        error_msgs: list[str],
    ) -> None:
        given = {
            key.removeprefix(prefix): t for key, t in state_dict.items() if key.startswith(prefix)
        }
        shape = torch.Size([self.num_embeddings, self.embedding_dim])
        entry, device = self.quant_state.format, self.weight.device
        if "weight" not in given:
            missing_keys.append(f"{prefix}weight")
            return
        try:
            codes, state = checkpoint.read(given, entry, shape, self.quant_state.dtype)
        except (ValueError, TypeError) as error:
            error_msgs.append(f"{prefix}weight: {error}")
            return
        self.weight, self.quant_state = codes.to(device, copy=True), state.to(device)


class Embedding4bit(QuantizedEmbedding):
    """An embedding in NF4 or FP4.

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
        *,
        table: Tensor | None = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            quant_type=quant_type,
            block_size=block_size,
            device=device,
            dtype=dtype,
            table=table,
        )

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, **options: Any) -> Any:
        """Quantize the table of an embedding; options are `quant_type`, `blocksize`, `device`."""
        return _from_embedding(cls, embedding, options)


class EmbeddingNF4(Embedding4bit):
    """An embedding in NF4.

    >>> EmbeddingNF4(10, 64).quant_state.quant_type
    'nf4'
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, **options: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, quant_type="nf4", **options)


class EmbeddingFP4(Embedding4bit):
    """An embedding in FP4.

    >>> EmbeddingFP4(10, 64).quant_state.quant_type
    'fp4'
    """

    def __init__(self, num_embeddings: int, embedding_dim: int, **options: Any) -> None:
        super().__init__(num_embeddings, embedding_dim, quant_type="fp4", **options)


class Embedding8bit(QuantizedEmbedding):
    """An embedding in int8 rows.

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
        *,
        table: Tensor | None = None,
    ) -> None:
        super().__init__(
            num_embeddings,
            embedding_dim,
            padding_idx,
            quant_type="int8",
            device=device,
            dtype=dtype,
            table=table,
        )

    @classmethod
    def from_embedding(cls, embedding: nn.Embedding, **options: Any) -> Any:
        """Quantize the table of an embedding; the option is `device`."""
        return _from_embedding(cls, embedding, options)


def _from_embedding(cls: Any, embedding: nn.Embedding, options: dict[str, Any]) -> Any:
    options.setdefault("device", embedding.weight.device)
    return cls(
        embedding.num_embeddings,
        embedding.embedding_dim,
        padding_idx=embedding.padding_idx,
        table=embedding.weight,
        **options,
    )
