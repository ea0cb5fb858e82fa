"""LLM.int8, quantized embeddings, SwitchBack and sparse products."""

import copy
import functools
import pickle

import bitsandbytes
import pytest
import torch
from safetensors.torch import load, save

import lowbit
from lowbit import functional as F
from lowbit import ops
from lowbit.backends import cpu, dense
from lowbit.nn import (
    Embedding4bit,
    Embedding8bit,
    EmbeddingFP4,
    EmbeddingNF4,
    Linear8bitLt,
    OutlierAwareLinear,
    QuantizedEmbedding,
    SwitchBackLinear,
    SwitchBackLinearCallback,
)

FORMATS = [name for name, f in lowbit.formats.ALL.items() if f.encoder and f.codebook[0] <= 0]


def with_outliers(m, k, dtype=torch.float32):
    x = torch.randn(m, k)
    x[0, 3], x[-1, k // 2] = 40.0, -9.0
    return x.to(dtype)


def weight(layer):
    """A layer's int8 weight and scales, as `QuantState` puts them."""
    return layer.weight.data.view(layer.out_features, -1), layer.quant_state.absmax


def bitsandbytes_int8(x, q, scales, bias, threshold):
    """LLM.int8 in f64, from bitsandbytes' quantized activations."""
    codes, stats, columns = bitsandbytes.functional.int8_vectorwise_quant(
        x.half(), threshold=threshold
    )
    y = codes.double() @ q.double().t() * stats[:, None] * scales / 127**2
    if columns is not None and len(columns):
        y += x[:, columns].double() @ (q[:, columns].double() * scales[:, None] / 127).t()
    return y + bias.double()


@pytest.mark.parametrize("dtype", F.FLOATS)
@pytest.mark.parametrize("threshold", [0.0, 6.0])
@pytest.mark.parametrize("m", [1, 19])
def test_products_are_those_of_llm_int8(dtype, threshold, m):
    layer = Linear8bitLt(200, 33, has_fp16_weights=False, threshold=threshold)
    x = with_outliers(m, 200, dtype).half().to(dtype)
    q, scales = weight(layer)
    expected = bitsandbytes_int8(x, q, scales, layer.bias, threshold)
    y = layer(x)
    assert y.dtype == dtype
    step = {torch.float32: 1e-5, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(y.double(), expected, rtol=step, atol=5 * step)


def test_state_dicts_of_trained_and_of_int8_layers_are_those_of_bitsandbytes():
    theirs = bitsandbytes.nn.Linear8bitLt(96, 24, has_fp16_weights=False, threshold=6.0).to("cpu")
    theirs(torch.randn(2, 96))
    ours = Linear8bitLt(96, 24, has_fp16_weights=False, threshold=6.0)
    ours.load_state_dict(theirs.state_dict())
    for key, tensor in theirs.state_dict().items():
        assert torch.equal(tensor, ours.state_dict()[key]), key
    x = with_outliers(5, 96).half()
    torch.testing.assert_close(ours.half()(x), theirs.half()(x), rtol=2e-3, atol=2e-2)

    trained = Linear8bitLt(96, 24)
    assert trained.state_dict().keys() == bitsandbytes.nn.Linear8bitLt(96, 24).state_dict().keys()
    trained.load_state_dict(torch.nn.Linear(96, 24).state_dict())
    assert trained.weight.requires_grad
    for layer in (ours, trained):
        for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
            assert torch.equal(other(x.to(layer.bias.dtype)), layer(x.to(layer.bias.dtype)))


@pytest.mark.parametrize("compiled", [False, True])
def test_a_trained_weight_is_rounded_whenever_it_has_changed(compiled):
    layer = Linear8bitLt(64, 8, threshold=6.0)
    run = torch.compile(layer, fullgraph=True, backend="aot_eager") if compiled else layer
    x = torch.randn(3, 64)
    optimizer = lowbit.optim.SGD(layer.parameters(), lr=0.5, momentum=0.9)
    for _ in range(3):
        expected = F.int8_linear(x, *F.quantize_rowwise(layer.weight), layer.bias, 6.0)
        y = run(x)
        assert torch.equal(y, expected)
        y.square().sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    assert not torch.equal(run(x), y)
    layer.weight.data.zero_()
    assert torch.equal(run(x), layer.bias.expand(3, 8))


@pytest.mark.parametrize(
    "layer",
    [OutlierAwareLinear, SwitchBackLinear, functools.partial(Linear8bitLt, has_fp16_weights=False)],
)
def test_layers_compile_whole(layer):
    layer = layer(64, 8)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(3, 64, requires_grad=True)
    y, again = layer(x), compiled(x)
    torch.testing.assert_close(again, y)
    dy = torch.randn(3, 8)
    expected = torch.autograd.grad(y, x, dy)
    torch.testing.assert_close(torch.autograd.grad(again, x, dy), expected)


def numerical(f, t, step):
    """The gradient of a sum by differences, one number at a time, in f64."""
    grad = torch.zeros_like(t, dtype=torch.float64)
    for i in range(t.numel()):
        ends = []
        for sign in (1.0, -1.0):
            moved = t.detach().clone()
            moved.view(-1)[i] += sign * step
            ends.append(f(moved).double().sum().item())
        grad.view(-1)[i] = (ends[0] - ends[1]) / (2 * step)
    return grad


@pytest.mark.parametrize("kind", ["Linear8bitLt", "int8", "SwitchBackLinear"])
def test_gradients_are_those_of_finite_differences(kind):
    """Rounding has no slope: steps so large that it averages out, and a tolerance to match."""
    torch.manual_seed(3)
    if kind == "SwitchBackLinear":
        layer = SwitchBackLinear(24, 6, compute_dtype=torch.float32)
    else:
        layer = Linear8bitLt(24, 6, has_fp16_weights=kind != "int8")
    factors = torch.randn(4, 6)
    x = torch.randn(4, 24, requires_grad=True)
    (layer(x) * factors).sum().backward()
    got = numerical(lambda x: layer(x) * factors, x, 1.0)
    torch.testing.assert_close(x.grad.double(), got, rtol=0.05, atol=0.05)
    torch.testing.assert_close(layer.bias.grad, factors.sum(0))
    if kind != "int8":

        def with_weight(w):
            other = copy.deepcopy(layer)
            other.weight.data.copy_(w)
            if kind == "SwitchBackLinear":
                other.sync_weights()
            return other(x.detach()) * factors

        got = numerical(with_weight, layer.weight, 0.5)
        torch.testing.assert_close(layer.weight.grad.double(), got, rtol=0.05, atol=0.08)


def test_switchback_trains_like_a_linear_layer_and_says_what_it_takes():
    torch.manual_seed(0)
    x, goal = torch.randn(64, 32), torch.randn(64, 16)
    ends = []
    for kind in ("plain", "switchback"):
        torch.manual_seed(1)
        layer = torch.nn.Linear(32, 16)
        if kind == "switchback":
            layer = SwitchBackLinear.from_linear(layer)
        callback = SwitchBackLinearCallback(layer)
        optimizer = torch.optim.Adam(layer.parameters(), lr=1e-2)
        for _ in range(100):
            optimizer.zero_grad()
            loss = (layer(x) - goal).square().mean()
            loss.backward()
            optimizer.step()
            before = None if kind == "plain" else layer.weight_int8.clone()
            callback.sync()
            assert before is None or not torch.equal(before, layer.weight_int8)
        ends.append(loss.item())
    assert abs(ends[1] - ends[0]) < 0.02 * ends[0]
    half = SwitchBackLinear.from_linear(torch.nn.Linear(256, 256, bias=False).half())
    taken = half.weight.nbytes + half.weight_int8.nbytes + half.weight_scales.nbytes
    assert taken == 256 * 256 * 3 + 256 * 4  # Half as much again as 16 bits.


@pytest.mark.parametrize("threshold", [0.0, 2.5])
def test_the_operation_is_the_same_in_torch_alone(threshold):
    x, bias = with_outliers(7, 100), torch.randn(12)
    q, scales = F.quantize_rowwise(torch.randn(12, 100))
    state = F.QuantState(scales, q.shape, "int8", 100, torch.float32)
    ours = cpu.int8_linear(x, bias, threshold, *state.weight(q))
    theirs = dense.int8_linear(x, bias, threshold, *state.weight(q))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-4)
    bad = x.clone()
    bad[2, 5] = torch.nan
    for run in (cpu, dense):
        y = run.int8_linear(bad, None, threshold, *state.weight(q))
        assert y[2].isnan().all() and y[[0, 1, 3]].isfinite().all()
    torch.library.opcheck(ops.int8_linear, (x, bias, threshold, *state.weight(q)))


@pytest.mark.parametrize("shape", [(50, 64), (7, 100), (3, 33), (1, 1)])
@pytest.mark.parametrize("quant_type", FORMATS)
def test_looked_up_rows_are_those_of_the_whole_table(quant_type, shape):
    stacked = lowbit.formats.by_name(quant_type).stacked_rows
    shape = (-(-shape[0] // stacked) * stacked, shape[1])
    table = torch.nn.Embedding(*shape)
    nested = shape[0] == 50 and lowbit.formats.by_name(quant_type).can_double_quantize
    options = {"quant_type": quant_type, "compress_statistics": nested}
    embedding = QuantizedEmbedding.from_embedding(table, **options)
    ids = torch.randint(0, shape[0], (2, 3))
    expected = embedding.dequantize()[ids]
    assert torch.equal(embedding(ids), expected)
    assert torch.equal(embedding(ids.int()), expected)
    state = embedding.quant_state
    args = (ids, torch.bfloat16, *state.weight(embedding.weight))
    assert torch.equal(cpu.embedding(*args), dense.embedding(*args))
    torch.library.opcheck(ops.embedding, args)


@pytest.mark.parametrize("kind", [Embedding4bit, EmbeddingNF4, EmbeddingFP4, Embedding8bit])
def test_embeddings_are_saved_loaded_moved_and_checked(kind):
    table = torch.nn.Embedding(20, 100, padding_idx=3)
    embedding, other = kind.from_embedding(table), kind(20, 100)
    assert embedding.padding_idx == 3
    file = save(embedding.state_dict())
    other.load_state_dict(load(file))
    ids = torch.arange(20)
    assert torch.equal(other(ids), embedding(ids))
    assert torch.equal(copy.deepcopy(embedding).bfloat16()(ids), embedding(ids))
    size = embedding.weight.nbytes + embedding.quant_state.nbytes()
    assert size < 20 * 100 * (1.1 if kind is Embedding8bit else 0.6)  # Of 2 * 20 * 100 in 16 bits.
    for bad in (torch.tensor([0, 20]), torch.tensor([-1])):
        with pytest.raises(IndexError, match="less than 20"):
            embedding(bad)
    with pytest.raises(TypeError, match="integers"):
        embedding(torch.tensor([0.5]))
    torch.testing.assert_close(embedding(ids), table(ids), rtol=0.2, atol=0.5)


@pytest.mark.parametrize("quant_type", ["nf4", "int8", "mxfp4"])
def test_torch_alone_restores_no_more_rows_than_are_asked_for(quant_type, monkeypatch):
    embedding = QuantizedEmbedding(1000, 128, quant_type=quant_type)
    args = (torch.tensor([3, 999, 3]), torch.float32)
    weight = embedding.quant_state.weight(embedding.weight)
    restored = []
    whole = dense.dequantize
    monkeypatch.setattr(
        dense, "dequantize", lambda *given: restored.append(whole(*given)) or restored[-1]
    )
    assert torch.equal(dense.embedding(*args, *weight), cpu.embedding(*args, *weight))
    assert [t.shape for t in restored] == [(3, 128)]
    for bad in (-1, 1000):
        with pytest.raises(IndexError, match=f"less than 1000, got {bad}"):
            dense.embedding(torch.tensor([[bad, 5]]), torch.float32, *weight)
    assert dense.embedding(torch.empty(0, 2).long(), torch.float32, *weight).shape == (0, 2, 128)


def test_embeddings_compile_whole():
    embedding = Embedding4bit(20, 64, compress_statistics=True)
    ids = torch.tensor([[1, 5], [0, 19]])
    compiled = torch.compile(embedding, fullgraph=True)
    assert torch.equal(compiled(ids), embedding(ids))


@pytest.mark.parametrize("dtype", F.FLOATS)
def test_sparse_products_add_duplicates_and_have_gradients(dtype):
    rows = torch.tensor([0, 3, 0, 3, 2])
    cols = torch.tensor([1, 0, 1, 4, 2])
    values = torch.randn(5, dtype=dtype, requires_grad=True)
    x = torch.randn(5, 6, dtype=dtype, requires_grad=True)
    y = F.spmm_coo(rows, cols, values, x, 4, 5)
    full = torch.zeros(4, 5).index_put((rows, cols), values.float(), accumulate=True)
    expected = full @ x.float()
    step = {torch.float32: 1e-6, torch.float16: 1e-3, torch.bfloat16: 8e-3}[dtype]
    torch.testing.assert_close(y.float(), expected, rtol=step, atol=step)
    factors = torch.randn(4, 6)
    got = torch.autograd.grad((y.float() * factors).sum(), (values, x))
    wanted = torch.autograd.grad((expected * factors).sum(), (values, x))
    torch.testing.assert_close(got, wanted, rtol=4 * step, atol=4 * step)
    args = ((4, 5), rows, cols, values.detach(), None, x.detach())
    torch.testing.assert_close(cpu.sparse_matmul(*args), dense.sparse_matmul(*args))
    torch.library.opcheck(ops.sparse_matmul, args)


def test_sparse_products_compile_whole():
    rows, cols, values, *size = F.sparse_coo_from_dense(torch.eye(8))
    compiled = torch.compile(lambda x: F.spmm_coo(rows, cols, values, x, *size), fullgraph=True)
    x = torch.randn(8, 3)
    assert torch.equal(compiled(x), x)
    rows[2] = 8
    with pytest.raises(ValueError, match="rows"):
        compiled(x)


def test_sparse_gradients_are_those_of_finite_differences():
    rows, cols = torch.tensor([0, 1, 1]), torch.tensor([2, 0, 2])
    x = torch.randn(3, 2, requires_grad=True)
    values = torch.randn(3, requires_grad=True)
    F.spmm_coo(rows, cols, values, x, 2, 3).square().sum().backward()
    by_x = numerical(lambda x: F.spmm_coo(rows, cols, values, x, 2, 3).square(), x, 0.25)
    by_v = numerical(lambda v: F.spmm_coo(rows, cols, v, x, 2, 3).square(), values, 0.25)
    torch.testing.assert_close(x.grad.double(), by_x, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(values.grad.double(), by_v, rtol=1e-4, atol=1e-4)


def test_sparse_matrices_in_8_bits():
    w = torch.randn(40, 30) * (torch.rand(40, 30) < 0.1)
    x = torch.randn(30, 17)
    rows, cols, values, m, n = F.sparse_coo_from_dense(w)
    q = F.quantize_sparse_coo(rows, cols, values)
    y = F.spmm_coo_int8(*q, x, m, n, torch.float32)
    torch.testing.assert_close(y, w @ x, rtol=0.1, atol=0.1)
    few = F.sparse_coo_from_dense(w, threshold=1.0)
    assert (few[2].abs() >= 1.0).all() and len(few[2]) == (w.abs() >= 1.0).sum()
    for bad in ((torch.tensor([-1]), torch.tensor([0])), (torch.tensor([0]), torch.tensor([30]))):
        with pytest.raises(ValueError, match="less than"):
            F.spmm_coo(*bad, torch.ones(1), x, m, n)
    with pytest.raises(ValueError, match="finite"):
        F.quantize_sparse_coo(rows[:1], cols[:1], torch.tensor([torch.inf]))
