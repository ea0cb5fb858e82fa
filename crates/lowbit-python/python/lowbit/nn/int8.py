"""Linear layers as LLM.int8 computes them: weights and activations in 8 bits, outliers apart."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lowbit import functional as F
from lowbit.functional.checks import check_input, check_layer, check_threshold
from lowbit.nn.linear import Linear8bit
from lowbit.nn.switchback import int8_training_linear


class Linear8bitLt(nn.Linear):
    """LLM.int8 (arXiv 2208.07339), by the name and the arguments that bitsandbytes gives it.

    Activations are quantized by rows, the products of integers are exact, and columns of
    activations with an outlier are multiplied as they are. `Linear8bit`, which does not quantize
    activations, is nearer to the layer that was quantized.

    With `has_fp16_weights` the layer keeps and trains a weight that is not quantized, and rounds it
    in every forward; else its weight is int8 for good, and it is a `Linear8bit`: a byte
    per weight and four per row instead of two bytes per weight, and the bias is all that is
    trained.

    Args:
        input_features: K.
        output_features: N.
        bias: whether there is one.
        has_fp16_weights: whether the weight is trained.
        threshold: magnitude from which activations are outliers; 0 for none.
        index: for bitsandbytes' sake: only None.
        device: where the weight is.

    >>> layer = Linear8bitLt(64, 8, has_fp16_weights=False, threshold=6.0)
    >>> layer.quant_state.quant_type, layer(torch.randn(2, 64)).shape
    ('int8', torch.Size([2, 8]))
    """

    has_fp16_weights = True

    def __new__(cls, *arguments: Any, **options: Any) -> Linear8bitLt:
        """Choose between the two kinds of weight."""
        # The fourth of the arguments.
        trained = options.get("has_fp16_weights", (*arguments, True, True, True, True)[3])
        return super().__new__(cls if trained or cls is not Linear8bitLt else _Rounded)

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        has_fp16_weights: bool = True,
        threshold: float = 0.0,
        index: None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_layer(None, input_features=input_features, output_features=output_features)
        super().__init__(input_features, output_features, bias, device)
        self.threshold = _checked(threshold, index)

    @classmethod
    def from_linear(cls, linear: nn.Linear, **options: Any) -> Linear8bitLt:
        """The same layer in LLM.int8; options are `has_fp16_weights` and `threshold`.

        >>> linear = torch.nn.Linear(64, 8)
        >>> Linear8bitLt.from_linear(linear).weight is linear.weight
        True
        """
        if not isinstance(linear, nn.Linear):
            raise TypeError(f"linear: expected torch.nn.Linear, got {type(linear).__name__}")
        with torch.device("meta"):
            layer = cls(linear.in_features, linear.out_features, bias=False, **options)
        layer.bias = linear.bias
        if isinstance(layer, _Rounded):
            layer.requantize(linear.weight)
        else:
            layer.weight = linear.weight
        return layer.train(linear.training)

    def forward(self, x: Tensor) -> Tensor:
        """`x: [.., K]` to `[.., N]`, of the dtype of `x`."""
        check_input("x", x)
        # Anew each time: a change through `.data` could not be noticed.
        q, scales = F.quantize_rowwise(self.weight)
        bias = None if self.bias is None else self.bias.to(x.dtype)
        return int8_training_linear(x, self.weight.to(x.dtype), bias, q, scales, self.threshold)

    def extra_repr(self) -> str:
        """What `print` shows of the layer."""
        shown = nn.Linear.extra_repr(self)
        return f"{shown}, has_fp16_weights={self.has_fp16_weights}, threshold={self.threshold}"

    def _get_name(self) -> str:
        return Linear8bitLt.__name__


class _Rounded(Linear8bit, Linear8bitLt):
    """`Linear8bitLt` without a weight of 16 bits."""

    has_fp16_weights = False

    def __init__(
        self,
        input_features: int,
        output_features: int,
        bias: bool = True,
        has_fp16_weights: bool = False,
        threshold: float = 0.0,
        index: None = None,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(input_features, output_features, bias, device)
        self.threshold = _checked(threshold, index)

    def forward(self, x: Tensor) -> Tensor:
        check_input("x", x)
        inner = x if self.compute_dtype is None else x.to(self.compute_dtype)
        bias = None if self.bias is None else self.bias.to(inner.dtype)
        codes = self.weight.view(self.out_features, self.in_features)
        scales = self.quant_state.absmax
        return F.int8_linear(inner, codes, scales, bias, self.threshold).to(x.dtype)

    extra_repr = Linear8bitLt.extra_repr


class OutlierAwareLinear(_Rounded):
    """`Linear8bitLt` for inference: int8 weights, columns of activations with an outlier apart.

    >>> linear = torch.nn.Linear(64, 8)
    >>> layer = OutlierAwareLinear.from_linear(linear, threshold=6.0)
    >>> x = torch.randn(2, 64)
    >>> x[:, 3] = 100.0
    >>> bool((layer(x) - linear(x)).abs().max() < 0.5)
    True
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        bias: bool = True,
        threshold: float = 6.0,
        compute_dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        check_layer(compute_dtype, in_features=in_features, out_features=out_features)
        super().__init__(in_features, out_features, bias, False, threshold, None, device)
        self.compute_dtype = compute_dtype


def _checked(threshold: float, index: None) -> float:
    if index is not None:
        raise ValueError("index: expected None; weights are not reordered")
    check_threshold(threshold)
    return threshold
