"""Whole models: quantize their linear layers, and say what memory they take."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import nn

from lowbit.config import BitsAndBytesConfig
from lowbit.functional.general import as_device
from lowbit.nn import Linear4bit, Linear8bit, QuantizedEmbedding, QuantizedLinear

logger = logging.getLogger(__name__)

_GIB = 1024**3


@dataclass
class QuantizationReport:
    """What `quantize_model` did.

    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    >>> print(lowbit.quantize_model(model, load_in_4bit=True).quantization_report)
    quantized 1 of 2 linear layers: 0
    kept 1: the output layer (1)
    """

    replaced: dict[str, str] = field(default_factory=dict)
    """Names of quantized layers, with their formats."""
    kept: dict[str, str] = field(default_factory=dict)
    """Names of linear layers that are as they were, with the reasons."""

    def __str__(self) -> str:
        total = len(self.replaced) + len(self.kept)
        lines = [f"quantized {len(self.replaced)} of {total} linear layers: {_few(self.replaced)}"]
        for reason in dict.fromkeys(self.kept.values()):
            names = [name for name, why in self.kept.items() if why == reason]
            lines.append(f"kept {len(names)}: {reason} ({_few(names)})")
        return "\n".join(lines)


def quantize_model(
    model: nn.Module,
    quantization_config: Any = None,
    *,
    load_in_4bit: bool = False,
    load_in_8bit: bool = False,
    quant_type: str | None = None,
    block_size: int | None = None,
    device: torch.device | str | None = None,
    compute_dtype: torch.dtype | None = None,
    modules_to_not_convert: Iterable[str] | None = None,
) -> Any:
    """Replace the linear layers of a model by quantized ones, in place.

    Embeddings and norms stay as they are, and so do output layers (`lm_head`, the last linear
    layer of a model without one), layers whose weight is tied to another's, and subclasses of
    `torch.nn.Linear`.

    Args:
        model: any module.
        quantization_config: `BitsAndBytesConfig`, that of transformers, or its dict.
        load_in_4bit: without a config: NF4, or the `quant_type` given.
        load_in_8bit: without a config: INT8 rows.
        quant_type: without a config: any format of `lowbit.formats.ALL`.
        block_size: weights that share a scale; None for the format's default.
        device: where to move the model afterwards; None leaves it where it is.
        compute_dtype: as of the layers; the config's, if it has one, comes first.
        modules_to_not_convert: names of layers, or of modules above them, to leave alone as
            well: whole names (`model.layers.0`), or parts between dots (`q_proj`).

    Returns:
        The model. Its `quantization_report` says what was done, and a line of it is logged.

    Raises:
        ValueError: if nothing says to which format, or more than one thing does.

    >>> model = torch.nn.Sequential(torch.nn.Linear(64, 64), torch.nn.Linear(64, 8))
    >>> model = quantize_model(model, quant_type="fp8_e4m3", modules_to_not_convert=["1"])
    >>> type(model[0]).__name__, type(model[1]).__name__
    ('QuantizedLinear', 'Linear')
    """
    _check_module(model)
    if device is not None:
        as_device(device)
    skip = set(modules_to_not_convert or ())
    if isinstance(modules_to_not_convert, str):
        raise TypeError("modules_to_not_convert: expected a list of names, got a string")
    if quantization_config is not None:
        if load_in_4bit or load_in_8bit or quant_type:
            raise ValueError("quantization_config: expected it alone, got load_in_* or quant_type")
        config = BitsAndBytesConfig.of(quantization_config)
    elif load_in_8bit and quant_type:
        raise ValueError("load_in_8bit, quant_type: expected one of them, got both")
    elif load_in_4bit or load_in_8bit:
        config = BitsAndBytesConfig(
            load_in_4bit=load_in_4bit,
            load_in_8bit=load_in_8bit,
            bnb_4bit_quant_type=quant_type or BitsAndBytesConfig.bnb_4bit_quant_type,
        )
    elif quant_type is not None:
        config = None
    else:
        raise ValueError("quantization_config: expected it, or load_in_4bit, or quant_type")
    make: Any
    if config is None:
        make = partial(
            QuantizedLinear.from_linear,
            compute_dtype=compute_dtype,
            quant_type=quant_type,
            block_size=block_size,
        )
    else:
        skip |= set(config.llm_int8_skip_modules or ())
        make = _maker(config, compute_dtype, block_size)
    report = _replace(model, make, skip)
    if device is not None:
        model.to(device)
    model.quantization_report = report  # type: ignore[assignment]
    logger.info("%s", report)
    return model


def _maker(
    config: BitsAndBytesConfig, compute_dtype: torch.dtype | None, block_size: int | None
) -> Any:
    """What quantizes one layer."""
    if config.load_in_8bit:
        return partial(Linear8bit.from_linear, compute_dtype=compute_dtype)
    return partial(
        Linear4bit.from_linear,
        compute_dtype=config.bnb_4bit_compute_dtype or compute_dtype,
        quant_type=config.bnb_4bit_quant_type,
        block_size=block_size,
        compress_statistics=config.bnb_4bit_use_double_quant,
        quant_storage=config.bnb_4bit_quant_storage,
    )


def _replace(model: nn.Module, make: Any, skip: set[str]) -> QuantizationReport:
    report = QuantizationReport()
    linears = {name: m for name, m in model.named_modules() if isinstance(m, nn.Linear)}
    outputs = set(map(id, _output_layers(model, list(linears.values()))))
    tied = _tied_weights(model)
    for name, linear in linears.items():
        if type(linear) is not nn.Linear:
            reason = f"a {type(linear).__name__} already"
        elif id(linear) in outputs:
            reason = "the output layer"
        elif id(linear.weight) in tied:
            reason = "tied to another weight"
        elif any(_covers(pattern, name) for pattern in skip):
            reason = "to be left alone"
        else:
            layer = make(linear)
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, layer)
            report.replaced[name] = layer.quant_type
            continue
        report.kept[name] = reason
    return report


def _output_layers(model: nn.Module, linears: list[nn.Linear]) -> Iterator[nn.Module]:
    named = getattr(model, "get_output_embeddings", None)
    output = named() if callable(named) else None
    heads = [m for name, m in model.named_modules() if name.split(".")[-1] == "lm_head"]
    if isinstance(output, nn.Module):
        heads.append(output)
    # A model that does not say which layer is its output ends with it.
    yield from heads or (linears[-1:] if named is None and len(linears) > 1 else [])


def _tied_weights(model: nn.Module) -> set[int]:
    """Parameters that more than one module has."""
    seen: set[int] = set()
    tied: set[int] = set()
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            (tied if id(parameter) in seen else seen).add(id(parameter))
    return tied


def _covers(pattern: str, name: str) -> bool:
    return f".{pattern}." in f".{name}."


def get_memory_footprint(model: nn.Module) -> dict[str, float]:
    """What memory the weights of a model take, scales included.

    Returns:
        `total_params` and `quantized_params`, in weights; `fp16_size_gb`, if all were 16 bits;
        `actual_size_gb`, with scales, buffers and codes as they are; `savings_gb`;
        `savings_pct`. A GB has 2^30 bytes. What is shared counts once.

    >>> model = lowbit.nn.Linear4bit(4096, 4096, bias=False)
    >>> footprint = get_memory_footprint(model)
    >>> 8 * footprint["actual_size_gb"] * 2**30 / footprint["total_params"]
    4.5
    """
    _check_module(model)
    total = quantized = size = 0
    seen: set[int] = set()
    for module in model.modules():
        own = [*module.parameters(recurse=False), *module.buffers(recurse=False)]
        for tensor in own:
            if id(tensor) in seen:
                continue
            seen.add(id(tensor))
            size += tensor.nbytes
            kinds = (QuantizedLinear, QuantizedEmbedding)
            if isinstance(module, kinds) and tensor is module.weight:
                weights = module.quant_state.shape.numel()
                quantized += weights
                total += weights
                size += module.quant_state.nbytes()
            elif isinstance(tensor, nn.Parameter):
                total += tensor.numel()
    return {
        "total_params": total,
        "quantized_params": quantized,
        "fp16_size_gb": 2 * total / _GIB,
        "actual_size_gb": size / _GIB,
        "savings_gb": (2 * total - size) / _GIB,
        "savings_pct": 100 * (1 - size / (2 * total)) if total else 0.0,
    }


def _check_module(model: Any) -> None:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model: expected a torch.nn.Module, got {type(model).__name__}")


def _few(names: Iterable[str], most: int = 6) -> str:
    names = list(names)
    shown = ", ".join(names[:most])
    return f"{shown}, .." if len(names) > most else shown
