"""The table of update rules, from the Rust crate, and the numbers of a step."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import NamedTuple

from lowbit import _native


class Settings(NamedTuple):
    """The numbers of a step; a rule reads those that concern it."""

    lr: float
    """Learning rate."""
    beta1: float = 0.0
    """Decay of the first moment; of the only one; of Lion's direction."""
    beta2: float = 0.0
    """Decay of the second moment; of Lion's momentum."""
    beta3: float = 0.0
    """Decay of AdEMAMix's slow moment."""
    alpha: float = 0.0
    """Weight of AdEMAMix's slow moment."""
    eps: float = 0.0
    """Added to a root before it divides."""
    weight_decay: float = 0.0
    """Direct with Adam, AdEMAMix and Lion, through the gradient with the others."""
    dampening: float = 0.0
    """Share of the gradient that does not enter a momentum that has begun."""
    nesterov: bool = False
    """Whether momentum looks ahead."""
    grad_scale: float = 1.0
    """Factor of every gradient."""
    max_update_norm: float = 0.0
    """Largest norm of an update, in norms of the parameter; 0 for no limit."""


@dataclass(frozen=True)
class Rule:
    """What a rule remembers of each number of a parameter."""

    name: str
    """bitsandbytes' name of it."""
    moments: tuple[str, ...]
    """The format of each moment in 8 bits."""
    thresholds: tuple[tuple[float, ...], ...]
    """For each moment, the smallest number of each code but the first."""
    block_size: int
    """Numbers that share an absmax."""
    decays_gradient: bool
    """Whether a weight decay goes through the gradient; else it shrinks the parameter."""
    decays_first: bool
    """Whether the parameter shrinks before the update."""

    def blocks(self, numel: int) -> int:
        """Absmax of a moment in 8 bits."""
        return -(-numel // self.block_size)


def _read(fields: dict) -> Rule:
    thresholds = tuple(map(tuple, fields.pop("thresholds")))
    return Rule(moments=tuple(fields.pop("moments")), thresholds=thresholds, **fields)


_ALIASES = {"lamb": "adam", "lars": "momentum"}


def by_name(name: str) -> Rule:
    """Find a rule by bitsandbytes' name of it, or of what it calls otherwise.

    Raises:
        ValueError: with the names there are.

    >>> by_name("lamb").moments
    ('dynamic8', 'dynamic8u')
    """
    try:
        return ALL[_ALIASES.get(name, name)]
    except (KeyError, TypeError):
        raise ValueError(f"optimizer: expected one of {', '.join(ALL)}, got {name!r}") from None


ALL: Mapping[str, Rule] = MappingProxyType(
    {rule.name: rule for rule in map(_read, _native.optimizers())}
)
"""Every rule, by name."""


def places(rule: Rule) -> list[tuple[int, int]]:
    """Which moments bitsandbytes' `state1` and `state2` hold, from the first to before the last.

    >>> places(by_name("ademamix"))
    [(0, 2), (2, 3)]
    """
    moments = len(rule.moments)
    return [(0, 1)] if moments == 1 else [(0, moments - 1), (moments - 1, moments)]
