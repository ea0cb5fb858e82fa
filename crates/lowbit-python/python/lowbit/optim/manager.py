"""Settings of single parameters that override those of their group."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

SETTINGS = (
    *("lr", "betas", "eps", "weight_decay", "alpha", "t_alpha", "t_beta3", "nesterov"),
    *("optim_bits", "min_8bit_size", "max_unorm", "skip_zeros"),
)
"""What a parameter may have of its own."""


class GlobalOptimManager:
    """The one place where parameters get settings of their own: bitsandbytes' interface.

    What may be set is whatever a group has (`lr`, `betas`, ...), and `optim_bits`,
    `min_8bit_size`, `max_unorm` and `skip_zeros`.

    >>> layer = torch.nn.Linear(128, 64)
    >>> manager = GlobalOptimManager.get_instance()
    >>> manager.override_config(layer.weight, "optim_bits", 32)
    """

    _instance: ClassVar[GlobalOptimManager | None] = None

    pid2config: dict[int, dict[str, Any]]
    """Settings by the identity of a parameter."""
    module_weight_config_triple: list[tuple[nn.Module, str, dict[str, Any]]]
    """Settings of what a module has under a name when an optimizer takes its first step."""

    def __init__(self) -> None:
        raise RuntimeError("GlobalOptimManager: there is one; call get_instance()")

    @classmethod
    def get_instance(cls) -> GlobalOptimManager:
        """The one that there is."""
        if cls._instance is None:
            cls._instance = cls.__new__(cls)
            cls._instance.initialize()
        return cls._instance

    def initialize(self) -> None:
        """Forget all settings."""
        self.pid2config = {}
        self.module_weight_config_triple = []
        self._kept: dict[int, Tensor] = {}

    def register_parameters(self, params: Iterable[Any]) -> None:
        """Accepted for bitsandbytes' sake: parameters are known by their identity."""
        if not isinstance(params, Iterable):
            raise TypeError(f"params: expected parameters, got {type(params).__name__}")
        for entry in list(params):
            for p in entry["params"] if isinstance(entry, dict) else [entry]:
                if not isinstance(p, Tensor):
                    raise TypeError(f"params: expected parameters, got {type(p).__name__}")

    def override_config(
        self,
        parameters: Tensor | Iterable[Tensor],
        key: str | None = None,
        value: Any = None,
        key_value_dict: dict[str, Any] | None = None,
    ) -> None:
        """Give parameters settings of their own.

        Args:
            parameters: one or several.
            key: name of a setting.
            value: the setting.
            key_value_dict: several of them, instead.

        Raises:
            ValueError: if neither or both ways are used.
        """
        if (key is None) == (key_value_dict is None):
            raise ValueError("override_config: expected key and value, or key_value_dict")
        settings = _known({key: value} if key is not None else key_value_dict)
        several = isinstance(parameters, Iterable) and not isinstance(parameters, torch.Tensor)
        for p in parameters if several else [parameters]:
            if not isinstance(p, Tensor):
                raise TypeError(f"parameters: expected parameters, got {type(p).__name__}")
            self.pid2config.setdefault(id(p), {}).update(settings)
            self._kept[id(p)] = p  # An identity says something only while its owner lives.

    def register_module_override(
        self, module: nn.Module, param_name: str, config: dict[str, Any]
    ) -> None:
        """Give what `module` has under a name when an optimizer begins settings of its own."""
        if not isinstance(module, nn.Module):
            raise TypeError(f"module: expected a torch.nn.Module, got {type(module).__name__}")
        if not isinstance(getattr(module, param_name, None), Tensor):
            raise ValueError(
                f"param_name: expected the name of a parameter of {type(module).__name__}, got "
                f"{param_name!r}"
            )
        self.module_weight_config_triple.append((module, param_name, _known(config)))


def _known(config: Any) -> dict[str, Any]:
    """Settings, whose names are those of some optimizer's."""
    if not isinstance(config, Mapping):
        raise TypeError(f"config: expected a dict of settings, got {type(config).__name__}")
    for key in config:
        if key not in SETTINGS:
            raise ValueError(f"key: expected one of {', '.join(SETTINGS)}, got {key!r}")
    return dict(config)
