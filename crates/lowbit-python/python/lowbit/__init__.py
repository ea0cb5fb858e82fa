"""Low-bit weights for PyTorch, on the CPU and on Apple Silicon, compatible with bitsandbytes.

>>> packed, state = lowbit.functional.quantize_4bit(torch.randn(128, 64))
>>> y = lowbit.functional.linear_4bit(torch.randn(3, 64), packed, state)
>>> y.shape
torch.Size([3, 128])
"""

from typing import TYPE_CHECKING, Any

from lowbit import compat, formats, functional, nn, optim
from lowbit._native import __version__
from lowbit.config import BitsAndBytesConfig
from lowbit.integrations import adapter as _adapter
from lowbit.models import QuantizationReport, get_memory_footprint, quantize_model
from lowbit.state import QuantState

if TYPE_CHECKING:
    from lowbit.integrations.transformers import LowbitConfig

__all__ = [
    "BitsAndBytesConfig",
    "LowbitConfig",
    "QuantState",
    "QuantizationReport",
    "__version__",
    "compat",
    "formats",
    "functional",
    "get_memory_footprint",
    "nn",
    "optim",
    "quantize_model",
]

_adapter.register_quantizer()
_adapter.when_imported("peft.tuners.lora.model", _adapter.use_lora_on_quantized_layers)


def __getattr__(name: str) -> Any:
    # Needs transformers, which takes seconds to import.
    if name == "LowbitConfig":
        from lowbit.integrations.transformers import LowbitConfig

        return LowbitConfig
    raise AttributeError(f"module 'lowbit' has no attribute {name!r}")
