"""Layers: products, state dicts both ways, moving, copying, loading."""

import copy
import pickle

import bitsandbytes
import pytest
import torch
from safetensors.torch import load, save

import lowbit
from lowbit.nn import Linear4bit, Linear8bit, LinearFP8, QuantizedLinear

FORMATS = [name for name, f in lowbit.formats.ALL.items() if f.encoder and f.codebook[0] <= 0]
KINDS = [
    lambda **kw: Linear4bit(96, 24, **kw),
    lambda **kw: Linear4bit(96, 24, quant_type="fp4", block_size=32, **kw),
    lambda **kw: Linear4bit(96, 24, compress_statistics=True, **kw),
    lambda **kw: Linear4bit(96, 24, quant_storage=torch.bfloat16, **kw),
    lambda **kw: Linear4bit(96, 24, quant_type="mxfp4", **kw),
    lambda **kw: Linear8bit(96, 24, **kw),
    lambda **kw: LinearFP8(96, 24, **kw),
    lambda **kw: LinearFP8(96, 24, quant_storage=torch.float32, **kw),
]


def dense(layer):
    return layer.to_linear(torch.float32)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_computes_what_its_dequantized_one_does(kind):
    layer = kind()
    x = torch.randn(2, 5, 96)
    torch.testing.assert_close(layer(x), dense(layer)(x), rtol=1e-4, atol=1e-4)
    y = layer(x.bfloat16())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.float(), dense(layer)(x), rtol=2e-2, atol=2e-2)


@pytest.mark.parametrize("kind", KINDS)
def test_a_state_dict_goes_through_safetensors(kind):
    layer, other = kind(), kind()
    file = save(layer.state_dict())
    result = other.load_state_dict(load(file))
    assert not result.missing_keys and not result.unexpected_keys
    assert torch.equal(other.dequantize(), layer.dequantize())
    assert torch.equal(other.bias, layer.bias)
    assert other.weight.dtype == layer.weight.dtype and other.weight.shape == layer.weight.shape
    assert save(other.state_dict()) == file


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("assign", [False, True])
def test_a_layer_on_meta_is_filled_by_a_state_dict(kind, assign):
    layer, empty = kind(), kind(device="meta")
    assert empty.weight.is_meta and empty.quant_state.absmax.is_meta
    assert empty.weight.shape == layer.weight.shape
    if not assign:
        empty.bias = torch.nn.Parameter(torch.empty(24))
    empty.load_state_dict(layer.state_dict(), assign=assign)
    x = torch.randn(3, 96)
    assert torch.equal(empty(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_on_meta_can_be_made_empty_elsewhere(kind):
    layer = kind(device="meta").to_empty(device="cpu")
    assert layer.weight.device.type == layer.quant_state.absmax.device.type == "cpu"
    assert layer.weight.dtype == kind().weight.dtype
    layer.load_state_dict(kind().state_dict())


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_moves_as_a_whole_and_casts_only_its_bias(kind):
    layer = kind()
    codes, absmax = layer.weight.clone(), layer.quant_state.absmax.clone()
    for cast in (layer.half, layer.bfloat16, layer.double, lambda: layer.to(torch.float16)):
        cast()
        assert layer.weight.dtype == codes.dtype
        assert torch.equal(layer.weight.view(torch.uint8), codes.view(torch.uint8))
        assert layer.quant_state.absmax.dtype == absmax.dtype
        assert torch.equal(layer.quant_state.absmax, absmax)
    assert layer.bias.dtype == torch.float16
    moved = layer.to("meta")
    tensors = [moved.weight, moved.bias, moved.quant_state.absmax, moved.weight.quant_state.absmax]
    assert all(t.is_meta for t in tensors)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_are_copied_and_pickled(kind):
    layer = kind()
    x = torch.randn(3, 96)
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert torch.equal(other(x), layer(x))
        other.requantize(torch.zeros(24, 96))
        assert not torch.equal(other(x), layer(x))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_reach_input_and_bias_through_a_layer(kind):
    layer = kind(compute_dtype=torch.float32)
    reference = dense(layer)
    x = torch.randn(3, 96, requires_grad=True)
    y = torch.randn(3, 96, requires_grad=True)
    y.data.copy_(x.data)
    layer(x).square().sum().backward()
    got = layer.bias.grad.clone()
    layer.bias.grad = None
    reference(y).square().sum().backward()
    torch.testing.assert_close(x.grad, y.grad, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(got, reference.bias.grad, rtol=1e-4, atol=1e-4)
    assert layer.weight.grad is None


def test_compute_dtype_is_used_inside_only():
    layer = Linear4bit(64, 8, compute_dtype=torch.bfloat16)
    x = torch.randn(2, 64)
    assert layer(x).dtype == torch.float32
    assert torch.equal(layer(x), layer(x.bfloat16()).float())


@pytest.mark.parametrize("quant_type", ["nf4", "fp4"])
@pytest.mark.parametrize("nested", [False, True])
@pytest.mark.parametrize("storage", [torch.uint8, torch.bfloat16])
def test_four_bit_layers_are_those_of_bitsandbytes_both_ways(quant_type, nested, storage):
    options = {"compress_statistics": nested, "quant_type": quant_type, "quant_storage": storage}
    theirs = bitsandbytes.nn.Linear4bit(96, 24, **options).to("cpu")
    ours = Linear4bit(96, 24, **options)
    ours.load_state_dict(theirs.state_dict())
    expected = bitsandbytes.functional.dequantize_4bit(theirs.weight, theirs.weight.quant_state)
    assert torch.equal(ours.dequantize(), expected)

    written, read = theirs.state_dict(), ours.state_dict()
    assert written.keys() == read.keys()
    for key, tensor in written.items():
        assert torch.equal(tensor.view(torch.uint8), read[key].view(torch.uint8)), key
        assert tensor.dtype == read[key].dtype and tensor.shape == read[key].shape, key

    state = {k.removeprefix("weight."): v for k, v in ours.state_dict().items() if "." in k}
    weight = bitsandbytes.nn.Params4bit.from_prequantized(ours.weight.data, state, device="cpu")
    dequantized = bitsandbytes.functional.dequantize_4bit(weight, weight.quant_state)
    assert torch.equal(dequantized, expected)
    # Functions of theirs read our state as it is.
    direct = bitsandbytes.functional.dequantize_4bit(ours.weight.data, ours.weight.quant_state)
    assert torch.equal(direct, expected)


def test_int8_layers_are_those_of_bitsandbytes_both_ways():
    theirs = bitsandbytes.nn.Linear8bitLt(96, 24, has_fp16_weights=False)
    theirs.weight.data.normal_()
    theirs = theirs.to("cpu")
    theirs(torch.randn(2, 96))
    written = theirs.state_dict()
    ours = Linear8bit(96, 24)
    ours.load_state_dict(written)
    expected = written["weight"].float() * written["SCB"][:, None] / 127
    torch.testing.assert_close(ours.dequantize(torch.float32), expected)
    read = ours.state_dict()
    assert read.keys() == written.keys()
    for key, tensor in written.items():
        assert torch.equal(tensor.cpu(), read[key]) and tensor.dtype == read[key].dtype, key


@pytest.mark.parametrize("quant_type", FORMATS)
def test_an_unquantized_state_dict_is_quantized_on_loading(quant_type):
    linear = torch.nn.Linear(96, 24)
    layer = QuantizedLinear(96, 24, quant_type=quant_type)
    layer.load_state_dict(linear.state_dict())
    expected = QuantizedLinear.from_linear(linear, quant_type=quant_type)
    assert torch.equal(layer.dequantize(), expected.dequantize())


def test_state_dicts_that_do_not_fit_are_refused():
    layer = Linear4bit(96, 24)
    good = layer.state_dict()
    bad = {
        "truncated": good | {"weight": good["weight"][:-1]},
        "shape": Linear4bit(24, 96).state_dict(),
        "scales": good | {"weight.absmax": good["weight.absmax"][1:]},
        "json": good | {"weight.quant_state.bitsandbytes__nf4": torch.zeros(3, dtype=torch.uint8)},
        "other format": Linear4bit(96, 24, quant_type="fp4").state_dict(),
        "other layer": Linear8bit(96, 24).state_dict(),
        "no state": {"weight": good["weight"], "bias": good["bias"]},
    }
    before = layer.dequantize()
    for what, state in bad.items():
        with pytest.raises(RuntimeError, match="weight"):
            layer.load_state_dict(state)
        assert torch.equal(layer.dequantize(), before), what
    with pytest.raises(RuntimeError, match=r"Missing.*weight"):
        layer.load_state_dict({"bias": good["bias"]})
    with pytest.raises(RuntimeError, match=r"Unexpected.*other"):
        layer.load_state_dict(good | {"other": torch.zeros(1)})


@pytest.mark.parametrize(
    "name",
    [
        *("Linear4bit", "Linear8bit", "LinearFP8", "Linear8bitLt", "OutlierAwareLinear"),
        *("SwitchBackLinear", "EmbeddingNF4", "Embedding8bit"),
    ],
)
def test_every_module_is_exported(name):
    module = getattr(lowbit.nn, name)(64, 64).eval()
    x = torch.tensor([1, 2]) if name.startswith("Embedding") else torch.randn(2, 64)
    exported = torch.export.export(module, (x,)).module()
    torch.testing.assert_close(exported(x), module(x))


def test_a_quantized_weight_is_never_trained():
    layer = Linear4bit(64, 8)
    with pytest.raises(ValueError, match="requires_grad"):
        type(layer.weight)(layer.weight.data, requires_grad=True)


@pytest.mark.parametrize("kind", KINDS)
def test_layers_compile_whole(kind):
    layer = kind()
    x = torch.randn(3, 96, requires_grad=True)
    compiled = torch.compile(layer, fullgraph=True)
    (expected,) = torch.autograd.grad(layer(x).square().sum(), x)
    (got,) = torch.autograd.grad(compiled(x).square().sum(), x)
    torch.testing.assert_close(got, expected)
