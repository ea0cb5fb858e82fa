"""LoRA on our layers, for peft: attached, trained and merged like on dense ones."""

from __future__ import annotations

import contextlib
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from peft.tuners.lora import layer as lora
from peft.tuners.tuners_utils import BaseTunerLayer

from lowbit import eager
from lowbit.functional import FLOATS
from lowbit.integrations import adapter
from lowbit.nn import Params4bit, QuantizedLinear


class Linear(lora.Linear):
    """peft's layer on a quantized one. What touches the weight sees it dequantized for a moment."""

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """The layer's result and that of the adapter: at once where that is all there is to do."""
        if not args and not kwargs and (y := self._at_once(x)) is not None:
            return y
        result: torch.Tensor = super().forward(x, *args, **kwargs)
        return result

    def _at_once(self, x: torch.Tensor) -> torch.Tensor | None:
        """The result, if one plain adapter in f32 sits on a layer on the CPU; else None."""
        base, names = self.base_layer, self.active_adapters
        if self.disable_adapters or self.merged or len(names) != 1:
            return None
        name = names[0]
        if not isinstance(base, QuantizedLinear) or name in self.lora_variant:
            return None
        if not adapter.is_untouched(base) or type(base).forward is not QuantizedLinear.forward:
            return None
        factors = self.lora_A
        if name not in factors or torch.is_autocast_enabled("cpu"):
            return None
        a, b = _factor(factors[name]), _factor(self.lora_B[name])
        bias, codes, dtype = base.bias, base.weight, x.dtype
        if a is None or b is None or dtype not in FLOATS or base.compute_dtype not in (None, dtype):
            return None
        if bias is not None and (bias.requires_grad or bias.dtype != dtype):
            return None
        if x.shape[-1] != base.in_features or x.numel() == 0 or not codes.is_cpu:
            return None
        if not eager.may_skip_operations(x):
            return None
        dropped = None
        if self.training and getattr(dropout := self.lora_dropout[name], "p", 0.0) > 0.0:
            dropped = dropout(x)
        weight = base.quant_state.weight(codes)
        scale = float(self.scaling[name])
        return eager.linear_with_adapter(x, dropped, bias, weight, (a, b, scale))

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


def _factor(module: torch.nn.Module) -> torch.Tensor | None:
    """The weight of an adapter's layer, if that is a plain one in f32 and all there."""
    if type(module) is not torch.nn.Linear or not adapter.is_untouched(module):
        return None
    w: torch.Tensor = module.weight
    is_plain = type(w) in (torch.Tensor, torch.nn.Parameter) and w.dtype is torch.float32
    return w if is_plain and w.is_cpu and w.is_contiguous() and module.bias is None else None


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
