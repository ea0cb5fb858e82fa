"""A step of AdamW over one large parameter: lowbit, torch's fused one, and bitsandbytes' own.

    target/python/bin/python bench/optimizers.py [--numbers N] [--rounds R] [--dtype TYPE]

Holds the answers to each other over a few steps, then writes a line of JSON for each, all of one
run: the optimizers take turns, so that a machine that changes its pace changes it for all.
bitsandbytes takes its turns on a tenth of the numbers.
"""

import argparse
import json
import os
import statistics
import time

os.environ["LOWBIT_BNB_BACKEND"] = "off"  # bitsandbytes on its own kernels.

import bitsandbytes
import torch

import lowbit

THEIRS_SHARE = 10


def check(dtype: torch.dtype) -> None:
    """Three steps of 8 bits against bitsandbytes' own, and of 32 bits against torch's."""
    start = (torch.randn(300_000) * 0.02).to(dtype)
    pairs = (
        (lowbit.optim.AdamW8bit, bitsandbytes.optim.AdamW8bit, {}),
        (lowbit.optim.AdamW32bit, torch.optim.AdamW, {"fused": True}),
    )
    for ours, theirs, options in pairs:
        p, q = (torch.nn.Parameter(start.clone()) for _ in range(2))
        optimizers = ours([p], weight_decay=0.01), theirs([q], weight_decay=0.01, **options)
        for _ in range(3):
            g = (torch.randn(len(start)) * 1e-3).to(dtype)
            for x, optimizer in zip((p, q), optimizers, strict=True):
                x.grad = g.clone()
                optimizer.step()
        apart = (p - q).norm() / (p - start).norm()
        if not apart < 1e-2:
            raise SystemExit(f"{ours.__name__}: {apart:.1e} of difference to {theirs.__module__}")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--numbers", type=int, default=100_000_000)
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])
    arguments = parser.parse_args()
    n, dtype = arguments.numbers, getattr(torch, arguments.dtype)
    check(dtype)

    def parameter(numbers: int) -> torch.nn.Parameter:
        p = torch.nn.Parameter(torch.randn(numbers).mul_(0.02).to(dtype))
        p.grad = torch.randn(numbers).mul_(1e-3).to(dtype)
        return p

    shared = parameter(n)
    few = parameter(n // THEIRS_SHARE)
    makers = {
        "torch.optim.AdamW(fused=True)": lambda: torch.optim.AdamW([shared], fused=True),
        "lowbit.optim.AdamW8bit": lambda: lowbit.optim.AdamW8bit([shared]),
        "lowbit.optim.AdamW32bit": lambda: lowbit.optim.AdamW32bit([shared]),
        "bitsandbytes.optim.AdamW8bit": lambda: bitsandbytes.optim.AdamW8bit([few]),
    }
    optimizers = {name: make() for name, make in makers.items()}
    times: dict[str, list[float]] = {name: [] for name in optimizers}
    for round_ in range(arguments.rounds + 1):
        for name, optimizer in optimizers.items():
            start = time.perf_counter()
            optimizer.step()
            elapsed = time.perf_counter() - start
            if round_ > 0:  # The first step makes the states.
                share = THEIRS_SHARE if optimizer.param_groups[0]["params"][0] is few else 1
                times[name].append(1e3 * elapsed * share)
    for name, taken in times.items():
        record = {
            "optimizer": name,
            "numbers": n,
            "dtype": arguments.dtype,
            "threads": torch.get_num_threads(),
            "isa": lowbit._native.instruction_set(),
            "ms_min": round(min(taken), 2),
            "ms_median": round(statistics.median(taken), 2),
        }
        print(json.dumps(record))


if __name__ == "__main__":
    main()
