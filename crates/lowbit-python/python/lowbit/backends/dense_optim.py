"""Steps of optimizers in torch alone: the formulas of `optim/reference.rs` of the Rust crate."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from lowbit import formats, rules
from lowbit.rules import Settings


def optimizer_update(
    rule: str,
    settings: Settings,
    step: int,
    p: Tensor,
    g: Tensor,
    moments: Sequence[tuple[Tensor, Tensor | None]],
) -> None:
    """`lowbit.backends.cpu.optimizer_update`, on any device."""
    s, entry = settings, rules.ALL[rule]
    stored = list(zip(moments, entry.moments, entry.thresholds, strict=True))
    m = [
        moment.clone() if absmax is None else _dequantize(moment, absmax, name)
        for (moment, absmax), name, _ in stored
    ]
    wide, g = p.float(), g.float() * s.grad_scale
    if entry.decays_gradient:
        g = g + wide * s.weight_decay
        before = after = 1.0
    else:
        keep = 1.0 - s.lr * s.weight_decay
        before, after = (keep, 1.0) if entry.decays_first else (1.0, keep)
    towards, gain = direction(rule, s, step, g, m)
    rate = s.lr * gain
    if s.max_update_norm > 0.0:
        update, limit = gain * towards.norm(), s.max_update_norm * wide.norm()
        shortened = torch.where(limit / update < 1.0, limit / update, 1.0)
        towards = towards * torch.where(limit > 0.0, shortened, 1.0)
    new = (wide * before - towards * rate) * after
    finite = torch.ones_like(g, dtype=torch.bool)
    if moments[0][1] is not None:
        finite = torch.isfinite(sum(m[1:], m[0]))
        new = torch.where(finite, new, wide)
    p.copy_(new)
    for (moment, absmax), numbers, (_, _, thresholds) in zip(moments, m, stored, strict=True):
        if absmax is None:
            moment.copy_(numbers)
        else:
            _quantize(torch.where(finite, numbers, 0.0), thresholds, moment, absmax)


def direction(
    rule: str, s: Settings, step: int, g: Tensor, m: list[Tensor]
) -> tuple[Tensor, float]:
    """Renew the moments; the direction, and the factor of the learning rate."""

    def decay(i: int, beta: float, new: Tensor) -> Tensor:
        m[i] = m[i] * beta + (1.0 - beta) * new
        return m[i]

    first, second = 1.0 - s.beta1**step, (1.0 - s.beta2**step) ** 0.5
    if rule == "adam":
        mean, square = decay(0, s.beta1, g), decay(1, s.beta2, g * g)
        return mean / (square.sqrt() + second * s.eps), second / first
    if rule == "ademamix":
        fast, slow = decay(0, s.beta1, g), decay(1, s.beta3, g)
        root = decay(2, s.beta2, g * g).sqrt() / second + s.eps
        return (fast / first + s.alpha * slow) / root, 1.0
    if rule == "lion":
        direction = torch.sign(m[0] * s.beta1 + (1.0 - s.beta1) * g)
        decay(0, s.beta2, g)
        return direction.nan_to_num(0.0), 1.0
    if rule == "momentum":
        m[0] = g.clone() if step == 1 else m[0] * s.beta1 + (1.0 - s.dampening) * g
        return m[0] * s.beta1 + g if s.nesterov else m[0], 1.0
    m[0] = m[0] + g * g if rule == "adagrad" else m[0] * s.beta1 + (1.0 - s.beta1) * (g * g)
    return g / (m[0].sqrt() + s.eps), 1.0


def _dequantize(codes: Tensor, absmax: Tensor, name: str) -> Tensor:
    codebook = formats.by_name(name).codebook
    values = torch.tensor(codebook, dtype=torch.float32, device=codes.device)[codes.int()]
    return (_blocks(values, absmax) * absmax[:, None]).view(-1)[: codes.numel()]


def _quantize(numbers: Tensor, thresholds: Sequence[float], codes: Tensor, absmax: Tensor) -> None:
    blocks = _blocks(numbers, absmax)
    absmax.copy_(blocks.abs().amax(1))
    scaled = torch.where(absmax[:, None] == 0.0, 0.0, blocks * (1.0 / absmax)[:, None])
    ups = torch.tensor(thresholds, dtype=torch.float32, device=codes.device)
    ranks = torch.bucketize(scaled.view(-1)[: codes.numel()], ups, right=True)
    codes.copy_(ranks.to(torch.uint8))


def _blocks(numbers: Tensor, absmax: Tensor) -> Tensor:
    """Numbers in rows of a block each, the last one filled with zeros."""
    size = next(iter(rules.ALL.values())).block_size
    return F.pad(numbers, (0, absmax.numel() * size - numbers.numel())).view(-1, size)
