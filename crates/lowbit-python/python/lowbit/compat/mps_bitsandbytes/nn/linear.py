"""Linear layers: ours, with the arguments of `mps_bitsandbytes`."""

from __future__ import annotations

from typing import Any, TypeVar

import torch
from torch import nn

from lowbit import nn as ours
from lowbit.compat.spelling import either_spelling

T = TypeVar("T", bound=ours.QuantizedLinear)


def _computing(linear: nn.Linear, options: dict[str, Any]) -> dict[str, Any]:
    """The options of a layer that computes in the dtype of the weight unless told otherwise."""
    given = options.get("compute_dtype")
    return options | {"compute_dtype": linear.weight.dtype if given is None else given}


def _moved(layer: T, device: Any) -> T:
    return layer if device is None else layer.to(device)


class Linear4bit(ours.Linear4bit):
    """`lowbit.nn.Linear4bit`; activations are cast to half floats inside unless told otherwise.

    >>> linear = torch.nn.Linear(64, 8).half()
    >>> Linear4bit.from_linear(linear, quant_type="fp4", blocksize=32).quant_state.block_size
    32
    """

    @either_spelling
    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        compute_dtype: torch.dtype | None = torch.float16,
        quant_type: str = "nf4",
        block_size: int | None = 64,
        compress_statistics: bool = False,
        **options: Any,
    ) -> None:
        super().__init__(
            in_features,
            out_features,
            bias,
            device,
            compute_dtype,
            quant_type=quant_type,
            block_size=block_size,
            compress_statistics=compress_statistics,
            **options,
        )

    @classmethod
    def from_linear(cls, linear: nn.Linear, device: Any = None, **options: Any) -> Any:
        """Quantize the weight of a layer; its bias is shared.

        Args:
            linear: the layer.
            device: where to move the result; None leaves it where the weight is.
            options: `compute_dtype`, `quant_type`, `blocksize`, `compress_statistics`.
        """
        return _moved(super().from_linear(linear, **_computing(linear, options)), device)


class Linear8bit(ours.Linear8bit):
    """`lowbit.nn.Linear8bit`. There is no dense copy of the weight, so `use_cache` changes nothing.

    >>> Linear8bit.from_linear(torch.nn.Linear(64, 8))(torch.randn(2, 64)).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        use_cache: bool = True,
        compute_dtype: torch.dtype | None = torch.float16,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, compute_dtype)

    @classmethod
    def from_linear(cls, linear: nn.Linear, device: Any = None, **options: Any) -> Any:
        """Quantize the weight of a layer; options are `use_cache` and `compute_dtype`."""
        return _moved(super().from_linear(linear, **_computing(linear, options)), device)

    def clear_cache(self) -> None:
        """There is none."""


class LinearFP8(ours.LinearFP8):
    """`lowbit.nn.LinearFP8`.

    >>> LinearFP8.from_linear(torch.nn.Linear(64, 8)).dequantize().shape
    torch.Size([8, 64])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        device: torch.device | str | None = None,
        compute_dtype: torch.dtype | None = torch.float16,
    ) -> None:
        super().__init__(in_features, out_features, bias, device, compute_dtype)

    @classmethod
    def from_linear(cls, linear: nn.Linear, device: Any = None, **options: Any) -> Any:
        """Quantize the weight of a layer; the option is `compute_dtype`."""
        return _moved(super().from_linear(linear, **_computing(linear, options)), device)


class OutlierAwareLinear(ours.OutlierAwareLinear):
    """`lowbit.nn.OutlierAwareLinear`.

    >>> layer = OutlierAwareLinear.from_linear(torch.nn.Linear(64, 8), threshold=6.0)
    >>> layer(torch.randn(2, 64)).shape
    torch.Size([2, 8])
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        threshold: float = 6.0,
        compute_dtype: torch.dtype | None = torch.float16,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(in_features, out_features, bias, threshold, compute_dtype, device)

    @classmethod
    def from_linear(
        cls, linear: nn.Linear, threshold: float = 6.0, device: Any = None, **options: Any
    ) -> Any:
        """Quantize the weight of a layer; its bias is shared."""
        options["threshold"] = threshold
        return _moved(super().from_linear(linear, **_computing(linear, options)), device)
