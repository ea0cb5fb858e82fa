"""LoRA on our layers, for peft: attached, trained and merged like on dense ones."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTunerLayer

from lowbit.nn import Params4bit, QuantizedLinear


class Linear(lora.Linear):
    """peft's layer on a quantized one. What touches the weight sees it dequantized for a moment."""

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Add adapters to the weight, which is quantized again: it is rounded a second time."""
        warnings.warn(
            "merging an adapter into a quantized weight rounds it; to keep full accuracy, "
            "dequantize the model first (layer.to_linear())",
            stacklevel=2,
        )
        with self._dense():
            super().merge(safe_merge=safe_merge, adapter_names=adapter_names)

    def unmerge(self) -> None:
        """Take merged adapters off the weight, which is rounded once more."""
        with self._dense():
            super().unmerge()

    def update_layer(self, *args: Any, **kwargs: Any) -> None:
        """Add an adapter; some are set up from the weight."""
        config = kwargs["config"] if "config" in kwargs else args[3]
        if config.use_dora and not isinstance(self.get_base_layer().weight, Params4bit):
            raise ValueError(
                "use_dora: expected a layer of four bits, whose weight peft can dequantize, got "
                f"one of {self.get_base_layer().quant_type}; leave it out"
            )
        plain = isinstance(config.init_lora_weights, bool) and not config.use_dora
        with contextlib.nullcontext() if plain else self._dense():
            super().update_layer(*args, **kwargs)

    @contextlib.contextmanager
    def _dense(self) -> Iterator[None]:
        """Give the layer its dequantized weight; quantize what it has become, if it has changed."""
        layer: Any = self.get_base_layer()
        codes, state = layer.weight, layer.quant_state
        dense = layer.dequantize()
        layer.weight = torch.nn.Parameter(dense.clone(), requires_grad=False)
        try:
            yield
            changed = layer.weight.data
        finally:
            layer.weight, layer.quant_state = codes, state
        if not torch.equal(changed, dense):
            layer.requantize(changed)


def dispatch(
    target: torch.nn.Module,
    adapter_name: str,
    config: Any,
    parameter_name: str | None = None,
    **kwargs: Any,
) -> Linear | None:
    """The layer for a target of ours; None for any other."""
    base = target.get_base_layer() if isinstance(target, BaseTunerLayer) else target
    if not isinstance(base, QuantizedLinear) or parameter_name is not None:
        return None
    return Linear(target, adapter_name, config=config, **kwargs)
