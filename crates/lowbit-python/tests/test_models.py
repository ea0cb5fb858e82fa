"""Whole models, of torch and of transformers."""

import pytest
import torch
import transformers
from torch import nn

import lowbit
from lowbit.nn import Linear4bit, Linear8bit, QuantizedLinear


def tiny(**changes):
    config = {
        "vocab_size": 128,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
    }
    return transformers.LlamaForCausalLM(transformers.LlamaConfig(**config | changes))


@pytest.mark.parametrize("tied", [False, True])
def test_a_causal_lm_keeps_its_head(tied):
    model = tiny(tie_word_embeddings=tied)
    ids = torch.arange(12)[None]
    expected = model(ids).logits
    config = lowbit.BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_use_double_quant=True)
    quantized = lowbit.quantize_model(model, quantization_config=config)
    assert quantized is model
    assert type(model.lm_head) is nn.Linear
    report = model.quantization_report
    assert len(report.replaced) == 14 and set(report.replaced.values()) == {"nf4"}
    assert report.kept == {"lm_head": "the output layer"}
    assert all(
        type(model.get_submodule(name)) is Linear4bit
        and model.get_submodule(name).quant_state.nested
        for name in report.replaced
    )
    logits = model(ids).logits
    assert 0.9 < torch.cosine_similarity(logits.flatten(), expected.flatten(), dim=0) < 1.0
    assert model.generate(ids, max_new_tokens=3, do_sample=False).shape == (1, 15)


def test_what_is_to_be_left_alone_is():
    model = tiny()
    lowbit.quantize_model(
        model,
        load_in_8bit=True,
        modules_to_not_convert=["q_proj", "model.layers.0.mlp"],
        compute_dtype=torch.bfloat16,
    )
    kept = {name for name, why in model.quantization_report.kept.items() if "alone" in why}
    assert kept == {
        "model.layers.0.self_attn.q_proj",
        "model.layers.1.self_attn.q_proj",
        "model.layers.0.mlp.gate_proj",
        "model.layers.0.mlp.up_proj",
        "model.layers.0.mlp.down_proj",
    }
    layer = model.model.layers[1].mlp.up_proj
    assert type(layer) is Linear8bit and layer.compute_dtype == torch.bfloat16


def test_a_config_of_transformers_is_understood():
    theirs = transformers.BitsAndBytesConfig(
        load_in_4bit=True,
        bnb_4bit_quant_type="fp4",
        bnb_4bit_compute_dtype=torch.bfloat16,
        bnb_4bit_quant_storage=torch.float16,
        llm_int8_skip_modules=["down_proj"],
    )
    ours = lowbit.BitsAndBytesConfig.of(theirs)
    written, known = theirs.to_dict(), ours.to_dict()
    assert {key: written[key] for key in known if key in written} == {
        key: value for key, value in known.items() if key in written
    }
    assert transformers.BitsAndBytesConfig.from_dict(known).to_dict() == written
    model = lowbit.quantize_model(tiny(), theirs)
    layer = model.model.layers[0].mlp.up_proj
    assert layer.quant_type == "fp4" and layer.weight.dtype == torch.float16
    assert layer.compute_dtype == torch.bfloat16
    assert type(model.model.layers[0].mlp.down_proj) is nn.Linear


@pytest.mark.parametrize("quant_type", ["fp8_e4m3", "mxfp4", "int8", "nf4"])
def test_a_quantized_model_is_saved_and_loaded(quant_type, tmp_path):
    model = lowbit.quantize_model(tiny(), quant_type=quant_type)
    torch.save(model.state_dict(), tmp_path / "model.pt")
    other = lowbit.quantize_model(tiny(), quant_type=quant_type)
    other.load_state_dict(torch.load(tmp_path / "model.pt"))
    ids = torch.arange(12)[None]
    assert torch.equal(model(ids).logits, other(ids).logits)


def test_the_footprint_counts_scales():
    model = nn.Sequential(nn.Linear(1024, 1024, bias=False), nn.Linear(1024, 8))
    plain = lowbit.get_memory_footprint(model)
    assert plain["total_params"] == 1024 * 1024 + 8 * 1025 and plain["quantized_params"] == 0
    assert plain["actual_size_gb"] == 2 * plain["fp16_size_gb"]
    for double, bits in ((False, 4.5), (True, 4.0 + 8 / 64 + 32 / 64 / 256)):
        model[0] = Linear4bit(1024, 1024, bias=False, compress_statistics=double)
        found = lowbit.get_memory_footprint(model)
        expected = bits * 1024 * 1024 / 8 + 4 * double + 4 * 8 * 1025
        assert found["actual_size_gb"] * 2**30 == expected
        assert found["quantized_params"] == 1024 * 1024
        assert found["savings_gb"] == found["fp16_size_gb"] - found["actual_size_gb"]


def test_arguments_that_contradict_each_other_are_refused():
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64))
    config = lowbit.BitsAndBytesConfig(load_in_8bit=True)
    for arguments in (
        {},
        {"load_in_4bit": True, "load_in_8bit": True},
        {"quantization_config": config, "load_in_4bit": True},
        {"quant_type": "nf5"},
        {"load_in_4bit": True, "quant_type": "int8"},
        {"quantization_config": {"load_in_4bit": True, "bnb_4bit_compute_dtype": "float15"}},
    ):
        with pytest.raises(ValueError):
            lowbit.quantize_model(model, **arguments)
    for config in (4, {"load_in_4bit": True, "bnb_4bit_compute_dtype": "int8"}):
        with pytest.raises(TypeError):
            lowbit.quantize_model(model, quantization_config=config)
    assert not any(isinstance(m, QuantizedLinear) for m in model.modules())
