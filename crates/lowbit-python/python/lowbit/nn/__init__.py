"""Linear layers whose weights are quantized; gradients flow to inputs, biases and adapters."""

from lowbit.nn.linear import Linear4bit, Linear8bit, LinearFP8, QuantizedLinear
from lowbit.nn.parameter import Params4bit, QuantizedParameter

__all__ = [
    "Linear4bit",
    "Linear8bit",
    "LinearFP8",
    "Params4bit",
    "QuantizedLinear",
    "QuantizedParameter",
]
