"""The table of features in README.md, kept honest: every row is called."""

import functools
from pathlib import Path
from typing import NamedTuple

import pytest
import torch

from fresh_process import FreshProcesses
from lowbit import nn

README = Path(__file__).parents[1] / "README.md"
START, END = "<!-- features -->", "<!-- /features -->"
YES, NO = "yes", "no"


class Feature(NamedTuple):
    name: str
    ours: str
    """A program that uses it, on `device`."""
    cpu: str
    """What bitsandbytes' CPU backend does: `yes`, `no`, or `yes: but ..`."""
    theirs: str
    """The same program with bitsandbytes; run with its own kernels."""
    cuda: str = YES
    mps: str = NO
    """Of bitsandbytes on a Mac: read in its source, run by nobody here."""


def optimizer(library, name, options=""):
    return (
        f"p = torch.nn.Parameter(torch.randn(64, 100)); p.grad = torch.randn(64, 100)\n"
        f"o = {library}.optim.{name}([p]{options}); o.step()\n"
        f"assert len(o.state[p]) > 1"
    )


def both(name, program, cpu=YES, cuda=YES, mps=NO):
    """A feature whose program differs by the library's name alone."""
    ours, theirs = (program.replace("LIB", lib) for lib in ("lowbit", "bitsandbytes"))
    return Feature(name, ours, cpu, theirs, cuda, mps)


def families(names, options=""):
    def programs(lib):
        return "\n".join(optimizer(lib, n, options) for n in names)

    return programs("LIB")


FEATURES = [
    Feature(
        "NF4 and FP4 weights, double quantization",
        "for t in ('nf4', 'fp4'):\n"
        "    l = lowbit.nn.Linear4bit(64, 32, quant_type=t, compress_statistics=True)\n"
        "    assert l(torch.randn(2, 64)).shape == (2, 32)",
        YES,
        "for t in ('nf4', 'fp4'):\n"
        "    l = bitsandbytes.nn.Linear4bit(64, 32, quant_type=t, compress_statistics=True)\n"
        "    assert l.to('cpu')(torch.randn(2, 64)).shape == (2, 32)",
        mps="yes: fused for one row, with macOS 26 and a download",
    ),
    Feature(
        "other formats: MXFP4, FP8 E4M3",
        "for t in ('mxfp4', 'fp8_e4m3'):\n"
        "    lowbit.nn.QuantizedLinear(64, 32, quant_type=t)(torch.randn(2, 64))",
        NO,
        "bitsandbytes.functional.quantize_4bit(torch.randn(64, 64), quant_type='mxfp4')",
        cuda=NO,
    ),
    both(
        "LLM.int8 products, with outliers (`Linear8bitLt`)",
        "l = LIB.nn.Linear8bitLt(64, 32, has_fp16_weights=False, threshold=6.0).to('cpu')\n"
        "x = torch.randn(4, 64).half(); x[0, 0] = 20\n"
        "assert l.half()(x).shape == (4, 32)",
        mps="yes: as an f32 product",
    ),
    both(
        "training through `Linear8bitLt`",
        "l = LIB.nn.Linear8bitLt(64, 32)\n"
        "l(torch.randn(4, 64)).sum().backward()\n"
        "assert l.weight.grad.abs().sum() > 0",
        mps="yes: as an f32 product",
    ),
    Feature(
        "training int8 weights by SwitchBack",
        "l = lowbit.nn.SwitchBackLinear(64, 32, compute_dtype=torch.float32)\n"
        "l(torch.randn(4, 64)).sum().backward()\n"
        "lowbit.nn.SwitchBackLinearCallback(l).sync()\n"
        "assert l.weight.grad.abs().sum() > 0",
        NO,
        "bitsandbytes.nn.SwitchBackLinear",
        cuda=NO,
    ),
    both(
        "4-bit and 8-bit embeddings",
        "for name in ('EmbeddingNF4', 'EmbeddingFP4', 'Embedding8bit'):\n"
        "    e = getattr(LIB.nn, name)(20, 64).to('cpu')\n"
        "    assert e(torch.tensor([3, 19])).shape == (2, 64)",
        mps=YES,
    ),
    Feature(
        "saving and loading 4-bit embeddings",
        "a, b = (lowbit.nn.EmbeddingNF4(20, 64) for _ in range(2))\n"
        "b.load_state_dict(a.state_dict())\n"
        "i = torch.arange(20)\n"
        "assert torch.equal(a(i), b(i))",
        NO,
        "bitsandbytes.nn.EmbeddingNF4(20, 64).to('cpu').state_dict()",
        cuda=NO,
    ),
    both(
        "8-bit Adam, AdamW, Lion, SGD, RMSprop, Adagrad, AdEMAMix",
        families(["Adam8bit", "AdamW8bit", "Lion8bit", "RMSprop8bit", "Adagrad8bit"])
        + "\n"
        + families(["SGD8bit"], ", lr=0.1, momentum=0.9")
        + "\n"
        + families(["AdEMAMix8bit"]),
        cpu="yes: in PyTorch, unfused",
    ),
    both(
        "`AdEMAMix32bit` and `PagedAdEMAMix32bit`",
        families(["AdEMAMix32bit", "PagedAdEMAMix32bit"]),
        cpu="no: their state is too small; `AdEMAMix` works",
        cuda="no: their kernel writes past their state; `AdEMAMix` works",
        mps="no: their state is too small; `AdEMAMix` works",
    ),
    both(
        "LAMB and LARS",
        families(["LAMB32bit", "LAMB8bit"])
        + "\n"
        + families(["LARS32bit", "LARS8bit"], ", lr=0.1, momentum=0.9"),
        cpu="yes: in PyTorch, unfused",
    ),
    Feature(
        "paged optimizers",
        "p = torch.nn.Parameter(torch.zeros(400, 300)); p.grad = torch.ones(400, 300)\n"
        "for name in ('PagedAdam', 'PagedAdamW8bit', 'PagedLion', 'PagedAdEMAMix8bit'):\n"
        "    o = getattr(lowbit.optim, name)([p]); o.step()\n"
        "    assert o._pages.owns(o.state[p]['state1'])",
        NO,
        "import warnings; warnings.simplefilter('error')\n"
        "p = torch.nn.Parameter(torch.zeros(400, 300)); p.grad = torch.ones(400, 300)\n"
        "bitsandbytes.optim.PagedAdam([p]).step()",
    ),
    both(
        "per-parameter overrides (`GlobalOptimManager`)",
        "p = torch.nn.Parameter(torch.randn(64, 100)); p.grad = torch.randn(64, 100)\n"
        "m = LIB.optim.GlobalOptimManager.get_instance()\n"
        "m.override_config(p, 'optim_bits', 32)\n"
        "o = LIB.optim.Adam8bit([p]); o.step()\n"
        "assert o.state[p]['state1'].dtype == torch.float32",
    ),
    Feature(
        "Nesterov and dampening of SGD",
        "p = torch.nn.Parameter(torch.zeros(8)); p.grad = torch.ones(8)\n"
        "lowbit.optim.SGD([p], lr=1.0, momentum=0.5, nesterov=True).step()\n"
        "assert p[0] == -1.5",
        NO,
        "p = torch.nn.Parameter(torch.zeros(8)); p.grad = torch.ones(8)\n"
        "bitsandbytes.optim.SGD([p], lr=1.0, momentum=0.5, nesterov=True).step()\n"
        "assert p[0] == -1.5",
        cuda=NO,
    ),
    Feature(
        "products with sparse matrices (COO), in numbers and int8",
        "r, c, v, m, n = lowbit.functional.sparse_coo_from_dense(torch.eye(8))\n"
        "x = torch.randn(8, 3)\n"
        "assert torch.equal(lowbit.functional.spmm_coo(r, c, v, x, m, n), x)\n"
        "q = lowbit.functional.quantize_sparse_coo(r, c, v)\n"
        "lowbit.functional.spmm_coo_int8(*q, x, m, n)",
        NO,
        "bitsandbytes.functional.spmm_coo",
        cuda=NO,
    ),
]


@functools.cache
def processes():
    return FreshProcesses()


def works(program, **environment):
    library = "lowbit" if "lowbit" in program else "bitsandbytes"
    ended = processes().run(f"import torch, {library}\n{program}", **environment)
    return ended.ok, ended.printed


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_what_we_claim_works(feature):
    ok, printed = works(feature.ours)
    assert ok, printed


@pytest.mark.parametrize("feature", FEATURES, ids=lambda feature: feature.name)
def test_what_we_say_of_bitsandbytes_on_the_cpu_is_so(feature):
    ok, printed = works(feature.theirs, LOWBIT_BNB_BACKEND="off")
    assert ok == feature.cpu.startswith(YES), printed


def table():
    rows = [
        "| | lowbit | bitsandbytes, CUDA | bitsandbytes, CPU | bitsandbytes, mps |",
        "|---|---|---|---|---|",
    ]
    rows += [f"| {f.name} | yes | {f.cuda} | {f.cpu} | {f.mps} |" for f in FEATURES]
    return "\n".join(rows)


def shown(start, end):
    """What the README has between two marks."""
    text = README.read_text(encoding="utf-8")
    return text[text.index(start) + len(start) : text.index(end)].strip()


def test_the_table_in_the_readme_is_this_one():
    assert shown(START, END) == table(), f"put this between the marks:\n{table()}"


N, K = 512, 1024
MODULES = {
    "`Linear4bit`": lambda w, _: nn.Linear4bit.from_linear(w),
    "`Linear4bit`, double quantization": lambda w, _: nn.Linear4bit.from_linear(
        w, compress_statistics=True
    ),
    "`LinearFP8`": lambda w, _: nn.LinearFP8.from_linear(w),
    "`Linear8bit`": lambda w, _: nn.Linear8bit.from_linear(w),
    "`Linear8bitLt(has_fp16_weights=False)`": lambda w, _: nn.Linear8bitLt.from_linear(
        w, has_fp16_weights=False, threshold=6.0
    ),
    "`OutlierAwareLinear`": lambda w, _: nn.OutlierAwareLinear.from_linear(w),
    "`Linear8bitLt`, which trains its weight": lambda w, _: nn.Linear8bitLt.from_linear(w),
    "`SwitchBackLinear`": lambda w, _: nn.SwitchBackLinear.from_linear(w),
    "`EmbeddingNF4`, `EmbeddingFP4`": lambda _, t: nn.EmbeddingNF4.from_embedding(t),
    "`Embedding8bit`": lambda _, t: nn.Embedding8bit.from_embedding(t),
}


def held(value, seen):
    """Bytes of all memory of tensors that can be reached from a module."""
    if isinstance(value, torch.Tensor):
        storage = value.untyped_storage()
        is_new = storage.data_ptr() not in seen
        seen.add(storage.data_ptr())
        return storage.nbytes() * is_new
    if isinstance(value, dict):
        return sum(held(v, seen) for v in value.values())
    if isinstance(value, (list, tuple)):
        return sum(held(v, seen) for v in value)
    return held(vars(value), seen) if hasattr(value, "__dict__") else 0


def memory_table():
    """Each module after its first use, in bits per weight."""
    rows = ["| | bits per weight | of those of 16 bits |", "|---|---|---|"]
    for name, make in MODULES.items():
        module = make(
            torch.nn.Linear(K, N, bias=False, dtype=torch.bfloat16),
            torch.nn.Embedding(N, K, dtype=torch.bfloat16),
        )
        indices = isinstance(module, nn.QuantizedEmbedding)
        module(torch.tensor([1]) if indices else torch.randn(2, K, dtype=torch.bfloat16))
        bits = 8 * held(vars(module), set()) / (N * K)
        rows.append(f"| {name} | {bits:.2f} | {bits / 16:.0%} |")
    return "\n".join(rows)


def test_the_memory_that_the_readme_states_is_what_modules_take():
    marks = "<!-- memory -->", "<!-- /memory -->"
    assert shown(*marks) == memory_table(), f"put this between the marks:\n{memory_table()}"
