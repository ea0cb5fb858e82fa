"""Layers whose weights are quantized; gradients flow to inputs, biases and adapters."""

from lowbit.nn.embedding import (
    Embedding4bit,
    Embedding8bit,
    EmbeddingFP4,
    EmbeddingNF4,
    QuantizedEmbedding,
)
from lowbit.nn.int8 import Linear8bitLt, OutlierAwareLinear
from lowbit.nn.linear import Linear4bit, Linear8bit, LinearFP8, QuantizedLinear
from lowbit.nn.parameter import Params4bit, QuantizedParameter
from lowbit.nn.switchback import SwitchBackLinear, SwitchBackLinearCallback

__all__ = [
    "Embedding4bit",
    "Embedding8bit",
    "EmbeddingFP4",
    "EmbeddingNF4",
    "Linear4bit",
    "Linear8bit",
    "Linear8bitLt",
    "LinearFP8",
    "OutlierAwareLinear",
    "Params4bit",
    "QuantizedEmbedding",
    "QuantizedLinear",
    "QuantizedParameter",
    "SwitchBackLinear",
    "SwitchBackLinearCallback",
]
