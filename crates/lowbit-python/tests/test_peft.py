"""QLoRA: peft on our layers."""

import warnings

import peft
import pytest
import torch
import transformers
from torch import nn
from torch.utils.checkpoint import checkpoint

import lowbit
from fresh_process import FreshProcesses
from lowbit import eager
from lowbit.integrations.peft import Linear as LoraLinear
from lowbit.nn import Linear4bit, QuantizedLinear

fresh = pytest.fixture(scope="module")(lambda: FreshProcesses())

LORA = {"r": 4, "lora_alpha": 8, "target_modules": "all-linear"}
QUANT_TYPES = ["nf4", "fp4", "mxfp4", "int8", "fp8_e4m3"]


def tiny(dtype=torch.float32):
    config = transformers.LlamaConfig(
        vocab_size=128,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
    )
    return transformers.LlamaForCausalLM(config).to(dtype)


def dequantized(model):
    """The same model with dense layers of the weights that the quantized ones stand for."""
    for name, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            path, _, last = name.rpartition(".")
            setattr(model.get_submodule(path), last, module.to_linear())
    return model


def with_lora(model, **changes):
    torch.manual_seed(1)
    model = peft.get_peft_model(model, peft.LoraConfig(**LORA | changes))
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            nn.init.normal_(parameter, std=0.1)
    return model


def gradients(model, ids):
    model(input_ids=ids, labels=ids).loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
@pytest.mark.parametrize(
    ("dtype", "limit"), [(torch.float32, 1e-4), (torch.bfloat16, 0.05)], ids=["f32", "bf16"]
)
def test_lora_gradients_are_those_of_the_dequantized_model(quant_type, dtype, limit):
    ids = torch.randint(0, 128, (2, 24))
    torch.manual_seed(0)
    quantized = lowbit.quantize_model(tiny(dtype), quant_type=quant_type)
    torch.manual_seed(0)
    dense = dequantized(lowbit.quantize_model(tiny(dtype), quant_type=quant_type))
    ours, theirs = gradients(with_lora(quantized), ids), gradients(with_lora(dense), ids)
    assert ours.keys() == theirs.keys() and len(ours) == 28
    for name, expected in theirs.items():
        difference = (ours[name] - expected).norm() / expected.norm()
        assert difference < limit, (name, difference)


class Spy:
    """Counts what goes the short way."""

    def __init__(self, monkeypatch):
        self.taken = 0
        real = eager.linear_with_adapter

        def counted(*args):
            y = real(*args)
            self.taken += 1
            return y

        monkeypatch.setattr(eager, "linear_with_adapter", counted)


def both_ways(layer, x, monkeypatch):
    """Results and gradients of x, a and b by our forward and by peft's, with the same dropout."""
    found = []
    for forward in (LoraLinear.forward, peft.tuners.lora.Linear.forward):
        monkeypatch.setattr(LoraLinear, "forward", forward)
        torch.manual_seed(5)
        inner = x.detach().requires_grad_()
        y = layer(inner)
        y.backward(torch.linspace(-1, 1, y.numel(), dtype=y.dtype).view(y.shape))
        factors = [layer.lora_A["default"].weight, layer.lora_B["default"].weight]
        found.append([y.detach(), inner.grad, *(p.grad for p in factors)])
        for p in factors:
            p.grad = None
    return found


def one_layer(n=40, k=72, dtype=torch.float32, bias=True, **changes):
    """A layer with an adapter, and activations that are not contiguous."""
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(k, n, bias=bias, dtype=dtype).requires_grad_(False))
    model = with_lora(lowbit.quantize_model(inner, load_in_4bit=True), **changes)
    return model.base_model.model[0], torch.randn(3, k, 9).to(dtype).transpose(1, 2)


@pytest.mark.parametrize("changes", [{}, {"lora_dropout": 0.5}, {"r": 40}], ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("dtype", "limit"),
    [(torch.float32, 1e-5), (torch.bfloat16, 1e-2), (torch.float16, 2e-3)],
    ids=["f32", "bf16", "f16"],
)
def test_adapters_and_weights_at_once_give_what_peft_does(dtype, limit, bias, changes, monkeypatch):
    spy = Spy(monkeypatch)
    layer, x = one_layer(dtype=dtype, bias=bias, **changes)
    if changes.get("lora_dropout") and dtype != torch.float32:
        layer.eval()  # peft draws a mask for numbers of another type.
    ours, theirs = both_ways(layer, x, monkeypatch)
    assert spy.taken == 1
    for got, expected in zip(ours, theirs, strict=True):
        assert got.dtype == expected.dtype and got.shape == expected.shape
        assert (got - expected).norm() <= limit * expected.norm()


def test_what_others_take_part_in_is_left_to_peft(monkeypatch):
    spy = Spy(monkeypatch)
    layer, x = one_layer()
    expected = layer(x)
    assert spy.taken == 1

    with torch.autocast("cpu", torch.bfloat16):
        layer(x)
    seen = []
    handles = [
        module.register_forward_hook(lambda *_: seen.append(1))
        for module in (layer.base_layer, layer.lora_A["default"])
    ]
    torch.testing.assert_close(layer(x), expected)
    assert len(seen) == 2
    for handle in handles:
        handle.remove()
    with torch.profiler.profile():
        torch.testing.assert_close(layer(x), expected)
    layer.base_layer.bias.requires_grad_()
    layer(x).sum().backward()
    assert layer.base_layer.bias.grad is not None
    layer.base_layer.bias.requires_grad_(False)
    torch.testing.assert_close(torch.compile(layer, backend="eager", fullgraph=True)(x), expected)
    layer.add_adapter = None
    layer.set_adapter([])
    torch.testing.assert_close(layer(x), layer.base_layer(x))
    layer.set_adapter(["default"])
    layer.lora_B["default"].to(torch.bfloat16)
    with pytest.raises(RuntimeError, match="dtype"):
        layer(x)
    assert spy.taken == 1


def test_a_frozen_input_and_no_gradients_at_all(monkeypatch):
    spy = Spy(monkeypatch)
    layer, x = one_layer()
    y = layer(x)
    y.sum().backward()
    assert x.grad is None and layer.lora_A["default"].weight.grad is not None
    with torch.no_grad():
        assert torch.equal(layer(x), y) and not layer(x).requires_grad
    assert spy.taken == 3


def test_checkpointed_gradients_are_the_same(monkeypatch):
    spy = Spy(monkeypatch)
    layer, x = one_layer(dtype=torch.bfloat16)
    grads = []
    for call in (layer, lambda x: checkpoint(layer, x, use_reentrant=False)):
        inner = x.detach().requires_grad_()
        call(inner).float().square().mean().backward()
        grads.append((inner.grad, layer.lora_A["default"].weight.grad))
        layer.lora_A["default"].weight.grad = None
    assert all(torch.equal(*pair) for pair in zip(*grads, strict=True))
    assert spy.taken == 2  # Computing it again ends as soon as all is there that was kept.


@pytest.mark.parametrize("quant_type", QUANT_TYPES)
def test_peft_attaches_trains_merges_and_unmerges(quant_type):
    ids = torch.randint(0, 128, (2, 24))
    model = with_lora(lowbit.quantize_model(tiny(), quant_type=quant_type))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    assert type(layer) is LoraLinear
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(12):
        loss = model(input_ids=ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.2

    trained = model(ids).logits
    base = layer.get_base_layer()
    target = base.dequantize() + layer.get_delta_weight("default")
    with pytest.warns(UserWarning, match="rounds it"):
        merged = model.merge_and_unload(safe_merge=True)
    assert type(merged.model.layers[0].mlp.up_proj) is type(base)
    expected = QuantizedLinear(base.in_features, base.out_features, quant_type=quant_type)
    expected.requantize(target)
    assert torch.equal(merged.model.layers[0].mlp.up_proj.dequantize(), expected.dequantize())
    close = torch.cosine_similarity(merged(ids).logits.flatten(), trained.flatten(), dim=0)
    assert close > 0.97


def test_unmerging_gives_the_weight_back_but_for_rounding():
    model = with_lora(lowbit.quantize_model(tiny(), quant_type="fp8_e4m3"))
    layer = model.base_model.model.model.layers[0].mlp.up_proj
    before = layer.get_base_layer().dequantize()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model.merge_adapter()
    assert not torch.equal(layer.get_base_layer().dequantize(), before)
    model.unmerge_adapter()
    torch.testing.assert_close(layer.get_base_layer().dequantize(), before, rtol=0.1, atol=0.05)


def test_adapters_are_saved_and_loaded(tmp_path):
    ids = torch.arange(24)[None]
    torch.manual_seed(0)
    model = with_lora(lowbit.quantize_model(tiny(), load_in_4bit=True))
    expected = model(ids).logits
    model.save_pretrained(tmp_path)
    torch.manual_seed(0)
    base = lowbit.quantize_model(tiny(), load_in_4bit=True)
    loaded = peft.PeftModel.from_pretrained(base, tmp_path)
    assert torch.equal(loaded(ids).logits, expected)


@pytest.mark.parametrize("changes", [{"use_dora": True}, {"init_lora_weights": "pissa"}])
def test_adapters_that_read_the_weight(changes):
    ids = torch.arange(24)[None]
    model = lowbit.quantize_model(tiny(), load_in_4bit=True)
    plain = model(ids).logits
    model = peft.get_peft_model(model, peft.LoraConfig(**LORA | changes))
    logits = model(ids).logits
    logits.square().mean().backward()
    assert torch.cosine_similarity(logits.flatten(), plain.flatten(), dim=0) > 0.95


def test_dora_needs_four_bits():
    model = lowbit.quantize_model(tiny(), load_in_8bit=True)
    with pytest.raises(ValueError, match="use_dora"):
        peft.get_peft_model(model, peft.LoraConfig(**LORA, use_dora=True))


def test_preparing_for_training_leaves_codes_alone():
    config = lowbit.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_storage=torch.bfloat16)
    model = lowbit.quantize_model(tiny(torch.bfloat16), config)
    ids = torch.arange(24)[None]
    layer = model.model.layers[0].mlp.up_proj
    before = layer.dequantize()
    model.is_loaded_in_4bit = True
    model = peft.prepare_model_for_kbit_training(model)
    assert layer.weight.dtype == torch.bfloat16 and torch.equal(layer.dequantize(), before)
    model = with_lora(model)
    gradients(model, ids)
    counted = model.get_nb_trainable_parameters()[1]
    assert counted >= sum(p.numel() for p in tiny().parameters())


@pytest.mark.parametrize("first", ["peft", "lowbit"])
def test_the_order_of_imports_does_not_matter(fresh, first):
    second = {"peft": "lowbit", "lowbit": "peft"}[first]
    ended = fresh.run(f"""
import {first}
import {second}, torch
from lowbit import eager
from lowbit.integrations.peft import Linear
model = torch.nn.Sequential(lowbit.nn.Linear4bit(64, 64))
model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0"]))
assert type(model.base_model.model[0]) is Linear
""")
    assert ended.ok, ended.printed


def test_importing_lowbit_imports_none_of_the_large_libraries(fresh):
    large = "{'peft', 'transformers', 'bitsandbytes', 'accelerate'}"
    ended = fresh.run(f"import lowbit, sys; assert not {large} & set(sys.modules)")
    assert ended.ok, ended.printed


def test_layers_of_bitsandbytes_are_left_to_peft():
    model = nn.Sequential(nn.Linear(64, 64), Linear4bit(64, 64))
    model = peft.get_peft_model(model, peft.LoraConfig(target_modules=["0", "1"]))
    assert type(model.base_model.model[0]) is peft.tuners.lora.Linear
    assert type(model.base_model.model[1]) is LoraLinear
