"""Optimizers whose states take a byte per parameter, by bitsandbytes' names and to its bits.

Each comes as `Name` (`optim_bits` says how wide states are), `Name8bit` and `Name32bit`; the Adams,
AdEMAMix and Lion as `Paged...` too, whose states live in a memory-mapped file. State dicts go both
ways between this module and `bitsandbytes.optim`.

>>> layer = torch.nn.Linear(128, 64)
>>> optimizer = AdamW8bit(layer.parameters(), lr=1e-3)
>>> layer(torch.randn(8, 128)).square().mean().backward()
>>> optimizer.step()
>>> optimizer.state[layer.weight]["state1"].dtype
torch.uint8
"""

from lowbit.optim.adam import (
    LAMB,
    Adam,
    Adam8bit,
    Adam32bit,
    AdamW,
    AdamW8bit,
    AdamW32bit,
    LAMB8bit,
    LAMB32bit,
    PagedAdam,
    PagedAdam8bit,
    PagedAdam32bit,
    PagedAdamW,
    PagedAdamW8bit,
    PagedAdamW32bit,
)
from lowbit.optim.ademamix import (
    AdEMAMix,
    AdEMAMix8bit,
    AdEMAMix32bit,
    PagedAdEMAMix,
    PagedAdEMAMix8bit,
    PagedAdEMAMix32bit,
)
from lowbit.optim.lion import (
    Lion,
    Lion8bit,
    Lion32bit,
    PagedLion,
    PagedLion8bit,
    PagedLion32bit,
)
from lowbit.optim.manager import GlobalOptimManager
from lowbit.optim.optimizer import BlockwiseOptimizer
from lowbit.optim.root import (
    Adagrad,
    Adagrad8bit,
    Adagrad32bit,
    RMSprop,
    RMSprop8bit,
    RMSprop32bit,
)
from lowbit.optim.sgd import LARS, SGD, LARS8bit, LARS32bit, SGD8bit, SGD32bit

__all__ = [
    "LAMB",
    "LARS",
    "SGD",
    "AdEMAMix",
    "AdEMAMix8bit",
    "AdEMAMix32bit",
    "Adagrad",
    "Adagrad8bit",
    "Adagrad32bit",
    "Adam",
    "Adam8bit",
    "Adam32bit",
    "AdamW",
    "AdamW8bit",
    "AdamW32bit",
    "BlockwiseOptimizer",
    "GlobalOptimManager",
    "LAMB8bit",
    "LAMB32bit",
    "LARS8bit",
    "LARS32bit",
    "Lion",
    "Lion8bit",
    "Lion32bit",
    "PagedAdEMAMix",
    "PagedAdEMAMix8bit",
    "PagedAdEMAMix32bit",
    "PagedAdam",
    "PagedAdam8bit",
    "PagedAdam32bit",
    "PagedAdamW",
    "PagedAdamW8bit",
    "PagedAdamW32bit",
    "PagedLion",
    "PagedLion8bit",
    "PagedLion32bit",
    "RMSprop",
    "RMSprop8bit",
    "RMSprop32bit",
    "SGD8bit",
    "SGD32bit",
]
