"""What a step of an optimizer may have besides the kernel: numbers that it skips, and its norm."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor

from lowbit import rules
from lowbit.backends import dense_optim
from lowbit.rules import Settings

Moments = Sequence[tuple[Tensor, Tensor | None]]
Update = Callable[[str, Settings, int, Tensor, Tensor, Moments], None]


def skipping_zeros(run: Update) -> Update:
    """A step that leaves numbers and moments alone where the gradient is zero.

    As with bitsandbytes' CUDA kernels that is so for moments of 32 bits, of every rule with states
    `state1` and `state2` of one moment each; in 8 bits, and for AdEMAMix, nothing is skipped.
    A weight decay that goes through the gradient is a part of it.
    """

    def update(
        rule: str, settings: Settings, step: int, p: Tensor, g: Tensor, moments: Moments
    ) -> None:
        entry = rules.by_name(rule)
        in_8_bits = any(absmax is not None for _, absmax in moments)
        if in_8_bits or len(moments) > len(rules.places(entry)):
            return run(rule, settings, step, p, g, moments)
        skipped = _gradient(entry, settings, p, g) == 0.0
        kept = [(t, t[skipped]) for t in (p, *(moment for moment, _ in moments))]
        run(rule, settings, step, p, g, moments)
        for t, numbers in kept:
            t[skipped] = numbers

    return update


def update_norm(
    rule: str, settings: Settings, step: int, p: Tensor, g: Tensor, moments: Moments
) -> Tensor:
    """The norm of an update that is not made yet, before the learning rate, as LAMB limits it."""
    entry = rules.by_name(rule)
    copies = [moment.clone() for moment, _ in moments]
    gradient = _gradient(entry, settings, p, g)
    direction, gain = dense_optim.direction(entry.name, settings, step, gradient, copies)
    return gain * direction.norm()


def _gradient(entry: rules.Rule, settings: Settings, p: Tensor, g: Tensor) -> Tensor:
    """In f32, scaled, and with the decay that goes through it."""
    scaled = g.float() * settings.grad_scale
    return scaled + settings.weight_decay * p.float() if entry.decays_gradient else scaled
