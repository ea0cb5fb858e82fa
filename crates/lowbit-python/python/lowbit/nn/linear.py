"""`y = x wᵀ + b` with a quantized `w: [N, K]`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lowbit import formats
from lowbit import functional as F
from lowbit.functional.checks import check_input, check_layer
from lowbit.functional.general import stored_as
from lowbit.nn import checkpoint
from lowbit.nn.parameter import parameter
from lowbit.state import NestedState, QuantState

Self = TypeVar("Self", bound="QuantizedLinear")


class QuantizedLinear(nn.Linear):
    """A linear layer with a weight in any format of `lowbit.formats.ALL`.

    Only the bias is trained. The weight's codes are the parameter `weight`, the rest is
    `quant_state`; both move with the layer, and neither is cast when the layer is.

    Args:
        in_features: K.
        out_features: N.
        bias: whether there is one.
        device: where the weight is; on "meta" nothing is allocated or quantized.
        compute_dtype: activations are cast to it, and results back; None leaves them alone.
        quant_type: the format.
        block_size: weights that share a scale; None for the format's default.
        compress_statistics: quantize the scales as well.
        quant_storage: dtype that the codes are seen as; FSDP shards only floating-point ones.

    >>> layer = QuantizedLinear(64, 8, quant_type="mxfp4")
    >>> layer(torch.randn(2, 64)).shape
    torch.Size([2, 8])
    """

    quant_state: QuantState

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        compute_dtype: torch.dtype | None = None,
        *,
        quant_type: str,
        block_size: int | None = None,
        compress_statistics: bool = False,
        quant_storage: torch.dtype = torch.uint8,
    ) -> None:
        check_layer(compute_dtype, in_features=in_features, out_features=out_features)
        formats.by_name(quant_type).geometry((out_features, in_features), block_size)
        super().__init__(in_features, out_features, bias, device=device)
        self.compute_dtype = compute_dtype
        self.quant_type = quant_type
        self.compress_statistics = compress_statistics
        self.quant_storage = quant_storage
        self.block_size = block_size
        self.requantize(self.weight)

    @classmethod
    def from_linear(cls: type[Self], linear: nn.Linear, **options: Any) -> Self:
        """Quantize the weight of a layer; its bias is shared. Options are those of the class.

        >>> linear = torch.nn.Linear(64, 8)
        >>> Linear4bit.from_linear(linear, quant_type="fp4").dequantize().shape
        torch.Size([8, 64])
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear: expected torch.nn.Linear, got {type(linear).__name__}")
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=False, **options)
        layer.bias = linear.bias
        layer.requantize(linear.weight)
        return layer.train(linear.training)

    @torch.no_grad()
    def requantize(self, weight: Tensor) -> None:
        """Replace the weight by another one, quantized as the layer quantizes.

        Args:
            weight: float `[N, K]`, on any device; the layer's weight will be there.

        Raises:
            ValueError: for another shape, or for NaN or infinity.
        """
        shape = torch.Size((self.out_features, self.in_features))
        if weight.shape != shape:
            raise ValueError(f"weight: expected {list(shape)}, got {list(weight.shape)}")
        if weight.is_meta:
            codes, state = self._placeholder(weight.dtype)
        else:
            codes, state = F.quantize(
                weight.detach(),
                self.quant_type,
                block_size=self.block_size,
                double_quant=self.compress_statistics,
            )
        self._set(codes, state)

    def dequantize(self, dtype: torch.dtype | None = None) -> Tensor:
        """The weight, `[N, K]`; None for the dtype that it had before it was quantized.

        >>> layer = Linear8bit(64, 8)
        >>> layer.dequantize(torch.bfloat16).dtype
        torch.bfloat16
        """
        return F.dequantize(self.weight, self.quant_state, dtype=dtype)

    def to_linear(self, dtype: torch.dtype | None = None) -> nn.Linear:
        """The same layer, unquantized.

        >>> Linear4bit(64, 8).to_linear()
        Linear(in_features=64, out_features=8, bias=True)
        """
        with torch.device("meta"):
            linear = nn.Linear(self.in_features, self.out_features, bias=False)
        linear.weight = nn.Parameter(self.dequantize(dtype))
        linear.bias = self.bias
        return linear.train(self.training)

    def forward(self, x: Tensor) -> Tensor:
        """`x: [.., K]` to `[.., N]`, of the dtype of `x`."""
        check_input("x", x)
        inner = x if self.compute_dtype is None else x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(inner.dtype)
        return F.linear(inner, self.weight, self.quant_state, bias).to(x.dtype)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        nested = ", compress_statistics=True" if self.quant_state.nested else ""
        block_size = self.quant_state.block_size
        return f"{super().extra_repr()}, quant_type={self.quant_type}, {block_size=}{nested}"

    def _set(self, codes: Tensor, state: QuantState) -> None:
        shape = torch.Size((self.out_features, self.in_features))
        codes = checkpoint.storable(codes, state.format, shape, self.quant_storage)
        self.weight, self.quant_state = parameter(codes, state), state

    def _placeholder(self, dtype: torch.dtype) -> tuple[Tensor, QuantState]:
        """Codes and state on "meta", of the sizes that they will have."""
        entry = formats.by_name(self.quant_type)
        shape = torch.Size((self.out_features, self.in_features))
        g = entry.geometry(shape, self.block_size)

        def empty(*size: int, dtype: torch.dtype = torch.float32) -> Tensor:
            return torch.empty(size, dtype=dtype, device="meta")

        dtype_of_scales = torch.uint8 if self.compress_statistics else entry.scale_dtype
        scales = empty(g.blocks, dtype=dtype_of_scales)
        state = QuantState(scales, shape, entry.name, g.block_size, dtype)
        if entry.codebook is None:
            state.codebook = empty(entry.codebook_len)
        if self.compress_statistics:
            blocks = -(-g.blocks // F.NESTED_BLOCK_SIZE)
            state.state2 = NestedState(empty(blocks), empty(256), F.NESTED_BLOCK_SIZE)
            state.offset = empty()
        return empty(g.code_bytes, dtype=torch.uint8), state

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Any:
        # Module.to, .half() and the rest end here. Codes and scales may follow to a device, but a
        # cast would destroy them, so `fn` only ever sees bytes.
        weight = self.weight
        codes = checkpoint.as_given(fn, weight.data)
        state = self.quant_state.map(lambda t: checkpoint.as_given(fn, t))
        del self.weight
        try:
            super()._apply(fn, recurse)
        finally:
            self.weight = weight
        self.weight, self.quant_state = parameter(codes, state), state
        return self

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight.is_meta:
            return  # Nothing to describe yet; and transformers loads what it finds here.
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
        ours = {key: v for key, v in state_dict.items() if key.startswith(prefix)}
        given = {key.removeprefix(prefix): v for key, v in ours.items()}
        given = {key: v for key, v in given.items() if checkpoint.belongs_to_weight(key)}
        rest = {key: v for key, v in ours.items() if key.removeprefix(prefix) not in given}
        missing: list[str] = []
        super()._load_from_state_dict(
            rest, prefix, local_metadata, strict, missing, unexpected_keys, error_msgs
        )
        missing_keys += [key for key in missing if key != f"{prefix}weight" or not given]
        if "weight" in given:
            try:
                self._load_weight(given, bool(local_metadata.get("assign_to_params_buffers")))
            except (ValueError, TypeError) as error:
                error_msgs.append(f"{prefix}weight: {error}")

    @torch.no_grad()
    def _load_weight(self, given: dict[str, Tensor], assign: bool) -> None:
        shape = torch.Size((self.out_features, self.in_features))
        target = self.weight.device
        stay = target.type == "meta" or assign

        def move(t: Tensor) -> Tensor:
            # A copy, so that training and other loads of the same dict cannot meet in one memory.
            return t if stay else t.to(target, copy=True)

        weight = given["weight"]
        if len(given) == 1 and weight.dtype in F.FLOATS and weight.shape == shape:
            return self.requantize(move(weight))
        entry = formats.by_name(self.quant_type)
        codes, state = checkpoint.read(given, entry, shape, self.quant_state.dtype)
        if codes.dtype != self.weight.dtype and entry.library is not None:
            codes = stored_as(codes.contiguous().view(-1).view(torch.uint8), self.quant_storage)
        state = state.map(move)
        self._set(move(codes.contiguous()), state)
        self.compress_statistics = state.nested
        self.block_size = state.block_size if entry.block_sizes else None


class Linear4bit(QuantizedLinear):
    """A linear layer with a weight of four bits: NF4 or FP4 as bitsandbytes stores them, or MXFP4.

    >>> layer = Linear4bit(64, 8, compress_statistics=True)
    >>> sorted(layer.state_dict())[:3]
    ['bias', 'weight', 'weight.absmax']
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        compute_dtype: torch.dtype | None = None,
        *,
        quant_type: str = "nf4",
        block_size: int | None = None,
        compress_statistics: bool = False,
        quant_storage: torch.dtype = torch.uint8,
    ) -> None:
        if formats.by_name(quant_type).code_bits != 4:
            raise ValueError(f"quant_type: expected a format of four bits, got {quant_type!r}")
        super().__init__(
            in_features,
            out_features,
            bias,
            device,
            compute_dtype,
            quant_type=quant_type,
            block_size=block_size,
            compress_statistics=compress_statistics,
            quant_storage=quant_storage,
        )


class Linear8bit(QuantizedLinear):
    """A linear layer with int8 rows, stored as bitsandbytes' `Linear8bitLt` stores them.

    Activations are not quantized: what LLM.int8 does about outliers is not needed here.

    >>> layer = Linear8bit(64, 8)
    >>> sorted(layer.state_dict())
    ['SCB', 'bias', 'weight', 'weight_format']
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        compute_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, compute_dtype, quant_type="int8")


class LinearFP8(QuantizedLinear):
    """A linear layer with rows in FP8 E4M3 (OCP).

    >>> LinearFP8(64, 8)(torch.randn(2, 64)).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        compute_dtype: torch.dtype | None = None,
        *,
        quant_storage: torch.dtype = torch.uint8,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            device,
            compute_dtype,
            quant_type="fp8_e4m3",
            quant_storage=quant_storage,
        )
