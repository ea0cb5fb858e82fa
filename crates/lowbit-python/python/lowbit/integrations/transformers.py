"""`quant_method: lowbit` in transformers: checkpoints in any format of the table.

bitsandbytes' own formats are loaded with its own method, which our kernels run as well. The others,
and all that come later, load, quantize on the fly, train with peft and save with this one:

    model = AutoModelForCausalLM.from_pretrained(
        name, quantization_config=lowbit.LowbitConfig("mxfp4")
    )

`import lowbit` registers it; so does an installed bitsandbytes, which imports lowbit.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers.core_model_loading import ConversionOps
from transformers.quantizers.auto import register_quantization_config, register_quantizer
from transformers.quantizers.base import HfQuantizer
from transformers.quantizers.quantizers_utils import get_module_from_name, should_convert_module
from transformers.utils.quantization_config import QuantizationConfigMixin

from lowbit import formats
from lowbit.models import QuantizationReport
from lowbit.nn import QuantizedLinear, checkpoint
from lowbit.nn.parameter import parameter
from lowbit.state import packed_key

METHOD = "lowbit"

_PARTS = ["nested_absmax", "nested_quant_map", "quant_map", "absmax", "means"]


def _names(entry: formats.Format) -> list[str]:
    """Under which a checkpoint stores a weight. A longer one before those that it ends like.

    Those of other formats are among them, so that such a weight is refused by its format's name.
    """
    # A variant is not in the table, and its name begins like that of a format which is.
    states = [packed_key(f) for f in (entry, *formats.ALL.values()) if f.library is not None]
    parts = [*_PARTS, *dict.fromkeys(states)]
    return ["weight", *(f"weight.{part}" for part in parts), *checkpoint.BESIDE_WEIGHT]


@register_quantization_config(METHOD)
class LowbitConfig(QuantizationConfigMixin):
    """How a model is to be quantized, or was: the `quantization_config` of its `config.json`.

    Args:
        quant_type: the format, by its name in `lowbit.formats.ALL`.
        block_size: weights that share a scale; None for the format's default.
        double_quant: quantize the scales as well.
        skip_modules: layers to leave alone; None for those that transformers leaves by itself.
        compute_dtype: activations are cast to it inside a layer; None leaves them alone.

    Raises:
        ValueError: for an unknown format, or one that cannot have that block size or whose scales
            cannot be quantized.
    """

    def __init__(
        self,
        quant_type: str,
        block_size: int | None = None,
        double_quant: bool = False,
        skip_modules: list[str] | None = None,
        compute_dtype: torch.dtype | str | None = None,
        **_: Any,
    ) -> None:
        entry = formats.by_name(quant_type)
        if block_size is not None and entry.block_sizes:
            entry.block_size(block_size, 0)
        if double_quant and not (entry.can_double_quantize and entry.library):
            raise ValueError(
                f"double_quant: expected a format whose checkpoints can hold it, got {quant_type}; "
                "leave it out"
            )
        self.quant_method = METHOD  # type: ignore[assignment]
        self.quant_type = quant_type
        self.block_size = block_size if entry.block_sizes else None
        self.double_quant = double_quant
        self.skip_modules = skip_modules
        self.compute_dtype = compute_dtype

    def to_dict(self) -> dict[str, Any]:
        """What `config.json` keeps, as `lowbit quantize` writes it."""
        kept = super().to_dict()
        dtype = kept.pop("compute_dtype")
        if dtype is not None:
            kept["compute_dtype"] = str(dtype).removeprefix("torch.")
        return kept

    def layer_options(self) -> dict[str, Any]:
        """The arguments of `QuantizedLinear`."""
        dtype = self.compute_dtype
        return {
            "quant_type": self.quant_type,
            "block_size": self.block_size,
            "compress_statistics": self.double_quant,
            "compute_dtype": getattr(torch, dtype) if isinstance(dtype, str) else dtype,
        }


@register_quantizer(METHOD)
class LowbitHfQuantizer(HfQuantizer):
    """What transformers asks while it loads, saves or dequantizes a model."""

    quantization_config: LowbitConfig

    def __init__(self, quantization_config: LowbitConfig, **kwargs: Any) -> None:
        super().__init__(quantization_config, **kwargs)
        # The tensors of one weight: transformers collects them for `Deserialize`.
        entry = formats.by_name(quantization_config.quant_type)
        self.serialized_names = {"weight": _names(entry)}

    @property
    def quantized_element_size(self) -> float:
        """Bytes per weight, for device maps."""
        return formats.by_name(self.quantization_config.quant_type).code_bits / 8

    def param_needs_quantization(self, model: Any, param_name: str, **_: Any) -> bool:
        """Whether a parameter is the weight of a layer of ours."""
        module, name = get_module_from_name(model, param_name)
        return isinstance(module, QuantizedLinear) and name == "weight"

    def get_quantize_ops(self) -> ConversionOps:
        """What quantizes a weight that is loaded in 16 or 32 bits."""
        return Quantize()

    def get_load_operations(self) -> dict[str, Any]:
        """What puts a stored weight together."""
        return {"deserialize": Deserialize}

    def _process_model_before_weight_loading(self, model: Any, **_: Any) -> None:
        skip = self.get_modules_to_not_convert(
            model, self.quantization_config.skip_modules, model._keep_in_fp32_modules
        )
        options = self.quantization_config.layer_options()
        report = QuantizationReport()
        for name, linear in list(model.named_modules()):
            if type(linear) is not nn.Linear:
                continue
            if not should_convert_module(name, skip):
                report.kept[name] = "to be left alone"
                continue
            # Still on "meta": this allocates nothing.
            model.set_submodule(name, QuantizedLinear.from_linear(linear, **options))
            report.replaced[name] = self.quantization_config.quant_type
        if not report.replaced:
            raise ValueError(
                f"{METHOD}: expected a model with linear layers, got none that may be quantized"
            )
        model.quantization_report = report

    def _process_model_after_weight_loading(self, model: Any, **_: Any) -> Any:
        # Layers write the keys of a checkpoint themselves: saving has nothing to revert.
        model._weight_conversions = [
            conversion
            for conversion in model._weight_conversions or []
            if not any(isinstance(op, Deserialize) for op in getattr(conversion, "operations", []))
        ]
        return model

    def _dequantize(self, model: Any, dtype: torch.dtype | None = None) -> Any:
        for name, module in list(model.named_modules()):
            if isinstance(module, QuantizedLinear):
                model.set_submodule(name, module.to_linear(dtype))
        return model

    def is_serializable(self) -> bool:
        """It is."""
        return True

    @property
    def is_trainable(self) -> bool:
        """Adapters are; quantized weights are not."""
        return True

    @property
    def is_compileable(self) -> bool:
        """Operations of ours have shapes and gradients that `torch.compile` sees."""
        return True


class Quantize(ConversionOps):
    """Quantizes a weight on its way into its layer."""

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: Any = None,
        target_patterns: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """From the name of a parameter to its quantized value."""
        quantized = {}
        layer: Any
        for name, given in input_dict.items():
            layer, _ = get_module_from_name(kwargs["model"], name)
            layer.requantize(_one(given))
            layer._is_hf_initialized = True
            quantized[name] = layer.weight
        return quantized


class Deserialize(ConversionOps):
    """Puts the weight of a layer together from the tensors of a checkpoint."""

    def __init__(self, hf_quantizer: LowbitHfQuantizer) -> None:
        self.hf_quantizer = hf_quantizer

    def convert(
        self,
        input_dict: dict[str, Any],
        source_patterns: Any = None,
        target_patterns: Any = None,
        **kwargs: Any,
    ) -> dict[str, Any]:
        """From the tensors of one weight to its parameter; others pass through."""
        given = {key: _one(tensors) for key, tensors in input_dict.items()}
        model, name = kwargs["model"], kwargs["full_layer_name"]
        layer: Any
        layer, _ = get_module_from_name(model, name)
        if not isinstance(layer, QuantizedLinear):
            # A norm, an embedding, a layer left alone: as the model was asked for.
            dtype = model.get_parameter_or_buffer(name).dtype
            return {key: t.to(dtype) for key, t in given.items()}
        entry = formats.by_name(layer.quant_type)
        shape = torch.Size((layer.out_features, layer.in_features))
        codes, layer.quant_state = checkpoint.read(given, entry, shape, layer.quant_state.dtype)
        layer._is_hf_initialized = True  # type: ignore[assignment]
        layer.compress_statistics = layer.quant_state.nested
        layer.block_size = layer.quant_state.block_size if entry.block_sizes else None
        return {"weight": parameter(codes, layer.quant_state)}


def _one(given: Tensor | list[Tensor]) -> Tensor:
    return given[0] if isinstance(given, list) else given
