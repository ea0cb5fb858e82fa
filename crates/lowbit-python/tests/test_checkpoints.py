"""Checkpoints that transformers and bitsandbytes wrote on CUDA, in our layers and back."""

import json
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file

import lowbit
from lowbit.nn import QuantizedLinear

CHECKPOINTS = Path(__file__).parents[3] / "golden" / "checkpoints"
QUANTIZED = ["tiny-nf4", "tiny-nf4-dq", "tiny-fp4", "tiny-int8"]


def empty_model(name):
    """The model of a checkpoint, on meta, with our layers where that has quantized ones."""
    config = json.loads((CHECKPOINTS / name / "config.json").read_text())
    quantization = config.pop("quantization_config", None)
    with torch.device("meta"):
        model = transformers.LlamaForCausalLM(transformers.LlamaConfig(**config)).bfloat16()
    # Rotary tables are no part of a checkpoint.
    model.model.rotary_emb = type(model.model.rotary_emb)(model.config)
    return lowbit.quantize_model(model, quantization) if quantization else model


def loaded(name):
    model = empty_model(name)
    state = load_file(CHECKPOINTS / name / "model.safetensors")
    result = model.load_state_dict(state, assign=True, strict=True)
    assert not result.missing_keys and not result.unexpected_keys
    return model, state


@pytest.mark.parametrize("name", QUANTIZED)
def test_a_checkpoint_fills_a_model_on_meta_and_comes_back(name):
    model, state = loaded(name)
    written = model.state_dict()
    assert written.keys() == state.keys()
    for key, tensor in state.items():
        ours = written[key]
        assert ours.dtype == tensor.dtype and ours.shape == tensor.shape, key
        if "quant_state" in key:
            assert bytes(ours.tolist()) == bytes(tensor.tolist()), key
        else:
            assert torch.equal(ours, tensor), key


@pytest.mark.parametrize("name", QUANTIZED)
def test_our_layers_have_the_logits_of_transformers_dense_ones(name):
    model, _ = loaded(name)
    ids = torch.arange(24)[None] * 7 % 512
    logits = model(ids).logits.float()
    for path, module in list(model.named_modules()):
        if isinstance(module, QuantizedLinear):
            parent, _, last = path.rpartition(".")
            setattr(model.get_submodule(parent), last, module.to_linear())
    dense = model.float()(ids).logits
    assert (logits - dense).abs().max() < 0.03 * dense.abs().max()
    original, _ = loaded("tiny-bf16")
    close = torch.cosine_similarity(original(ids).logits.flatten(), logits.flatten(), dim=0)
    assert close > 0.95


@pytest.mark.parametrize("name", QUANTIZED)
def test_quantizing_the_original_gives_the_checkpoint(name):
    original, _ = loaded("tiny-bf16")
    config = json.loads((CHECKPOINTS / name / "config.json").read_text())
    ours = lowbit.quantize_model(original, config["quantization_config"])
    theirs, _ = loaded(name)
    for path in ours.quantization_report.replaced:
        mine, other = ours.get_submodule(path), theirs.get_submodule(path)
        mine, other = mine.dequantize(torch.float32), other.dequantize(torch.float32)
        # Now and then a weight or a scale is an ulp away from where it rounds the other way.
        assert (mine - other).norm() < 0.02 * other.norm(), path
        assert (mine != other).float().mean() < (1.0 if name.endswith("dq") else 2e-3), path
