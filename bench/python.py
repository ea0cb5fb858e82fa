#!/usr/bin/env python
"""Measures the Python package beside bitsandbytes and torch's dense layers, in one process.

    python bench/python.py                          # a table, and PASS or FAIL for each target
    python bench/python.py --shape 1024 --only linear  # some of it
    python bench/python.py --json results.jsonl     # keep the records

Every figure is the median of runs that take turns, so that a machine that changes its pace changes
it for all. Before that their answers are compared: a difference that is not one of rounding ends
the bench. Each call meets weights that come from memory: as many copies as it takes to exceed
`--cold` megabytes of the packed weight are used in turn. bitsandbytes runs as it is: our backend
for it stays off.
"""

from __future__ import annotations

import argparse
import copy
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache
from itertools import chain

os.environ["LOWBIT_BNB_BACKEND"] = "off"

import bitsandbytes
import torch
from bitsandbytes import functional as theirs

import lowbit
from lowbit import functional as ours

ROWS = (1, 16, 128, 512)
DTYPES = {"bf16": torch.bfloat16, "f32": torch.float32}


@dataclass
class Case:
    """One line of the table: the same work, done by several."""

    name: str
    runs: dict[str, Callable[[int], object]]
    """By library: a function of the number of the call, which picks the weights."""
    target: tuple[str, str, float] | None = None
    """`(ours, theirs, factor)`: ours must be so many times as fast."""
    tolerance: float | None = None
    """Norm of the difference to bitsandbytes' answer, in norms of that: no more than this."""


def main() -> None:
    """Run the cases, print the table, keep the records."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--shape", type=int, default=4096, help="N and K of the weight")
    parser.add_argument("--seconds", type=float, default=4.0, help="per case")
    parser.add_argument("--cold", type=int, default=300, help="megabytes of packed weights")
    parser.add_argument("--only", default="", help="cases whose names begin so: 'linear bf16'")
    parser.add_argument("--json", help="a file to which records are appended")
    arguments = parser.parse_args()
    print(
        f"lowbit {lowbit.__version__}, bitsandbytes {bitsandbytes.__version__}, torch "
        f"{torch.__version__}; {torch.get_num_threads()} threads, "
        f"{torch.backends.cpu.get_cpu_capability()}, {platform.processor() or platform.machine()}"
    )
    cases: Iterator[Case] = chain(
        kernel_cases(arguments.shape, arguments.cold),
        int8_cases(arguments.shape, arguments.cold),
        overhead_cases(),
        training_cases(),
    )
    print(f"{'milliseconds':24}{'lowbit':>10}{'bnb':>10}{'dense':>10}   against bnb")
    for case in cases:
        if not case.name.startswith(arguments.only):
            continue
        medians = measure(case, arguments.seconds)
        print(line(case, medians), flush=True)
        if arguments.json:
            record = {"case": case.name, "shape": arguments.shape, "ms_median": medians}
            with open(arguments.json, "a") as file:
                print(json.dumps(record), file=file)


def measure(case: Case, seconds: float) -> dict[str, float]:
    """Medians in milliseconds, of runs that take turns."""
    answers = {name: run(0) for name, run in case.runs.items()}
    if case.tolerance is not None:
        apart = difference(answers["lowbit"], answers["bnb"])
        if not apart <= case.tolerance:
            raise SystemExit(f"{case.name}: {apart:.2e} of difference to bitsandbytes' answer")
    times: dict[str, list[float]] = {name: [] for name in case.runs}
    end = time.perf_counter() + seconds
    turn = 0
    while turn < 5 or time.perf_counter() < end:
        turn += 1
        for name, run in case.runs.items():
            start = time.perf_counter()
            run(turn)
            times[name].append(1e3 * (time.perf_counter() - start))
    return {name: statistics.median(values) for name, values in times.items()}


def difference(ours: object, theirs: object) -> float:
    """The norm of a difference of tensors, the first of several, in norms of the second."""
    a, b = (t[0] if isinstance(t, tuple) else t for t in (ours, theirs))
    assert isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor)
    a, b = a.detach().double(), b.detach().double()
    return ((a - b).norm() / b.norm()).item()


def line(case: Case, medians: dict[str, float]) -> str:
    """One line of the table."""
    columns = [f"{case.name:24}"]
    for name in ("lowbit", "bnb", "dense"):
        columns.append(f"{medians[name]:10.3f}" if name in medians else " " * 10)
    if "bnb" in medians:
        columns.append(f"   {medians['bnb'] / medians['lowbit']:.1f}x")
    if "free" in medians:
        columns.append(f" of at most {medians['bnb'] / medians['free']:.1f}x")
    if case.target is not None:
        mine, other, factor = case.target
        limit = medians[other] / factor if other in medians else factor
        verdict = "PASS" if medians[mine] <= limit else "FAIL"
        columns.append(f"  target {factor:g}{'x' if other in medians else ' ms'}: {verdict}")
    return "".join(columns)


def kernel_cases(n: int, megabytes: int) -> Iterator[Case]:
    """Quantize, dequantize and linear for an `[n, n]` weight."""
    copies = max(1, -(-megabytes * 2**20 // (n * n // 2)))
    dense = torch.randn(n, n)
    packed, state = ours.quantize_4bit(dense)
    weights = [packed.clone() for _ in range(copies)]
    book = state.code
    has_fast_kernel = theirs.has_avx512bf16()
    for name, dtype in DTYPES.items():
        w = dense.to(dtype)
        bnb_state = theirs.QuantState(state.absmax, state.shape, book, 64, "nf4", dtype)
        runs = {
            "lowbit": lambda i, w=w: ours.quantize_4bit(w),
            "bnb": lambda i, w=w: theirs.quantize_4bit(w, blocksize=64, quant_type="nf4"),
        }
        yield Case(f"quantize {name}", runs, ("lowbit", "bnb", 50), tolerance=1e-2)
        runs = {
            "lowbit": lambda i, d=dtype: ours.dequantize(weights[i % copies], state, dtype=d),
            "bnb": lambda i, s=bnb_state: theirs.dequantize_4bit(weights[i % copies], s),
        }
        yield Case(f"dequantize {name}", runs, tolerance=5e-3)
    dense_copies = max(1, copies // 8)
    for name, dtype in DTYPES.items():
        plain = [dense.to(dtype).clone() for _ in range(dense_copies)]
        layers = [their_layer(n, weights[i], state, dtype) for i in range(copies)]
        with torch.inference_mode():
            for layer in layers:
                layer(torch.randn(1, n, dtype=dtype))  # It repacks its weight in its first forward.
        for m in ROWS:
            x = torch.randn(m, n, dtype=dtype)
            runs = {
                "lowbit": lambda i, x=x: ours.linear_4bit(x, weights[i % copies], state),
                "bnb": lambda i, x=x, layers=layers: layers[i % copies](x),
                "dense": lambda i, x=x, plain=plain: torch.nn.functional.linear(
                    x, plain[i % dense_copies]
                ),
            }
            runs = {key: torch.inference_mode()(run) for key, run in runs.items()}
            target = ("lowbit", "bnb", 1.0 if has_fast_kernel else 20.0) if m == 1 else None
            yield Case(f"linear {name} M={m}", runs, target, tolerance=1e-2)


def int8_cases(n: int, megabytes: int) -> Iterator[Case]:
    """LLM.int8 with an `[n, n]` weight, in bf16: forward, and with the gradient of its input."""
    copies = max(1, -(-megabytes * 2**20 // (n * n)))
    options = {"bias": False, "has_fp16_weights": False, "threshold": 6.0}
    theirs_once = bitsandbytes.nn.Linear8bitLt(n, n, **options).to("cpu")
    ours_once = lowbit.nn.Linear8bitLt(n, n, **options)
    ours_once.load_state_dict(theirs_once.state_dict())
    layers = {
        "lowbit": [copy.deepcopy(ours_once) for _ in range(copies)],
        "bnb": [copy.deepcopy(theirs_once) for _ in range(copies)],
    }
    plain = torch.nn.Linear(n, n, bias=False, dtype=torch.bfloat16)
    plain.weight.data.copy_(ours_once.dequantize()).requires_grad_(False)
    layers["dense"] = [copy.deepcopy(plain) for _ in range(max(1, copies // 2))]

    def forward(own: list[torch.nn.Module], x: torch.Tensor) -> Callable[[int], object]:
        return torch.inference_mode()(lambda i: own[i % len(own)].eval()(x))

    def there_and_back(own: list[torch.nn.Module], x: torch.Tensor) -> Callable[[int], object]:
        def run(i: int) -> torch.Tensor:
            inner = x.detach().requires_grad_()
            own[i % len(own)].train()(inner).sum().backward()
            assert inner.grad is not None
            return inner.grad

        return run

    for m in ROWS:
        x = torch.randn(m, n, dtype=torch.bfloat16)
        x[:, 7] *= 20.0  # A column of outliers, as models have.
        for name, make in (("int8", forward), ("int8 train", there_and_back)):
            runs = {who: make(own, x) for who, own in layers.items()}
            yield Case(f"{name} M={m}", runs, ("lowbit", "bnb", 1.0), tolerance=2e-2)


def their_layer(
    n: int, packed: torch.Tensor, state: lowbit.QuantState, dtype: torch.dtype
) -> torch.nn.Module:
    """Their layer with this weight, in evaluation, as it runs best on this processor."""
    layer = bitsandbytes.nn.Linear4bit(n, n, bias=False, quant_type="nf4", device="meta")
    parts = state.as_dict(packed=True)
    layer.weight = bitsandbytes.nn.Params4bit.from_prequantized(packed, parts, device="cpu")
    layer.weight.quant_state.dtype = dtype
    layer.compute_dtype = dtype
    return layer.eval()


def overhead_cases() -> Iterator[Case]:
    """What a call costs besides the work: a product with one row of 32, a thousand at a time."""
    packed, state = ours.quantize_4bit(torch.randn(1, 32), block_size=32)
    their_state = theirs.QuantState(state.absmax, state.shape, state.code, 32, "nf4", torch.float32)
    x, w = torch.randn(1, 32), torch.randn(1, 32)

    def repeat(call: Callable[[], object]) -> Callable[[int], object]:
        def run(turn: int) -> None:
            with torch.inference_mode():
                for _ in range(1000):
                    call()

        return run

    runs = {
        "lowbit": repeat(lambda: ours.linear_4bit(x, packed, state)),
        "bnb": repeat(lambda: bitsandbytes.matmul_4bit(x, packed.t(), quant_state=their_state)),
        "dense": repeat(lambda: torch.nn.functional.linear(x, w)),
    }
    yield Case("1000 calls", runs, ("lowbit", "limit", 5.0))


class Free(torch.nn.Linear):
    """Zeros that cost nothing in place of a product with the weight, and so of its gradient."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """`[.., N]`."""
        return x.new_zeros(()).expand(*x.shape[:-1], self.out_features)


def training_cases() -> Iterator[Case]:
    """A step of QLoRA: 72 M parameters, rank 16 on every linear layer, 2 x 128 tokens.

    In bf16 where the processor multiplies it; elsewhere torch takes seconds for it, and f32 is what
    people use. `Free` layers multiply nothing, and leave what torch takes for all else, adapters
    by peft among it.
    """
    import peft
    import transformers

    config = transformers.LlamaConfig(
        vocab_size=32000,
        hidden_size=512,
        intermediate_size=1376,
        num_hidden_layers=12,
        num_attention_heads=8,
        num_key_value_heads=8,
    )
    ids = torch.randint(0, config.vocab_size, (2, 128))
    name = "bf16" if theirs.has_avx512bf16() else "f32"
    dtype = DTYPES[name]

    def step(quantize: Callable[[torch.nn.Module], torch.nn.Module]) -> Callable[[int], object]:
        torch.manual_seed(0)
        model = quantize(transformers.LlamaForCausalLM(config).to(dtype))
        lora = peft.LoraConfig(r=16, lora_alpha=32, target_modules="all-linear")
        model = peft.get_peft_model(model, lora)
        trained = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.AdamW(trained, lr=1e-4)

        def run(turn: int) -> None:
            model(input_ids=ids, labels=ids).loss.backward()
            optimizer.step()
            optimizer.zero_grad()

        return run

    def with_ours(model: torch.nn.Module) -> torch.nn.Module:
        options = {"load_in_4bit": True, "bnb_4bit_use_double_quant": True}
        return lowbit.quantize_model(model, {**options, "bnb_4bit_compute_dtype": dtype})

    def with_theirs(model: torch.nn.Module) -> torch.nn.Module:
        for path, module in list(model.named_modules()):
            if type(module) is torch.nn.Linear and path != "lm_head":
                layer = bitsandbytes.nn.Linear4bit(
                    module.in_features,
                    module.out_features,
                    bias=False,
                    compute_dtype=dtype,
                    compress_statistics=True,
                    quant_type="nf4",
                )
                layer.load_state_dict(module.state_dict())
                parent, _, last = path.rpartition(".")
                setattr(model.get_submodule(parent), last, layer.to("cpu"))
        return model

    def without_products(model: torch.nn.Module) -> torch.nn.Module:
        for path, module in model.named_modules():
            if type(module) is torch.nn.Linear and path != "lm_head":
                module.__class__ = Free
        return model

    quantizers = {
        "lowbit": with_ours,
        "bnb": with_theirs,
        "dense": lambda model: model,
        "free": without_products,
    }
    # Made when they are first run, so that who does not ask for this case does not wait for it.
    steps = {who: cache(lambda q=quantize: step(q)) for who, quantize in quantizers.items()}
    runs = {who: lambda turn, made=made: made()(turn) for who, made in steps.items()}
    yield Case(f"QLoRA step {name}", runs, ("lowbit", "bnb", 1.3))


if __name__ == "__main__":
    main()
