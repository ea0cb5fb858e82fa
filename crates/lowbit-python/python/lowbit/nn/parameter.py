"""The parameter that holds the codes of a layer."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn

from lowbit.state import QuantState


class QuantizedParameter(nn.Parameter):
    """Codes of a weight: bytes, whatever their dtype says, and never trained.

    Raises:
        ValueError: if it is to have a gradient.

    >>> layer = lowbit.nn.Linear8bit(64, 8)
    >>> type(layer.weight).__name__, layer.weight.requires_grad
    ('QuantizedParameter', False)
    """

    quant_state: QuantState | None

    def __new__(
        cls, data: Tensor, requires_grad: bool = False, quant_state: QuantState | None = None
    ) -> QuantizedParameter:
        """Wrap codes."""
        _never_trained(requires_grad)
        self = super().__new__(cls, data, requires_grad=False)
        self.quant_state = quant_state
        return self

    def requires_grad_(self, requires_grad: bool = True) -> QuantizedParameter:
        """Refuse to be trained: codes seen as floating-point numbers would be, to no avail."""
        _never_trained(requires_grad)
        return super().requires_grad_(False)  # type: ignore[return-value]

    def __deepcopy__(self, memo: dict[int, Any]) -> QuantizedParameter:
        """A copy with a state of its own."""
        if id(self) not in memo:
            state = copy.deepcopy(self.quant_state, memo)
            memo[id(self)] = type(self)(self.data.clone(), quant_state=state)
        return memo[id(self)]


class Params4bit(QuantizedParameter):
    """The same under the name by which peft and accelerate know parameters of packed codes.

    They neither cast them to f32 nor shard those that are no floating-point numbers.

    >>> type(lowbit.nn.Linear4bit(64, 8).weight).__name__
    'Params4bit'
    """


def _never_trained(requires_grad: bool) -> None:
    if requires_grad:
        raise ValueError(
            "requires_grad: expected False for a quantized weight, got True; train an adapter"
        )


def parameter(codes: Tensor, state: QuantState) -> QuantizedParameter:
    """The parameter for these codes."""
    packed = state.format.code_bits == 4 or codes.is_floating_point()
    return (Params4bit if packed else QuantizedParameter)(codes, quant_state=state)
