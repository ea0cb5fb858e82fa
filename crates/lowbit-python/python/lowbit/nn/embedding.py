"""Embeddings whose tables are quantized: only the rows that are looked up are restored."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lowbit import formats
from lowbit import functional as F
from lowbit.functional.checks import check_dtype, check_size
from lowbit.nn import checkpoint
from lowbit.state import QuantState

Self = TypeVar("Self", bound="QuantizedEmbedding")


class QuantizedEmbedding(nn.Module):
    """A table `[num_embeddings, embedding_dim]` in any format of `lowbit.formats.ALL`.

    Only the rows that are looked up are restored. The table is not trained. What bitsandbytes
    refuses is done: saving and loading, and rows of any length.

    Args:
        num_embeddings: rows.
        embedding_dim: their length.
        padding_idx: a row that a new table has zero.
        quant_type: the format.
        block_size: numbers that share a scale; None for the format's default.
        compress_statistics: quantize the scales as well.
        device: where the table is.
        dtype: of what is looked up.
        table: what to quantize; None for random numbers.

    >>> table = QuantizedEmbedding(10, 64, quant_type="mxfp4")
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
        compress_statistics: bool = False,
        device: Any = None,
        dtype: torch.dtype = torch.float32,
        table: Tensor | None = None,
    ) -> None:
        super().__init__()
        check_size("num_embeddings", num_embeddings)
        check_size("embedding_dim", embedding_dim)
        check_dtype("dtype", dtype)
        if padding_idx is not None and not -num_embeddings <= padding_idx < num_embeddings:
            raise ValueError(
                f"padding_idx: expected a row of {num_embeddings}, or None, got {padding_idx}"
            )
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.padding_idx = padding_idx
        if table is None:
            table = nn.Embedding(num_embeddings, embedding_dim, padding_idx, dtype=dtype).weight
        codes, self.quant_state = F.quantize(
            table.detach(), quant_type, block_size=block_size, double_quant=compress_statistics
        )
        self.register_buffer("weight", codes)
        self.to(device)

    @classmethod
    def from_embedding(cls: type[Self], embedding: nn.Embedding, **options: Any) -> Self:
        """Quantize the table of an embedding; options are those of the class.

        >>> table = torch.nn.Embedding(10, 64)
        >>> EmbeddingNF4.from_embedding(table)(torch.tensor([3])).shape
        torch.Size([1, 64])
        """
        if not isinstance(embedding, nn.Embedding):
            raise TypeError(f"embedding: expected nn.Embedding, got {type(embedding).__name__}")
        if embedding.max_norm is not None:
            raise ValueError(
                "embedding: expected one without max_norm, which shortens rows as they are looked "
                f"up, got {embedding.max_norm}; shorten them before"
            )
        options.setdefault("device", embedding.weight.device)
        return cls(
            embedding.num_embeddings,
            embedding.embedding_dim,
            embedding.padding_idx,
            table=embedding.weight,
            **options,
        )

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The table, `[num_embeddings, embedding_dim]`; None for the dtype of what is looked up."""
        return F.dequantize(self.weight, self.quant_state, dtype=dtype)

    def forward(self, input: Tensor) -> Tensor:
        """Indices of any shape `[..]` to rows `[.., embedding_dim]`."""
        return F.embedding(input, self.weight, self.quant_state)

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
        if device.type == "meta" or local_metadata.get("assign_to_params_buffers"):
            self.weight, self.quant_state = codes, state
        else:
            self.weight = codes.to(device, copy=True)
            self.quant_state = state.map(lambda t: t.to(device, copy=True))


class Embedding4bit(QuantizedEmbedding):
    """An embedding of four bits: NF4, FP4 or MXFP4.

    >>> Embedding4bit(10, 64, compress_statistics=True).quant_state.nested
    True
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        *,
        quant_type: str = "nf4",
        **options: Any,
    ) -> None:
        if formats.by_name(quant_type).code_bits != 4:
            raise ValueError(f"quant_type: expected a format of four bits, got {quant_type!r}")
        super().__init__(
            num_embeddings, embedding_dim, padding_idx, quant_type=quant_type, **options
        )


class EmbeddingNF4(Embedding4bit):
    """An embedding in NF4.

    >>> EmbeddingNF4(10, 64).quant_state.quant_type
    'nf4'
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, quant_type="nf4", **options)


class EmbeddingFP4(Embedding4bit):
    """An embedding in FP4.

    >>> EmbeddingFP4(10, 64).quant_state.quant_type
    'fp4'
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, quant_type="fp4", **options)


class Embedding8bit(QuantizedEmbedding):
    """An embedding in int8 rows.

    >>> Embedding8bit(10, 64)(torch.tensor([3])).shape
    torch.Size([1, 64])
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        padding_idx: int | None = None,
        **options: Any,
    ) -> None:
        super().__init__(num_embeddings, embedding_dim, padding_idx, quant_type="int8", **options)
