"""Every backend computes the same: those in torch alone are held to the kernels of the CPU."""

import subprocess
import sys

import pytest
import torch

from lowbit import formats
from lowbit import functional as F
from lowbit.backends import cpu, cuda, dense
from samples import weights

FORMATS = list(formats.ALL)
pytestmark = pytest.mark.filterwarnings("ignore:lowbit has no kernels")


@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("shape", [(8, 256), (5, 37), (3, 1)])
def test_torch_alone_quantizes_to_the_same_bytes(quant_type, shape):
    entry = formats.by_name(quant_type)
    if entry.encoder is None:
        return  # A search finds its codes, on the CPU.
    for dtype in F.FLOATS:
        w = weights(entry, *shape, dtype=dtype)
        for block_size in entry.block_sizes or [entry.geometry(w.shape).block_size]:
            codes, scales = dense.quantize(w, quant_type, block_size)
            expected_codes, expected_scales = cpu.quantize(w, quant_type, block_size)
            assert torch.equal(codes, expected_codes), (block_size, dtype)
            assert torch.equal(scales, expected_scales), (block_size, dtype)


@pytest.mark.parametrize("quant_type", FORMATS)
def test_what_is_handed_to_bitsandbytes_comes_back_as_ours(quant_type):
    entry = formats.by_name(quant_type)
    if entry.encoder is None:
        return  # It has no operation for a search.
    w = weights(entry, 8, 256)
    block_size = entry.geometry(w.shape).block_size
    codes, scales = cuda.quantize(w, quant_type, block_size)
    expected, expected_scales = cpu.quantize(w, quant_type, block_size)
    state = F.QuantState(scales, w.shape, quant_type, block_size, w.dtype)
    assert torch.equal(scales, expected_scales)
    assert torch.equal(F.dequantize(codes, state), F.dequantize(expected, state))


@pytest.mark.parametrize("backend", [dense, cuda])
@pytest.mark.parametrize("quant_type", FORMATS)
@pytest.mark.parametrize("double_quant", [False, True])
def test_backends_read_weights_alike(backend, quant_type, double_quant):
    entry = formats.by_name(quant_type)
    if double_quant and not entry.can_double_quantize:
        return
    w = weights(entry, 32, 96)
    codes, state = F.quantize(w, quant_type, double_quant=double_quant)
    weight = state.weight(codes)
    for dtype in F.FLOATS:
        ours = cpu.dequantize(dtype, *weight)
        theirs = backend.dequantize(dtype, *weight)
        torch.testing.assert_close(theirs, ours, rtol=0.0, atol=0.0)
    x, bias, dy = torch.randn(2, 7, 96), torch.randn(32), torch.randn(2, 7, 32)
    y = cpu.linear(x, bias, *weight)
    torch.testing.assert_close(backend.linear(x, bias, *weight), y, rtol=1e-4, atol=1e-2)
    dx = cpu.linear_transposed(dy, *weight)
    torch.testing.assert_close(backend.linear_transposed(dy, *weight), dx, rtol=1e-4, atol=1e-2)


def test_backends_double_quantize_alike():
    scales = torch.rand(1000)
    for ours, theirs in zip(
        cpu.double_quantize(scales), dense.double_quantize(scales), strict=True
    ):
        assert torch.equal(ours, theirs)


@pytest.mark.parametrize("k", [0, 1, 1000, 4099])
def test_integer_products_are_exact(k):
    a = torch.randint(-128, 128, (2, 5, k), dtype=torch.int8)
    b = torch.randint(-128, 128, (7, k), dtype=torch.int8)
    sums = cpu.int8_matmul(a, b)
    assert torch.equal(sums.long(), a.long() @ b.long().T)
    assert torch.equal(dense.int8_matmul(a, b), sums)
    rows, columns, bias = torch.rand(2, 5), torch.rand(7), torch.randn(7)
    for dtype in F.FLOATS:
        ours = cpu.int8_rescale(sums, rows, columns, bias, dtype)
        theirs = dense.int8_rescale(sums, rows, columns, bias, dtype)
        torch.testing.assert_close(ours, theirs)


def test_a_device_without_kernels_is_named_once():
    script = """
import warnings, torch, lowbit
from lowbit.backends import dense
with warnings.catch_warnings(record=True) as said:
    warnings.simplefilter("always")
    for _ in range(3):
        dense.quantize(torch.randn(1, 64), "nf4", 64)
assert len(said) == 1 and "cpu" in str(said[0].message), said
"""
    subprocess.run([sys.executable, "-c", script], check=True)
