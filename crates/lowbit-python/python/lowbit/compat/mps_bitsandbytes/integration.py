"""Whole models: `mps_bitsandbytes.integration`."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

import lowbit
from lowbit.compat.mps_bitsandbytes.nn import Linear4bit, Linear8bit
from lowbit.models import get_memory_footprint

__all__ = [
    "BitsAndBytesConfig",
    "get_memory_footprint",
    "quantize_model",
    "replace_linear_with_4bit",
    "replace_linear_with_8bit",
]


class BitsAndBytesConfig(lowbit.BitsAndBytesConfig):
    """`lowbit.BitsAndBytesConfig`, and two questions to it.

    >>> BitsAndBytesConfig(load_in_4bit=True).quantization_method
    'nf4'
    """

    @property
    def is_quantizable(self) -> bool:
        """Whether it asks for four or eight bits; another one cannot be made."""
        return self.load_in_4bit or self.load_in_8bit

    @property
    def quantization_method(self) -> str:
        """`llm_int8`, or the format of four bits."""
        return "llm_int8" if self.load_in_8bit else self.bnb_4bit_quant_type


def quantize_model(
    model: nn.Module,
    quantization_config: Any = None,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    device: torch.device | str | None = None,
    compute_dtype: torch.dtype = torch.float16,
    modules_to_not_convert: list[str] | None = None,
) -> Any:
    """`lowbit.quantize_model`, with layers of the classes here.

    Args:
        model: any module.
        quantization_config: a config; None where the next two say it.
        load_in_4bit: NF4.
        load_in_8bit: INT8 rows.
        device: where to move the model; None for Apple's GPU where there is one.
        compute_dtype: activations are cast to it inside a layer.
        modules_to_not_convert: names of layers to leave alone.

    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    >>> type(quantize_model(model, load_in_4bit=True)[0]) is Linear4bit
    True
    """
    model = lowbit.quantize_model(
        model,
        quantization_config,
        load_in_4bit=load_in_4bit,
        load_in_8bit=load_in_8bit,
        compute_dtype=compute_dtype,
        modules_to_not_convert=modules_to_not_convert,
    )
    for module in model.modules():
        for ours in (Linear4bit, Linear8bit):
            if type(module) is ours.__base__:
                module.__class__ = ours
    if device is None:
        device = "mps" if lowbit.functional.is_available("mps") else "cpu"
    return model.to(device)


def replace_linear_with_4bit(
    model: nn.Module,
    quantization_config: Any = None,
    modules_to_not_convert: list[str] | None = None,
    current_key_name: str | None = None,
) -> Any:
    """`quantize_model` with NF4, or as the config says, where the model is.

    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    >>> type(replace_linear_with_4bit(model)[0]).__name__
    'Linear4bit'
    """
    config = quantization_config or BitsAndBytesConfig(load_in_4bit=True)
    return _replace(model, config, modules_to_not_convert)


def replace_linear_with_8bit(
    model: nn.Module,
    quantization_config: Any = None,
    modules_to_not_convert: list[str] | None = None,
    current_key_name: str | None = None,
) -> Any:
    """`quantize_model` with INT8 rows, where the model is.

    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    >>> type(replace_linear_with_8bit(model)[0]).__name__
    'Linear8bit'
    """
    config = quantization_config or BitsAndBytesConfig(load_in_8bit=True)
    return _replace(model, config, modules_to_not_convert)


def _replace(model: nn.Module, config: Any, skip: list[str] | None) -> Any:
    first = next(model.parameters(), None)
    device = torch.device("cpu") if first is None else first.device
    return quantize_model(model, config, device=device, modules_to_not_convert=skip)
