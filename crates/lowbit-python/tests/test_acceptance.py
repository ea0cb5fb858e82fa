"""The limits of bitsandbytes' own tests, on our kernels under its functions and classes.

They are what its tests allow on CUDA: means over many runs, and seven standard deviations.
"""

import copy
import io

import bitsandbytes as bnb
import bitsandbytes.functional as F
import pytest
import torch

from bitsandbytes_cases import FLOATS, op

# Mean absolute and relative error of a 1024 x 1024 normal tensor, by type and block size.
QUANTIZED = {
    ("nf4", 32): (0.06823, 0.1919),
    ("nf4", 64): (0.07332, 0.2057),
    ("nf4", 128): (0.07747, 0.2180),
    ("nf4", 256): (0.08105, 0.2289),
    ("nf4", 4096): (0.09507, 0.2695),
    ("fp4", 32): (0.08956, 0.2448),
    ("fp4", 64): (0.09732, 0.2628),
    ("fp4", 128): (0.10391, 0.2788),
    ("fp4", 256): (0.10996, 0.2933),
    ("fp4", 4096): (0.13382, 0.3458),
}
# Error, relative error and largest error of a product of one row, each by the root of `dim`.
PRODUCTS = {
    (torch.float16, False): (9.6e-5, 2.7e-3, 9.0e-4),
    (torch.float16, True): (3.8e-5, 1.5e-3, 3.0e-4),
    (torch.float32, False): (3.4e-8, 9.2e-6, 2.0e-7),
    (torch.float32, True): (2.4e-8, 1.6e-6, 1.2e-7),
    (torch.bfloat16, False): (8.3e-4, 8.5e-2, 7.6e-3),
    (torch.bfloat16, True): (2.1e-4, 6.0e-3, 2.0e-3),
}
STORAGE = (torch.uint8, torch.float16, torch.bfloat16, torch.float32)


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("case", QUANTIZED, ids=str)
def test_errors_of_four_bits(case, dtype):
    w = torch.randn(1024, 1024, dtype=dtype)
    codes, state = F.quantize_4bit(w, blocksize=case[1], quant_type=case[0])
    state = F.QuantState.from_dict(state.as_dict(), device=torch.device("cpu"))
    error = (F.dequantize_4bit(codes, state) - w).abs().float()
    absolute, relative = QUANTIZED[case]
    assert error.mean() < absolute
    assert (error / (w.abs().float() + 1e-8)).mean() < relative


@pytest.mark.parametrize("dim", [128, 1024])
@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_errors_of_products(quant_type, nested, dtype, dim):
    """The product of inference against that of training, and both against dequantized weights."""
    shapes = [(4 * dim, dim), (dim, 4 * dim), (dim, dim)]
    errors = []
    for turn, (n, k) in enumerate(shapes * 2):
        w = (torch.randn(n, k) / dim**0.5).to(dtype)
        storage = STORAGE[turn % len(STORAGE)]
        codes, state = F.quantize_4bit(
            w, quant_type=quant_type, compress_statistics=nested, quant_storage=storage
        )
        assert codes.dtype is storage
        x = torch.randn(1, k, dtype=dtype)
        y = F.gemv_4bit(x, codes.t(), state=state)
        trained = bnb.matmul_4bit(x.clone().requires_grad_(), codes.t(), state).detach()
        expected = (x.double() @ F.dequantize_4bit(codes, state).double().t()).to(dtype)
        for other in (trained, expected):
            error = (y - other).abs().float()
            size = other.abs().float() + 1e-5
            errors.append([error.mean(), (error / size).mean(), error.max()])
    found = torch.tensor(errors).mean(0) / dim**0.5
    assert (found < torch.tensor(PRODUCTS[dtype, dim > 512])).all(), found


@pytest.mark.parametrize("block_size", [64, 256, 4096, 16384])
@pytest.mark.parametrize("signed", [True, False])
def test_errors_of_the_dynamic_map(signed, block_size):
    for dtype in FLOATS:
        w = torch.randn(1024, 1024, dtype=dtype)
        error, relative = blockwise_errors(w, None, block_size)
        assert error < 0.011 and relative < 0.018
        error, relative = blockwise_errors(w.abs(), F.create_dynamic_map(signed=signed), block_size)
        assert error < 0.011 and relative < 0.018
        positive = torch.rand(1024, 1024, dtype=dtype)
        error, _ = blockwise_errors(positive, F.create_dynamic_map(signed=signed), block_size)
        assert error < (0.0036 if signed else 0.0023)


def blockwise_errors(w, code, block_size):
    codes, state = F.quantize_blockwise(w, code=code, blocksize=block_size)
    restored = F.dequantize_blockwise(codes, F.QuantState.from_dict(state.as_dict(), w.device))
    assert restored.dtype is w.dtype
    error = (restored - w).abs().float()
    return error.mean(), (error / (w + 1e-8).abs().float()).mean()


@pytest.mark.parametrize("code", [F.create_linear_map(), F.create_fp8_map()], ids=["linear", "fp8"])
def test_any_map_gives_the_nearest_value(code):
    w = torch.randn(1, 32)
    w /= w.abs().max()
    codes, state = F.quantize_blockwise(w, code=code)
    nearest = (w.view(-1, 1) - code).abs().amin(1)
    error = (F.dequantize_blockwise(codes, state) - w).abs().flatten()
    torch.testing.assert_close(error, nearest, rtol=0, atol=1e-7)


class Lion(torch.optim.Optimizer):
    """arXiv 2302.06675, in f32."""

    def __init__(self, params):
        super().__init__(params, {"lr": 1e-4, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self):
        for p in self.param_groups[0]["params"]:
            m = self.state[p].setdefault("exp_avg", torch.zeros_like(p))
            p.sub_(1e-4 * (0.9 * m + 0.1 * p.grad).sign())
            m.mul_(0.99).add_(p.grad, alpha=0.01)


OPTIMIZERS = {
    "Adam": (torch.optim.Adam, {}, [("exp_avg", 1), ("exp_avg_sq", 2)]),
    "Lion": (Lion, {}, [("exp_avg", 1)]),
    "SGD": (torch.optim.SGD, {"lr": 0.01, "momentum": 0.9}, [("momentum_buffer", 1)]),
    "RMSprop": (torch.optim.RMSprop, {"lr": 0.01, "alpha": 0.9}, [("square_avg", 1)]),
}


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_errors_of_optimizers_in_8_bits(name, dtype):
    """Fifty steps; after each the exact optimizer goes on from where the rounded one is."""
    exact, options, pairs = OPTIMIZERS[name]
    p = (torch.randn(1024, 257) * 0.1).to(dtype)
    q = p.float()
    ours, theirs = getattr(bnb.optim, f"{name}8bit")([p], **options), exact([q], **options)
    limits = (1.7e-4, 1.6e-3) if dtype is torch.bfloat16 else (6e-5, 6.2e-4)
    for step in range(50):
        p.grad = (torch.randn(p.shape) * 0.01).to(dtype)
        q.grad = p.grad.float()
        ours.step()
        theirs.step()
        state = ours.state[p]
        for key, i in pairs:
            restored = F.dequantize_blockwise(
                state[f"state{i}"],
                absmax=state[f"absmax{i}"],
                code=state[f"qmap{i}"],
                blocksize=256,
            )
            far = ~torch.isclose(theirs.state[q][key], restored, atol=3e-3, rtol=1e-3)
            assert far.sum() < 20, (step, key)
            theirs.state[q][key].copy_(restored)
        error = (q - p.float()).abs()
        assert error.mean() < limits[0] and (error / (q.abs() + 1e-9)).mean() < limits[1], step
        if step % 10 == 9:
            ours = reloaded(ours, [p], getattr(bnb.optim, f"{name}8bit"), options)
        q.copy_(p.float())


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_errors_of_optimizers_in_32_bits(name, dtype):
    exact, options, pairs = OPTIMIZERS[name]
    limits = {
        torch.float32: {"atol": 1e-6, "rtol": 1e-5},
        torch.float16: {"atol": 1e-4, "rtol": 1e-3},
        torch.bfloat16: {"atol": 1e-3, "rtol": 1e-2},
    }[dtype]
    p = (torch.randn(1024, 33) * 0.1).to(dtype)
    q = p.float()
    ours, theirs = getattr(bnb.optim, name)([p], **options), exact([q], **options)
    for step in range(20):
        p.grad = (torch.randn(p.shape) * 0.01).to(dtype)
        q.grad = p.grad.float()
        ours.step()
        theirs.step()
        assert (~torch.isclose(q, p.float(), **limits)).sum() <= 15, step
        for key, i in pairs:
            torch.testing.assert_close(theirs.state[q][key], ours.state[p][f"state{i}"], **limits)
        if step % 4 == 3:
            ours = reloaded(ours, [p], getattr(bnb.optim, name), options)
        if dtype is not torch.float32:
            q.copy_(q.to(dtype))
            p.copy_(q)


def reloaded(optimizer, params, make, options):
    """Another one, with the state of this one from a file."""
    file = io.BytesIO()
    torch.save(optimizer.state_dict(), file)
    again = make(params, **options)
    again.load_state_dict(torch.load(io.BytesIO(file.getvalue())))
    return again


@pytest.mark.parametrize("storage", STORAGE)
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
def test_layers_are_saved_before_and_after_a_forward(quant_type, nested, storage):
    linear = torch.nn.Linear(300, 400, dtype=torch.float16)
    layer = bnb.nn.Linear4bit(
        300, 400, quant_type=quant_type, compress_statistics=nested, quant_storage=storage
    )
    layer.load_state_dict(linear.state_dict())
    layer = layer.to("cpu").eval()
    x = torch.rand(42, 300)
    file = io.BytesIO()
    torch.save(layer, file)
    before = torch.load(io.BytesIO(file.getvalue()), weights_only=False)
    state = copy.deepcopy(layer.state_dict())
    y = layer(x)
    for key, t in layer.state_dict().items():
        assert torch.equal(t.view(torch.uint8), state[key].view(torch.uint8)), key
    stored = {key.removeprefix("weight."): t for key, t in state.items() if "weight." in key}
    again = bnb.nn.Linear4bit(
        300, 400, quant_type=quant_type, compress_statistics=nested, device="meta"
    )
    again.weight = bnb.nn.Params4bit.from_prequantized(state["weight"], stored, device="cpu")
    again.bias = layer.bias
    for other in (before, again, copy.deepcopy(layer)):
        assert torch.equal(other(x), y)


@pytest.mark.parametrize("name", ["dequantize_blockwise.out", "int8_linear_matmul.out"])
def test_outputs_given_are_those_returned(name):
    if name.startswith("int8"):
        arguments = [torch.randint(-128, 127, (rows, 20), dtype=torch.int8) for rows in (10, 30)]
    else:
        codes = torch.randint(0, 256, (33, 70), dtype=torch.uint8)
        arguments = [codes, torch.randn(37), F.create_dynamic_map(), 64, torch.bfloat16]
    expected = op(name.removesuffix(".out"))(*arguments)
    out = torch.empty_like(expected)
    op(name)(*arguments, out=out)
    assert torch.equal(out, expected)
    torch.library.opcheck(op(name), (*arguments,), {"out": out})
