"""The kernels of "mps", on tensors of the CPU: torch's native half is replaced by a stand-in that
runs the same Metal text on the processor. Nothing here has run on Apple's hardware."""

import math
import os

import pytest
import torch

from lowbit import _native, backends, formats, ops, optim, rules
from lowbit import functional as F
from lowbit.backends import cpu, mps
from lowbit.integrations import bitsandbytes
from lowbit.optim import optimizer
from metal import Library
from samples import weights

pytestmark = pytest.mark.skipif(
    os.environ.get("LOWBIT_SKIP_GPU", "0") != "0", reason="LOWBIT_SKIP_GPU"
)
FORMATS = list(formats.ALL)
LIMITS = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


@pytest.fixture(autouse=True, scope="module")
def metal():
    """Torch's Metal compiler, replaced; what was compiled is kept from test to test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch._C, "_mps_compileShader", Library, raising=False)
        patch.setattr(mps, "_kernels", {})
        mps._plan.cache_clear()
        yield
    mps._plan.cache_clear()


def quantized(quant_type, n, k, **options):
    codes, state = F.quantize(weights(formats.by_name(quant_type), n, k), quant_type, **options)
    return state.weight(codes)


def same(made, expected, dtype):
    assert made.dtype == dtype and made.shape == expected.shape
    error = (made.float() - expected).abs().max() if made.numel() else 0.0
    assert error <= LIMITS[dtype] * (expected.abs().max() if made.numel() else 0.0)


def hold_to_the_cpu(w, x, bias=None):
    """`linear` and its transposed product, each held to f32 on the processor."""
    wide = None if bias is None else bias.float()
    same(mps.linear(x, bias, *w), cpu.linear(x.float(), wide, *w), x.dtype)
    dy = torch.randn(*x.shape[:-1], w.shape[0]).to(x.dtype)
    same(mps.linear_transposed(dy, *w), cpu.linear_transposed(dy.float(), *w), x.dtype)


def dtype_for(quant_type):
    return list(LIMITS)[FORMATS.index(quant_type) % 3]


def quantizes_as_the_cpu(w, quant_type):
    size = formats.by_name(quant_type).geometry(w.shape).block_size
    made, expected = (backend.quantize(w, quant_type, size) for backend in (mps, cpu))
    for ours, theirs in zip(made, expected, strict=True):
        assert ours.dtype is theirs.dtype and torch.equal(ours, theirs)


@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("shape", [(8, 256), (5, 37)])
def test_every_format_quantizes(quant_type, shape):
    entry = formats.by_name(quant_type)
    w = weights(entry, *shape, dtype=dtype_for(quant_type))
    if entry.encoder is None:  # A search finds its codes, on the CPU.
        with pytest.raises(ValueError, match="expected a format with an encoder"):
            mps.quantize(w, quant_type, entry.geometry(w.shape).block_size)
        return
    quantizes_as_the_cpu(w, quant_type)


@pytest.mark.parametrize("quant_type", [f.name for f in formats.ALL.values() if f.encoder])
def test_scales_of_the_largest_weights_are_finite(quant_type):
    quantizes_as_the_cpu(torch.full((4, 64), 1e30), quant_type)


@pytest.mark.parametrize("quant_type", FORMATS)
def test_every_format(quant_type):
    dtype = dtype_for(quant_type)
    weight = quantized(quant_type, 16, 256)  # Enough for a codebook of 256 patterns of ten.
    assert torch.equal(mps.dequantize(dtype, *weight), cpu.dequantize(dtype, *weight))
    hold_to_the_cpu(weight, torch.randn(2, 256).to(dtype), torch.randn(16).to(dtype))
    ids = torch.tensor([[3, 15], [0, 3]])
    rows = mps.embedding(ids, dtype, *weight)
    assert torch.equal(rows, cpu.embedding(ids, dtype, *weight))
    with pytest.raises(IndexError, match="less than 16, got 16"):
        mps.embedding(ids + 1, dtype, *weight)


@pytest.mark.parametrize("quant_type", [f.name for f in formats.ALL.values() if f.scales_are_means])
def test_mean_magnitudes_in_either_width(quant_type):
    entry = formats.by_name(quant_type)
    weight = quantized(quant_type, 64, 160)
    if entry.has_mean:
        means = torch.randn(weight.scales.shape).half().float()
        weight = weight._replace(means=means)
    assert weight.scales.dtype is torch.float16
    for other in (weight, weight._replace(scales=weight.scales.float() * 1.0001)):
        assert torch.equal(
            mps.dequantize(torch.float32, *other), cpu.dequantize(torch.float32, *other)
        )
        # So many rows take a kernel that rounds weights to half floats.
        hold_to_the_cpu(other, torch.randn(70, 160).bfloat16())


@pytest.mark.parametrize("rows", [(1,), (3, 2), (70,), (300,)], ids=str)
@pytest.mark.parametrize("double_quant", [False, True])
def test_every_kernel_of_a_product(rows, double_quant):
    weight = quantized("nf4", 68, 96, double_quant=double_quant)
    compiled = Library.compiled
    for dtype in (torch.bfloat16, torch.float16) if rows > (3,) else LIMITS:
        x, bias = torch.randn(*rows, 96).to(dtype), torch.randn(68).to(dtype)
        hold_to_the_cpu(weight, x, bias)
        once = Library.compiled
        hold_to_the_cpu(weight, x, bias)
        assert compiled <= once == Library.compiled


@pytest.mark.parametrize("size", [2.0**-60, 1.0, 2.0**60])
def test_weights_of_any_size_are_rounded_to_half_floats(size):
    for quant_type in ("nf4", "mxfp4"):
        weight = quantized(quant_type, 64, 64)
        if formats.by_name(quant_type).scales_are_bytes:
            scales = (weight.scales.int() + int(math.log2(size))).clamp(0).to(torch.uint8)
        else:
            scales = weight.scales * size
        weight = weight._replace(scales=scales)
        x = torch.randn(70, 64).bfloat16()
        same(mps.linear(x, None, *weight), cpu.linear(x.float(), None, *weight), x.dtype)


def test_nested_scales_have_the_same_bits():
    for count in (0, 1, 1000):
        scales = torch.rand(count)
        for ours, theirs in zip(
            mps.double_quantize(scales), cpu.double_quantize(scales), strict=True
        ):
            assert torch.equal(ours, theirs)


def test_offsets_and_strides():
    weight = quantized("nf4", 6, 64)
    x = torch.randn(64, 5).t()  # Columns of a matrix.
    hold_to_the_cpu(weight, x)
    hold_to_the_cpu(weight, torch.randn(5 * 64 + 1)[1:].view(5, 64))
    hold_to_the_cpu(weight, torch.randn(1, 64).expand(5, 64), torch.randn(12)[::2])
    behind = torch.cat([torch.zeros(3, dtype=torch.uint8), weight.codes.view(-1)])[3:]
    hold_to_the_cpu(weight._replace(codes=behind), x)
    hold_to_the_cpu(weight._replace(scales=torch.cat([weight.scales, weight.scales])[6:]), x)
    flat = torch.randn(257)[1:]
    for ours, theirs in zip(
        mps.quantize(flat, "nf4", 64), cpu.quantize(flat, "nf4", 64), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_codes_in_other_dtypes_and_values_of_their_own():
    weight = quantized("nf4", 6, 66)
    x = torch.randn(3, 66)
    filled = F.general.stored_as(weight.codes.view(-1), torch.float32)
    hold_to_the_cpu(weight._replace(codes=filled), x)
    hold_to_the_cpu(weight._replace(codebook=torch.linspace(-1, 1, 16)), x)


@pytest.mark.parametrize(("m", "n", "k"), [(0, 4, 64), (3, 0, 64), (3, 4, 0)])
def test_nothing(m, n, k):
    w = torch.ones(n, k)
    for ours, theirs in zip(mps.quantize(w, "nf4", 64), cpu.quantize(w, "nf4", 64), strict=True):
        assert torch.equal(ours, theirs)
    codes, state = F.quantize(w, "nf4")
    weight = state.weight(codes)
    assert mps.dequantize(torch.float16, *weight).shape == (n, k)
    assert torch.equal(mps.linear(torch.randn(m, k), None, *weight), torch.zeros(m, n))
    assert torch.equal(mps.linear_transposed(torch.randn(m, n), *weight), torch.zeros(m, k))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", list(LIMITS))
def test_what_is_not_finite_is_refused_with_its_place(value, dtype):
    w = torch.randn(4, 64).to(dtype)
    w[2, 7] = value
    with pytest.raises(ValueError, match=f"got {value} at index 135"):
        mps.quantize(w, "nf4", 64)


@pytest.mark.parametrize(
    ("changes", "named"),
    [
        ({"codes": torch.zeros(255, dtype=torch.uint8)}, "codes: expected 192 bytes"),
        ({"scales": torch.zeros(5)}, "scales: expected 24 bytes"),
        ({"scales": torch.zeros(6, dtype=torch.float16)}, "scales: expected torch.float32"),
        ({"scales": torch.zeros(6, device="meta")}, "scales: expected a tensor on cpu"),
        ({"means": torch.zeros(6)}, "expected no means"),
        ({"codebook": torch.zeros(15)}, "codebook: expected 64 bytes"),
        ({"nested_absmax": torch.zeros(1)}, "nested blocks"),
        ({"nested_absmax": torch.zeros(1), "nested_block_size": 256}, "nested_map, nested_offset"),
        ({"block_size": 48}, "block_size"),
        ({"shape": [6, 65]}, "x: expected"),
        ({"shape": [384]}, "shape: expected"),
        ({"format": "nf5"}, "nf5"),
    ],
)
def test_a_weight_that_does_not_fit_is_named(changes, named):
    weight = quantized("nf4", 6, 64)._replace(**changes)
    with pytest.raises((ValueError, TypeError), match=named):
        mps.linear(torch.randn(2, 64), None, *weight)


@pytest.mark.parametrize("operation", ["plan_quantize", "plan_linear", "plan_linear_transposed"])
def test_plans_of_what_cannot_be_are_refused(operation):
    plain = (False, False, False)
    weight = ("nf4", (4, 64), 64, None, plain)
    good = {
        "plan_quantize": ["nf4", "f32", (4, 64), 64],
        "plan_linear": [weight, "f32", 3, False],
        "plan_linear_transposed": [weight, "f32", 3],
    }[operation]
    plan = getattr(_native, operation)
    assert plan(*good)["steps"]
    hostile = [None, "nf5", -1, 2**62, 2**64, (2**40, 2**40), (-1,), 0.5, ()]
    hostile += [(*weight[:3], 0, plain), ("mxfp4", (4, 64), 32, 256, plain)]
    hostile += [("t158", (4, 80), 80, 256, plain), ("bin1", (4, 64), 64, 256, (False, True, False))]
    # Scales in f16, and means, which this format has not; then flags that are none.
    flags = [(False, True, False), (False, False, True), (False,) * 2, (False,) * 4, (0, 0, 0)]
    hostile += [(*weight[:4], other) for other in (*flags, None, 1.5, True, "no")]
    for i in range(len(good)):
        for other in hostile:
            if i == 2 and operation == "plan_quantize" and other == ():
                continue
            with pytest.raises((ValueError, TypeError)):
                plan(*good[:i], other, *good[i + 1 :])


def test_operations_of_bitsandbytes():
    ours, theirs = bitsandbytes.kernels(mps), bitsandbytes.kernels(cpu)
    assert ours.keys() == theirs.keys()
    w, x = torch.randn(8, 128), torch.randn(2, 128)
    codes, absmax = theirs["quantize_4bit"](w, 64, "nf4", torch.uint8)
    for made, expected in zip(
        ours["quantize_4bit"](w, 64, "nf4", torch.uint8), (codes, absmax), strict=True
    ):
        assert torch.equal(made, expected)
    book = torch.tensor(formats.by_name("nf4").codebook)
    calls = {
        "dequantize_4bit": (codes, absmax, 64, "nf4", w.shape, torch.float16),
        "gemv_4bit": (x[:1], codes, w.shape, absmax, book, 64),
        "gemm_4bit": (x, codes, w.shape, absmax, 64, "nf4"),
        "quantize_blockwise": (w, F.dynamic_map(), 256),
        "int8_vectorwise_quant": (w, 2.5),
        "int8_linear_matmul": (torch.ones(3, 64, dtype=torch.int8),) * 2,
    }
    for name, arguments in calls.items():
        torch.testing.assert_close(
            ours[name](*arguments), theirs[name](*arguments), rtol=1e-4, atol=1e-4
        )
    assert ours["quantize_4bit"](w, 64, "fp4", torch.bfloat16)[0].dtype is torch.bfloat16


@pytest.mark.parametrize("size", [(1, 40, 96), (5, 33, 101), (70, 66, 68), (2, 3, 0), (0, 3, 8)])
def test_products_of_integers_are_exact(size):
    m, n, k = size
    a, b = (torch.randint(-128, 128, (rows, k), dtype=torch.int8) for rows in (m, n))
    sums = mps.int8_matmul(a, b)
    assert sums.dtype is torch.int32 and torch.equal(sums.long(), a.long() @ b.long().t())
    assert torch.equal(mps.int8_matmul(a.view(m, 1, k), b), sums.view(m, 1, n))
    behind = torch.cat([b.new_zeros(3), b.view(-1)])[3:].view(n, k)
    assert torch.equal(mps.int8_matmul(a, behind), sums)
    rows, columns = torch.rand(m), torch.rand(n)
    for dtype in LIMITS:
        for bias in (None, torch.randn(n)):
            out = mps.int8_rescale(sums, rows, columns, bias, dtype)
            expected = cpu.int8_rescale(sums, rows, columns, bias, torch.float32)
            if bias is not None:
                expected += bias.to(dtype).float() - bias
            same(out, expected, dtype)


@pytest.mark.parametrize("threshold", [0.0, 2.5])
@pytest.mark.parametrize(("m", "n", "k"), [(1, 40, 96), (3, 33, 101), (70, 66, 68)])
def test_llm_int8_is_that_of_the_cpu(m, n, k, threshold):
    q, scales = F.quantize_rowwise(torch.randn(n, k))
    weight = F.QuantState(scales, q.shape, "int8", k, torch.float32).weight(q)
    for dtype, bias in zip(LIMITS, (None, torch.randn(n), torch.randn(n)), strict=True):
        x = torch.randn(m, 1, k)
        x[0, 0, 3], x[-1, 0, k // 2] = 40.0, -9.0
        x = x.to(dtype)
        y = mps.int8_linear(x, bias, threshold, *weight)
        rounded = None if bias is None else bias.to(dtype).float()
        same(y, cpu.int8_linear(x.float(), rounded, threshold, *weight), dtype)
    bad = torch.randn(3, k)
    bad[1, 5] = torch.nan
    y = mps.int8_linear(bad, None, threshold, *weight)
    assert y[1].isnan().all() and y[[0, 2]].isfinite().all()


def test_integers_that_cannot_be_multiplied_are_refused():
    ones = torch.ones(3, 8, dtype=torch.int8)
    weight = quantized("nf4", 6, 64)
    for run, named in (
        (lambda: mps.int8_matmul(ones.int(), ones), "a: expected torch.int8"),
        (lambda: mps.int8_matmul(ones, ones[:, :4]), "a, b: expected"),
        (lambda: mps.int8_matmul(*[torch.ones(1, 1 << 17, dtype=torch.int8)] * 2), "131071"),
        (lambda: mps.int8_rescale(ones, *torch.ones(2, 3), None, torch.float32), "torch.int32"),
        (lambda: mps.int8_rescale(ones.int(), *torch.ones(2, 3), None, torch.half), "sums: expect"),
        (lambda: mps.int8_linear(torch.ones(2, 64), None, 0.0, *weight), "8-bit integer row"),
        (
            lambda: mps.int8_linear(torch.ones(2, 64), None, -1.0, *weight),
            "8-bit integer|threshold",
        ),
    ):
        with pytest.raises((ValueError, TypeError), match=named):
            run()


def steps_of(rule, n, dtype, bits, settings, steps=3):
    """A parameter and its moments after some steps, each on "mps" and on the processor."""
    count = len(rules.by_name(rule).moments)
    p = torch.randn(n).to(dtype)
    ours, theirs = ([p.clone()] for _ in range(2))
    for tensors in (ours, theirs):
        for _ in range(count):
            tensors.append(torch.zeros(n, dtype=torch.uint8 if bits == 8 else torch.float32))
            tensors.append(torch.zeros(-(-n // 256)) if bits == 8 else None)
    for step in range(1, steps + 1):
        g = torch.randn(n).to(dtype)
        for run, (q, *states) in ((mps, ours), (cpu, theirs)):
            moments = list(zip(states[::2], states[1::2], strict=True))
            run.optimizer_update(rule, settings, step, q, g, moments)
    return ours, theirs


def nearly_the_same_steps(ours, theirs):
    """A division that rounds otherwise may tip a code, and its step."""
    for made, expected in zip(ours, theirs, strict=True):
        if expected is None:
            continue
        if expected.dtype is torch.uint8:
            apart = (made.int() - expected.int()).abs()
            assert apart.max() <= 1 and (apart > 0).sum() <= 1 + made.numel() // 100
        else:
            step = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[expected.dtype]
            torch.testing.assert_close(made, expected, rtol=step, atol=2e-5)


@pytest.mark.parametrize("bits", [8, 32])
@pytest.mark.parametrize("rule", rules.ALL)
def test_steps_of_optimizers_are_one_kernel(rule, bits):
    settings = rules.Settings(
        lr=1e-2, beta1=0.9, beta2=0.99, beta3=0.999, alpha=2.0, eps=1e-8, weight_decay=0.1
    )
    for dtype, n in zip(LIMITS, (1027, 1, 2048), strict=True):
        compiled = Library.compiled
        nearly_the_same_steps(*steps_of(rule, n, dtype, bits, settings))
        nearly_the_same_steps(*steps_of(rule, n + 300, dtype, bits, settings))
        assert Library.compiled <= compiled + 1


@pytest.mark.parametrize("rule", ["adam", "momentum"])
def test_a_limited_step_is_three_kernels(rule):
    settings = rules.Settings(lr=1e-2, beta1=0.9, beta2=0.99, eps=1e-8, max_update_norm=0.02)
    nearly_the_same_steps(*steps_of(rule, 5000, torch.float32, 32, settings))
    p, g = torch.randn(2, 5000)
    moments = [(torch.rand(5000), None) for _ in rules.ALL[rule].moments]
    kept = [p.clone(), *(m.clone() for m, _ in moments)]
    norm, expected = (
        run.update_norm(rule, settings, 3, p, g, moments) for run in (mps, backends.steps)
    )
    torch.testing.assert_close(norm, expected)
    assert all(map(torch.equal, kept, [p, *(m for m, _ in moments)]))


def test_parameters_and_states_that_lie_anywhere_take_steps():
    settings = rules.Settings(lr=1e-2, beta1=0.9, beta2=0.99)
    for offset in (0, 1, 4, 16):
        buffer, other = torch.randn(2, 64)
        p, g = buffer[offset : offset + 35], torch.randn(72)[1::2][:35]
        before, around = p.clone(), buffer.clone()
        codes, absmax = torch.zeros(2, 35, dtype=torch.uint8), torch.zeros(2, 1)
        moment = torch.zeros(70)[35:]
        mps.optimizer_update("lion", settings, 1, p, g, [(moment, None)])
        expected = before, torch.zeros(35)
        cpu.optimizer_update("lion", settings, 1, before, g.contiguous(), [(expected[1], None)])
        torch.testing.assert_close((p, moment), expected)
        around[offset : offset + 35] = p
        assert torch.equal(buffer, around)
        moments = list(zip(codes, absmax, strict=True))
        mps.optimizer_update("adam", settings, 1, other[:35], g, moments)
        assert codes.any(1).all() and (absmax > 0.0).all()


@pytest.mark.parametrize("name", ["AdamW8bit", "AdEMAMix8bit", "LAMB32bit", "SGD8bit"])
def test_optimizers_train_on_it(name, monkeypatch):
    options = {"lr": 1e-2, "momentum": 0.9} if name == "SGD8bit" else {"lr": 1e-2}
    ends = []
    for run in (mps, cpu):
        monkeypatch.setattr(optimizer, "kernels", lambda device, run=run: run)
        torch.manual_seed(1)
        params = [torch.nn.Parameter(torch.randn(shape)) for shape in ((65, 77), (7,))]
        taken = getattr(optim, name)(params, **options)
        for _ in range(4):
            for p in params:
                p.grad = torch.randn(p.shape)
            taken.step()
        ends.append((params, taken.state_dict()["state"]))
    for p, q in zip(ends[0][0], ends[1][0], strict=True):
        torch.testing.assert_close(p, q, rtol=1e-4, atol=2e-4)
    norms = [state[0][optimizer.QUANT_STATE].get("unorm_vec") for _, state in ends]
    if norms[1] is not None:
        torch.testing.assert_close(*norms, rtol=1e-4, atol=0.0)


def test_a_gradient_that_is_not_finite_is_left_out():
    settings = rules.Settings(lr=0.5, beta1=0.9, beta2=0.999, eps=1e-8)
    p, g = torch.ones(1000), torch.ones(1000)
    g[7], g[300] = torch.nan, torch.inf
    moments = [(torch.zeros(1000, dtype=torch.uint8), torch.zeros(4)) for _ in range(2)]
    mps.optimizer_update("adam", settings, 1, p, g, moments)
    assert p[7] == p[300] == 1.0 and p.isfinite().all() and (p != 1.0).sum() == 998


def test_steps_that_cannot_be_taken_are_refused():
    settings, n = rules.Settings(lr=1e-2, beta1=0.9, beta2=0.99), 300

    def step(p=None, g=None, moment=None, absmax=None, rule="lion", number=1, **changed):
        p = torch.ones(n) if p is None else p
        moment = torch.zeros(n) if moment is None else moment
        g, own = torch.ones(n) if g is None else g, settings._replace(**changed)
        mps.optimizer_update(rule, own, number, p, g, [(moment, absmax)])

    step()
    codes = torch.zeros(n, dtype=torch.uint8)
    for changes, named in (
        ({"p": torch.ones(n).double()}, "p: expected"),
        ({"g": torch.ones(n).half()}, "g: expected the dtype of p"),
        ({"g": torch.ones(n - 1)}, "g: expected 1200 bytes"),
        ({"moment": codes}, "state: expected torch.float32"),
        ({"absmax": torch.zeros(2)}, "state: expected torch.uint8"),
        ({"moment": codes, "absmax": torch.zeros(1)}, "absmax_0: expected 8 bytes"),
        ({"moment": codes, "absmax": torch.zeros(2).half()}, "absmax: expected torch.float32"),
        ({"rule": "adam"}, "moments: expected 2"),
        ({"rule": "adamax"}, "optimizer: expected one of"),
        ({"number": 0}, "steps counted from 1"),
        ({"lr": -1.0}, "lr"),
    ):
        with pytest.raises((ValueError, TypeError), match=named):
            step(**changes)
    for bad in (-1, 2**31 + 1, 2**62, 2**64, None, 0.5):
        with pytest.raises((ValueError, TypeError)):
            _native.plan_optimizer_update("lion", "f32", bad, True, False)
        with pytest.raises((ValueError, TypeError)):
            _native.optimizer_params("lion", settings, 1, "f32", bad, False, False)
    with pytest.raises(TypeError, match="settings"):
        _native.optimizer_params("lion", None, 1, "f32", 4, False, False)


def test_torch_finds_them():
    for name in ("quantize", "double_quantize", "dequantize", "linear", "linear_transposed"):
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"lowbit::{name}", "MPS")
    assert "mps" in ops.NATIVE
