"""Layers: `mps_bitsandbytes.nn`."""

from lowbit.compat.mps_bitsandbytes.nn.embedding import (
    Embedding4bit,
    Embedding8bit,
    EmbeddingFP4,
    EmbeddingNF4,
)
from lowbit.compat.mps_bitsandbytes.nn.linear import (
    Linear4bit,
    Linear8bit,
    LinearFP8,
    OutlierAwareLinear,
)
from lowbit.nn import SwitchBackLinear, SwitchBackLinearCallback

__all__ = [
    "Embedding4bit",
    "Embedding8bit",
    "EmbeddingFP4",
    "EmbeddingNF4",
    "Linear4bit",
    "Linear8bit",
    "LinearFP8",
    "OutlierAwareLinear",
    "SwitchBackLinear",
    "SwitchBackLinearCallback",
]
