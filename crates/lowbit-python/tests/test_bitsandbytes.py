"""Our kernels under bitsandbytes' operations, held to what bitsandbytes itself answers."""

from __future__ import annotations

import bitsandbytes as bnb
import bitsandbytes.functional as F
import pytest
import torch
from torch._subclasses import FakeTensorMode

from bitsandbytes_cases import FLOATS, cases, op, results
from fresh_process import FreshProcesses
from lowbit.integrations import adapter


@pytest.fixture(scope="module")
def fresh():
    processes = FreshProcesses()
    yield processes
    processes.close()


@pytest.fixture(scope="module")
def theirs(fresh, tmp_path_factory):
    file = tmp_path_factory.mktemp("bitsandbytes") / "results.pt"
    # With AVX-512 it looks for scales row by row, which is wrong where blocks cross rows, and with
    # AVX512-BF16 its product of one row wants weights in an order of their own.
    program = f"""
import sys
from lowbit.integrations.adapter import when_imported
functional = "bitsandbytes.functional"
when_imported(functional, lambda: setattr(sys.modules[functional], "has_avx512bf16", lambda: False))
import torch, bitsandbytes_cases as c
import bitsandbytes.functional as F
from bitsandbytes.backends.default import ops
torch._dynamo.config.disable = True
def dequantize(A, absmax, blocksize, quant_type, shape, dtype):
    code = F.get_4bit_type(quant_type, device="cpu")
    return ops._dequantize_4bit_compute(A.reshape(-1), absmax, code, blocksize, shape, dtype)
if torch.backends.cpu.get_cpu_capability() == "AVX512":
    library = torch.library.Library("bitsandbytes", "IMPL")
    library.impl("dequantize_4bit", dequantize, "CPU", allow_override=True)
torch.save(c.results(), {str(file)!r})
"""
    ended = fresh.run(program, LOWBIT_BNB_BACKEND="off")
    assert ended.ok, ended.printed
    return torch.load(file)


def test_every_operation_that_we_have_is_ours():
    for name in adapter._ARGUMENTS:
        kept = adapter._has_fast_int_mm() and name.startswith("int8_linear_matmul")
        assert kept or torch._C._dispatch_has_kernel_for_dispatch_key(op(name).name(), "CPU"), name


def test_results_are_those_of_bitsandbytes(theirs):
    ours = results()
    assert ours.keys() == theirs.keys() and len(ours) > 300
    for name, answer in ours.items():
        for part, (a, b) in enumerate(zip(answer, theirs[name], strict=True)):
            if b is None:
                assert a is None, name
                continue
            assert (a.dtype, a.shape) == (b.dtype, b.shape), name
            check(name, part, a, b)


def check(name: str, part: int, a: torch.Tensor, b: torch.Tensor) -> None:
    operation = name.split("-")[0]
    if operation in ("quantize_4bit", "quantize_blockwise") and part == 0:
        # Numbers within an ulp of a threshold may fall to either side. Those of 16 bits are few, so
        # that they do so more often.
        if operation == "quantize_4bit":
            a, b = (values(name, codes) for codes in (a, b))
        assert (a != b).sum() <= 1 + a.numel() // 100, name
    elif operation == "int8_vectorwise_quant" and part == 0:
        assert (a != b).sum() <= 1 and (a.int() - b.int()).abs().max() <= 1, name
    elif "mm" in operation or operation.startswith("gem"):
        tolerance = {torch.float32: 2e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
        scale = max(1.0, b.abs().max().item()) if b.numel() else 1.0
        error = (a.float() - b.float()).abs().max().item() if b.numel() else 0.0
        assert error <= tolerance.get(b.dtype, 0) * scale, (name, error, scale)
    else:
        assert torch.equal(a, b), name


def values(name: str, codes: torch.Tensor) -> torch.Tensor:
    """Of 4-bit codes; two codes of FP4 are zeros."""
    nibbles = torch.cat([codes >> 4, codes & 15]).int()
    return F.get_4bit_type(name.split("-")[1], device="cpu")[nibbles]


@pytest.mark.parametrize("storage", [torch.uint8, torch.float16, torch.bfloat16, torch.float32])
def test_storage_is_only_a_view(storage):
    w = torch.randn(32, 96)
    codes, absmax = op("quantize_4bit")(w, 64, "nf4", storage)
    plain, _ = op("quantize_4bit")(w, 64, "nf4", torch.uint8)
    assert torch.equal(codes.view(torch.uint8).flatten(), plain.flatten())
    restored = op("dequantize_4bit")(codes, absmax, 64, "nf4", [32, 96], torch.float32)
    x = torch.randn(2, 96)
    y = op("gemm_4bit")(x, codes, [32, 96], absmax, 64, "nf4")
    torch.testing.assert_close(y, x @ restored.t(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_one_times_an_activation_is_the_activation(dtype, quant_type):
    # However large those beside it are.
    eye = torch.eye(2048, dtype=dtype)
    codes, state = F.quantize_4bit(eye, quant_type=quant_type)
    x = torch.normal(0, 0.1, (1, 1, 2048), generator=torch.Generator().manual_seed(1)).to(dtype)
    torch.testing.assert_close(bnb.matmul_4bit(x, codes.t(), state), x)


@pytest.mark.parametrize("dtype", FLOATS)
def test_weights_that_require_a_gradient_are_restored(dtype):
    w = torch.randn(64, 96, dtype=dtype, requires_grad=True)
    codes, state = F.quantize_4bit(w, quant_type="nf4", compress_statistics=True)
    plain = F.quantize_4bit(w.detach(), quant_type="nf4", compress_statistics=True)
    assert torch.equal(F.dequantize_4bit(codes, state), F.dequantize_4bit(*plain))
    codes, absmax = op("quantize_blockwise")(w, F.create_dynamic_map(), 64)
    restored = op("dequantize_blockwise")(codes, absmax, F.create_dynamic_map(), 64, dtype)
    restored += 1  # As bitsandbytes does with absmax.
    codes, stats, _ = op("int8_vectorwise_quant")(w)
    restored = op("int8_vectorwise_dequant")(codes[None], stats[None].requires_grad_())
    restored += 1


def test_outputs_given_are_written():
    w = torch.randn(32, 64, dtype=torch.bfloat16)
    codes, state = F.quantize_4bit(w, quant_type="nf4")
    out = torch.empty_like(w)
    assert F.dequantize_4bit(codes, state, out=out) is out
    assert torch.equal(out, F.dequantize_4bit(codes, state))
    x, y = torch.randn(1, 64, dtype=torch.bfloat16), torch.empty(1, 32, dtype=torch.bfloat16)
    F.gemv_4bit(x, codes, out=y, state=state)
    assert torch.equal(y, F.gemv_4bit(x, codes, state=state))
    with pytest.raises(ValueError, match="out"):
        op("gemv_4bit.out")(x, codes, [32, 64], state.absmax, state.code, 64, out=y[0])


@pytest.mark.parametrize("dtype", FLOATS)
def test_opcheck(dtype):
    """One call of each; bitsandbytes' fakes cannot trace results of dynamic sizes."""
    seen = set()
    for name, operation, arguments in cases():
        given = [a.dtype for a in arguments[:1] if a.is_floating_point()]
        if operation in seen or (given and given[0] is not dtype):
            continue
        seen.add(operation)
        if "mixed" in operation or "-2.0-" in name:
            continue
        torch.library.opcheck(op(operation), arguments)
    assert len(seen) >= 11


def test_opcheck_of_optimizers():
    p, g, m, v = torch.randn(300), torch.randn(300), torch.zeros(300), torch.zeros(300)
    betas = 0.9, 0.99, 0.0, 0.0, 1e-8
    norms = torch.zeros(1), 0.02, 0.0
    given = ("adam", g, p, m, v, *norms, *betas, 0.1, 1, 1e-2, 1.0)
    torch.library.opcheck(op("optimizer_update_32bit"), given)
    codes = [torch.zeros(300, dtype=torch.uint8) for _ in range(2)]
    maps = F.create_dynamic_map(signed=True), F.create_dynamic_map(signed=False)
    given = ("adam", g, p, *codes, *betas, 1, 1e-2, *maps, torch.zeros(2), torch.zeros(2), 0.1, 1.0)
    torch.library.opcheck(op("optimizer_update_8bit_blockwise"), given)
    op("optimizer_update_8bit_blockwise")(*given)
    assert codes[0].any() and codes[1].any()


def test_paged_states_are_tensors_where_memory_is_one(monkeypatch):
    """On mps, where bitsandbytes' pages fail; a tensor that is only said to be there will do."""
    kept = bnb.optim.optimizer.Optimizer8bit.get_state_buffer
    monkeypatch.setattr(bnb.optim.optimizer.Optimizer8bit, "get_state_buffer", kept)
    optimizer = bnb.optim.PagedAdamW8bit([torch.nn.Parameter(torch.zeros(2))])
    with FakeTensorMode():
        p = torch.empty(400, 300, device="mps")
        with pytest.raises(Exception, match=r"."):
            optimizer.get_state_buffer(p, torch.uint8)
        adapter.keep_states_on_mps()
        state = optimizer.get_state_buffer(p, torch.uint8)
    assert (state.device.type, state.shape, state.dtype) == ("mps", p.shape, torch.uint8)


def test_int8_by_rows_and_columns():
    """On the CPU bitsandbytes has no kernel for this: held to its other operation."""
    a = torch.randn(7, 40).half()
    a[2, 5] = 60.0
    by_row, by_column, rows, columns, outliers = op("int8_double_quant")(a, 6.0)
    expected, stats, found = op("int8_vectorwise_quant")(a, 6.0)
    assert torch.equal(by_row, expected) and torch.equal(rows, stats)
    assert outliers.tolist() == found.tolist() == [5]
    kept = a.masked_fill(a.abs() >= 6.0, 0.0).t().contiguous()
    expected, stats, _ = op("int8_vectorwise_quant")(kept)
    assert torch.equal(by_column, expected.t()) and torch.equal(columns, stats)


@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_compiles_whole(quant_type, nested):
    layer = bnb.nn.Linear4bit(
        96, 64, compute_dtype=torch.float32, compress_statistics=nested, quant_type=quant_type
    ).to("cpu")
    x = torch.randn(3, 96, requires_grad=True)
    y = layer(x)
    y.sum().backward()
    compiled = torch.compile(layer, fullgraph=True)
    x2 = x.detach().clone().requires_grad_()
    y2 = compiled(x2)
    y2.sum().backward()
    torch.testing.assert_close(y2, y)
    torch.testing.assert_close(x2.grad, x.grad)


def test_gradients_do_not_make_a_dense_weight(monkeypatch):
    layer = bnb.nn.Linear4bit(96, 64, compute_dtype=torch.float32, quant_type="nf4").to("cpu")
    dense = F.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
    monkeypatch.setattr(F, "dequantize_4bit", None)
    x = torch.randn(2, 5, 96, requires_grad=True)
    dy = torch.randn(2, 5, 64)
    layer(x).backward(dy)
    torch.testing.assert_close(x.grad, dy @ dense, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(layer.bias.grad, dy.sum((0, 1)))


def test_int8_layers_train_without_a_dense_weight(monkeypatch):
    layer = bnb.nn.Linear8bitLt(96, 64, has_fp16_weights=False).to("cpu").train()
    x, dy = torch.randn(2, 5, 96, requires_grad=True), torch.randn(2, 5, 64)
    y = layer(x)
    y.backward(dy)
    assert type(y.grad_fn).__name__ == "MatMul8bitFpBackward"
    state = layer.state
    dense = state.CB.float() * state.SCB[:, None] / 127
    expected = x.detach() @ dense.t() + layer.bias
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(x.grad, dy @ dense, rtol=1e-5, atol=1e-4)
    torch.testing.assert_close(layer.bias.grad, dy.sum((0, 1)))


def test_int8_layers_train_when_they_are_compiled():
    layer = bnb.nn.Linear8bitLt(96, 64, has_fp16_weights=False).to("cpu").train()
    x, dy = torch.randn(5, 96, dtype=torch.float16), torch.randn(5, 64, dtype=torch.float16)
    gradients = []
    for run in (layer, torch.compile(layer, fullgraph=True, backend="aot_eager")):
        given = x.clone().requires_grad_()
        run(given).backward(dy)
        gradients.append(given.grad)
    assert gradients[0].any()
    torch.testing.assert_close(*gradients)


def test_int8_layers_still_train_their_weights():
    layer = bnb.nn.Linear8bitLt(64, 32, has_fp16_weights=True).to("cpu").train()
    x = torch.randn(3, 64)
    layer(x).sum().backward()
    torch.testing.assert_close(layer.weight.grad, torch.ones(3, 32).t() @ x)


@pytest.mark.parametrize("dtype", [torch.float64, torch.int8])
def test_what_has_another_dtype_is_quantized_as_float32(dtype):
    """bitsandbytes' operations take it, though not its functions."""
    w, book = (torch.randn(32, 96) * 9).to(dtype), F.create_dynamic_map()
    for name, arguments in (
        ("quantize_4bit", (64, "nf4", torch.uint8)),
        ("quantize_blockwise", (book, 256)),
        ("quantize_blockwise", (book, 100)),
        ("int8_vectorwise_quant", (5.0,)),
    ):
        given, expected = (op(name)(t, *arguments) for t in (w, w.float()))
        assert all(torch.equal(a, b) for a, b in zip(given, expected, strict=True)), name


def test_float64_is_computed_in_float32():
    kinds = [
        bnb.nn.Linear4bit(96, 64),
        bnb.nn.Linear4bit(96, 64, compress_statistics=False),
        bnb.nn.Linear8bitLt(96, 64, has_fp16_weights=False, threshold=2.0),
    ]
    for layer in kinds:
        layer = layer.to("cpu")
        for train in (False, True):
            results = []
            for dtype in (torch.float32, torch.float64):
                x = torch.linspace(-3, 3, 480, dtype=dtype).view(5, 96).requires_grad_(train)
                y = layer.train(train)(x)
                assert y.dtype is dtype
                if train:
                    y.square().sum().backward()
                results.append((y.detach(), x.grad))
            for a, b in zip(*results, strict=True):
                torch.testing.assert_close(a, b, check_dtype=False, rtol=1e-3, atol=2e-2)
    w = torch.randn(64, 96)
    codes, state = F.quantize_4bit(w)
    arguments = (state.absmax, 64, "fp4", [64, 96])
    wide, plain = (op("dequantize_4bit")(codes, *arguments, d) for d in (torch.float64, w.dtype))
    assert torch.equal(wide, plain.double()) and wide.dtype is torch.float64
    steps = []
    for dtype in (torch.float32, torch.float64):
        p = torch.nn.Parameter(torch.linspace(-1, 1, 8192).to(dtype))
        for kind in (bnb.optim.AdamW, bnb.optim.AdamW8bit):
            p.grad = p.detach().clone()
            kind([p], lr=0.1).step()
        steps.append(p.detach())
    assert torch.equal(steps[0].double(), steps[1])


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
@pytest.mark.parametrize("threshold", [0.0, 6.0])
def test_an_activation_that_is_not_finite_spoils_its_row_only(threshold, value):
    layer = bnb.nn.Linear8bitLt(96, 64, has_fp16_weights=False, threshold=threshold)
    layer = layer.to("cpu").eval()
    x = torch.randn(4, 96, dtype=torch.float16)
    spoilt = x.clone()
    spoilt[1, 5] = value
    y, expected = layer(spoilt), layer(x)
    assert not y[1].isfinite().any()
    rest = [0, 2, 3]
    # A column of outliers is multiplied in 16 bits, for all rows.
    torch.testing.assert_close(y[rest], expected[rest], rtol=0.02, atol=0.02)


def test_refuses_what_bitsandbytes_would_spoil():
    w = torch.ones(2, 64)
    w[1, 3] = torch.nan
    with pytest.raises(ValueError, match="67"):
        F.quantize_4bit(w, quant_type="nf4")
    codes, state = F.quantize_4bit(torch.ones(2, 64), quant_type="nf4")
    with pytest.raises(ValueError):
        op("dequantize_4bit")(codes, state.absmax[:1], 64, "nf4", [2, 64], torch.float32)
    with pytest.raises(ValueError):
        op("gemm_4bit")(torch.randn(1, 63), codes, [2, 64], state.absmax, 64, "nf4")


ACCEPTANCE = {
    ("nf4", 64): (0.07332, 0.2057),
    ("nf4", 4096): (0.09507, 0.2695),
    ("fp4", 64): (0.09732, 0.2628),
    ("fp4", 4096): (0.13382, 0.3458),
}


@pytest.mark.parametrize("case", ACCEPTANCE, ids=str)
def test_errors_are_below_upstreams_limits(case):
    w = torch.randn(1024, 1024)
    codes, state = F.quantize_4bit(w, blocksize=case[1], quant_type=case[0])
    error = (F.dequantize_4bit(codes, state) - w).abs()
    absolute, relative = ACCEPTANCE[case]
    assert error.mean() < absolute
    assert (error / (w.abs() + 1e-8)).mean() < relative


def test_the_switch(fresh):
    program = (
        "import bitsandbytes, torch\n"
        "has = torch._C._dispatch_has_kernel_for_dispatch_key\n"
        "print(has('bitsandbytes::quantize_4bit', 'CPU'))"
    )
    for backend, expected in {
        "": True,
        "all": True,
        "cpu": True,
        "mps": False,
        "off": False,
    }.items():
        ok, said = fresh.run(program, LOWBIT_BNB_BACKEND=backend)
        # Before that bitsandbytes may complain that it lacks a library.
        assert ok and said.splitlines()[-1] == str(expected), (backend, said)
    ok, said = fresh.run(program, LOWBIT_BNB_BACKEND="sometimes")
    assert ok and "False" in said and "LOWBIT_BNB_BACKEND" in said and "sometimes" in said


FAULTS = [
    "import importlib.metadata as m; v = m.version; "
    "m.version = lambda n: '9.9.9' if n == 'bitsandbytes' else v(n)",
    "import lowbit.integrations.adapter as a; a.register_kernels = None",
    "import sys; sys.modules['lowbit._native'] = None",
    "import sys; sys.modules['lowbit.backends'] = None",
]


@pytest.mark.parametrize("fault", FAULTS)
def test_whatever_is_wrong_bitsandbytes_can_be_imported(fault, fresh):
    """An exception in a backend breaks `import bitsandbytes`, also where warnings are errors."""
    program = "import bitsandbytes; print('imported', bitsandbytes.__version__)"
    ok, said = fresh.run(f"{fault}\n{program}", LOWBIT_BNB_BACKEND="")
    assert ok and "imported" in said and said.count("lowbit's kernels are not used") == 1, said
    strict = "import warnings; warnings.simplefilter('error', RuntimeWarning)"
    ok, said = fresh.run(f"{fault}\n{strict}\n{program}", LOWBIT_BNB_BACKEND="")
    assert ok and "imported" in said, said


def test_old_torch_keeps_kernels_it_cannot_replace(monkeypatch):
    """torch 2.7 cannot replace a kernel, 2.8 has to be asked, 2.13 need not be."""
    calls = []

    class Library:
        def __init__(self, *_):
            pass

        def impl(self, name, kernel, key):
            calls.append((name, key))

    monkeypatch.setattr(torch.library, "Library", Library)
    taken = adapter.register_kernels("cpu", {"quantize_4bit": print, "dequantize_4bit": print})
    assert taken == [] and calls == []  # Both have a kernel already: ours.

    class Asked(Library):
        def impl(self, name, kernel, key, *, allow_override=False):
            calls.append((name, key, allow_override))

    monkeypatch.setattr(torch.library, "Library", Asked)
    assert adapter.register_kernels("cpu", {"quantize_4bit": print}) == ["quantize_4bit"]
    assert calls == [("quantize_4bit", "CPU", True)]


def test_another_signature_is_left_alone(monkeypatch):
    monkeypatch.setitem(adapter._ARGUMENTS, "quantize_4bit", "A blocksize")
    with pytest.warns(RuntimeWarning, match="quantize_4bit takes"):
        assert adapter.register_kernels("cpu", {"quantize_4bit": print}) == []


# bitsandbytes repacks weights where the processor has AVX512-BF16. The programs below have it
# believe so; each ends with what goes wrong without us.
BELIEVE = """
import torch, bitsandbytes as bnb, bitsandbytes.functional as F
class Believes:
    def __getattr__(self, name):
        return (lambda: True) if name == "has_avx512bf16_cpu" else getattr(theirs, name)
theirs, F.lib = F.lib, Believes()
torch.manual_seed(0)
n = {n}
dense = torch.randn(n, 64)
layer = bnb.nn.Linear4bit(64, n, bias=False, compute_dtype=torch.float32, quant_type="nf4")
layer.weight = bnb.nn.Params4bit(
    dense.clone(), quant_type="nf4", module=layer, compress_statistics={nested}
)
layer = layer.to("cpu").eval()
before = F.dequantize_4bit(layer.weight.data, layer.weight.quant_state)
saved = {{k: v.clone() for k, v in layer.state_dict().items()}}
with torch.no_grad():
    layer(torch.randn(2, 64))
"""
PICKLED = (
    BELIEVE
    + """
torch.save((layer, before, dense), {file!r})
assert layer.weight.quant_state.packing_format_for_cpu
"""
)
BUGS = {
    "saving": "assert all(torch.equal(v, saved[k]) for k, v in layer.state_dict().items())",
    "dequantizing": "assert torch.equal("
    "F.dequantize_4bit(layer.weight.data, layer.weight.quant_state).view_as(before), before)",
    "training": "x = torch.randn(2, 64, requires_grad=True)\n"
    "layer.train()(x).sum().backward()\n"
    "torch.testing.assert_close(x.grad, torch.ones(2, n) @ before, rtol=1e-4, atol=1e-4)",
    "rows": "",
}


@pytest.mark.parametrize("bug", BUGS)
def test_weights_stay_as_they_are_stored(bug, fresh):
    n, nested = (40 if bug == "rows" else 64), bug == "saving"
    program = BELIEVE.format(n=n, nested=nested) + BUGS[bug]
    ok, said = fresh.run(program, LOWBIT_BNB_BACKEND="all")
    assert ok, said
    alone = fresh.run(program, LOWBIT_BNB_BACKEND="off")
    assert not alone.ok, "bitsandbytes has repaired this: drop our repair"
    assert "AssertionError" in alone.printed or "does not require grad" in alone.printed


@pytest.mark.parametrize("nested", [False, True])
def test_weights_that_were_repacked_elsewhere_are_turned_back(nested, fresh, tmp_path):
    """A layer that was pickled after its evaluation where our backend was not."""
    file = str(tmp_path / "layer.pt")
    made = fresh.run(PICKLED.format(n=64, nested=nested, file=file), LOWBIT_BNB_BACKEND="off")
    assert made.ok, made.printed
    for first in ("run", "save"):
        layer, before, dense = torch.load(file, weights_only=False)
        x = torch.randn(3, 64)
        with pytest.raises(ValueError, match=r"absmax: .*repacked"):
            F.gemv_4bit(x[:1], layer.weight.data, state=layer.weight.quant_state)
        if first == "save":
            layer.state_dict()
        # Its scales were rounded to 16 bits there.
        torch.testing.assert_close(layer(x), x @ before.t(), rtol=1e-2, atol=0.1)
        codes, state = F.quantize_4bit(dense, quant_type="nf4")
        stored = layer.state_dict()
        assert torch.equal(stored["weight"], codes)
        torch.testing.assert_close(stored["weight.absmax"], state.absmax, rtol=1e-2, atol=1e-2)
