"""`BitsAndBytesConfig`: how a model is to be quantized, in the words of transformers."""

from __future__ import annotations

from dataclasses import asdict, dataclass, fields
from typing import Any

import torch

from lowbit import formats
from lowbit.functional.checks import check_dtype

_FLAGS = ("load_in_8bit", "load_in_4bit", "bnb_4bit_use_double_quant")
_DTYPES = ("bnb_4bit_compute_dtype", "bnb_4bit_quant_storage")


@dataclass
class BitsAndBytesConfig:
    """The counterpart of transformers' class of that name: the same fields and the same dict.

    Raises:
        ValueError: if both or neither of four and eight bits are asked for, or for values that no
            layer could have.
        TypeError: for a `bnb_4bit_compute_dtype` that is no floating-point one.

    >>> config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_compute_dtype="bfloat16")
    >>> config.bnb_4bit_compute_dtype, config.to_dict()["bnb_4bit_compute_dtype"]
    (torch.bfloat16, 'bfloat16')
    """

    load_in_8bit: bool = False
    """INT8 rows; activations stay as they are, so that the `llm_int8_*` fields change nothing."""
    load_in_4bit: bool = False
    """Four bits."""
    llm_int8_threshold: float = 6.0
    """Kept for the dict; no outliers are split off."""
    llm_int8_skip_modules: list[str] | None = None
    """Layers to leave alone, for eight bits and for four."""
    llm_int8_enable_fp32_cpu_offload: bool = False
    """Kept for the dict."""
    llm_int8_has_fp16_weight: bool = False
    """Kept for the dict."""
    bnb_4bit_compute_dtype: torch.dtype | str | None = None
    """Activations are cast to it inside a layer; None leaves them alone."""
    bnb_4bit_quant_type: str = "nf4"
    """The format of four bits."""
    bnb_4bit_use_double_quant: bool = False
    """Quantize the scales as well."""
    bnb_4bit_quant_storage: torch.dtype | str = torch.uint8
    """Dtype that codes are seen as; a floating-point one where FSDP shards them."""

    def __post_init__(self) -> None:
        for name in _FLAGS:
            if not isinstance(getattr(self, name), bool):
                raise TypeError(f"{name}: expected True or False, got {getattr(self, name)!r}")
        for name in _DTYPES:
            setattr(self, name, _dtype(name, getattr(self, name)))
        if self.bnb_4bit_compute_dtype is not None:
            check_dtype("bnb_4bit_compute_dtype", self.bnb_4bit_compute_dtype)
        if self.load_in_4bit == self.load_in_8bit:
            raise ValueError(
                "load_in_4bit, load_in_8bit: expected one of them, got "
                f"{self.load_in_4bit} and {self.load_in_8bit}"
            )
        if formats.by_name(self.bnb_4bit_quant_type).code_bits != 4:
            raise ValueError(
                "bnb_4bit_quant_type: expected a format of four bits, got "
                f"{self.bnb_4bit_quant_type!r}"
            )

    @property
    def quant_method(self) -> str:
        """What a `config.json` says."""
        return "bitsandbytes"

    def to_dict(self) -> dict[str, Any]:
        """The `quantization_config` of a `config.json`, as transformers writes it.

        >>> BitsAndBytesConfig(load_in_8bit=True).to_dict()["quant_method"]
        'bitsandbytes'
        """
        fields = asdict(self)
        for name in _DTYPES:
            if fields[name] is not None:
                fields[name] = str(fields[name]).removeprefix("torch.")
        return {"quant_method": self.quant_method, **fields}

    @classmethod
    def from_dict(cls, config: dict[str, Any]) -> BitsAndBytesConfig:
        """Read a `quantization_config`; keys that are not ours are passed over.

        >>> BitsAndBytesConfig.from_dict({"load_in_4bit": True}).bnb_4bit_quant_type
        'nf4'
        """
        known = {field.name for field in fields(cls)}
        return cls(**{key: value for key, value in config.items() if key in known})

    @classmethod
    def of(cls, config: Any) -> BitsAndBytesConfig:
        """A config of ours from one of ours, of transformers, or a dict.

        Raises:
            TypeError: for anything else.

        >>> BitsAndBytesConfig.of({"load_in_8bit": True}).load_in_8bit
        True
        """
        if isinstance(config, cls):
            return config
        if not isinstance(config, dict):
            if not hasattr(config, "to_dict"):
                raise TypeError(
                    "quantization_config: expected a BitsAndBytesConfig, got "
                    f"{type(config).__name__}"
                )
            config = config.to_dict()
        return cls.from_dict(config)


def _dtype(name: str, dtype: Any) -> torch.dtype | None:
    if dtype is None or isinstance(dtype, torch.dtype):
        return dtype
    found = getattr(torch, str(dtype).removeprefix("torch."), None)
    if not isinstance(found, torch.dtype):
        raise ValueError(f"{name}: expected a torch dtype, got {dtype!r}")
    return found
