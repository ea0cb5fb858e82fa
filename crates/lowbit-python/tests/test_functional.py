"""Quantize, dequantize and multiply, against bytes that bitsandbytes' CUDA kernels wrote."""

import re
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import lowbit
from lowbit import functional as F

GOLDEN = Path(__file__).parents[3] / "golden" / "bnb-cuda.safetensors"
FORMATS = list(lowbit.formats.ALL)


@pytest.fixture(scope="module")
def golden():
    return load_file(GOLDEN)


def cases(golden, prefix):
    return sorted({key.rsplit(".", 1)[0] for key in golden if key.startswith(prefix)})


def test_four_bit_tensors_are_those_of_cuda(golden):
    differing = total = 0
    for case in cases(golden, "q4."):
        _, quant_type, block_size, _ = case.split(".")
        x = golden[f"{case}.x"]
        packed, state = F.quantize_4bit(x, quant_type=quant_type, block_size=int(block_size[2:]))
        theirs = golden[f"{case}.packed"].flatten()
        assert torch.equal(state.absmax, golden[f"{case}.absmax"].flatten()), case
        assert torch.equal(F.dequantize_4bit(theirs, state), golden[f"{case}.dequant"]), case
        # A zero block is 0x00 there: negative zeros.
        ours = packed.flatten()
        differing += int((ours != theirs)[theirs != 0].sum())
        total += ours.numel()
    assert total > 50_000
    assert differing <= total * 1e-4


def test_products_are_those_of_cuda(golden):
    limits = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}
    seen = 0
    for case in cases(golden, "mm."):
        n, k, b = (int(re.search(rf"\.{key}(\d+)\.", case)[1]) for key in ("n", "k", "bs"))
        x, ref = golden[f"{case}.x"], golden[f"{case}.ref"]
        absmax = golden[f"{case}.absmax"].flatten()
        state = F.QuantState(absmax, torch.Size([n, k]), case.split(".")[1], b, x.dtype)
        y = F.linear_4bit(x, golden[f"{case}.packed"], state)
        assert y.dtype == x.dtype
        error = (y.float() - ref).abs().max() / ref.abs().max()
        assert error < limits[x.dtype], (case, error)
        seen += 1
    assert seen >= 10


@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("dtype", F.FLOATS)
def test_linear_multiplies_by_what_dequantize_gives(quant_type, dtype):
    w = torch.randn(32, 96, dtype=dtype)
    if min(lowbit.formats.by_name(quant_type).codebook or [-1]) >= 0:
        w = w.abs()
    codes, state = F.quantize(w, quant_type)
    x, bias = torch.randn(2, 5, 96, dtype=dtype), torch.randn(32, dtype=dtype)
    expected = x.double() @ F.dequantize(codes, state, dtype=torch.float32).double().T + bias
    y = F.linear(x, codes, state, bias)
    assert y.dtype == dtype
    limit = {torch.float32: 1e-5, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}[dtype]
    assert (y - expected).abs().max() < limit * expected.abs().max()


@pytest.mark.parametrize("quant_type", FORMATS)
def test_gradients_are_those_of_the_dense_product(quant_type):
    w = torch.randn(32, 96).abs()
    codes, state = F.quantize(w, quant_type)
    dense = F.dequantize(codes, state)
    x = torch.randn(7, 96, requires_grad=True)
    bias = torch.randn(32, requires_grad=True)
    dy = torch.randn(7, 32)
    F.linear(x, codes, state, bias).backward(dy)
    torch.testing.assert_close(x.grad, dy @ dense, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(bias.grad, dy.sum(0))


@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16, torch.float32, torch.float64])
def test_codes_may_be_seen_as_another_dtype(storage):
    w = torch.randn(3, 37)
    codes, state = F.quantize_4bit(w, block_size=32, quant_storage=storage)
    plain, _ = F.quantize_4bit(w, block_size=32)
    assert codes.dtype == storage
    assert torch.equal(F.dequantize_4bit(codes, state), F.dequantize_4bit(plain, state))


def test_shapes_and_strides_of_activations():
    codes, state = F.quantize_4bit(torch.randn(8, 64))
    x = torch.randn(64, 6).T
    assert torch.equal(F.linear(x, codes, state), F.linear(x.contiguous(), codes, state))
    stepped = torch.randn(6, 128)[:, ::2]
    assert torch.equal(F.linear(stepped, codes, state), F.linear(stepped.clone(), codes, state))
    assert F.linear(torch.randn(0, 64), codes, state).shape == (0, 8)
    assert F.linear(torch.randn(2, 0, 64), codes, state).shape == (2, 0, 8)
